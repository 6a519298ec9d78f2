"""Tokenizers: the one beside a model, one that is named, and what a tokenizer says about its own tokens.

Everything that turns text into token ids goes through here: :class:`Encoder` for prompts and answers,
:func:`special_ids` for tokens that stand for no text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...utils import files
from ...utils.errors import MechintError, short
from ...utils.options import named
from .gguf import gguf_tokenizer

FILE = "tokenizer.json"
VOCABULARIES = ("vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
"""Vocabularies of tokenizers that were saved without a tokenizer.json; transformers knows how to read them."""
BESIDE = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
"""Files that transformers reads beside a vocabulary."""
LIMIT = 1 << 28
"""Bytes of the largest tokenizer that is read."""


def lacking() -> str:
    """Advice for text without a tokenizer."""
    return (
        "put its tokenizer.json (or vocab.json with merges.txt) beside the model, or name it in "
        f"{named('task', 'tokenizer')}"
    )


BYTES, N_BYTES = "bytes", 256
"""The option ``tokenizer`` that says that tokens are bytes, and the vocabulary that says so by itself."""


def check_bytes(vocab_size: int | None) -> None:
    """Refuses to take bytes for token ids of a model that has no tokenizer, unless it has just as many tokens.

    Raises:
        MechintError: the model's vocabulary is known and not 256.
    """
    if vocab_size not in (None, N_BYTES):
        raise MechintError(
            f"text: the model has {vocab_size} tokens and no tokenizer to read text with; {lacking()}; {BYTES!r} there "
            f"says that its tokens are bytes"
        )


def read_tokenizer(checkpoint: Path, vocab_size: int | None = None) -> Any:
    """The ``tokenizers.Tokenizer`` beside a model, without padding and truncation; None where there is none.

    That of ``tokenizer.json``; without one, what transformers makes of ``vocab.json`` and ``merges.txt`` or of another
    of :data:`VOCABULARIES`.

    Args:
        checkpoint: The model's directory, or its file: a GGUF file brings a tokenizer along, which serves where none
            lies beside it.

    Raises:
        MechintError: the files can't be read, or have ids that the model has no embedding for.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    slow = next((folder / name for name in VOCABULARIES if (folder / name).exists()), None)
    path = folder / FILE
    if path.exists():
        tokenizer = read_file(path)
    elif checkpoint.suffix == ".gguf":
        path, tokenizer = checkpoint, gguf_tokenizer(checkpoint)
    elif slow is not None:
        path, tokenizer = slow, read_slow(slow)
    else:
        return None
    return checked(tokenizer, path, vocab_size)


def named_tokenizer(name: str, vocab_size: int | None = None) -> Any:
    """The tokenizer of the option ``tokenizer``: a file as ``tokenizers`` saves it, whatever its name, or a directory.

    Raises:
        MechintError: there is no such file, it is no tokenizer, or it has ids that the model has no embedding for.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        return checked(read_file(path), path, vocab_size)
    tokenizer = read_tokenizer(path, vocab_size)
    if tokenizer is None:
        raise MechintError(f"tokenizer {short(name)}: the directory has no {FILE}; name the file, or its directory")
    return tokenizer


def read_file(path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` that a file holds."""
    from tokenizers import Tokenizer

    data = files.read_regular(path, LIMIT, "tokenizer")
    try:
        return Tokenizer.from_str(data.decode("utf-8"))
    except files.NO_FAULT_OF_A_FILE:
        raise
    except BaseException as error:  # tokenizers raises Exception, or panics, which is none
        raise MechintError(
            f"{short(path)} is not a tokenizer ({short(error)}); fetch it again, or remove it to go without"
        ) from None


def read_slow(path: Path) -> Any:
    """Has transformers build the tokenizer of a directory that has a vocabulary and no tokenizer.json."""
    for file in path.parent.iterdir():
        if file.suffix in (".json", ".txt", ".model") and not file.is_file():
            raise MechintError(f"{short(file)} is no regular file; remove it, or put a {FILE} beside the model")
    try:
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(str(path.parent), local_files_only=True, trust_remote_code=False)
        return made.backend_tokenizer
    except Exception as error:  # transformers raises another type for every way in which a file can be broken
        reason = (str(error).strip().splitlines() or [""])[0]
        raise MechintError(
            f"{short(path)} has no {FILE} beside it, and transformers can't make a tokenizer of it "
            f"({type(error).__name__}: {short(reason, 120)}); put a {FILE} there, or remove it to go without"
        ) from None


def checked(tokenizer: Any, path: Path, vocab_size: int | None) -> Any:
    """The tokenizer without padding and truncation; refused where the model has no embedding for one of its ids."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    last = size_of(tokenizer) - 1
    if vocab_size is not None and last >= vocab_size:
        raise MechintError(
            f"{short(path)} has token ids up to {last}, but the model's vocabulary is {vocab_size}: another model's "
            f"tokenizer? Take the one that the model was trained with"
        )
    return tokenizer


def size_of(tokenizer: Any) -> int:
    """One more than the largest id."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def digest_of(tokenizer: Any) -> str:
    """A hash of all that a tokenizer does, the same whatever its file is called; empty without one."""
    return "" if tokenizer is None else hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def special_ids(tokenizer: Any) -> dict[int, str]:
    """The tokens that stand for no text, id -> name, by the tokenizer's own flags; none without a tokenizer."""
    if tokenizer is None:
        return {}
    return {int(i): token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt, and the characters [start, end) that each stands for; (0, 0) for those put in front."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class Encoder:
    """Text as a model's tokenizer reads it.

    Attributes:
        tokenizer: A ``tokenizers.Tokenizer``.
        bos: True if a prompt begins with what the tokenizer's template puts in front of a text, as transformers has it.
            The tokens that it puts behind a text are never added, since the model continues the prompt.
    """

    tokenizer: Any
    bos: bool = True

    @cached_property
    def template(self) -> list[int]:
        """The tokens that the tokenizer's template puts in front of a text, BOS most often."""
        made = self.tokenizer.encode("a", add_special_tokens=True)
        own = [k for k, sequence in enumerate(made.sequence_ids) if sequence is not None]
        return [int(token) for token in made.ids[: own[0] if own else 0]]

    @cached_property
    def front(self) -> list[int]:
        """The tokens that a prompt begins with."""
        return self.template if self.bos else []

    @property
    def said(self) -> str:
        """The words of reports about the beginning of a prompt; empty if the template puts nothing there."""
        names = " ".join(str(self.tokenizer.id_to_token(token)) for token in self.template)
        if not names:
            return ""
        return f"; every prompt begins with {names}" if self.bos else f"; without the tokenizer's {names} in front"

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, with nothing in front and nothing behind."""
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False).ids]

    def prompt(self, text: str) -> Encoded:
        """A prompt with what goes in front of it."""
        made = self.tokenizer.encode(text, add_special_tokens=False)
        front = self.front
        return Encoded([*front, *map(int, made.ids)], [(0, 0)] * len(front) + list(made.offsets))

    def behind(self, context: str, text: str) -> list[int] | None:
        """The tokens of a text as it follows another; None where it changes those of the other."""
        before, whole = self.ids(context), self.ids(context + text)
        return whole[len(before) :] if whole[: len(before)] == before else None

    def decode(self, token: int) -> str:
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def continuation(self, prompt: str, token: int) -> str | None:
        """The text that a token adds to a prompt; None where that is no text that gives the token back."""
        before, whole = (
            str(self.tokenizer.decode(ids, skip_special_tokens=False))
            for ids in (self.ids(prompt), [*self.ids(prompt), token])
        )
        text = whole[len(before) :]
        return text if whole.startswith(before) and text and self.behind(prompt, text) == [token] else None
