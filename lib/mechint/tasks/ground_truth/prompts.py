"""Small tasks that only compiled models are asked: shift, latch and most-recent."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..base import MIN_TEMPLATES, Prompts, Task, distinct, draw_in_split, other


class SymbolTask(Task):
    """Tokens: symbols 0 … V-1, then what a task has of its own. Template: all symbols of the prompt, in order."""

    has_twins = True

    def __init__(self, symbols: int, length: int, special: tuple[str, ...]) -> None:
        self.symbols, self.length, self.special = symbols, length, special
        if symbols < 2:
            raise self.refuse(f"{symbols} symbols leave nothing to tell apart", "take at least 2")
        self.vocab_size = symbols + len(special)

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        width = self.length - (1 if self.special else 0)  # the last token is the query, where there is one
        if self.symbols**width < MIN_TEMPLATES:
            raise self.refuse(f"{self.symbols} symbols in {width} places are too few prompts", "raise either")
        symbols, template = draw_in_split(
            lambda n: torch.randint(self.symbols, (n, width), generator=random), count, split
        )
        return self.ask(symbols, other(symbols, self.symbols, random), template, random)

    @abstractmethod
    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        """The prompts made of symbols [n, L'], and the twins of others, different at every place."""

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
    """``. a ! b . ! c . . ? →`` c: the symbol behind the last of two markers, however long ago."""

    name = "latch"

    def __init__(self, symbols: int, length: int) -> None:
        super().__init__(symbols, length, ("marker", "query"))
        if length < 6:
            raise self.refuse(f"a prompt of {length} tokens has no room for two marked symbols", "take at least 6")
        self.marker, self.query = symbols, symbols + 1
        self.description = f"Latch: {length} tokens of {symbols} symbols; the one behind the last of two markers"

    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        count, width = symbols.shape
        # two places of width - 2, moved apart so that the second marker never stands on the first's symbol
        places = distinct(count, 2, width - 2, random).sort(1).values + torch.arange(2)  # [n, 2]
        query = torch.full((count, 1), self.query)
        tokens, twins = (torch.cat([part.scatter(1, places, self.marker), query], 1) for part in (symbols, changed))
        answers, wrong = (part.gather(1, places[:, 1:] + 1) for part in (symbols, changed))
        return Prompts(tokens, torch.full((count, 1), width), answers, twins, wrong, template)


class MostRecent(SymbolTask):
    """``a . b b . a . . ? →`` a: the symbol seen last among noise, even if others were seen more often."""

    name = "most_recent"

    def __init__(self, symbols: int, length: int) -> None:
        super().__init__(symbols, length, ("noise", "query"))
        if length < 4:
            raise self.refuse(f"a prompt of {length} tokens has no room for noise", "take at least 4")
        self.noise, self.query = symbols, symbols + 1
        self.description = f"Most recent: the last of {symbols} symbols among noise in {length} tokens"

    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        count, width = symbols.shape
        last = torch.randint(width // 2, width, (count, 1), generator=random)
        place = torch.arange(width)
        noise = ((torch.rand(count, width, generator=random) < 0.3) | (place > last)) & (place != last)  # [n, L']
        query = torch.full((count, 1), self.query)
        tokens, twins = (torch.cat([part.masked_fill(noise, self.noise), query], 1) for part in (symbols, changed))
        answers, wrong = (part.gather(1, last) for part in (symbols, changed))
        return Prompts(tokens, torch.full((count, 1), width), answers, twins, wrong, template)
