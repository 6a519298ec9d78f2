"""Files of tokens: nanoGPT's, which are nothing but tokens, and llm.c's, which begin with a header."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...utils import files
from ...utils.errors import MechintError, short
from ...utils.progress import Progress

HEADER = 1024
"""Bytes of llm.c's header: 256 little-endian int32, of which the first are a magic number, a version and a count."""
LLM_C = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""(magic number, version) of llm.c's and modded-nanogpt's files -> their tokens."""
MAGIC = {magic for magic, _ in LLM_C}
OTHERS = {b"\x93NUMPY": "a NumPy array", b"PK\x03\x04": "a zip archive, such as torch.save writes", b"\x1f\x8b": "gzip"}
"""First bytes of files of other programs."""
WIDE = 1 << 16
"""A vocabulary above this needs tokens of 32 bits."""


@dataclass(frozen=True)
class Stored:
    """Tokens that stay on disk.

    Attributes:
        tokens: Memory-mapped, [tokens].
        largest: The largest of them.
        fingerprint: Hash of the file.
        kind: The declared kind of the file.
    """

    tokens: Any
    largest: int
    fingerprint: str
    kind: str


def read_tokens(path: Path, vocab_size: int | None = None) -> Stored:
    """Tokens as nanoGPT's prepare.py stores them, one after another and little-endian, or after llm.c's header.

    They are uint16, or uint32 where the vocabulary has more than 65,536 tokens; llm.c's header says which. A
    ``meta.pkl`` beside them, which holds a vocabulary of characters, is not read: a pickle can run any code.

    Args:
        path: The file.
        vocab_size: Vocabulary of the tokenizer or the model, None if neither is known.

    Raises:
        MechintError: there is no such file, it does not hold whole tokens, or it is another program's.
    """
    where = f"text {short(str(path))}"
    size = files.check_regular(path, None, "text", "a .bin holds tokens as nanoGPT writes them (train.bin, val.bin)")
    with open(path, "rb") as file:
        head = file.read(12)
    for begin, what in OTHERS.items():
        if head.startswith(begin):
            raise MechintError(f"{where} is {what}, not plain tokens; write them as nanoGPT's prepare.py does")
    magic, version, count = (int(number) for number in np.frombuffer(head.ljust(12, b"\0"), "<i4"))
    offset, dtype = 0, "<u4" if vocab_size is not None and vocab_size > WIDE else "<u2"
    kind = f"uint{8 * np.dtype(dtype).itemsize} tokens"
    if magic in MAGIC:
        if (magic, version) not in LLM_C:
            raise MechintError(f"{where} has llm.c's header (magic {magic}) of version {version}, which is not known")
        offset, dtype = HEADER, LLM_C[magic, version]
        kind = f"uint{8 * np.dtype(dtype).itemsize} tokens after llm.c's header (magic {magic})"
        if size != HEADER + count * np.dtype(dtype).itemsize:
            raise MechintError(f"{where} has llm.c's header (magic {magic}) of {count} tokens, and {size} bytes: cut?")
    width = np.dtype(dtype).itemsize
    if size <= offset or (size - offset) % width:
        raise MechintError(
            f"{where}: {size - offset} bytes are not uint{8 * width} tokens; write it again with nanoGPT's prepare.py"
        )
    tokens = np.memmap(path, dtype=dtype, mode="r", offset=offset)
    if not offset and width == 2 and looks_wide(tokens):
        raise MechintError(
            f"{where}: every second uint16 is 0, so these are tokens of 32 bits; they are read so where the tokenizer "
            f"or the model has more than {WIDE} tokens; write them as uint16"
        )
    digest, largest, step = hashlib.sha256(head if offset else b""), 0, 1 << 24
    with Progress(f"reading {path.name}", -(-len(tokens) // step)) as progress:
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            digest.update(part.data)
            largest = max(largest, int(part.max()))
            progress.step()
    return Stored(tokens, largest, digest.hexdigest(), kind)


def looks_wide(tokens: Any) -> bool:
    """True if uint16 tokens are the halves of uint32 ones below 65,536."""
    some = tokens[: 1 << 16]
    return len(some) >= 64 and len(tokens) % 2 == 0 and not some[1::2].any() and bool(some[::2].any())
