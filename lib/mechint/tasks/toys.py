"""Toy tasks for controlled experiments: counters, bracket matching, and a copy from far back; each with labels."""

from __future__ import annotations

import torch
from torch import Tensor

from .answers import Prompts
from .base import MIN_TEMPLATES, Task, draw_in_split, other
from .config import TaskConfig


class Counters(Task):
    """``tick . tick . . ? →`` n2: how many ticks there were, modulo the number of counts.

    Tokens: tick 0, noise 1, query 2, counts 3 … C+2. Template: the places of the ticks. The twin has its first token
    flipped, which changes the count by one.
    """

    name = "counters"
    has_twins = True
    order_matters = False

    def __init__(self, config: TaskConfig) -> None:
        self.counts, self.length = config.values, config.length
        if 2 ** (self.length - 1) < MIN_TEMPLATES:
            raise self.refuse(f"{self.length} tokens make too few prompts", "set a length of at least 8")
        self.vocab_size = 3 + self.counts
        self.description = f"Counters: how many of {self.length - 1} tokens are ticks, modulo {self.counts}"

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        places, template = draw_in_split(
            lambda n: torch.randint(2, (n, self.length - 1), generator=random), count, split
        )
        changed = torch.cat([1 - places[:, :1], places[:, 1:]], 1)
        positions = torch.full((count, 1), self.length - 1)
        answers, wrong = (3 + self.ticks(part) for part in (places, changed))
        tokens, twins = (torch.cat([part, torch.full((count, 1), 2)], 1) for part in (places, changed))
        return Prompts(tokens, positions, answers, twins, wrong, template)

    def ticks(self, places: Tensor) -> Tensor:
        """[n, L - 1] -> [n, 1]."""
        return (places == 0).sum(1, keepdim=True) % self.counts

    def labels(self, prompts: Prompts) -> dict[str, Tensor]:
        """The answer, whether it is odd, and which half has more ticks (2: as many)."""
        ticks = prompts.tokens[:, :-1] == 0
        half = ticks.shape[1] // 2
        first, second = ticks[:, :half].sum(1), ticks[:, -half:].sum(1)
        more = (second > first).long() + 2 * (second == first).long()
        return {**super().labels(prompts), "parity": ticks.sum(1) % 2, "half": more}

    def decode(self, token: int) -> str:
        return ("tick", "noise", "?")[token] if token < 3 else f"n{token - 3}"


class Brackets(Task):
    """``( [ ] ( →`` ``)``: the bracket that closes the innermost open one.

    Tokens: opening brackets 0 … K-1, closing K … 2K-1. Template: the whole prompt. The twin has other kinds of bracket
    at the same depths.
    """

    name = "brackets"
    has_twins = True
    order_matters = True

    def __init__(self, config: TaskConfig) -> None:
        self.kinds, self.depth = config.keys, config.pairs
        self.length = config.length - 1 + config.length % 2  # odd, so that a bracket is open at the end
        if self.kinds ** (self.length // 2) < MIN_TEMPLATES:
            raise self.refuse(f"{self.length} tokens of {self.kinds} kinds are too few prompts", "raise either")
        self.vocab_size = 2 * self.kinds
        self.description = (
            f"Brackets: {self.length} brackets of {self.kinds} kinds, at most {self.depth} deep; which one closes the "
            f"innermost"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        made, template = draw_in_split(lambda n: self.walk(n, random), count, split)  # [n, 2 L]
        opens, kinds = made[:, : self.length] == 1, made[:, self.length :]
        changed = other(kinds, self.kinds, random)
        (tokens, answers), (twins, wrong) = (self.write(opens, part) for part in (kinds, changed))
        positions = torch.full((count, 1), self.length - 1)
        return Prompts(tokens, positions, answers, twins, wrong, template)

    def walk(self, n: int, random: torch.Generator) -> Tensor:
        """True where a token opens a bracket, and the kind of bracket, [n, 2 L] each."""
        depth, opens = torch.zeros(n, dtype=torch.long), []
        for _ in range(self.length):
            up = (torch.rand(n, generator=random) < 0.5) | (depth == 0)
            up &= depth < self.depth
            depth = depth + 2 * up.long() - 1
            opens.append(up.long())
        return torch.cat([torch.stack(opens, 1), torch.randint(self.kinds, (n, self.length), generator=random)], 1)

    def write(self, opens: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens [n, L], and the bracket that closes what is open [n, 1]."""
        count = len(opens)
        stack = torch.zeros(count, self.depth + 1, dtype=torch.long)
        depth, rows, tokens = torch.zeros(count, dtype=torch.long), torch.arange(count), []
        for t in range(self.length):
            up = opens[:, t]
            depth = depth + up.long()
            stack[rows[up], depth[up]] = kinds[up, t]
            top = stack[rows, depth]
            tokens.append(torch.where(up, top, self.kinds + top))
            depth = depth - (~up).long()
        return torch.stack(tokens, 1), self.kinds + stack[rows, depth][:, None]

    def labels(self, prompts: Prompts) -> dict[str, Tensor]:
        """The answer, and how deep the end is."""
        opens = prompts.tokens < self.kinds
        return {**super().labels(prompts), "depth": (2 * opens.long() - 1).sum(1)}

    def decode(self, token: int) -> str:
        return f"({token}" if token < self.kinds else f"){token - self.kinds}"


class LongCopy(Task):
    """``v3 . . . . . ? →`` v3: the first token, however long ago; noise is other values, so nothing stands out.

    Tokens: values 0 … V-1, query V. Template: all values. The twin begins with another value.
    """

    name = "long_copy"
    has_twins = True
    order_matters = True

    def __init__(self, config: TaskConfig) -> None:
        self.values, self.length = config.values, config.length
        if self.values ** (self.length - 1) < MIN_TEMPLATES:
            raise self.refuse(f"{self.length} tokens of {self.values} values are too few prompts", "raise either")
        self.vocab_size = self.values + 1
        self.description = f"Long-range copy: the first of {self.length - 1} values, after all the others"

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        values, template = draw_in_split(
            lambda n: torch.randint(self.values, (n, self.length - 1), generator=random), count, split
        )
        changed = values.clone()
        changed[:, :1] = other(values[:, :1], self.values, random)
        positions, query = torch.full((count, 1), self.length - 1), torch.full((count, 1), self.values)
        tokens, twins = (torch.cat([part, query], 1) for part in (values, changed))
        return Prompts(tokens, positions, values[:, :1], twins, changed[:, :1], template)

    def labels(self, prompts: Prompts) -> dict[str, Tensor]:
        """The answer, and the last value before the query, which it is not."""
        return {**super().labels(prompts), "latest": prompts.tokens[:, -2]}

    def decode(self, token: int) -> str:
        return "?" if token == self.values else f"v{token}"
