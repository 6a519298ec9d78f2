"""Measures what the step size Δ of single tokens does, for chosen channels of a Mamba.

For each token and channel: |∂m/∂Δ_t[e]|, m less m with Δ_t[e] alone held at its mean, and Δ_t[e]. Rankings of whole
channels are in :mod:`mechint.analyses.circuits.methods.delta`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.gradients import gradients
from ...interventions.model import Model
from ...interventions.sweep import sweep
from ...tasks import Prompts
from ..metrics import answer_metric


def step_gradients(model: Model, prompts: Prompts, layers: list[int], metric: str) -> dict[str, Tensor]:
    """``{site} gradient``: Σ over tokens of |∂m/∂Δ|, [channel, prompt]."""
    sites = [f"layers.{layer}.dt" for layer in layers]
    _, slopes = gradients(
        model, prompts.tokens, sites, answer_metric(metric, prompts), logits_at=prompts.positions
    )  # fmt: skip
    return {f"{site} gradient": slopes[site].double().abs().sum(1).T.cpu() for site in sites}


def channels_of(scores: Tensor, count: int) -> list[int]:
    """The channels with the largest mean score, from [channel, prompt]."""
    return torch.sort(scores.mean(1), descending=True, stable=True).indices[:count].tolist()


def token_steps(
    model: Model,
    prompts: Prompts,
    means: dict[str, Tensor],
    channels: dict[str, list[int]],
    length: int,
    metric: str,
    memory_mib: float = 1024,
) -> dict[str, Tensor]:
    """Computes the effects of single tokens' Δ, for chosen channels of each site and the last ``length`` tokens.

    Returns:
        ``{site} token gradient``, ``{site} token do_mean`` and ``{site} token step`` [channel, token, prompt].
    """
    value_of = answer_metric(metric, prompts)
    values, slopes = gradients(model, prompts.tokens, list(channels), value_of, logits_at=prompts.positions)
    first = prompts.tokens.shape[1] - length
    found: dict[str, Tensor] = {}
    for site, chosen in channels.items():
        mean = means[site].to(values[site])
        cells = [
            [Edit(site, "replace", mean[e], positions=[t], units=[e])]
            for e in chosen
            for t in range(first, first + length)
        ]
        ran = sweep(
            model, prompts.tokens, [*cells, []], value_of, logits_at=prompts.positions, memory_mib=memory_mib,
            title=f"one token's Δ at {site}",
        ).double()  # fmt: skip
        found[f"{site} token do_mean"] = (ran[-1] - ran[:-1]).unflatten(0, (len(chosen), length))
        for name, tensor in (("gradient", slopes[site].abs()), ("step", values[site])):
            found[f"{site} token {name}"] = tensor[:, first:, chosen].double().cpu().permute(2, 1, 0)
    return found
