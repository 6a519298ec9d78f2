"""Small tasks that only compiled models are asked: shift, latch and most-recent."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..tasks.answers import Prompts
from ..tasks.base import MIN_TEMPLATES, Task, draw_in_split, other


class SymbolTask(Task):
    """Tokens: symbols 0 … V-1, then what a task has of its own. Template: all symbols of the prompt, in order."""

    has_twins = True
    order_matters = True

    def __init__(self, symbols: int, length: int, special: tuple[str, ...]) -> None:
        self.symbols, self.length, self.special = symbols, length, special
        if symbols < 2:
            raise self.refuse(f"{symbols} symbols leave nothing to tell apart", "take at least 2")
        self.vocab_size = symbols + len(special)

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        if self.symbols**self.length < MIN_TEMPLATES:
            raise self.refuse(f"{self.symbols} symbols in {self.length} places are too few prompts", "raise either")
        symbols, template = draw_in_split(
            lambda n: torch.randint(self.symbols, (n, self.length), generator=random), count, split
        )
        return self.ask(symbols, other(symbols, self.symbols, random), template, random)

    @abstractmethod
    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        """The prompts made of symbols [n, L], and the twins of others, different at every place."""

    def decode(self, token: int) -> str:
        return f"s{token}" if token < self.symbols else self.special[token - self.symbols]


class Shift(SymbolTask):
    """``a b c d`` → at each position the token that stood ``by`` positions before."""

    name = "shift"

    def __init__(self, symbols: int, length: int, by: int) -> None:
        super().__init__(symbols, length, ())
        self.by = by
        if not 1 <= by < length:
            raise self.refuse(f"a shift by {by} in a prompt of {length} tokens has no answer", "shift by 1 or more")
        self.description = f"Shift: at each of {length} tokens of {symbols} symbols, the token {by} before it"

    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        positions = torch.arange(self.by, self.length).expand(len(symbols), -1)
        answers, wrong = (tokens[:, : -self.by] for tokens in (symbols, changed))
        return Prompts(symbols, positions, answers, changed, wrong, template)


class Latch(SymbolTask):
    """``. a ! b . ! c . . ? . . →`` c at the query: the symbol after the last of two markers, however long ago.

    The query's place is random, so that no channel is the same on every prompt.
    """

    name = "latch"

    def __init__(self, symbols: int, length: int) -> None:
        super().__init__(symbols, length, ("marker", "query"))
        if length < 10:
            raise self.refuse(f"a prompt of {length} tokens has no room for two marked symbols", "take at least 10")
        self.marker, self.query = symbols, symbols + 1
        self.description = f"Latch: {length} tokens of {symbols} symbols; the one after the last of two markers"

    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        query = query_places(symbols, random)  # [n, 1]
        # two places before it, moved apart so that the second marker never stands on the first's symbol
        order = torch.rand(symbols.shape, generator=random).masked_fill(torch.arange(self.length) > query - 3, 2.0)
        places = order.argsort(1)[:, :2].sort(1).values + torch.arange(2)  # [n, 2]
        tokens, twins = (
            part.scatter(1, places, self.marker).scatter(1, query, self.query) for part in (symbols, changed)
        )
        answers, wrong = (part.gather(1, places[:, 1:] + 1) for part in (symbols, changed))
        return Prompts(tokens, query, answers, twins, wrong, template)


class MostRecent(SymbolTask):
    """``a . b b . a . . ? . →`` a at the query: the symbol seen last among noise, even if others were more often."""

    name = "most_recent"

    def __init__(self, symbols: int, length: int) -> None:
        super().__init__(symbols, length, ("noise", "query"))
        if length < 8:
            raise self.refuse(f"a prompt of {length} tokens has no room for noise", "take at least 8")
        self.noise, self.query = symbols, symbols + 1
        self.description = f"Most recent: the last of {symbols} symbols among noise in {length} tokens"

    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        query, place = query_places(symbols, random), torch.arange(self.length)
        last = query - torch.randint(1, self.length // 3, query.shape, generator=random)
        noise = ((torch.rand(symbols.shape, generator=random) < 0.3) | (place > last)) & (place != last)  # [n, L]
        tokens, twins = (
            part.masked_fill(noise, self.noise).scatter(1, query, self.query) for part in (symbols, changed)
        )
        answers, wrong = (part.gather(1, last) for part in (symbols, changed))
        return Prompts(tokens, query, answers, twins, wrong, template)


def query_places(symbols: Tensor, random: torch.Generator) -> Tensor:
    """A place in the second half of each prompt [n, L], [n, 1]."""
    count, length = symbols.shape
    return torch.randint(length // 2, length, (count, 1), generator=random)
