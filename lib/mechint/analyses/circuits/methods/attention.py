"""Ranks units by their activations, weighted by attention: the documented methods with their definitions.

Each layer l has a map Ā[i, j] of how much position i reads of j, each row divided by its sum, and w_j, the mean of the
rows at the answer positions. With a_j[e] the unit's activation and m the metric, a prompt's score of unit e is

================== ==================================================================== ============================
method             Ā (mean over a Mamba's channels, over a transformer's heads)         score of unit e
================== ==================================================================== ============================
attention_weighted |α_e[i, j]|; a transformer's pattern                                 Σ_j w_j |a_j[e]|
gradient_guided    max(0, ∂m/∂α_e[i, j] · α_e[i, j]) (Chefer et al. 2021, equation 5)   Σ_j w_j |a_j[e] ∂m/∂a_j[e]|
rollout            as attention_weighted; w from Π (I + Ā)/2 over this layer and all    Σ_j w_j |a_j[e]|
                   after it (Abnar & Zuidema 2020)
gradient_x_input   none: the control                                                    Σ_j |a_j[e] ∂m/∂a_j[e]|
================== ==================================================================== ============================

α is the exact hidden attention of :mod:`mechint.scan.attention_weights`; ∂m/∂α_e[i, j] = ∂m/∂scan_out_i[e] · u_j[e].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....attribution.attention import attention_maps, map_sites, normalised
from ....interventions.gradients import gradients
from ....interventions.model import Model
from ....tasks import Prompts
from ...metrics import answer_metric
from .evaluator import Evaluator

METHODS = ("attention_weighted", "gradient_guided", "rollout")


CONTROL = "gradient_x_input"


def attention_units(model: Model, prompts: Prompts, layers: list[int], metric: str, kind: str) -> dict[str, Tensor]:
    """Every method's and the control's scores, ``{site} {method}`` [prompt, unit], at one kind of site.

    Args:
        layers: Those scored; they have such a site.
    """
    every = range(model.num_layers)
    sites = list(dict.fromkeys([*map_sites(model), *(f"layers.{i}.{kind}" for i in layers)]))
    values, slopes = gradients(
        model, prompts.tokens, sites, answer_metric(metric, prompts), logits_at=prompts.positions
    )
    maps = [attention_maps(model, i, values, slopes) for i in every]
    readers = prompts.positions
    found: dict[str, Tensor] = {}
    length = prompts.tokens.shape[1]
    onward = torch.eye(length, dtype=torch.float64).expand(len(prompts), -1, -1)
    for layer in reversed(every):
        plain, guided = (normalised(each) for each in maps[layer])
        onward = onward @ (torch.eye(length, dtype=torch.float64) + plain) / 2
        if layer not in layers:
            continue
        site = f"layers.{layer}.{kind}"
        size, push = values[site].double().cpu().abs(), (values[site] * slopes[site]).double().cpu().abs()
        size, push = (x if x.dim() == 3 else x.flatten(3).sum(-1) for x in (size, push))  # of a head, over dimensions
        weights = {"attention_weighted": plain, "gradient_guided": guided, "rollout": onward}
        for method, each in weights.items():
            w = each.gather(1, readers.cpu().unsqueeze(-1).expand(-1, -1, length)).mean(1)  # [prompt, j]
            found[f"{site} {method}"] = torch.einsum("bj,bje->be", w, push if method == "gradient_guided" else size)
        found[f"{site} {CONTROL}"] = push.sum(1)
    return found


def by_attention(evaluator: Evaluator, name: str) -> Tensor:
    """One of :data:`METHODS` for the channels of a Mamba at ``gated``, mean over the evaluator's prompts, [units]."""
    layers = evaluator.units.numbers

    def measured() -> list[dict[str, Tensor]]:
        metric = evaluator.answer_metric
        return [attention_units(evaluator.model, batch, layers, metric, "gated") for batch in evaluator.batches]

    parts = evaluator.once("attention", measured)
    scores = [torch.cat([part[f"layers.{layer}.gated {name}"] for part in parts]).mean(0) for layer in layers]
    return torch.cat(scores)
