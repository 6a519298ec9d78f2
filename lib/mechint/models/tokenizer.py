"""The tokenizer beside a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MechintError
from .gguf_file import gguf_tokenizer


def read_tokenizer(checkpoint: Path, vocab_size: int | None = None) -> Any:
    """The ``tokenizers.Tokenizer`` of ``tokenizer.json``, without padding and truncation; None where there is none.

    Args:
        checkpoint: The model's directory, or its file: a GGUF file brings a tokenizer along, which serves where none
            lies beside it.

    Raises:
        MechintError: the file can't be read, or it has ids that the model has no embedding for.
    """
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises this very class
            raise MechintError(
                f"{path} is not a tokenizer ({error}); fetch it again, or remove it to go without"
            ) from None
    elif checkpoint.suffix == ".gguf":
        path, tokenizer = checkpoint, gguf_tokenizer(checkpoint)
    else:
        return None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if vocab_size is not None and last >= vocab_size:
        raise MechintError(
            f"{path} has token ids up to {last}, but the model's vocabulary is {vocab_size}: another model's tokenizer?"
        )
    return tokenizer
