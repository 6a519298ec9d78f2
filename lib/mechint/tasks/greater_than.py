"""Greater than (Hanna et al. 2023): a span of years begins, and the year it ends in must be later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .answers import Prompts, begun
from .base import MIN_TEMPLATES, Task, draw_in_split
from .config import TaskConfig
from .sentences import Words, fill

FRAME = "The {noun} lasted from the year {century} {start} to the year {century}"
SLOTS = ("{noun}", "{century}", "{start}")
NOUNS = (
    "war", "trial", "siege", "strike", "reign", "journey", "project", "conflict", "dispute", "mission", "campaign",
    "voyage", "plan", "battle", "crisis", "study", "tour", "program", "investigation", "expedition", "construction",
    "marriage", "negotiations", "work", "treaty", "revolution", "occupation", "friendship", "plague", "empire",
)  # fmt: skip
CENTURIES = tuple(str(century) for century in range(11, 18))
FIRST, LAST = 2, 98  # starting years: some year of the century is later, and the twin's 01 is earlier
TWIN = "01"
ROLES = ("other tokens", "event", "century", "starting year", "further tokens", "last token")


class GreaterThan(Task):
    """Tokens: words, centuries and two-digit years, or what the model's tokenizer makes of them. Template: the event,
    the century and the starting year.

    ``The war lasted from the year 1732 to the year 17 → 33 … 99``: every later year of the century is right, and is
    compared with the others up to the starting year. The twin begins in 01. In training one of the right years is
    the answer. For a model with a tokenizer ``1732`` must be the tokens of ``17`` and ``32`` (GPT-2's, GPT-NeoX's).
    """

    name = "greater_than"
    has_twins = True
    order_matters = False

    def __init__(self, config: TaskConfig, tokenizer: Any = None) -> None:
        self.words = Words(self, tokenizer, [*FRAME.split(), *NOUNS, *CENTURIES], {"The"}, config.bos)
        years = [f"{year:02d}" for year in range(100)]
        self.years = self.years_of(tokenizer, years)
        self.words.known([word for word in FRAME.split() if word not in SLOTS], 7, "words")
        self.nouns = torch.tensor([self.words.ids[noun] for noun in self.words.known(NOUNS, 8, "nouns")])
        self.starts = self.split_years(tokenizer)  # [start, (century's id, year)]
        self.table = self.words.table([FRAME.split()], SLOTS)  # [1, L]
        self.front = self.words.front
        self.length = len(self.front) + self.table.shape[1]
        self.vocab_size = 1 + max(int(self.years.max()), self.words.vocab_size - 1)
        self.description = (
            f"Greater than: an event of {len(self.nouns)} begins in one of {len(self.starts)} years, and any later "
            f"year of the century is right{self.words.said}"
        )

    def years_of(self, tokenizer: Any, years: list[str]) -> Tensor:
        """Ids of 00 … 99 as they follow a century, [100]."""
        if tokenizer is None:
            return torch.arange(100) + self.words.vocab_size
        found = [self.year_of(year) for year in years]
        if any(len(ids) != 1 for ids in found):
            raise self.refuse(
                "the model's tokenizer has no single tokens for two-digit years", "take another task for this model"
            )
        return torch.tensor(found).squeeze(1)

    def year_of(self, year: str) -> list[int]:
        """The tokens of a year after the first century that leaves it apart, or alone where none does."""
        assert self.words.encoder is not None
        for century in CENTURIES:
            ids = self.words.inside(f" {century}{year}")
            if len(ids) == 2 and ids[0] == self.words.ids.get(century):
                return ids[1:]
        return self.words.encoder.ids(year)

    def split_years(self, tokenizer: Any) -> Tensor:
        """The starting years that are two tokens, the century's and the year's, [start, (century's id, year)].

        A century counts where the twin's year is two tokens as well; some years, such as 1776, are one.
        """
        found = []
        for word in (word for word in CENTURIES if word in self.words.ids):
            century = self.words.ids[word]
            whole = lambda year, word=word: self.words.inside(f" {word}{year:02d}")
            fits = lambda year, c=century, w=whole: tokenizer is None or w(year) == [c, int(self.years[year])]
            found += [(century, year) for year in range(FIRST, LAST + 1) if fits(int(TWIN)) and fits(year)]
        if len(found) < MIN_TEMPLATES:
            raise self.refuse(
                "the model's tokenizer does not split years such as 1732 into 17 and 32",
                "take another task for this model",
            )
        return torch.tensor(found)

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        sizes = (len(self.nouns), len(self.starts))
        row, template = draw_in_split(
            lambda n: torch.stack([torch.randint(size, (n,), generator=random) for size in sizes], 1), count, split
        )
        century, start = self.starts[row[:, 1]].unbind(1)  # [n] each
        sentence = lambda year: fill(self.table.expand(count, -1), [self.nouns[row[:, 0]], century, self.years[year]])
        share = torch.rand(2, count, generator=random, dtype=torch.float64)
        later = start + 1 + (share[0] * (99 - start)).long()  # [n] one of the right years
        earlier = int(TWIN) + 1 + (share[1] * (start - int(TWIN))).long()  # right for the twin, wrong here
        every = torch.arange(100).expand(count, -1)
        column = lambda chosen: torch.where(chosen, self.years.expand(count, -1), -1).unsqueeze(1)
        made = Prompts(
            sentence(start),
            torch.full((count, 1), self.table.shape[1] - 1),
            self.years[later].unsqueeze(1),
            sentence(torch.full_like(start, int(TWIN))),
            self.years[earlier].unsqueeze(1),
            template,
            accepted=column(every > start.unsqueeze(1)),
            rejected=column(every <= start.unsqueeze(1)),
        )
        return begun(made, self.front)

    def roles(self, prompts: Prompts) -> tuple[tuple[str, ...], Tensor]:
        """The event, the century and the year that it begins in."""
        frame = FRAME.split()
        year = frame.index("{start}")
        slots = {"{noun}": 1, "{century}": 2, "{start}": 3}
        role = torch.tensor([slots.get(word, 0) for word in frame])
        role[year + 1 :] = 4
        role[-1] = 5
        role = torch.cat([role.new_zeros(len(self.front)), role])
        return ROLES, role.to(prompts.tokens.device).expand(len(prompts), -1)

    def decode(self, token: int) -> str:
        if self.words.tokenizer is None and token >= self.words.vocab_size:
            return f"{token - self.words.vocab_size:02d}"
        return self.words.decode(token)
