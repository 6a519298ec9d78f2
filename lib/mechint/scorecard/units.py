"""Rankings of single units as methods of the scorecard: Δ, causal effects, and the documented ranking by variance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..delta_units import delta_units, mean_step, rankings
from ..models.mamba import Mamba
from ..tasks import Task
from ..unit_effects import Effects


@functools.lru_cache(maxsize=1)
def steps(model: Mamba, task: Task, count: int) -> dict[str, Tensor]:
    """What all rankings by Δ are made of; the first of them pays for it."""
    prompts = task.sample(count, "discovery", 0)
    layers = list(range(model.config.n_layer))
    return delta_units(model, prompts, mean_step(model, [prompts], layers), "logit_diff")


def delta_ranking(model: Mamba, task: Task, budget: Any, *, ranking: str) -> Tensor:
    """A ranking of :mod:`mechint.delta_units` on the logit difference, its size for each channel, [units]."""
    found = steps(model, task, budget.patch_prompts)
    layers = range(model.config.n_layer)
    return torch.cat([rankings(found, f"layers.{layer}.dt")[ranking].abs() for layer in layers])


def causal_ranking(model: Mamba, task: Task, budget: Any, *, direction: str) -> Tensor:
    """Mean size of the effect on the logit difference of each channel ablated, or kept, alone at ``gated``, [units]."""
    prompts = task.sample(budget.patch_prompts, "discovery", 0)
    layers = list(range(model.config.n_layer))
    effects = Effects(model, ["gated"], layers, "mean", [prompts], task.aligned, "logit_diff")
    fills = effects.fills(prompts)
    measure: Callable[..., Tensor] = getattr(effects, direction)
    return torch.cat([measure(prompts, group, fills[group.site]).abs().mean(1) for group in effects.groups])
