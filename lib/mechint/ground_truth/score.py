"""Scores of any method on models whose circuit is known, and three baselines.

A *method* is a function ``(model, task) -> scores``: the model is one of ours, the task gives prompts
(``task.sample(count, "discovery", seed)``: tokens, answer positions, answers, twins), and the scores are one number for
each unit, in the order of :class:`.units.Units`: for the channels of a Mamba, those of layer 0, then of layer 1,
and so on; the higher the more it belongs to the circuit. Which kind of unit a family is asked for says
:data:`mechint.interventions.units.SCORED_UNITS`. A method never sees the truth:

>>> from mechint.ground_truth import BLUEPRINTS
>>> from mechint.ground_truth.score import score_method, weight_magnitude
>>> score_method(BLUEPRINTS["recall"]().compile(), weight_magnitude)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..analyses.metrics import logprobs
from ..interventions.gradients import gradients
from ..interventions.model import Model
from ..interventions.units import SCORED_UNITS, Units, unit_kinds
from ..models.mamba import Layer
from ..tasks.base import Task
from ..utils.errors import MechintError
from .blueprint import Compiled

Method = Callable[[Any, Task], Any]

PROMPTS = 64
"""Discovery prompts that the baselines look at."""


@dataclass(frozen=True)
class Score:
    """How well scores rank a circuit above everything else.

    Attributes:
        auroc: Chance that a unit of the circuit is scored above an idle one; equal scores count half.
        average_precision: Mean over the circuit's units of the precision at the score of each; equal scores together.
        exact: Whether the highest scores, as many as the circuit has units, are the circuit.
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
        unit: What it scores, a key of :func:`mechint.interventions.units.unit_kinds`; None is that of its family.
        ablation: What it replaces units by, if anything: by ``mean`` and ``resample`` units need not be found that are
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
    """What a method returned, in double precision."""
    try:
        values = torch.as_tensor(scores).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        values = None
    if values is None or values.is_complex():
        kind = type(scores).__name__ if values is None else str(values.dtype).removeprefix("torch.")
        raise MechintError(f"{where}: scores are no real numbers ({kind}); give one number for each unit")
    return values.double()


# ---- baselines ---------------------------------------------------------------------------------------------------


def weight_magnitude(model: Model, task: Task) -> Tensor:
    """Root of the summed squares of all weights that are a unit's own.

    Of a Mamba's channel those in the projections and the convolution, of a key or value channel its row of ``c_attn``.
    """
    scores = []
    for layer in model.layers:
        if isinstance(layer, Layer):
            rows = [*layer.in_proj.weight.split(layer.c.d_inner), layer.conv1d.weight[:, 0], layer.dt_proj.weight]
            rows += [layer.x_proj.weight.T, layer.out_proj.weight.T]
        else:
            parts = layer.attn.c_attn.weight.split(layer.attn.sizes)
            rows = [torch.cat([parts[1], parts[-1]])]  # the same twice where keys are values
        scores.append(torch.cat(rows, 1).norm(dim=1))
    return torch.cat(scores)


def activation_magnitude(model: Model, task: Task) -> Tensor:
    """Mean size of what a unit gives others to read, over prompts and tokens: of a channel |u| + |gated|."""
    return by_unit(model, task, lambda value, slope: value)


def gradient_x_activation(model: Model, task: Task) -> Tensor:
    """Mean size of ∂(log-probability of the answers)/∂a · a of the same (Simonyan et al. 2013)."""
    return by_unit(model, task, lambda value, slope: value * slope)


BASELINES: dict[str, Method] = {
    method.__name__: method for method in (weight_magnitude, activation_magnitude, gradient_x_activation)
}


def by_unit(model: Model, task: Task, what: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean size of something of the values and the gradients at a unit's sites, summed over those, [unit]."""
    prompts = task.sample(PROMPTS, "discovery", 0)
    kind = unit_kinds(model)[SCORED_UNITS[model.config.family]]
    units = Units(model, kind)
    values, slopes = gradients(
        model, prompts.tokens, units.sites, lambda logits: logprobs(logits, prompts), logits_at=prompts.positions
    )
    found = []
    for layer in range(units.layers):
        for block in kind.blocks:
            names = [f"layers.{layer}.{site}" for site in block.sites]
            sizes = [what(values[name], slopes[name]).abs().mean((0, 1)).flatten() for name in names]
            found.append(torch.stack(sizes).sum(0))
    return torch.cat(found)
