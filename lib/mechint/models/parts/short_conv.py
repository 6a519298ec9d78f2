"""A gated short convolution (Liquid AI's LFM2): y = C ⊙ conv(B ⊙ x). The convolution's memory is the only state.

Axes: B batch, L position, D model, E channel (as many as D).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ...interventions.taps import Scope
from ...interventions.unit_kinds import SHORT_CONV_UNITS
from .base import Part, PartSite
from .convolution import CHANNELS, CausalConvolution


@dataclass
class ConvCache:
    """The inputs that the convolution remembers, [B, K-1, E], oldest first."""

    conv: Tensor

    def repeat(self, times: int) -> ConvCache:
        """The same memory for that many copies of the batch, one copy after another."""
        return replace(self, conv=self.conv.repeat(times, 1, 1))


class ShortConv(Part):
    """One projection gives B, C and x; ``u`` is B ⊙ x, and ``gated`` is C ⊙ conv(u)."""

    out = "conv_out"
    mixes = True
    carried = ("conv_state",)
    local = ("C", "gated", "conv_out")
    late = {"gated": ("", "out_proj"), "conv_out": ("", "")}  # noqa: RUF012
    mediators = ("conv_out", "conv", "B", "C", "x")
    paths = ("conv",)
    patched = ("gated",)
    single = ("gated", "conv_out")
    ranked = "gated"
    memory = ("conv_state",)
    projected = ("gated",)
    unit_kinds = SHORT_CONV_UNITS

    def __init__(self, d_model: int, taps: int, bias: bool = False) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.conv = CausalConvolution(d_model, taps, bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def sites(self) -> list[PartSite]:
        channels = lambda name: PartSite(name, CHANNELS, (self.out_proj.in_features,))
        return [*map(channels, ("B", "C", "x", "u")), *self.conv.sites(), channels("gated")]

    def empty_cache(self, rows: int) -> ConvCache:
        return ConvCache(self.conv.empty_memory(rows))

    def forward(self, n: Tensor, cache: ConvCache, at: Scope) -> tuple[Tensor, Any]:
        """n [B, L, D] -> the output [B, L, D], and the memory behind these positions."""
        B, C, x = (
            at(name, t.contiguous()) for name, t in zip("BCx", self.in_proj(n).chunk(3, -1), strict=True)
        )  # [B, L, E]
        conv, memory = self.conv(at("u", B * x), cache.conv, at)
        return self.out_proj(at("gated", C * conv)), ConvCache(memory)
