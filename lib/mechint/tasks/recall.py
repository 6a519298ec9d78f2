"""Multi-query associative recall (Arora et al. 2023): pairs ``k v``, then keys of these pairs again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .answers import Prompts
from .base import MIN_TEMPLATES, distinct, draw_in_split, other
from .config import TaskConfig
from .looked_up import LookedUp


class Recall(LookedUp):
    """Tokens: keys 0 … K-1, values K … K+V-1. Template: the ordered keys of the pairs.

    ``k3 v1 k0 v7 k0 v7 k3 →`` for two pairs: after each queried key its value is the answer, and it follows,
    but for the last one. The twin has the same keys and other values. Keys are queried at random, so some more than
    once and some never: were each queried once, guessing among the values not given yet would be a shortcut (right
    for 57 % of the answers with four pairs of 16 values, and training then sits there for hundreds of steps).
    """

    name = "recall"
    has_twins = True
    order_matters = True
    alike = ("before", "query")

    def __init__(self, config: TaskConfig) -> None:
        self.pairs, self.keys, self.values = config.pairs, config.keys, config.values
        if self.pairs > self.keys:
            raise self.refuse(f"{self.pairs} pairs need as many keys, there are {self.keys}", "raise the keys")
        if math.perm(self.keys, self.pairs) < MIN_TEMPLATES:
            raise self.refuse(
                f"{self.pairs} of {self.keys} keys can be ordered in only {math.perm(self.keys, self.pairs)} ways, "
                f"too few to hold some out ({MIN_TEMPLATES} needed)",
                "raise the keys or the pairs",
            )
        self.vocab_size = self.keys + self.values
        self.sayable = range(self.keys, self.vocab_size)
        self.length = 4 * self.pairs - 1
        self.description = (
            f"Multi-query associative recall: {self.pairs} pairs of {self.keys} keys and {self.values} values, "
            f"then {self.pairs} random keys of these again, each to be followed by its value"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        keys, template = draw_in_split(lambda n: distinct(n, self.pairs, self.keys, random), count, split)  # [n, P]
        values = torch.randint(self.values, keys.shape, generator=random)
        twin_values = other(values, self.values, random)
        order = torch.randint(self.pairs, (count, self.pairs), generator=random)
        answers, wrong = (self.keys + v.gather(1, order) for v in (values, twin_values))
        positions = torch.arange(2 * self.pairs, self.length, 2).expand(count, -1)
        tokens, twins = (self.layout(keys, v, order) for v in (values, twin_values))
        return Prompts(tokens, positions, answers, twins, wrong, template)

    def exchanged(self, prompts: Prompts, random: torch.Generator) -> Prompts:
        """The same keys in another order, with other values, asked in another order."""
        order = torch.rand(len(prompts), self.pairs, generator=random).argsort(1)
        keys = prompts.tokens[:, 0 : 2 * self.pairs : 2].gather(1, order)
        values = torch.randint(self.values, keys.shape, generator=random)
        asked = torch.randint(self.pairs, keys.shape, generator=random)
        answers = self.keys + values.gather(1, asked)
        return Prompts(self.layout(keys, values, asked), prompts.positions, answers, None, None, prompts.template)

    def layout(self, keys: Tensor, values: Tensor, order: Tensor) -> Tensor:
        """Pairs, then the queries that ``order`` says and their answers; all [n, P] -> [n, 4P - 1]."""
        pairs = torch.stack([keys, self.keys + values], 2)  # [n, P, 2]
        queries = pairs.gather(1, order.unsqueeze(2).expand(-1, -1, 2))
        return torch.cat([pairs, queries], 1).flatten(1)[:, :-1]

    def roles(self, prompts: Prompts) -> tuple[tuple[str, ...], Tensor]:
        """Seen from the last query: the pair that it asks for, the other pairs, and what was asked before."""
        tokens, pairs = prompts.tokens, 2 * self.pairs
        role = torch.full_like(tokens, 4)
        asked = tokens[:, 0:pairs:2] == tokens[:, -1:]  # [n, P]
        role[:, 0:pairs:2], role[:, 1:pairs:2] = 2 - 2 * asked.long(), 3 - 2 * asked.long()
        role[:, -1] = 5
        names = ("key asked for", "its value", "other keys", "other values", "earlier queries", "query")
        return names, role

    def labels(self, prompts: Prompts) -> dict[str, Tensor]:
        """The answer, the key that is asked for, and which of the pairs has it."""
        query = prompts.tokens[:, -1]
        place = (prompts.tokens[:, 0 : 2 * self.pairs : 2] == query[:, None]).int().argmax(1)
        return {**super().labels(prompts), "key": query, "place": place}

    def decode(self, token: int) -> str:
        return f"k{token}" if token < self.keys else f"v{token - self.keys}"
