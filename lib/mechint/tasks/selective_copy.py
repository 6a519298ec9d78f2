"""Selective copying (Gu & Dao 2023): a few tokens among noise, to be repeated in their order."""

from __future__ import annotations

import torch
from torch import Tensor

from .answers import Prompts
from .base import MIN_TEMPLATES, Task, distinct, draw_in_split, other
from .config import TaskConfig


class SelectiveCopy(Task):
    """Tokens: values 0 … V-1, noise V, the marker V+1. Template: the ordered tokens to carry.

    ``. 3 . . 7 . 1 | > > >`` for three tokens: the logits at the markers say 3, 7, 1. The twin carries other tokens
    at the same places.
    """

    name = "selective_copy"
    has_twins = True
    order_matters = True

    def __init__(self, config: TaskConfig) -> None:
        self.carried, self.values, self.length = config.pairs, config.values, config.length
        self.area = self.length - self.carried
        if self.area <= self.carried:
            raise self.refuse(
                f"a prompt of {self.length} tokens has no room for noise beside {self.carried} tokens and markers",
                f"set a length of more than {2 * self.carried}, or fewer pairs",
            )
        if self.values**self.carried < MIN_TEMPLATES:
            raise self.refuse(
                f"{self.carried} tokens of {self.values} values make only {self.values**self.carried} sequences, "
                f"too few to hold some out ({MIN_TEMPLATES} needed)",
                "raise the values or the pairs",
            )
        self.noise, self.marker = self.values, self.values + 1
        self.vocab_size = self.values + 2
        self.description = (
            f"Selective copy: {self.carried} of {self.values} values among noise in {self.area} tokens, "
            "to be given in their order at the markers that follow"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        answers, template = draw_in_split(
            lambda n: torch.randint(self.values, (n, self.carried), generator=random), count, split
        )  # [n, P]
        wrong = other(answers, self.values, random)
        places = distinct(count, self.carried, self.area, random).sort(1).values
        positions = torch.arange(self.area, self.length).expand(count, -1)
        tokens, twins = (self.layout(carried, places) for carried in (answers, wrong))
        return Prompts(tokens, positions, answers, twins, wrong, template)

    def layout(self, carried: Tensor, places: Tensor) -> Tensor:
        """The carried tokens at their places among noise, then the markers; [n, P] each -> [n, L]."""
        tokens = torch.full((len(carried), self.length), self.noise)
        tokens[:, self.area :] = self.marker
        return tokens.scatter_(1, places, carried)

    def decode(self, token: int) -> str:
        return {self.noise: "noise", self.marker: "out"}.get(token, f"v{token}")
