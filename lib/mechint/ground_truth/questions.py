"""What is true of several units together: three ways in which units are needed, and shares of the answers' logits.

Where a computation has one way to its answers, each unit of it is needed alone, all are needed together, and they
suffice: then :class:`.truth.Part` says everything. Elsewhere the three differ, and a method can be right about one of
them and wrong about another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..interventions.units import Units
from ..tasks.answers import Prompts
from ..utils.errors import MechintError

if TYPE_CHECKING:
    from .truth import GroundTruth, Part

Unit = tuple[int, tuple[int, ...]]
"""(layer, unit)."""
QUESTIONS = ("alone", "together", "sufficient")
WRONG = 0.5
"""The largest share of a unit's answers that may be right where a unit of the smallest set is missing."""
ROWS = 32
"""Prompts that the removals of several units are tried on."""


@dataclass(frozen=True)
class Questions:
    """The units of one kind that are needed, by three meanings of the word.

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
    """The part of an answer's logit that some units give it: setting them to zero lowers the logit by ``drop``.

    Attributes:
        meaning: What they are, in words.
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
        mask[index_of(units, layer, unit)] = 1.0
    return mask


def index_of(units: Units, layer: int, unit: tuple[int, ...]) -> int:
    at = layer
    for size, number in zip(units.shape, unit or (0,), strict=True):
        at = at * size + number
    return at


def units_of(parts: Iterable[Part], kind: str) -> frozenset[Unit]:
    """(layer, unit) of the parts of a kind."""
    return frozenset((part.layer, part.unit) for part in parts if part.kind == kind)


def by_ways(parts: list[Part], kind: str, harmless: str = "") -> Questions:
    """The three answers, from the ways that parts are on: each way suffices, and all together are needed.

    Parts on the way ``harmless`` are needed alone and not together: without one of them the answers are wrong, without
    all of them they are right.
    """
    mine = [part for part in parts if part.kind == kind]
    needed = [part for part in mine if not harmless or part.way != harmless]
    ways = sorted({part.way for part in needed if part.way}) or [""]
    return Questions(
        kind,
        alone=units_of([part for part in mine if part.accuracy < 1], kind),
        together=units_of(needed, kind),
        sufficient=tuple(units_of([part for part in needed if part.way in ("", way)], kind) for way in ways),
    )


def share_scores(truth: GroundTruth, model: Model, kind: str) -> Tensor:
    """For each unit the mean size of its share over the answers, [units]; shares of several units are left out."""
    units = Units(model, model.unit_kinds[kind])
    found, answers = torch.zeros(units.total), {share.answer for share in truth.shares if len(share.units) == 1}
    for share in truth.shares:
        if share.kind == kind and len(share.units) == 1:
            [(layer, unit)] = share.units
            found[index_of(units, layer, unit)] += abs(share.drop) / len(answers)
    return found


# ---- their verification ------------------------------------------------------------------------------------------


def check_together(model: Model, truth: GroundTruth, prompts: Prompts) -> Iterator[tuple[str, float]]:
    """Holds questions and shares against ablations: the name of each claim, and what was measured.

    Raises:
        MechintError: a claim is contradicted.
    """
    if truth.questions is not None:
        yield from check_questions(model, truth, truth.questions, prompts)
    yield from check_shares(model, truth, prompts)


def check_questions(
    model: Model, truth: GroundTruth, questions: Questions, prompts: Prompts
) -> Iterator[tuple[str, float]]:
    from .truth import TIE, margins

    units = Units(model, model.unit_kinds[questions.kind])
    kept = prompts[torch.arange(min(ROWS, len(prompts)))]
    own = kept.tokens.gather(1, kept.positions) != kept.answers  # the tied head gives the token itself unasked

    def right(mask: Tensor, part: Part | None = None) -> float:
        """The share of right answers if only the units of a mask are kept; of those that a part matters for."""
        some = kept if part is None else few(prompts, part)
        counted = own if part is None else part.affects(some)
        margin, _ = margins(model, some, units.edits(mask, dict.fromkeys(units.sites, 0.0)))
        return float((margin > TIE)[counted].float().mean())

    def claim(name: str, value: float, least: float, most: float) -> tuple[str, float]:
        if not least <= value <= most:
            raise MechintError(
                f"{model.source}: {name}: {value:.1%} of the answers are right, declared are {least:.0%} to {most:.0%};"
                " the declared truth is wrong"
            )
        return name, value

    parts = [part for part in truth.parts if part.kind == questions.kind]
    for part in parts:
        if (part.layer, part.unit) not in questions.alone:
            one = 1 - mask_of(units, [(part.layer, part.unit)])
            yield claim(f"without {part.name} alone", right(one, part), 1.0, 1.0)
        elif part.accuracy >= 1:
            raise MechintError(f"{model.source}: {part.name} is declared needed alone, and as one that is not")
    together = mask_of(units, questions.together)
    yield claim("without all that is needed together", right(1 - together), 0.0, WRONG)
    yield claim("without all else", right(together), 1.0, 1.0)
    for number, some in enumerate(questions.sufficient):
        mask = mask_of(units, some)
        yield claim(f"with the sufficient set {number} alone", right(mask), 1.0, 1.0)
        for part in parts:
            if (part.layer, part.unit) in some:
                less = mask - mask_of(units, [(part.layer, part.unit)])
                yield claim(f"with the sufficient set {number} but for {part.name}", right(less, part), 0.0, WRONG)


def few(prompts: Prompts, part: Part) -> Prompts:
    """Some prompts that a part matters for."""
    return prompts[part.affects(prompts).any(1).nonzero().flatten()[:ROWS]]


def check_shares(model: Model, truth: GroundTruth, prompts: Prompts) -> Iterator[tuple[str, float]]:
    from .truth import margins

    for share in truth.shares:
        units = Units(model, model.unit_kinds[share.kind])
        asked = prompts.answers == share.answer if share.answer is not None else prompts.answers >= 0
        some = prompts[asked.any(1).nonzero().flatten()[:ROWS]]
        if len(some) == 0:
            raise MechintError(f"{model.source}: no prompt has the answer {share.answer}; take more prompts")
        keep = 1 - mask_of(units, share.units)
        edits: list[Edit] = units.edits(keep, dict.fromkeys(units.sites, 0.0))
        before, after = (margins(model, some, change)[1] for change in ([], edits))
        index = some.answers.unsqueeze(-1)
        drops = (before - after).gather(-1, index).squeeze(-1)
        if share.answer is not None:
            drops = drops[some.answers == share.answer]
        worst = float((drops - share.drop).abs().max())
        if worst > 10 * truth.tolerance:
            raise MechintError(
                f"{model.source}: without {share.meaning} the logit of the answer falls by {float(drops.min()):.3g} to "
                f"{float(drops.max()):.3g}, declared are {share.drop:.3g}; the declared truth is wrong"
            )
        yield f"{share.meaning}, the answer's logit", float(drops.mean())
