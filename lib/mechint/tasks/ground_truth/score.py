"""Scores of any method on models whose circuit is known, and three baselines.

A *method* is a function ``(model, task) -> scores``: the model is a :class:`mechint.models.mamba.Mamba`, the task gives
prompts (``task.sample(count, "discovery", seed)``: tokens, answer positions, answers, twins), and the scores are one
number for each unit, in the order of :class:`mechint.units.Units`: for channels, those of layer 0, then of layer 1, and
so on; the higher the more it belongs to the circuit. A method never sees the truth:

>>> from mechint.tasks.ground_truth import BLUEPRINTS
>>> from mechint.tasks.ground_truth.score import score_method, weight_magnitude
>>> score_method(BLUEPRINTS["recall"]().compile(), weight_magnitude)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import MechintError
from ...models.mamba import Layer, Mamba
from ...models.sites import Tap
from ..base import Prompts, Task
from .blueprint import Compiled

Method = Callable[[Mamba, Task], Any]

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


def score_method(compiled: Compiled, method: Method, unit: str = "channel") -> Score:
    """The score of a method on a compiled model.

    Args:
        compiled: From a blueprint.
        method: A function of the model and the task; see the top of this file.
        unit: What it scores: ``channel``, ``mode``, ``path`` or ``layer``.

    Raises:
        MechintError: the scores are not one finite number for each unit.
    """
    name = getattr(method, "__name__", repr(method))
    truth = compiled.truth.mask(compiled.model, unit)
    return score_units(truth, method(compiled.model, compiled.task), f"{name} on {compiled.model.source}")


def score_units(truth: Any, scores: Any, where: str = "scores") -> Score:
    """Scores [units, in any shape] against the mask of the circuit, of the same number of entries.

    Raises:
        MechintError: another shape, NaN or infinite entries, or a circuit of no unit or of all.
    """
    mask, values = torch.as_tensor(truth).detach().cpu(), torch.as_tensor(scores).detach().cpu().double()
    if values.shape != mask.shape:
        raise MechintError(
            f"{where}: scores of shape {list(values.shape)} for units of shape {list(mask.shape)}; "
            "give one number for each unit, layer by layer"
        )
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise MechintError(f"{where}: {bad} of {values.numel()} scores are NaN or infinite; score every unit")
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


# ---- baselines, of channels -------------------------------------------------------------------------------------


def layers(model: Mamba) -> list[Layer]:
    return [layer for layer in model.layers if isinstance(layer, Layer)]


def weight_magnitude(model: Mamba, task: Task) -> Tensor:
    """Root of the summed squares of all weights that are a channel's own in the projections and the convolution."""
    E = model.config.d_inner
    scores = []
    for layer in layers(model):
        rows = [*layer.in_proj.weight.split(E), layer.conv1d.weight[:, 0], layer.dt_proj.weight]
        rows += [layer.x_proj.weight.T, layer.out_proj.weight.T]
        scores.append(torch.cat(rows, 1).norm(dim=1))
    return torch.cat(scores)


def activation_magnitude(model: Mamba, task: Task) -> Tensor:
    """Mean size of what a channel gives others to read: |u| + |gated|."""
    _, values = readings(model, task.sample(PROMPTS, "discovery", 0))
    return torch.cat([sum_over(value.abs() for value in pair) for pair in values])


def gradient_x_activation(model: Mamba, task: Task) -> Tensor:
    """Mean size of ∂(log-probability of the answers)/∂u · u + the same of gated (Simonyan et al. 2013)."""
    logprob, values = readings(model, task.sample(PROMPTS, "discovery", 0))
    flat = [value for pair in values for value in pair]
    gradients = torch.autograd.grad(logprob, flat)
    products = [(value * gradient).abs() for value, gradient in zip(flat, gradients, strict=True)]
    return torch.cat([sum_over(pair) for pair in zip(products[::2], products[1::2], strict=True)])


BASELINES: dict[str, Method] = {
    method.__name__: method for method in (weight_magnitude, activation_magnitude, gradient_x_activation)
}


def sum_over(parts: Any) -> Tensor:
    """Means over batch and position of tensors [batch, position, unit], added up, [unit]."""
    return torch.stack([part.detach().mean((0, 1)) for part in parts]).sum(0)


def readings(model: Mamba, prompts: Prompts) -> tuple[Tensor, list[list[Tensor]]]:
    """Log-probability of the answers (a sum), and for each layer u and gated [batch, position, channel] with graph."""
    names = [[f"layers.{i}.{site}" for site in ("u", "gated")] for i in range(model.config.n_layer)]
    tap = Tap([name for pair in names for name in pair])
    with torch.enable_grad():
        # a graph without parameters that need gradients begins at the embeddings
        embedding = model.embedding.weight.requires_grad
        model.embedding.weight.requires_grad_(True)
        try:
            logits, _ = model.trace(prompts.tokens, tap, logits_at=prompts.positions)
        finally:
            model.embedding.weight.requires_grad_(embedding)
        logprob = torch.log_softmax(logits, -1).gather(-1, prompts.answers.unsqueeze(-1)).sum()
    return logprob, [[tap.values[name] for name in pair] for pair in names]
