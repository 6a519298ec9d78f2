"""Induction: a segment that was seen once among noise begins again, and the model must continue it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .answers import Prompts
from .base import MIN_TEMPLATES, Task, distinct, draw_in_split
from .config import TaskConfig

LONGEST = 8
"""Tokens of the longest segment."""


class Induction(Task):
    """Tokens: symbols 0 … K-1. Template: the ordered symbols of the segment.

    ``. . . a b c d . . . . a b c →`` for a segment of four: after each of the last three tokens the answer is what
    followed it the first time. The segment's place is random, so no fixed distance helps; its symbols are all
    different and nowhere in the noise, so no answer is ambiguous. The twin has the segment ``a d b c``.
    """

    name = "induction"
    has_twins = True
    order_matters = True

    def __init__(self, config: TaskConfig) -> None:
        self.symbols, self.length = config.keys, config.length
        self.segment = max(3, min(self.symbols // 2, self.length // 4, LONGEST))
        if self.symbols < 2 * self.segment or math.perm(self.symbols, self.segment) < MIN_TEMPLATES:
            raise self.refuse(f"{self.symbols} symbols are too few to hold some segments out", "set at least 6 keys")
        if self.length < 2 * self.segment + 2:
            raise self.refuse(f"a prompt of {self.length} tokens has no room for noise", "set a length of at least 8")
        self.vocab_size = self.symbols
        self.description = (
            f"Induction: {self.length} tokens of {self.symbols} symbols in which a segment of {self.segment} "
            "begins again at the end, to be continued as it went on before"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        segment, template = draw_in_split(
            lambda n: distinct(n, self.segment, self.symbols, random), count, split
        )  # [n, S]
        twin = torch.cat([segment[:, :1], segment[:, 1:].roll(1, 1)], 1)
        rank = torch.rand(count, self.symbols, generator=random).scatter_(1, segment, -1.0)
        others = rank.argsort(1)[:, self.segment :]  # [n, K - S] the symbols that are not in the segment
        chosen = torch.randint(self.symbols - self.segment, (count, self.length), generator=random)
        noise = others.gather(1, chosen)  # [n, L]
        start = torch.randint(self.length - 2 * self.segment + 2, (count, 1), generator=random)
        positions = torch.arange(self.length - self.segment + 1, self.length).expand(count, -1)
        tokens, twins = (self.layout(noise, part, start) for part in (segment, twin))
        return Prompts(tokens, positions, segment[:, 1:], twins, twin[:, 1:], template)

    def layout(self, noise: Tensor, segment: Tensor, start: Tensor) -> Tensor:
        """noise [n, L] with the segment [n, S] written at ``start`` [n, 1], and all but its last token at the end."""
        tokens = noise.scatter(1, start + torch.arange(self.segment), segment)
        tokens[:, self.length - self.segment + 1 :] = segment[:, :-1]
        return tokens

    def decode(self, token: int) -> str:
        return f"s{token}"
