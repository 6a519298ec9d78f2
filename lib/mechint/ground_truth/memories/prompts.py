"""Tasks of the newer memories: keys that are written again, switches, and sections with a tag."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...tasks.answers import Prompts
from ...tasks.base import MIN_TEMPLATES, Task, distinct, draw_in_split, other


class Rewritten(Task):
    """``k3 v1 k0 v7 k3 v4 … k3 k0 →`` v4 at k3, v7 at k0: pairs, some keys of them again with another value, queries.

    Tokens: keys 0 … K-1, values K … K+V-1. The later value of a key counts. The twin has the same keys and other
    values. Template: the ordered keys of the pairs.
    """

    name = "rewritten"
    has_twins = True
    order_matters = True

    def __init__(self, keys: int, values: int, pairs: int, again: int, queries: int) -> None:
        self.keys, self.values, self.pairs, self.again, self.queries = keys, values, pairs, again, queries
        if not again <= pairs <= keys:
            raise self.refuse(f"{again} of {pairs} pairs again, of {keys} keys", "take no more of each than before")
        if values < 2:
            raise self.refuse(f"{values} values leave nothing to tell apart", "take at least 2")
        if math.perm(keys, pairs) < MIN_TEMPLATES:
            raise self.refuse(f"{pairs} of {keys} keys are too few prompts", "raise either")
        self.vocab_size = keys + values
        self.length = 2 * (pairs + again) + queries
        later = f", {again} of these keys again with another value" if again else ""
        self.description = f"Recall: {pairs} pairs of {keys} keys and {values} values{later}; then {queries} queries"

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        keys, template = draw_in_split(lambda n: distinct(n, self.pairs, self.keys, random), count, split)  # [n, P]
        once = distinct(count, self.again, self.pairs, random) if self.again else keys[:, :0]  # which pairs, [n, A]
        first = torch.randint(self.values, keys.shape, generator=random)
        second = other(first.gather(1, once), self.values, random)
        last = first.scatter(1, once, second)
        by = torch.randint(1, self.values, keys.shape, generator=random)  # the twin's values less these, of each key
        asked = torch.randint(self.pairs, (count, self.queries), generator=random)
        queries = keys.gather(1, asked)

        def prompt(moved: Tensor) -> tuple[Tensor, Tensor]:
            """Tokens and answers with the values of every key moved on by so many."""
            early, late = (first + moved) % self.values, (second + moved.gather(1, once)) % self.values
            every, values = torch.cat([keys, keys.gather(1, once)], 1), self.keys + torch.cat([early, late], 1)
            pairs = torch.stack([every, values], 2)
            answers = self.keys + (last + moved).gather(1, asked) % self.values
            return torch.cat([pairs.flatten(1), queries], 1), answers

        (tokens, answers), (twins, wrong) = prompt(torch.zeros_like(by)), prompt(by)
        positions = torch.arange(self.length - self.queries, self.length).expand(count, -1)
        return Prompts(tokens, positions, answers, twins, wrong, template)

    def decode(self, token: int) -> str:
        return f"k{token}" if token < self.keys else f"v{token - self.keys}"


class Switches(Task):
    """``start-off s2 s0 s2 →`` on, on, off: at each switch, whether it is on once it is flipped.

    Tokens: switches 0 … S-1, ``start off``, ``start on``, ``off``, ``on``. The twin begins with the other start, so all
    its answers differ. Template: the switches in their order.
    """

    name = "switches"
    has_twins = True
    order_matters = True

    def __init__(self, switches: int, flips: int) -> None:
        self.switches, self.length = switches, flips + 1
        if switches < 1 or switches**flips < MIN_TEMPLATES:
            raise self.refuse(f"{flips} flips of {switches} switches are too few prompts", "raise either")
        self.start, self.state = switches, switches + 2
        self.vocab_size = switches + 4
        self.description = f"Switches: each of {flips} flips of {switches} switches, whether the switch is on then"

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        flips, template = draw_in_split(
            lambda n: torch.randint(self.switches, (n, self.length - 1), generator=random), count, split
        )
        same = flips[:, :, None] == flips[:, None]  # [n, flip, flip]
        often = same.tril().sum(-1)  # of the same switch so far
        begins = torch.randint(2, (count, 1), generator=random)
        tokens, twins = (torch.cat([self.start + on, flips], 1) for on in (begins, 1 - begins))
        answers, wrong = (self.state + (often + on) % 2 for on in (begins, 1 - begins))
        return Prompts(tokens, torch.arange(1, self.length).expand(count, -1), answers, twins, wrong, template)

    def decode(self, token: int) -> str:
        return f"s{token}" if token < self.switches else ("start-off", "start-on", "off", "on")[token - self.switches]


class Sections(Task):
    """``t1 . a . t0 b . . t3 . . c | ?0 ?1 →`` b at ?0, a at ?1: the symbol in the section that a tag opens.

    Tokens: symbols, tags, a query for each tag, filler, and the end of the last section. Sections are equally long,
    each has one symbol somewhere. The twin has other symbols, and its tags stand elsewhere. Template: the tags in
    their order and the places of the symbols.
    """

    name = "sections"
    has_twins = True
    order_matters = True

    def __init__(self, symbols: int, tags: int, sections: int, room: int, queries: int) -> None:
        self.symbols, self.tags, self.sections, self.room, self.queries = symbols, tags, sections, room, queries
        if not 2 <= sections <= min(tags, symbols - 2):
            raise self.refuse(f"{sections} sections of {tags} tags and {symbols} symbols", "take 2 or more, and fewer")
        if math.perm(tags, sections) * room**sections < MIN_TEMPLATES:
            raise self.refuse(f"{sections} sections with room for {room} tokens are too few prompts", "raise either")
        self.tag, self.query = symbols, symbols + tags
        self.filler, self.end = symbols + 2 * tags, symbols + 2 * tags + 1
        self.vocab_size = self.end + 1
        self.length = sections * (1 + room) + 1 + queries
        self.description = (
            f"Sections: {sections} of {tags} tags, each with one of {symbols} symbols among {room} tokens; then "
            f"{queries} tags, the symbol in whose section is the answer"
        )

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        def layout(n: int) -> Tensor:
            places = torch.randint(self.room, (n, self.sections), generator=random)
            return torch.cat([distinct(n, self.sections, self.tags, random), places], 1)

        rows, template = draw_in_split(layout, count, split)
        tags, places = rows.split(self.sections, 1)  # [n, S] each
        symbols = distinct(count, self.sections, self.symbols, random)
        asked = torch.randint(self.sections, (count, self.queries), generator=random)
        # the twin's section s has the tag of section s + 1, and every symbol is moved by as many, so that each differs
        # from what stands there, and from what is answered
        apart = (symbols - symbols.roll(1, 1)) % self.symbols  # [n, S]
        chances = torch.rand(count, self.symbols, generator=random).scatter(1, apart, -1.0)
        chances[:, 0] = -1.0
        moved = (symbols + chances.argmax(1, keepdim=True)) % self.symbols
        queries = self.query + tags.gather(1, asked)

        def prompt(opens: Tensor, said: Tensor) -> Tensor:
            sections = torch.full((count, self.sections, 1 + self.room), self.filler)
            sections[:, :, 0] = self.tag + opens
            sections.scatter_(2, 1 + places.unsqueeze(2), said.unsqueeze(2))
            return torch.cat([sections.flatten(1), torch.full((count, 1), self.end), queries], 1)

        answers, wrong = symbols.gather(1, asked), moved.roll(1, 1).gather(1, asked)
        positions = torch.arange(self.length - self.queries, self.length).expand(count, -1)
        twins = prompt(tags.roll(-1, 1), moved)
        return Prompts(prompt(tags, symbols), positions, answers, twins, wrong, template)

    def decode(self, token: int) -> str:
        for first, letter in ((self.query, "?"), (self.tag, "t"), (0, "s")):
            if first <= token < self.filler:
                return f"{letter}{token - first}"
        return "." if token == self.filler else "|"
