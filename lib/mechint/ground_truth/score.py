"""Scores any method on models whose circuit is known.

A *method* is a function ``(model, task) -> scores``: the model is one of ours, the task gives prompts
(``task.sample(count, "discovery", seed)``: tokens, answer positions, answers, twins), and the scores are one number for
each unit, in the order of :class:`.units.Units`: for the channels of a Mamba, those of layer 0, then of layer 1,
and so on; the higher the more it belongs to the circuit. :attr:`.LanguageModel.scored_unit` names the kind of unit that
is scored in each family. A method never sees the truth. The project's own methods are
:data:`mechint.scorecard.METHODS`.

>>> from mechint.ground_truth import BLUEPRINTS
>>> from mechint.ground_truth.score import score_method
>>> score_method(BLUEPRINTS["recall"]().compile(), mine)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tasks.base import Task
from ..utils.errors import MechintError
from .blueprint import Compiled

Method = Callable[[Any, Task], Any]


@dataclass(frozen=True)
class Score:
    """Measures how well scores rank a circuit above everything else.

    Attributes:
        auroc: Chance that a unit of the circuit is scored above an idle one; equal scores count half.
        average_precision: Mean over the circuit's units of the precision at the score of each; equal scores together.
        exact: True if the highest scores, as many as the circuit has units, are the circuit.
        units: Units of the circuit.
        total: All units.
    """

    auroc: float
    average_precision: float
    exact: bool
    units: int
    total: int


def score_method(compiled: Compiled, method: Method, unit: str | None = None, ablation: str = "zero") -> Score:
    """The score of a method on a compiled model.

    Args:
        compiled: From a blueprint.
        method: A function of the model and the task; see the top of this file.
        unit: Kind of unit that it scores, a key of :attr:`.LanguageModel.unit_kinds`; None is that of its family.
        ablation: Ablation that replaces units, if any: by ``mean`` and ``resample`` units need not be found that are
            the same on every prompt, by ``counterfactual`` those that are on both twins.

    Raises:
        MechintError: the scores are not one finite number for each unit.
    """
    name = getattr(method, "__name__", repr(method))
    truth, asked = (
        part(compiled.model, unit or compiled.unit, ablation) for part in (compiled.truth.mask, compiled.truth.asked)
    )
    return score_units(truth, method(compiled.model, compiled.task), f"{name} on {compiled.model.source}", asked)


def score_units(truth: Any, scores: Any, where: str = "scores", asked: Tensor | None = None) -> Score:
    """Scores [units, in any shape] against the mask of the circuit, of the same shape; of those that are asked for.

    Raises:
        MechintError: no real numbers, another shape, NaN or infinite entries, or a circuit of no unit or of all.
    """
    mask, values = torch.as_tensor(truth).detach().cpu(), as_numbers(scores, where)
    if values.shape != mask.shape:
        raise MechintError(
            f"{where}: scores of shape {list(values.shape)} for units of shape {list(mask.shape)}; "
            "give one number for each unit, layer by layer"
        )
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise MechintError(f"{where}: {bad} of {values.numel()} scores are NaN or infinite; score every unit")
    if asked is not None:
        mask, values = mask[asked.cpu()], values[asked.cpu()]
    inside, ranked = mask.flatten() > 0, values.flatten()
    units, total = int(inside.sum()), len(inside)
    if not 0 < units < total:
        raise MechintError(f"{where}: the circuit has {units} of {total} units; there is nothing to tell apart")
    _, group, size = torch.unique(ranked, return_inverse=True, return_counts=True)  # equal scores, from the lowest
    hits = torch.zeros(len(size), dtype=torch.double).index_add_(0, group, inside.double())
    misses = size - hits
    below = misses.cumsum(0) - misses  # idle units scored strictly lower
    auroc = float((hits * (below + misses / 2)).sum() / (units * (total - units)))
    at_least = lambda counts: counts.flip(0).cumsum(0).flip(0)
    precision = at_least(hits) / at_least(size.double())
    exact = bool(ranked[inside].min() > ranked[~inside].max())
    return Score(auroc, float((hits * precision).sum() / units), exact, units, total)


def as_numbers(scores: Any, where: str) -> Tensor:
    """The scores that a method returned, in double precision."""
    try:
        values = torch.as_tensor(scores).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        values = None
    if values is None or values.is_complex():
        kind = type(scores).__name__ if values is None else str(values.dtype).removeprefix("torch.")
        raise MechintError(f"{where}: scores are not real numbers ({kind}); give one number for each unit")
    return values.double()
