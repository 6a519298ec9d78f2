"""A synthetic corpus of facts: invented people, four relations, several paraphrases of each."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from .answers import Prompts
from .base import SPLITS, Task, generator
from .config import TaskConfig

RELATIONS = (  # each with two ways to say it; every object is a place
    (("lives", "in"), ("resides", "in")),
    (("works", "at"), ("earns", "at")),
    (("comes", "from"), ("hails", "from")),
    (("travelled", "to"), ("sailed", "to")),
)
ADVERBS = ("surely", "indeed")
PARAPHRASES = tuple(itertools.product((0, 1), (0, 1), ADVERBS))
"""(which way to say it, whether the adverb comes first or after the name, the adverb)."""
LENGTH = 5


class Facts(Task):
    """Tokens: words, first names, family names, places. Template: the fact and its paraphrase.

    ``surely Bado Keli lives in → Miravo``. A person is a first and a family name, and both are shared with others.
    Each fact has one paraphrase that only discovery sees and one that only evaluation sees; its other paraphrases,
    and these of other facts, are for training. The twin asks the same of another person, with another answer.
    """

    name = "facts"
    has_twins = True
    order_matters = False
    length = LENGTH

    def __init__(self, config: TaskConfig) -> None:
        random = generator("facts", config.seed)
        self.facts = config.facts
        self.people = -(-self.facts // len(RELATIONS))
        side = math.ceil(math.sqrt(2 * self.people))  # half of the possible names are used
        places = min(config.values, self.people)
        verbs = sorted({word for ways in RELATIONS for way in ways for word in way})
        self.words = [*ADVERBS, *verbs]
        self.first, self.family = len(self.words), len(self.words) + side
        self.places = self.first + 2 * side
        self.vocab_size = self.places + places
        self.words += [invented(i, "o") for i in range(side)] + [invented(i, "i") for i in range(side)]
        self.words += [invented(i, "avo") for i in range(places)]
        taken = torch.randperm(side * side, generator=random)[: self.people]
        self.names = torch.stack([self.first + taken // side, self.family + taken % side], 1)  # [people, 2]
        # places are dealt out evenly, so that every relation has at least two
        dealt = [torch.randperm(self.people, generator=random) % places for _ in RELATIONS]
        self.objects = self.places + torch.stack(dealt, 1)  # [people, relations]
        # column 0 is discovery's paraphrase of each fact, 1 is evaluation's, the others are for training
        self.paraphrases = torch.rand(self.facts, len(PARAPHRASES), generator=random).argsort(1)
        self.phrases = self.phrase_table()
        self.description = (
            f"Facts: {self.facts} facts about {self.people} invented people in {len(RELATIONS)} relations to "
            f"{places} places, each in {len(PARAPHRASES)} paraphrases of which two are held out"
        )

    def phrase_table(self) -> Tensor:
        """Tokens of every paraphrase, -1 and -2 where the two names go, [relation, paraphrase, L]."""
        token = {word: i for i, word in enumerate(self.words)}
        rows = []
        for ways in RELATIONS:
            for way, after, adverb in PARAPHRASES:
                name = [-1, -2, token[adverb]] if after else [token[adverb], -1, -2]
                rows.append([*name, *(token[word] for word in ways[way])])
        return torch.tensor(rows).view(len(RELATIONS), len(PARAPHRASES), LENGTH)

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        fact = torch.randint(self.facts, (count,), generator=random)
        if split == "train":
            column = torch.randint(2, len(PARAPHRASES), (count,), generator=random)
        else:
            column = torch.full((count,), SPLITS.index(split) - 1)
        paraphrase = self.paraphrases[fact, column]  # [n]
        person, relation = fact // len(RELATIONS), fact % len(RELATIONS)
        stranger = self.other_person(person, relation, random)
        tokens, twins = (self.fill(self.phrases[relation, paraphrase], who) for who in (person, stranger))
        answers, wrong = (self.objects[who, relation].unsqueeze(1) for who in (person, stranger))
        positions = torch.full((count, 1), LENGTH - 1)
        name = (self.phrases[relation, paraphrase] == -1).int().argmax(1)  # the first name; the family name follows
        subject = torch.stack([name, name + 2], 1)
        return Prompts(tokens, positions, answers, twins, wrong, fact * len(PARAPHRASES) + paraphrase, subject)

    def fill(self, phrases: Tensor, person: Tensor) -> Tensor:
        """Phrases [n, L] with the names of the people [n] where they go."""
        first, family = (self.names[person, i].unsqueeze(1) for i in (0, 1))
        return phrases.where(phrases != -1, first).where(phrases != -2, family)

    def other_person(self, person: Tensor, relation: Tensor, random: torch.Generator) -> Tensor:
        """For each person [n] somebody known to have the same relation to another place, [n]."""
        known = (self.facts - 1 - relation) // len(RELATIONS) + 1  # [n] people with a fact of this relation
        stranger = person
        while True:
            same = self.objects[stranger, relation] == self.objects[person, relation]
            if not same.any():
                return stranger
            guess = (torch.rand(person.shape, generator=random, dtype=torch.float64) * known).long()
            stranger = torch.where(same, guess, stranger)

    def fact(self, prompts: Prompts) -> Tensor:
        return prompts.template.cpu() // len(PARAPHRASES)

    def decode(self, token: int) -> str:
        return self.words[token] if token < len(self.words) else f"<unused {token}>"


def invented(number: int, ending: str) -> str:
    """A pronounceable word for each number and ending, all different: Ba…, Da…, then longer ones."""
    consonants, vowels, word = "bdfgklmnprstvz", "aeiou", ""
    number += 1
    while number:
        number, digit = divmod(number - 1, len(consonants) * len(vowels))
        word += consonants[digit % len(consonants)] + vowels[digit // len(consonants)]
    return (word + consonants[len(word) % len(consonants)] + ending).capitalize()
