"""A user's own texts as a task: a window of tokens asks for the next one, and its twin is another window."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.loading.tokenizer import Encoder, digest_of
from .answers import Prompts, begun
from .base import Task, in_split, row_hash
from .text import tokenise

LEAST = 8
"""Different windows of a split below which nothing can be told."""


class Windows(Task):
    """Template: the window itself, so that no split shares one. The twin is a window with another next token.

    Args:
        texts: Any number; equal ones count once.
        length: Tokens of a window, with what the tokenizer puts in front of a text.
        tokenizer: The model's; without one a token is a byte.
        bos: True if a window begins with what the tokenizer puts in front of a text.
    """

    name = "texts"
    has_twins = True
    aligned = False

    def __init__(self, texts: Sequence[str], length: int, tokenizer: Any = None, bos: bool = True) -> None:
        self.length, self.tokenizer = length, tokenizer
        encoder = None if tokenizer is None else Encoder(tokenizer, bos)
        self.front = () if encoder is None else encoder.front
        length -= len(self.front)
        different = list(dict.fromkeys(texts))
        if not different:
            raise self.refuse("there are no texts", "give some")
        rows = [tokenise(text, tokenizer) for text in different]
        windows = [row.unfold(0, length + 1, 1) for row in rows if len(row) > length > 0]
        if not windows:
            raise self.refuse(f"no text has more than {max(length, 0)} tokens", "give longer ones or a shorter length")
        self.windows = torch.unique(torch.cat(windows), dim=0)  # [n, L + 1]
        self.template = row_hash(self.windows)
        self.vocab_size = max(int(self.windows.max()), *self.front, 0) + 1
        self.fingerprint = hashlib.sha256("\0".join([*different, digest_of(tokenizer)]).encode()).hexdigest()
        self.description = (
            f"Texts: the token after {length} others, in {len(self.windows)} different windows of {len(different)} "
            f"different texts{'' if encoder is None else encoder.said}"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        mine = self.windows[in_split(self.template, split)]
        if len(mine) < LEAST or len(torch.unique(mine[:, -1])) < 2:
            raise self.refuse(
                f"the {split} split has {len(mine)} different windows with {len(torch.unique(mine[:, -1]))} different "
                f"next tokens; {LEAST} and 2 are needed, which takes about {8 * LEAST} windows in all",
                "give more texts, or longer ones",
            )
        chosen = torch.randint(len(mine), (count,), generator=random)
        window = mine[chosen]
        twin = self.others(mine, window, random)
        positions = torch.full((count, 1), window.shape[1] - 2)
        template = row_hash(window)
        made = Prompts(window[:, :-1], positions, window[:, -1:], twin[:, :-1], twin[:, -1:], template)
        return begun(made, self.front)

    def others(self, mine: Tensor, window: Tensor, random: torch.Generator) -> Tensor:
        """For each window a random one of the same split with another next token."""
        allowed = (mine[:, -1][None] != window[:, -1:]).double()  # [n, windows]
        return mine[torch.multinomial(allowed, 1, generator=random)[:, 0]]

    def decode(self, token: int) -> str:
        return Encoder(self.tokenizer).decode(token) if self.tokenizer is not None else repr(chr(token))
