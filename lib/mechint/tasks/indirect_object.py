"""Indirect objects (Wang et al. 2023): two names, one of them again, and the other one must follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..utils.options import named
from .answers import Prompts, begun
from .base import MIN_TEMPLATES, Task, distinct, draw_in_split
from .config import TaskConfig
from .sentences import Words, fill

FRAMES = (  # of equal length, so that a position means the same in all of them
    "When {a} and {b} went to the {place} , {c} gave a {object} to",
    "Then {a} and {b} went to the {place} and {c} gave a {object} to",
    "After {a} and {b} walked to the {place} , {c} handed a {object} to",
    "While {a} and {b} worked at the {place} , {c} gave a {object} to",
    "Since {a} and {b} met at the {place} , {c} offered a {object} to",
    "Once {a} and {b} got to the {place} , {c} passed a {object} to",
    "Yesterday {a} and {b} came to the {place} and {c} sold a {object} to",
    "Today {a} and {b} stayed at the {place} and {c} brought a {object} to",
)
SLOTS = ("{a}", "{b}", "{c}", "{place}", "{object}")
PLACES = ("store", "school", "office", "house", "station", "hospital", "restaurant", "garden", "park", "library",
          "market", "beach")  # fmt: skip
OBJECTS = ("drink", "ring", "book", "ball", "letter", "gift", "key", "camera", "map", "ticket")
NAMES = (
    "Mary", "John", "James", "Robert", "Michael", "William", "David", "Richard", "Joseph", "Thomas", "Charles",
    "Daniel", "Matthew", "Anthony", "Mark", "Paul", "Steven", "Andrew", "George", "Kevin", "Brian", "Edward", "Jason",
    "Ryan", "Jacob", "Eric", "Adam", "Peter", "Henry", "Jack", "Linda", "Elizabeth", "Susan", "Jessica", "Sarah",
    "Karen", "Lisa", "Nancy", "Sandra", "Ashley", "Emily", "Kim", "Carol", "Amanda", "Laura", "Helen", "Anna", "Ruth",
    "Alice", "Kate", "Rachel", "Maria", "Diana", "Julia", "Emma", "Rose", "Jane", "Grace",
)  # fmt: skip
LEAST_NAMES = 12
ROLES = ("other tokens", "indirect object", "subject", "further tokens", "subject again", "last token")


class IndirectObject(Task):
    """Tokens: words, or what the model's tokenizer makes of them. Template: the sentence without its names.

    ``When Mary and John went to the store , John gave a drink to → Mary``; the two names come in either order. The
    twin says the other name the second time, so that names and their places are the same and only their roles are
    exchanged. For a model with a tokenizer the names, places and objects are those that are single tokens.
    """

    name = "indirect_object"
    has_twins = True
    order_matters = False

    def __init__(self, config: TaskConfig, tokenizer: Any = None) -> None:
        frames = [frame.split() for frame in FRAMES]
        fixed = [word for frame in frames for word in frame if word not in SLOTS]
        first = {frame[0] for frame in frames}
        self.words = Words(self, tokenizer, [*fixed, *PLACES, *OBJECTS, *NAMES], first, config.bos)
        usable = [frame for frame in frames if all(word in self.words.ids or word in SLOTS for word in frame)]
        if not usable:
            raise self.refuse(
                "none of its sentences consists of single tokens of the model's tokenizer",
                f"write prompts of your own into a file, and name it in {named('task', 'file')}",
            )
        self.names, self.places, self.objects = (
            torch.tensor([self.words.ids[word] for word in self.words.known(words, least, what)])
            for words, least, what in ((NAMES, LEAST_NAMES, "names"), (PLACES, 4, "places"), (OBJECTS, 4, "objects"))
        )
        self.table = self.words.table(usable, SLOTS)  # [frame, L]
        count = len(usable) * len(self.places) * len(self.objects)
        if count < MIN_TEMPLATES:
            raise self.refuse(
                f"only {count} of its sentences consist of single tokens of the model's tokenizer, too few to hold "
                f"some out ({MIN_TEMPLATES} needed)",
                f"write prompts of your own into a file, and name it in {named('task', 'file')}",
            )
        self.front = self.words.front
        self.length, self.vocab_size = len(self.front) + self.table.shape[1], self.words.vocab_size
        for row in self.table:
            self.words.check(fill(row.unsqueeze(0), [ids[:1] for ids in self.slots(row.new_zeros(1, 3))])[0])
        self.description = (
            f"Indirect objects: two of {len(self.names)} names, one of them again, and the other one is the answer, in "
            f"{len(usable)} sentences with {len(self.places)} places and {len(self.objects)} objects{self.words.said}"
        )

    def slots(self, template: Tensor) -> list[Tensor]:
        """Ids for the slots of templates [n, (frame, place, object)], with the first names of the list."""
        names = [self.names[k].expand(len(template)) for k in (0, 1, 1)]
        return [*names, self.places[template[:, 1]], self.objects[template[:, 2]]]

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        sizes = (len(self.table), len(self.places), len(self.objects))
        row, template = draw_in_split(
            lambda n: torch.stack([torch.randint(size, (n,), generator=random) for size in sizes], 1), count, split
        )  # [n, (frame, place, object)]
        pair = self.names[distinct(count, 2, len(self.names), random)]  # [n, 2] in the order of the sentence
        again = torch.randint(2, (count,), generator=random)  # the one that is repeated
        said, asked = (pair.gather(1, k.unsqueeze(1)).squeeze(1) for k in (again, 1 - again))
        sentence = lambda third: fill(
            self.table[row[:, 0]],
            [pair[:, 0], pair[:, 1], third, self.places[row[:, 1]], self.objects[row[:, 2]]],
        )
        positions = torch.full((count, 1), self.table.shape[1] - 1)
        column = lambda ids: ids.unsqueeze(1)
        made = Prompts(sentence(said), positions, column(asked), sentence(asked), column(said), template)
        return begun(made, self.front)

    def roles(self, prompts: Prompts) -> tuple[tuple[str, ...], Tensor]:
        """The indirect object, the subject, both times it is said, and what is between that and the end."""
        tokens = prompts.tokens
        asked = tokens == prompts.answers[:, -1:]
        assert prompts.wrong is not None
        said = tokens == prompts.wrong[:, -1:]
        after = said.int().cumsum(1) == 2  # from the second time on
        role = asked.long() + 2 * (said & ~after).long()
        role = role.where(~after, 3).where(~(said & after), 4)
        role[:, -1] = 5
        return ROLES, role

    def decode(self, token: int) -> str:
        return self.words.decode(token)
