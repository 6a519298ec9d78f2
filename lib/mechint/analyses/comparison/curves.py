"""Measurements of every layer on a batch of prompts: layer effects, inequality of unit effects, reach of attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ...attribution.attention import attention_maps, map_sites, normalised, readers
from ...interventions.edits import Edit
from ...interventions.gradients import gradients
from ...interventions.model import Model, added_sites
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
    :mod:`mechint.analyses.circuits.methods.attention` with its rows divided by their sums. A curve has the layers of
    :func:`layers_of` alone.
    """
    with torch.no_grad():
        logits = run(model, batch.tokens, logits_at=batch.positions).logits
    cells = [[Edit(site, "replace", 0.0) for site in sites] for sites in added_sites(model)]
    swept = effects.sweep(batch, [*cells, []], "layers removed")
    estimates = effects.estimates(batch, effects.fills(batch))
    unequal = [gini(estimates[group.site].T) for group in effects.groups]
    distance, spread = attention_reach(model, batch)
    return {
        "loss": answer_metric("loss", batch)(logits).double().cpu(),
        "accuracy": batch.correct(logits).cpu(),
        "layer_effect": (swept[-1] - swept[:-1]).T.contiguous(),
        "unit_effect_gini": torch.stack(unequal, 1) if unequal else torch.zeros(len(batch), 0),
        "attention_distance": distance,
        "attention_entropy": spread,
    }


def reading(model: Model) -> list[int]:
    """The layers in which positions read others."""
    return [layer for layer in range(model.num_layers) if readers(model, layer)]


def layers_of(model: Model, effects: Effects, curve: str) -> list[int]:
    """The layers that a curve of :data:`CURVES` is measured in."""
    if curve == "unit_effect_gini":
        return [int(group.site.split(".")[1]) for group in effects.groups]
    return list(range(model.num_layers)) if curve == "layer_effect" else reading(model)


def attention_reach(model: Model, batch: Prompts) -> tuple[Tensor, Tensor]:
    """Mean distance of what each layer of :func:`reading` reads, as a share of the prompt, and the entropy of it,
    [prompt, layer]."""
    values, slopes = gradients(
        model, batch.tokens, map_sites(model), answer_metric("answer_logprob", batch), logits_at=batch.positions
    )
    length = batch.tokens.shape[1]
    at = torch.arange(length, dtype=torch.float64)
    back = (at[:, None] - at) / length
    distance, spread = [], []
    for layer in reading(model):
        plain = normalised(attention_maps(model, layer, values, slopes)[0])  # [prompt, i, j]
        distance.append((plain * back).sum(-1)[:, 1:].mean(-1))
        spread.append((-torch.xlogy(plain, plain).sum(-1)[:, 1:] / torch.log(at[1:] + 1)).mean(-1))
    return torch.stack(distance, 1), torch.stack(spread, 1)
