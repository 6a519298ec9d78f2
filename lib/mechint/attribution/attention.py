"""Attention maps of attention and of selective scans: how much each position reads of each other position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..interventions.model import Model
from ..interventions.run import run
from ..scan.attention_weights import NEEDS, hidden_attention
from ..scan.checks import accumulate, check_range


@torch.no_grad()
def attention_map(model: Model, tokens: Tensor, layer: int, reduce: str = "weights", **options: Any) -> Tensor:
    """:func:`hidden_attention` of one layer on tokens [batch, position], with its u, gate and W_out where needed."""
    check_range("attention_map", "layer", [layer], 0, len(model.layers))
    sites = [f"layers.{layer}.{name}" for name in ("dt", "B", "C", "u", "gate")]
    found = run(model, tokens, record=sites, logits_at=tokens.new_zeros(len(tokens), 1).long())
    values = {site.split(".")[2]: found[site] for site in sites} | {"W_out": model.layers[layer].out_proj.weight}
    options |= {name: values[name] for name in NEEDS.get(reduce, "").split() if name in values}
    A_log = accumulate(model.layers[layer].A_log)
    return hidden_attention(values["dt"], -torch.exp(A_log), values["B"], values["C"], reduce, **options)


NUMBERS = 1 << 24
"""Entries of the maps of a group of channels, held at once."""


def attention_maps(
    model: Model, layer: int, values: dict[str, Tensor], slopes: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(|α|, max(0, ∂m/∂α · α)), means over the channels or heads, [prompt, i, j] in float64 on the CPU."""
    at = lambda name: f"layers.{layer}.{name}"
    if model.config.family != "mamba":
        pattern, slope = values[at("pattern")].double().cpu(), slopes[at("pattern")].double().cpu()
        return pattern.mean(2), (pattern * slope).clamp(min=0).mean(2)
    dt, B, C, u = (values[at(name)] for name in ("dt", "B", "C", "u"))
    A = -torch.exp(accumulate(model.layers[layer].A_log))
    rows, length, channels = dt.shape
    plain, guided = (torch.zeros(rows, length, length, dtype=torch.float64) for _ in range(2))
    count = max(1, NUMBERS // (rows * length * length))
    for some in torch.arange(channels).split(count):
        alpha = hidden_attention(dt, A, B, C, "channels", channels=some.tolist())  # [prompt, e, i, j]
        plain += alpha.abs().sum(1).double().cpu()
        slope = slopes[at("scan_out")][..., some].mT.unsqueeze(-1) * u[..., some].mT.unsqueeze(-2)
        guided += (alpha * slope).clamp(min=0).sum(1).double().cpu()
    return plain / channels, guided / channels


def normalised(weights: Tensor) -> Tensor:
    """Rows divided by their sums; a row of zeros stays one."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
