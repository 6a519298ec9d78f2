"""Feed-forward parts: plain, gated, and mixtures of experts with their router.

Axes: B batch, L position, D model, M neuron, X expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...interventions.taps import Scope
from ...interventions.unit_kinds import NEURON_UNITS
from .attention import NEURONS
from .base import Part, PartSite

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "gelu_fast": lambda x: 0.5 * x * (1 + (0.7978845608 * x * (1 + 0.044715 * x * x)).tanh()),
        "relu": F.relu,
        "relu2": lambda x: F.relu(x).square(),
    }
)
"""Activations by our name."""
ACTIVATION_NAMES = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_fast",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2",
}  # fmt: skip
"""Names in configurations -> ours; ``gelu_fast`` has ten digits of √(2/π)."""
WRITTEN_ACTIVATIONS: Mapping[str, str] = MappingProxyType({"gelu_tanh": "gelu_pytorch_tanh"})
"""Our names -> those in configurations, where they differ."""


class MLP(Part):
    """A feed-forward part with one projection in (Vaswani et al. 2017)."""

    out = "mlp_out"
    local = ("mlp_pre", "mlp_post", "mlp_out")
    late = MappingProxyType({"mlp_post": ("", "down_proj"), "mlp_out": ("", "")})
    mediators = ("mlp_out", "mlp_post")
    projected = ("mlp_post",)
    single = ("mlp_post", "mlp_out")
    ranked = "mlp_post"
    unit_kinds = NEURON_UNITS

    def __init__(self, d_model: int, d_mlp: int, activation: str, bias: bool = False) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, d_mlp, bias=bias)
        self.down_proj = nn.Linear(d_mlp, d_model, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def sites(self) -> list[PartSite]:
        return [PartSite(name, NEURONS, (self.down_proj.in_features,)) for name in ("mlp_pre", "mlp_post")]

    def forward(self, n: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        pre = at("mlp_pre", self.up_proj(n))  # [B, L, M]
        return self.down_proj(at("mlp_post", self.activation(pre))), None


class GatedMLP(Part):
    """A feed-forward part whose neurons are gated (Shazeer 2020); ``mlp_pre`` is the gate before its activation.

    Args:
        gate_scale: Multiplies the gate before its activation (Falcon-H1).
        out_scale: Multiplies the output (Falcon-H1).
    """

    out = "mlp_out"
    local = ("mlp_pre", "mlp_up", "mlp_post", "mlp_out")
    mediators = ("mlp_out", "mlp_post")
    projected = ("mlp_post",)
    single = ("mlp_post", "mlp_out")
    ranked = "mlp_post"
    unit_kinds = NEURON_UNITS

    def __init__(
        self,
        d_model: int,
        d_mlp: int,
        activation: str = "silu",
        bias: bool = False,
        gate_scale: float = 1.0,
        out_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_mlp, bias=bias)
        self.up_proj = nn.Linear(d_model, d_mlp, bias=bias)
        self.down_proj = nn.Linear(d_mlp, d_model, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.gate_scale, self.out_scale = gate_scale, out_scale
        if out_scale == 1.0:
            self.late = {"mlp_post": ("", "down_proj"), "mlp_out": ("", "")}

    def sites(self) -> list[PartSite]:
        return [PartSite(name, NEURONS, (self.down_proj.in_features,)) for name in ("mlp_pre", "mlp_up", "mlp_post")]

    def forward(self, n: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        gate = self.gate_proj(n)
        pre = at("mlp_pre", gate if self.gate_scale == 1.0 else gate * self.gate_scale)  # [B, L, M]
        up = at("mlp_up", self.up_proj(n))  # [B, L, M]
        out = self.down_proj(at("mlp_post", self.activation(pre) * up))
        return out if self.out_scale == 1.0 else out * self.out_scale, None
