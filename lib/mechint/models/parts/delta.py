"""Gated delta rules (Yang et al. 2024, "Gated Delta Networks"; Kimi Team 2025, "Kimi Linear").

A write first erases what the memory holds along its key: S_t = (I − β k kᵀ)(a ⊙ S_{t-1}) + β k vᵀ.
Axes: B batch, L position, D model, G key head, H value head, K key, V value. Every key head serves H/G value heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ... import scan
from ...interventions.taps import Scope
from ...scan.checks import accumulate
from ...scan.matrix import HEADS, KEYS, Writes
from .base import PartSite
from .convolution import CHANNELS, CausalConvolution
from .norms import GatedRMSNorm, unit_norm
from .recurrence import VALUES, MemoryCache, Recurrence, initial_step_biases


class GatedDelta(Recurrence):
    """One convolution over queries, keys and values; a write strength β and a decay for each head.

    Args:
        d_model, key_heads, heads, key_size, value_size, taps: D, G, H, K, V and the convolution's taps.
        eps: Added to the mean square of the gated norm.
        doubled: True if β = 2 σ(b), so that a write may turn a direction over (Olmo-Hybrid); else β = σ(b).
    """

    mediators = ("ssm_out", "conv", "beta", "decay", "key", "query", "value", "erase", "write", "state", "readout",
                 "gate")  # fmt: skip
    local = ("query", "readout", "scan_out", "y", "z", "gate", "gated", "ssm_out")
    projected = ("gated",)
    late = {"gated": ("", "out_proj"), "ssm_out": ("", "")}  # noqa: RUF012
    erases = True
    gate_of: Callable[[Tensor], Tensor] = staticmethod(scan.silu)
    least_rate = 1e-3
    """The least initial A; at 0 it would have no logarithm."""

    def __init__(
        self,
        d_model: int,
        key_heads: int,
        heads: int,
        key_size: int,
        value_size: int,
        taps: int,
        eps: float = 1e-6,
        doubled: bool = False,
    ) -> None:
        super().__init__()
        self.key_heads, self.heads, self.key_size, self.value_size = key_heads, heads, key_size, value_size
        self.doubled = doubled
        self.sizes = [key_heads * key_size, key_heads * key_size, heads * value_size]
        self.in_proj_qkv = nn.Linear(d_model, sum(self.sizes), bias=False)
        self.conv1d = CausalConvolution(sum(self.sizes), taps, bias=False)
        self.in_proj_b = nn.Linear(d_model, heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.make_gates(d_model)
        self.norm = GatedRMSNorm(value_size, eps, norm_first=True)
        self.out_proj = nn.Linear(heads * value_size, d_model, bias=False)
        if not self.A_log.is_meta:
            self.reset_parameters()

    def make_gates(self, d_model: int) -> None:
        """The projections of the decay and of the output gate."""
        self.in_proj_z = nn.Linear(d_model, self.heads * self.value_size, bias=False)
        self.in_proj_a = nn.Linear(d_model, self.heads, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation (the authors' code): A ~ U(0, 16), Δ log-uniform."""
        self.A_log.copy_(torch.empty_like(self.A_log).uniform_(self.least_rate, 16).log())
        self.dt_bias.copy_(initial_step_biases(len(self.dt_bias)))

    def sites(self) -> list[PartSite]:
        H, V = self.heads, self.value_size
        values = lambda name: PartSite(name, VALUES, (H, V))
        return [
            PartSite("x", CHANNELS, (self.conv1d.out_channels,)), *self.conv1d.sites(), values("u"),
            PartSite("beta", HEADS, (H,)),
            PartSite("dt", KEYS, (H, self.key_size)) if self.key_decay else PartSite("dt", HEADS, (H,)),
            *self.memory_sites(), values("y"), values("z"), values("gate"), values("gated"),
        ]  # fmt: skip

    def step_size(self, n: Tensor) -> Tensor:
        """Δ = softplus(…) in at least float32, [B, L, H] or [B, L, H, K]."""
        return scan.softplus(accumulate(self.in_proj_a(n)) + accumulate(self.dt_bias))

    def output_gate(self, n: Tensor) -> Tensor:
        """The gate before its activation, [B, L, H · V]."""
        return self.in_proj_z(n)

    def forward(self, n: Tensor, cache: MemoryCache, at: Scope) -> tuple[Tensor, Any]:
        """n [B, L, D] -> the mixer's output [B, L, D], and the memory behind these positions."""
        x = at("x", self.in_proj_qkv(n))  # [B, L, E]
        conv, memory = self.conv1d(x, cache.conv, at)
        query, key, u = (t.contiguous() for t in scan.silu(conv).split(self.sizes, -1))
        u = at("u", u.unflatten(-1, (self.heads, -1)))  # [B, L, H, V]
        shared = self.heads // self.key_heads
        query, key = (
            unit_norm(accumulate(t.unflatten(-1, (self.key_heads, -1)))).repeat_interleave(shared, 2)
            for t in (query, key)
        )  # [B, L, H, K]
        strength = torch.sigmoid(accumulate(self.in_proj_b(n)))
        beta = at("beta", 2 * strength if self.doubled else strength)  # [B, L, H]
        dt = at("dt", self.step_size(n))
        rate = -torch.exp(accumulate(self.A_log)).flatten()  # [H]
        decay = torch.exp((rate[:, None] if self.key_decay else rate) * dt)
        beta = beta.unsqueeze(-1)
        writes = Writes(decay, key, beta * accumulate(u), beta * key, key)
        y, state, shares = self.remember(writes, query * self.key_size**-0.5, cache, at)
        y = at("y", y.to(n.dtype))  # [B, L, H, V]
        z = at("z", self.output_gate(n).unflatten(-1, (self.heads, -1)))
        gated = at("gated", self.norm(y, at("gate", self.gate_of(z))))  # [B, L, H, V]
        return self.out_proj(gated.flatten(2)), MemoryCache(memory, state, shares)


class KimiDelta(GatedDelta):
    """A gated delta rule with a decay for every key channel, and low-rank gates (Kimi Linear)."""

    key_decay = True
    least_rate = 1.0
    gate_of = staticmethod(torch.sigmoid)

    def make_gates(self, d_model: int) -> None:
        rank, wide = self.value_size, self.heads * self.value_size
        self.f_a_proj = nn.Linear(d_model, rank, bias=False)
        self.f_b_proj = nn.Linear(rank, self.heads * self.key_size, bias=False)
        self.g_a_proj = nn.Linear(d_model, rank, bias=False)
        self.g_b_proj = nn.Linear(rank, wide, bias=False)
        self.A_log = nn.Parameter(torch.empty(1, 1, self.heads, 1))  # as it is published
        self.dt_bias = nn.Parameter(torch.empty(self.heads * self.key_size))

    def step_size(self, n: Tensor) -> Tensor:
        low = accumulate(self.f_b_proj(self.f_a_proj(n))) + accumulate(self.dt_bias)
        return scan.softplus(low).unflatten(-1, (self.heads, -1))

    def output_gate(self, n: Tensor) -> Tensor:
        return self.g_b_proj(self.g_a_proj(n))
