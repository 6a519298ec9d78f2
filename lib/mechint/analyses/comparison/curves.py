"""Measurements of every layer on a batch of prompts: layer effects, inequality of unit effects, reach of attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ...attribution.attention import attention_maps, normalised
from ...interventions.edits import Edit
from ...interventions.gradients import gradients
from ...interventions.model import Model
from ...interventions.run import run
from ...tasks import Prompts
from ..metrics import answer_metric
from ..sparsity.measures import gini
from ..unit_effects import Effects

CURVES = ("layer_effect", "unit_effect_gini", "attention_distance", "attention_entropy")
"""Curves over layers: effect of removing a layer, inequality of unit effects, distance and entropy of attention."""


def measured(model: Model, batch: Prompts, effects: Effects) -> dict[str, Tensor]:
    """Measures the loss and accuracy of each prompt [prompt], and the curves [prompt, layer].

    ``layer_effect`` is the loss in nats that removing what a layer adds costs; ``unit_effect_gini`` the Gini index of
    the sizes of its main units' estimated effects; ``attention_distance`` Σ_j Ā[i, j] (i - j) / L and
    ``attention_entropy`` -Σ_j Ā log Ā / log(i + 1), means over positions i ≥ 1 of the map of
    :mod:`mechint.analyses.circuits.methods.attention` with its rows divided by their sums.
    """
    with torch.no_grad():
        logits = run(model, batch.tokens, logits_at=batch.positions).logits
    cells = [[Edit(f"layers.{i}.{site}", "replace", 0.0) for site in model.mixers] for i in range(model.num_layers)]
    swept = effects.sweep(batch, [*cells, []], "layers removed")
    estimates = effects.estimates(batch, effects.fills(batch))
    unequal = [gini(estimates[group.site].T) for group in effects.groups]
    distance, spread = attention_reach(model, batch)
    return {
        "loss": answer_metric("loss", batch)(logits).double().cpu(),
        "accuracy": batch.correct(logits).cpu(),
        "layer_effect": (swept[-1] - swept[:-1]).T.contiguous(),
        "unit_effect_gini": torch.stack(unequal, 1),
        "attention_distance": distance,
        "attention_entropy": spread,
    }


def attention_reach(model: Model, batch: Prompts) -> tuple[Tensor, Tensor]:
    """Mean distance of what each layer reads, as a share of the prompt, and the entropy of it, [prompt, layer]."""
    needed = ("scan_out", "u", "dt", "B", "C") if model.config.family == "mamba" else ("pattern",)
    sites = [f"layers.{i}.{name}" for i in range(model.num_layers) for name in needed]
    values, slopes = gradients(
        model, batch.tokens, sites, answer_metric("answer_logprob", batch), logits_at=batch.positions
    )
    length = batch.tokens.shape[1]
    at = torch.arange(length, dtype=torch.float64)
    back = (at[:, None] - at) / length
    distance, spread = [], []
    for layer in range(model.num_layers):
        plain = normalised(attention_maps(model, layer, values, slopes)[0])  # [prompt, i, j]
        distance.append((plain * back).sum(-1)[:, 1:].mean(-1))
        spread.append((-torch.xlogy(plain, plain).sum(-1)[:, 1:] / torch.log(at[1:] + 1)).mean(-1))
    return torch.stack(distance, 1), torch.stack(spread, 1)
