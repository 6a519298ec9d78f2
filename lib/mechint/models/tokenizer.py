"""The tokenizer beside a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MechintError


def read_tokenizer(directory: Path, vocab_size: int | None = None) -> Any:
    """The ``tokenizers.Tokenizer`` of ``tokenizer.json``, without padding and truncation; None where there is none.

    Raises:
        MechintError: the file can't be read, or it has ids that the model has no embedding for.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise MechintError(f"{path} is not a tokenizer ({error}); fetch it again, or remove it to go without") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if vocab_size is not None and last >= vocab_size:
        raise MechintError(
            f"{path} has token ids up to {last}, but the model's vocabulary is {vocab_size}: another model's tokenizer?"
        )
    return tokenizer
