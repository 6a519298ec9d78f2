"""Holds a trained model against its causal model: answers, interchange interventions, and idle units ablated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..tasks.answers import Prompts
from ..tasks.looked_up import LookedUp
from ..utils.errors import MechintError
from .imposed_causal import Alignment, said_by, values_of

ACCURACY = 0.98
"""Share of answers, and of interchange interventions, that must be right."""
TOLERANCE = 0.01
"""Share of answers that may change from right to wrong, or back, when all idle units are ablated."""
CHANCE = 0.75
"""Without the units of a variable the right answers have at most this probability, in the mean."""
REMEDY = "the circuit was not imposed, train for more steps or from another seed"


class NotImposed(MechintError):
    """Interventions do not find the circuit that training should impose."""


@torch.no_grad()
def check(
    model: Model, alignment: Alignment, task: LookedUp, seed: int, name: str, count: int = 1000
) -> dict[str, float]:
    """Holds a trained model, by its name, against its causal model on prompts of the evaluation split.

    Returns:
        Accuracy of the answers, of every variable's interchange interventions, and with all idle units ablated (for
        each of zero, mean, resample and counterfactual); the answers' probability without every variable's units.

    Raises:
        NotImposed: any of them contradicts what is declared; the first is named.
    """
    prompts = task.sample(count, "evaluation", seed).to(model.embeddings.device)
    source = task.sources(prompts, seed)
    there = values_of(model, source.tokens, alignment.sites(model))
    found = {"answers": right(model, prompts, [])}
    expect(name, "of the answers are right", found["answers"], ACCURACY)
    for variable in alignment.variables:
        said, defined = variable.expected(prompts, source)
        share = right(model, prompts, variable.edits(model, there), said, defined)
        found[f"interchange, {variable.meaning}"] = share
        expect(name, f"of interchange interventions on {variable.meaning} are right", share, ACCURACY)
        if variable.inputs:
            logits = said_by(model, prompts, variable.edits(model, dict.fromkeys(there, 0.0)))
            likely = logits.double().softmax(-1).gather(-1, prompts.answers.unsqueeze(-1))
            found[f"without {variable.meaning}"] = share = float(likely.mean())
            if share > CHANCE:
                raise NotImposed(
                    f"{name}: without {variable.meaning} the right answers still have a probability of {share:.2f}, "
                    f"and at most {CHANCE:g} is allowed; {REMEDY}"
                )
    for ablation, fills in ablations(model, prompts, there).items():
        share = right(model, prompts, alignment.idle_edits(model, fills))
        found[f"idle, {ablation}"] = share
        if abs(share - found["answers"]) > TOLERANCE:
            raise NotImposed(
                f"{name}: with all idle units ablated ({ablation}) {share:.2%} of the answers are right in place "
                f"of {found['answers']:.2%}, a change of more than {TOLERANCE:.0%}: they are not idle; train for "
                "more steps, or raise --train-impose-strictness"
            )
    return found


def expect(name: str, what: str, share: float, least: float) -> None:
    if share < least:
        raise NotImposed(f"{name}: {share:.2%} {what}, and at least {least:.0%} must be; {REMEDY}")


def ablations(model: Model, prompts: Prompts, there: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The values that replace idle units, by the name of the ablation and by site."""
    assert prompts.twins is not None  # every task that is looked up has them
    return {
        "zero": dict.fromkeys(there, 0.0),
        "mean": {site: value.mean(0) for site, value in there.items()},
        "resample": there,
        "counterfactual": values_of(model, prompts.twins, list(there)),
    }


def right(
    model: Model, prompts: Prompts, edits: Sequence[Edit], answers: Tensor | None = None, defined: Tensor | None = None
) -> float:
    """Share of the answers [n, Q], of those that are defined, that a run under edits gives."""
    asked = prompts if answers is None else dataclasses.replace(prompts, answers=answers)
    hits = asked.right(said_by(model, asked, edits))
    return float((hits if defined is None else hits[defined]).double().mean())
