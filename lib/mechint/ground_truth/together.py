"""Holds what is declared of several units together against ablations: questions and shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..interventions.units import Units, units_named
from ..tasks.answers import Prompts
from ..utils.errors import MechintError
from .questions import Questions, Unit, mask_of
from .truth import TIE, GroundTruth, Part, margins

WRONG = 0.5
"""The largest share of a unit's answers that may be right where a unit of the smallest set is missing."""
ROWS = 32
"""Prompts that the removals of several units are tried on."""


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
    units = units_named(model, kind)
    found, answers = torch.zeros(units.total), {share.answer for share in truth.shares if len(share.units) == 1}
    for share in truth.shares:
        if share.kind in kind.split("+") and len(share.units) == 1:
            [(layer, unit)] = share.units
            found[units.number(share.kind, layer, unit)] += abs(share.drop) / len(answers)
    return found


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
