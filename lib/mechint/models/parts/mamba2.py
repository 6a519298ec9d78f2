"""Mamba-2's mixer (Dao & Gu 2024, "Transformers are SSMs"): one decay a head, groups of heads share B and C.

Axes: B batch, L position, D model, H head, P value (width of a head), G group, N state (the key axis).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ... import scan
from ...interventions.taps import Scope
from ...scan.checks import accumulate
from ...scan.matrix import Writes
from .base import PartSite
from .convolution import CHANNELS, CausalConvolution
from .feed_forward import ACTIVATIONS
from .norms import GatedRMSNorm
from .recurrence import HEADS, VALUES, MemoryCache, Recurrence, initial_step_biases, stopped_scan

GROUPS = ("batch", "position", "group", "state")


class Mamba2Mixer(Recurrence):
    """One projection gives z, x, B, C and dt; Δ = softplus(dt + bias), clamped; the read-out is normed with its gate.

    Args:
        d_model, heads, value_size, key_size, groups, taps: D, H, P, N, G and the convolution's taps.
        conv_bias, proj_bias: Biases of the convolution and of the projections.
        eps: Added to the mean square of the gated norm.
        norm: ``product`` norms y ⊙ SiLU(z); ``first`` norms y and then gates; ``none`` gates alone.
        norm_groups: Groups that are normed apart.
        limits: The least and largest Δ.
        in_scale, out_scale: Multiply what the mixer reads and gives (Falcon-H1).
        scales: Factors of z, x, B, C and dt behind the projection (Falcon-H1).
        activation: Our name of the activation behind the convolution; the gate's is SiLU.
    """

    mediators = ("ssm_out", "conv", "dt", "decay", "key", "query", "write", "state", "readout", "gate")
    local = ("query", "readout", "scan_out", "y", "z", "gate", "gated", "ssm_out")
    projected = ("gated",)

    def __init__(
        self,
        d_model: int,
        heads: int,
        value_size: int,
        key_size: int,
        groups: int,
        taps: int,
        *,
        conv_bias: bool = True,
        proj_bias: bool = False,
        eps: float = 1e-5,
        norm: str = "product",
        norm_groups: int = 1,
        limits: tuple[float, float] = (0.0, math.inf),
        in_scale: float = 1.0,
        out_scale: float = 1.0,
        scales: tuple[float, ...] = (1.0,) * 5,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.heads, self.value_size, self.key_size, self.groups = heads, value_size, key_size, groups
        self.inner, shared = heads * value_size, groups * key_size
        self.sizes = [self.inner, self.inner + 2 * shared, heads]
        self.activation = scan.silu if activation == "silu" else ACTIVATIONS[activation]
        self.limits, self.in_scale, self.out_scale = limits, in_scale, out_scale
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=proj_bias)
        self.conv1d = CausalConvolution(self.inner + 2 * shared, taps, conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = None if norm == "none" else GatedRMSNorm(self.inner, eps, norm_groups, norm == "first")
        self.out_proj = nn.Linear(self.inner, d_model, bias=proj_bias)
        parts = (self.inner, self.inner, shared, shared, heads)
        self.scales = None if set(scales) == {1.0} else tuple(zip(scales, parts, strict=True))
        self.late = {"ssm_out": ("", "")} if self.norm is not None or out_scale != 1.0 else {
            "gated": ("", "out_proj"), "ssm_out": ("", "")
        }  # fmt: skip
        self.inside = [site.name for site in self.sites() if site.name != "gated"]
        if not self.D.is_meta:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation (the authors' code)."""
        self.dt_bias.copy_(initial_step_biases(self.heads))
        self.A_log.copy_(torch.empty(self.heads).uniform_(1, 16).log())
        self.D.fill_(1.0)

    def sites(self) -> list[PartSite]:
        H, P, G, N = self.heads, self.value_size, self.groups, self.key_size
        return [
            PartSite("z", VALUES, (H, P)), PartSite("x", CHANNELS, (self.conv1d.out_channels,)), *self.conv1d.sites(),
            PartSite("u", VALUES, (H, P)), PartSite("dt", HEADS, (H,)), PartSite("B", GROUPS, (G, N)),
            PartSite("C", GROUPS, (G, N)), *self.memory_sites(), PartSite("y", VALUES, (H, P)),
            PartSite("gate", VALUES, (H, P)), PartSite("gated", CHANNELS, (self.inner,)),
        ]  # fmt: skip

    def forward(self, n: Tensor, cache: MemoryCache, at: Scope) -> tuple[Tensor, Any]:
        """n [B, L, D] -> the mixer's output [B, L, D], and the memory behind these positions."""
        split = self.in_proj(n if self.in_scale == 1.0 else n * self.in_scale)
        if self.scales is not None:
            split = split * torch.cat([split.new_full((size,), scale) for scale, size in self.scales])
        z, x, low = split.split(self.sizes, -1)
        if self.in_one_pass(z, at):
            inner, new = self.mix_in_one_pass(z, x, low, cache, at)
            return self.project(at("gated", inner)), new
        z = at("z", z.unflatten(-1, (self.heads, -1)).contiguous())  # [B, L, H, P]
        conv, memory = self.conv1d(at("x", x.contiguous()), cache.conv, at)
        shared = self.groups * self.key_size
        u, B, C = self.activation(conv).split([self.inner, shared, shared], -1)
        u = at("u", u.unflatten(-1, (self.heads, -1)).contiguous())  # [B, L, H, P]
        dt = scan.softplus(accumulate(low) + accumulate(self.dt_bias)).clamp(*self.limits)
        dt = at("dt", dt)  # [B, L, H]
        B = at("B", B.unflatten(-1, (self.groups, -1)).contiguous())  # [B, L, G, N]
        C = at("C", C.unflatten(-1, (self.groups, -1)).contiguous())  # [B, L, G, N]
        decay = torch.exp(-torch.exp(accumulate(self.A_log)) * dt)
        wide = accumulate(u)
        writes = Writes(decay, accumulate(B), dt.unsqueeze(-1) * wide)
        y, state, shares = self.remember(writes, accumulate(C), cache, at)
        y = at("y", (y + accumulate(self.D)[:, None] * wide).to(u.dtype))  # [B, L, H, P]
        gate = at("gate", scan.silu(z))  # [B, L, H, P]
        y, gate = y.flatten(2), gate.flatten(2)
        gated = at("gated", y * gate if self.norm is None else self.norm(y, gate))
        return self.project(gated), MemoryCache(memory, state, shares)

    def project(self, gated: Tensor) -> Tensor:
        """The mixer's output [B, L, D] of what its gate lets through, [B, L, H · P]."""
        out = self.out_proj(gated)
        return out if self.out_scale == 1.0 else out * self.out_scale

    def in_one_pass(self, z: Tensor, at: Scope) -> bool:
        """True if :meth:`mix_in_one_pass` can take inputs like z: no site inside is read, but the state at some
        positions, and no gradient is asked."""
        if at.wants(*(name for name in self.inside if name != "state")) or at.stops("state", z.shape[1]) is None:
            return False
        return self.activation is scan.silu and scan.one_pass(z, self)

    def mix_in_one_pass(
        self, z: Tensor, x: Tensor, low: Tensor, cache: MemoryCache, at: Scope
    ) -> tuple[Tensor, MemoryCache]:
        """Takes the steps of :meth:`forward`, to the bit, without their temporaries.

        Returns:
            The ``gated`` [B, L, H · P] and the memory behind these positions.
        """
        conv = scan.convolved(x, cache.conv, self.conv1d.weight[:, 0], self.conv1d.bias)
        shared = self.groups * self.key_size
        u, B, C = conv.split([self.inner, shared, shared], -1)
        dt = scan.softplus(low + self.dt_bias).clamp(*self.limits)  # [B, L, H]
        key, query = (t.unflatten(-1, (self.groups, -1)).contiguous() for t in (B, C))  # [B, L, G, N]
        value = dt.unsqueeze(-1) * u.unflatten(-1, (self.heads, -1))  # [B, L, H, P]
        writes = Writes(torch.exp(-torch.exp(self.A_log) * dt), key, value)
        y, state = stopped_scan(writes, query, cache.state, at.stops("state", x.shape[1]) or [], at)
        skip = self.D.repeat_interleave(self.value_size)
        n = self.norm
        norm = None if n is None else (n.weight, n.eps, n.groups, n.norm_first)
        memory = torch.cat([cache.conv, x[:, -cache.conv.shape[1] :]], 1)[:, -cache.conv.shape[1] :]
        return scan.finished(y.flatten(2), u, skip, z, norm), MemoryCache(memory, state)
