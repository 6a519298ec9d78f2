"""Marked: the symbol that followed a marker, asked for by the same marker at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from .answers import Prompts
from .base import MIN_TEMPLATES, draw_in_split, other
from .config import TaskConfig
from .looked_up import LookedUp


class Marked(LookedUp):
    """Tokens: symbols 0 … V-1, the marker V. Template: all symbols of the prompt, in order.

    ``s3 s0 ! s4 s1 s1 ! →`` s4: the symbol that followed the marker the first time, however long ago. The twin has the
    marker at the same place and other symbols everywhere.
    """

    name = "marked"
    has_twins = True
    order_matters = True
    alike = ("before", "query")

    def __init__(self, config: TaskConfig) -> None:
        self.symbols, self.length = config.values, config.length
        if self.length < 4:
            raise self.refuse(f"a prompt of {self.length} tokens has no room for a marked symbol", "set at least 4")
        if self.symbols < 2 or self.symbols ** (self.length - 2) < MIN_TEMPLATES:
            raise self.refuse(
                f"{self.symbols} symbols in {self.length - 2} places are too few prompts",
                "raise the values or the length",
            )
        self.marker = self.symbols
        self.vocab_size = self.symbols + 1
        self.sayable = range(self.symbols)
        self.description = (
            f"Marked: {self.length} tokens of {self.symbols} symbols with a marker among them, and at the end; the "
            "symbol after the first"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        symbols, template = draw_in_split(
            lambda n: torch.randint(self.symbols, (n, self.length - 2), generator=random), count, split
        )
        place = self.places(count, random)
        changed = other(symbols, self.symbols, random)
        tokens, twins = (self.layout(part, place) for part in (symbols, changed))
        answers, wrong = (part.gather(1, place) for part in (symbols, changed))
        return Prompts(tokens, self.positions(count), answers, twins, wrong, template)

    def exchanged(self, prompts: Prompts, random: torch.Generator) -> Prompts:
        """Other symbols, and the marker at another place."""
        count = len(prompts)
        place = self.places(count, random)
        symbols = torch.randint(self.symbols, (count, self.length - 2), generator=random)
        answers = symbols.gather(1, place)
        return Prompts(self.layout(symbols, place), prompts.positions, answers, None, None, prompts.template)

    def positions(self, count: int) -> Tensor:
        return torch.full((count, 1), self.length - 1)

    def places(self, count: int, random: torch.Generator) -> Tensor:
        """Places of the first marker, [n, 1]: a symbol follows each."""
        return torch.randint(self.length - 2, (count, 1), generator=random)

    def layout(self, symbols: Tensor, place: Tensor) -> Tensor:
        """The symbols [n, L - 2] with a marker before the one at ``place`` [n, 1], and a marker at the end; [n, L]."""
        at = torch.arange(self.length - 1).expand(len(symbols), -1)
        tokens = symbols.gather(1, (at - (at > place).long()).clamp(max=self.length - 3))
        tokens = torch.where(at == place, self.marker, tokens)
        return torch.cat([tokens, torch.full((len(symbols), 1), self.marker)], 1)

    def roles(self, prompts: Prompts) -> tuple[tuple[str, ...], Tensor]:
        """Seen from the query: the marker, the symbol behind it, and the symbols before and after these."""
        first = (prompts.tokens == self.marker).int().argmax(1, keepdim=True)
        at = torch.arange(prompts.tokens.shape[1], device=first.device).expand_as(prompts.tokens)
        role = torch.where(at < first, 2, 3)
        role[at == first], role[at == first + 1] = 0, 1
        role[:, -1] = 4
        return ("marker", "symbol after it", "symbols before", "symbols after", "query"), role

    def labels(self, prompts: Prompts) -> dict[str, Tensor]:
        """The answer, and the place of the marker."""
        return {**super().labels(prompts), "place": (prompts.tokens == self.marker).int().argmax(1)}

    def decode(self, token: int) -> str:
        return "!" if token == self.marker else f"s{token}"
