"""Ranks units by exact effects of single ones: removed, kept alone, or exchanged with the counterfactual twin's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....interventions.model import Model
from ....interventions.run import run
from ....interventions.sweep import sweep
from ....interventions.units import Units
from ....tasks import Prompts
from ...metrics import answer_metric, logit_differences
from ...unit_effects import Effects
from ..bench import METRICS, Bench, removed
from .evaluator import Evaluator


def removal(evaluator: Evaluator) -> Tensor:
    """Computes the loss that gates learn from for the model without each of its units alone, [units]."""
    return removal_effects(evaluator.bench, evaluator.metric)


def removal_effects(bench: Bench, metric: str, inside: Tensor | None = None) -> Tensor:
    """Computes the loss that gates learn from for a circuit without each of its units alone, [units].

    Args:
        bench: The discovery prompts.
        metric: Metric that the circuit preserves.
        inside: Numbers of the circuit's units; all of the model's by default. Others have 0.
    """
    column = METRICS[metric].learn
    effects = torch.zeros(bench.units.total, device=bench.batches[0].tokens.device)
    inside = torch.arange(len(effects), device=effects.device) if inside is None else inside
    values = removed(bench, effects.index_fill(0, inside, 1.0), inside.tolist(), column)
    if column != "kl":
        values = (values - bench.ends[0][column].unsqueeze(1)).square()
    effects[inside] = values.mean(0).to(effects)
    return effects


# ---- exchanged with the twin -------------------------------------------------------------------------------------


def patching_noise(evaluator: Evaluator) -> Tensor:
    """Mean size of the effect, on the logit difference, of putting each unit's twin value into the clean run, [units].

    At all positions and wherever others read the unit (a channel's u and gated).
    """
    return exchanged(evaluator, "noise")


def patching_denoise(evaluator: Evaluator) -> Tensor:
    """As :func:`patching_noise`, with the unit's clean value put into the run of the twin."""
    return exchanged(evaluator, "denoise")


def exchanged(evaluator: Evaluator, direction: str) -> Tensor:
    found = [
        exchange_effects(evaluator.model, batch, evaluator.units, direction, each=True) for batch in evaluator.batches
    ]
    return torch.cat(found, 1).abs().mean(1)


def exchange_effects(
    model: Model, prompts: Prompts, units: Units, direction: str = "noise", each: bool = False
) -> Tensor:
    """The change of the logit difference by each single unit, [unit, prompt], or [unit, answer] where ``each`` is.

    Args:
        model: From :func:`mechint.load`.
        prompts: With counterfactual twins and their answers.
        units: Those exchanged, one at a time.
        direction: ``noise`` puts the twin's value into the clean run, ``denoise`` the clean value into the twin's.
        each: True if the answers of a prompt stay apart.
    """
    assert prompts.twins is not None  # METHODS ask for them
    receiver, donor = (prompts.twins, prompts.tokens) if direction == "denoise" else (prompts.tokens, prompts.twins)
    with torch.no_grad():
        values = run(model, donor, record=units.sites, logits_at=prompts.positions[:, :0]).values
        cells = [units.dropping(number, units.read(dict(values))) for number in range(units.total)]
    difference = lambda logits: logit_differences(logits, prompts)  # [cell, row, Q, V] -> [cell, row, Q]
    # an empty cell is the receiver itself, so that units without an effect are exactly zero
    found = sweep(
        model, receiver, [*cells, []], difference, logits_at=prompts.positions, title=f"patching, {direction}"
    )
    change = found[:-1] - found[-1]
    return change.flatten(1) if each else change.mean(2)


# ---- ablated, or kept, alone -------------------------------------------------------------------------------------


def causal_necessary(evaluator: Evaluator) -> Tensor:
    """Mean size of the effect on the answers of each unit ablated alone, [units].

    A Mamba's channel is ablated at ``u``, where a channel that only feeds Δ, B or C has its effect.
    """
    return ablated(evaluator, "necessary", "u")


def causal_sufficient(evaluator: Evaluator) -> Tensor:
    """Mean size of the effect on the answers of keeping each unit alone, with the rest of its group ablated, [units].

    A Mamba's channel is kept at ``gated``: with every other ``u`` of the layer ablated nothing is written at all. A
    group is a layer, or one block of it: the keys of a layer, or its values.
    """
    return ablated(evaluator, "sufficient", "gated")


def ablated(evaluator: Evaluator, direction: str, site: str) -> Tensor:
    found = [of_batch(evaluator, number, direction, site) for number in range(len(evaluator.batches))]
    return torch.cat(found, 1).abs().mean(1)


def of_batch(evaluator: Evaluator, number: int, direction: str, site: str) -> Tensor:
    """The effects on one batch, [units, prompt]."""
    batch, units, model = evaluator.batches[number], evaluator.units, evaluator.model
    if set(units.kind.sites) != {"u", "gated"}:
        return alone(evaluator, batch, evaluator.bench.fills[number], direction)

    def effects_of_sites() -> Effects:
        layers = units.numbers
        ablation = evaluator.bench.ablation.method
        return Effects(
            model, [site], layers, ablation, evaluator.batches, evaluator.aligned, evaluator.answer_metric
        )  # fmt: skip

    effects = evaluator.once(f"effects at {site}", effects_of_sites)
    fills = effects.fills(batch)
    measure: Callable[..., Tensor] = getattr(effects, direction)
    return torch.cat([measure(batch, group, fills[group.site]) for group in effects.groups])


def alone(evaluator: Evaluator, batch: Prompts, fills: dict[str, Any], direction: str) -> Tensor:
    """As :func:`of_batch` for any kind of unit, replaced wherever others read it."""
    units, value_of = evaluator.units, answer_metric(evaluator.answer_metric, batch)
    measure = lambda cells: sweep(
        evaluator.model, batch.tokens, cells, value_of, logits_at=batch.positions
    ).double()  # fmt: skip
    if direction == "necessary":
        found = measure([*(units.dropping(unit, fills) for unit in range(units.total)), []])
        return found[-1] - found[:-1]
    effects = []
    for group in units.groups():
        mask = torch.ones(units.total).index_fill(0, group, 0.0)
        cells = [units.edits(each, fills) for each in (*(mask.index_fill(0, unit, 1.0) for unit in group), mask)]
        found = measure(cells)
        effects.append(found[:-1] - found[-1])
    return torch.cat(effects)
