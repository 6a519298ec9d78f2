"""Rankings of single units as methods of the scorecard: by Δ, hidden attention, causal effects and variance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..analyses.ablation import Ablation
from ..analyses.circuits.methods.attention import attention_units
from ..analyses.circuits.methods.delta import delta_units, mean_step, rankings
from ..analyses.metrics import answer_metric
from ..analyses.unit_effects import Effects
from ..interventions.model import Model
from ..interventions.sweep import sweep
from ..interventions.units import Units, unit_kinds
from ..models.mamba import Mamba
from ..tasks import Prompts, Task


@functools.lru_cache(maxsize=1)
def steps(model: Mamba, task: Task, count: int) -> dict[str, Tensor]:
    """What all rankings by Δ are made of; the first of them pays for it."""
    prompts = task.sample(count, "discovery", 0)
    layers = list(range(model.config.n_layer))
    return delta_units(model, prompts, mean_step(model, [prompts], layers), "logit_diff")


def delta_ranking(model: Mamba, task: Task, budget: Any, *, ranking: str) -> Tensor:
    """A ranking of :mod:`mechint.analyses.neurons.delta` on the logit difference, its size for each channel, [units].

    It is judged by the channels whose step carries the answers, not by the whole circuit: what only feeds B or C has
    a step that nobody reads.
    """
    found = steps(model, task, budget.patch_prompts)
    layers = range(model.config.n_layer)
    return torch.cat([rankings(found, f"layers.{layer}.dt")[ranking].abs() for layer in layers])


@functools.lru_cache(maxsize=1)
def by_attention(model: Mamba, task: Task, count: int) -> dict[str, Tensor]:
    """Scores of every ranking of :mod:`.neurons.attention`, [prompt, unit]; the first of them pays for it."""
    prompts = task.sample(count, "discovery", 0)
    return attention_units(model, prompts, list(range(model.config.n_layer)), "logit_diff")


def attention_ranking(model: Mamba, task: Task, budget: Any, *, ranking: str) -> Tensor:
    """A ranking of channels at ``gated`` by hidden attention, for the logit difference, mean over prompts, [units]."""
    found = by_attention(model, task, budget.patch_prompts)
    return torch.cat([found[f"layers.{layer}.gated {ranking}"].mean(0) for layer in range(model.config.n_layer)])


def causal_ranking(model: Model, task: Task, budget: Any, *, direction: str, site: str) -> Tensor:
    """Mean size of the effect on the logit difference of each unit ablated, or kept, alone, [units].

    Of a Mamba's channels at the site: at ``u`` for what is necessary, since a channel that only feeds Δ, B or C has no
    effect at ``gated``; at ``gated`` for what is sufficient, since with every other ``u`` ablated nothing is written at
    all. Of a transformer's key and value channels among those of their layer, K and V apart.
    """
    prompts = task.sample(budget.patch_prompts, "discovery", 0)
    if not isinstance(model, Mamba):
        return alone(model, prompts, task.aligned, budget.unit, direction)
    layers = list(range(model.config.n_layer))
    effects = Effects(model, [site], layers, "mean", [prompts], task.aligned, "logit_diff")
    fills = effects.fills(prompts)
    measure: Callable[..., Tensor] = getattr(effects, direction)
    return torch.cat([measure(prompts, group, fills[group.site]).abs().mean(1) for group in effects.groups])


def alone(model: Model, prompts: Prompts, aligned: bool, unit: str, direction: str) -> Tensor:
    """The same of any kind of unit, where a group is a block of a layer: ``necessary`` or ``sufficient``, [units]."""
    units = Units(model, unit_kinds(model)[unit])
    fills = Ablation(model, units, "mean", [prompts], aligned).fills(prompts)
    value_of = answer_metric("logit_diff", prompts)
    measure = lambda cells: sweep(model, prompts.tokens, cells, value_of, logits_at=prompts.positions).double()
    if direction == "necessary":
        found = measure([*(units.dropping(e, fills) for e in range(units.total)), []])
        return (found[-1] - found[:-1]).abs().mean(1)
    effects = []
    size = units.per_layer // len(units.kind.blocks)
    for group in range(units.total // size):
        mask = torch.ones(units.total)
        mask[group * size : (group + 1) * size] = 0.0
        kept = torch.eye(units.total)[group * size : (group + 1) * size]
        found = measure([units.edits(each, fills) for each in [*(mask + kept), mask]])
        effects.append((found[:-1] - found[-1]).abs().mean(1))
    return torch.cat(effects)
