"""Ranks units by gradients of a metric: integrated over the mask, or times the activation at the intact model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....interventions.gradients import gradients
from ....tasks import Prompts
from ...metrics import logprobs
from ..bench import attribute
from .evaluator import Evaluator


def attribution(evaluator: Evaluator) -> Tensor:
    """Integrated gradients of the metric over the mask, signed so that a unit that helps is positive, [units].

    Sundararajan, Taly & Yan 2017, equation 1, with the ablation as the baseline; see
    :func:`mechint.analyses.circuits.bench.attribute`.
    """
    return evaluator.once("attribution", lambda: attribute(evaluator.bench, evaluator.metric))


def attribution_size(evaluator: Evaluator) -> Tensor:
    """The sizes of :func:`attribution`, [units]: what must be preserved can need units that lower the metric."""
    return attribution(evaluator).abs()


def activation_magnitude(evaluator: Evaluator) -> Tensor:
    """Mean size of what a unit gives others to read, over prompts and tokens, [units]: of a channel |u| + |gated|."""
    return at_sites(evaluator, lambda value, slope: value)


def gradient_x_activation(evaluator: Evaluator) -> Tensor:
    """Mean size of ∂(log-probability of the answers)/∂a · a at the same sites, [units] (Simonyan et al. 2013)."""
    return at_sites(evaluator, lambda value, slope: value * slope)


def at_sites(evaluator: Evaluator, what: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean size of a function of the values and the gradients at a unit's sites, summed over those, [units].

    A unit that holds several numbers at a site (a head, a layer) has the sum over them.
    """
    units, prompts = evaluator.units, sum(len(batch) for batch in evaluator.batches)
    total = torch.zeros(units.total, device=evaluator.batches[0].tokens.device)
    for batch in evaluator.batches:

        def logprob(logits: Tensor, batch: Prompts = batch) -> Tensor:
            return logprobs(logits, batch)

        values, slopes = gradients(evaluator.model, batch.tokens, units.sites, logprob, logits_at=batch.positions)
        found = []
        for row in units.by_row:
            for block in row.blocks:
                names = [f"layers.{row.layer}.{site}" for site in block.sites]
                sizes = [of_units(what(values[name], slopes[name]).abs().mean((0, 1)), block.axes) for name in names]
                found.append(torch.stack(sizes).sum(0))
        total += torch.cat(found) * (len(batch) / prompts)
    return total


def of_units(value: Tensor, axes: int | None) -> Tensor:
    """A value [unit axes…] of a site as one number for each unit: axes after the first ``axes`` are summed over."""
    inner = tuple(range(value.dim() if axes is None else axes, value.dim()))
    return (value.sum(inner) if inner else value).flatten()
