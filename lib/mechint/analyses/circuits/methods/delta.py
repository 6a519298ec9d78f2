"""Ranks the channels of a Mamba by what their step size Δ does to a metric.

=============== ======================================================================================
name            of channel e, over the tokens t of a prompt
=============== ======================================================================================
gradient        Σ_t |∂m/∂Δ_t[e]|, exact: all that Δ does, to the decay and to the write
do_mean         m - m(do Δ_t[e] := its mean over discovery prompts and tokens, for all t), an intervention
variance        variance of Δ_t[e] over tokens and prompts
output_variance variance of ``gated`` over tokens and prompts: the documented ranking
=============== ======================================================================================

The documented analysis ranked neurons by the variance of a layer's output and called them delta-sensitive; it did not
read Δ. Both rankings are here, each by its name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....interventions.edits import Edit
from ....interventions.gradients import gradients
from ....interventions.model import Model
from ....interventions.sweep import sweep
from ....tasks import Prompts
from ...ablation import means
from ...base import values_of
from ...metrics import answer_metric
from .evaluator import Evaluator

RANKINGS = ("gradient", "do_mean", "variance", "output_variance")


def mean_step(model: Model, batches: list[Prompts], layers: list[int]) -> dict[str, Tensor]:
    """The mean of Δ over prompts and tokens, [channel] by site."""
    sites = [f"layers.{layer}.dt" for layer in layers]
    found, _ = means(batches, lambda batch: values_of(model, batch, sites))
    return {site: mean[0].cpu() for site, mean in found.items()}


def delta_units(
    model: Model, prompts: Prompts, means: dict[str, Tensor], metric: str, memory_mib: float = 1024
) -> dict[str, Tensor]:
    """Per prompt and channel of each layer in ``means`` (from :func:`mean_step`).

    Returns:
        ``{site} gradient`` and ``{site} do_mean`` [channel, prompt]; ``{site} mean``, ``{site} square`` (moments of Δ
        over a prompt's tokens) and the same with ``output`` before them for ``gated`` [prompt, channel].
    """
    value_of = answer_metric(metric, prompts)
    sites = list(means)
    outputs = {site: site.removesuffix("dt") + "gated" for site in sites}
    values, slopes = gradients(
        model, prompts.tokens, [*sites, *outputs.values()], value_of, logits_at=prompts.positions
    )
    found: dict[str, Tensor] = {}
    for site in sites:
        found[f"{site} gradient"] = slopes[site].double().abs().sum(1).T.cpu()
        mean = means[site].to(values[site])
        cells = [[Edit(site, "replace", mean[e], units=[e])] for e in range(len(mean))]
        ran = sweep(
            model, prompts.tokens, [*cells, []], value_of, logits_at=prompts.positions, memory_mib=memory_mib,
            title=f"Δ held at {site}",
        ).double()  # fmt: skip
        found[f"{site} do_mean"] = ran[-1] - ran[:-1]
        for name, tensor in ((site, values[site]), (f"{site} output", values[outputs[site]])):
            wide = tensor.double().cpu()
            found[f"{name} mean"], found[f"{name} square"] = wide.mean(1), wide.square().mean(1)
    return found


def rankings(found: dict[str, Tensor], site: str) -> dict[str, Tensor]:
    """The four rankings of a site's channels from what :func:`delta_units` gave for all prompts, [channel] each."""
    variance = lambda name: found[f"{name} square"].mean(0) - found[f"{name} mean"].mean(0).square()
    return {
        "gradient": found[f"{site} gradient"].mean(1),
        "do_mean": found[f"{site} do_mean"].mean(1),
        "variance": variance(site),
        "output_variance": variance(f"{site} output"),
    }


# ---- as methods of circuits --------------------------------------------------------------------------------------


def by_step(evaluator: Evaluator, name: str) -> Tensor:
    """The size of one of :data:`RANKINGS` for every channel of every layer, [units], over the evaluator's prompts."""
    model, metric = evaluator.model, evaluator.answer_metric
    layers = evaluator.units.numbers

    def measured() -> dict[str, Tensor]:
        means = mean_step(model, evaluator.batches, layers)
        parts = [delta_units(model, batch, means, metric) for batch in evaluator.batches]
        by_prompt = {key: int(key.rpartition(" ")[2] in ("gradient", "do_mean")) for key in parts[0]}
        return {key: torch.cat([part[key] for part in parts], axis) for key, axis in by_prompt.items()}

    found = evaluator.once("steps", measured)
    return torch.cat([rankings(found, f"layers.{layer}.dt")[name].abs() for layer in layers])
