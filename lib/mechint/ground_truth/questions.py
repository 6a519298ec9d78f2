"""Declares what is true of several units together: three ways in which units are needed, and shares of logits.

Where a computation has one way to its answers, each unit of it is needed alone, all are needed together, and they
suffice: then :class:`.truth.Part` says everything. Elsewhere the three differ, and a method can be right about one of
them and wrong about another. :mod:`.together` holds these declarations against ablations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..interventions.model import Model
from ..interventions.units import Units

Unit = tuple[int, tuple[int, ...]]
"""(layer, unit)."""
QUESTIONS = ("alone", "together", "sufficient")


@dataclass(frozen=True)
class Questions:
    """Declares the units of one kind that are needed, by three meanings of the word.

    Attributes:
        kind: Kind of unit.
        alone: Units whose removal alone makes answers wrong.
        together: The units of all ways to the answers: without all of them no answer is right, and without all others
            every answer is.
        sufficient: The smallest sets that suffice: where all else is removed every answer is right, and where one unit
            more is removed most of that unit's answers are wrong.
    """

    kind: str
    alone: frozenset[Unit]
    together: frozenset[Unit]
    sufficient: tuple[frozenset[Unit], ...]

    def masks(self, model: Model) -> dict[str, list[Tensor]]:
        """For each question the masks [units] that are right answers to it, one or more."""
        units = Units(model, model.unit_kinds[self.kind])
        sets = {"alone": [self.alone], "together": [self.together], "sufficient": list(self.sufficient)}
        return {question: [mask_of(units, some) for some in sets[question]] for question in QUESTIONS}


@dataclass(frozen=True)
class Share:
    """Declares how much of an answer's logit some units give: setting them to zero lowers the logit by ``drop``.

    Attributes:
        meaning: Their name, in words.
        kind: Kind of unit.
        units: (layer, unit) of each.
        answer: The answer whose logit falls; None is any.
        drop: By how much it falls; below zero for units that act against the answer.
    """

    meaning: str
    kind: str
    units: frozenset[Unit]
    answer: int | None
    drop: float


def mask_of(units: Units, some: Iterable[Unit]) -> Tensor:
    """1 for some units and 0 for all others, [units]."""
    mask = torch.zeros(units.total)
    for layer, unit in some:
        mask[units.number(units.kind.name, layer, unit)] = 1.0
    return mask
