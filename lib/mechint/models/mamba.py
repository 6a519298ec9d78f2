"""Mamba-1 (Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces").

Its mixer stands in :mod:`.parts.mamba1`.
Axes: B batch, L position, D model, E channel, N state, K taps, R rank of Δ, V vocabulary. Every tensor that
:attr:`Mamba.sites` lists passes through ``at(name, tensor)``, where it can be recorded and edited.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..interventions.sites import RESIDUAL, Site
from ..interventions.taps import Scope, Tap
from ..interventions.unit_kinds import SSM_UNITS
from ..scan.checks import accumulate
from .base import LanguageModel, outer_sites
from .parts.mamba1 import CHANNELS, SHARED, STATES, LayerCache, Mamba1Mixer
from .parts.norms import NoNorm, RMSNorm, tell_readers


@dataclass(frozen=True)
class MambaConfig:
    """Sizes and switches of a Mamba-1; everything but the switches can be read off the tensors."""

    vocab_size: int
    d_model: int
    n_layer: int
    d_inner: int
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 1
    conv_bias: bool = True
    proj_bias: bool = False
    tied: bool = True
    norm_eps: float = 1e-5
    norms: bool = True
    """True if a norm precedes each part of a layer; without, the parts read the residual stream itself."""
    final_norm: bool = True
    """True if a norm follows the last layer."""
    family = "mamba"


class Layer(Mamba1Mixer):
    """Norm and mixer; the residual connection is the model's."""

    def __init__(self, c: MambaConfig) -> None:
        norm: Any = RMSNorm(c.d_model, c.norm_eps) if c.norms else NoNorm()
        super().__init__(
            c.d_model, c.d_inner, c.d_state, c.d_conv, c.dt_rank, conv_bias=c.conv_bias, proj_bias=c.proj_bias,
            norm=norm, depth=c.n_layer,
        )  # fmt: skip
        self.c = c
        tell_readers(norm, self.in_proj)

    def forward(self, r: Tensor, cache: LayerCache, at: Scope) -> tuple[Tensor, LayerCache]:
        """r [B, L, D] -> mixer output [B, L, D], and the cache behind these positions."""
        out, memory = super().forward(at("norm", self.norm(r)), cache, at)
        return at("out", out), memory

    def from_start(self, r: Tensor, starts: Sequence[int], at: Scope) -> tuple[Tensor, list[LayerCache]]:
        """:meth:`forward` in one pass from position 0, and the memory of the positions before each start."""
        out, memories = super().from_start(at("norm", self.norm(r)), starts, at)
        return at("out", out), memories


class Mamba(LanguageModel):
    """A Mamba-1 language model."""

    Config = MambaConfig
    first_sites = ("embed",)  # before the layers
    carried_sites = ("state", "conv_state")  # an edit of one position is carried on to the next
    mediators = ("resid_post", "out", "conv", "dt", "B", "C", "write", "state", "readout", "gate")
    mixers = ("out",)
    parts = MappingProxyType(
        {"block": ("resid_pre", "resid_post"), "norm": ("resid_pre", "norm"), "mixer": ("norm", "out"),
         "conv": ("x", "conv"), "scan": ("u", "scan_out")}
    )  # fmt: skip
    paths = ("out", "state", "conv")  # the whole mixer, its scan alone, its convolution alone
    patched = ("gated", "state")  # all that a channel computes, and what it remembers alone
    single = Mamba1Mixer.single
    ranked = Mamba1Mixer.ranked
    memory = Mamba1Mixer.memory
    projected = ("gated",)
    unit_kinds = SSM_UNITS
    scored_unit = "channel"
    placeable = True
    local_sites = ("C", "readout", "scan_out", "y", "z", "gate", "gated", "out", "resid_post")  # within one position
    late_sites = MappingProxyType(
        {"y": ("gate", "out_proj"), "gate": ("y", "out_proj"), "gated": ("", "out_proj"), "out": ("", "")}
    )

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.d_model), freeze=False)
        self.layers: nn.ModuleList = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.norm_f: Any = RMSNorm(config.d_model, config.norm_eps) if config.final_norm else NoNorm()
        tell_readers(self.norm_f, self.embedding)
        self.lm_head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=0.02)

    @property
    def embeddings(self) -> Tensor:
        return self.embedding.weight

    @functools.cached_property
    def sites(self) -> dict[str, Site]:
        """Every site of the forward, in its order."""
        c = self.config
        sites: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = [("embed", RESIDUAL, (c.d_model,))]
        for layer in range(c.n_layer):
            sites += [
                (f"layers.{layer}.{name}", axes, tuple(getattr(c, size) for size in sizes))
                for name, axes, sizes in LAYER_SITES
            ]
            memory = (c.d_inner, c.d_conv - 1)
            sites.append((f"layers.{layer}.conv_state", (*CHANNELS, "tap"), memory))
        named = [*(Site(*site) for site in sites), *outer_sites(c.d_model, c.vocab_size)]
        return {site.name: site for site in named}

    def begin(self, tokens: Tensor, at: Tap) -> Tensor:
        return at("embed", accumulate(self.embedding(tokens)))

    def parts_of(self, i: int) -> dict[str, nn.Module]:
        return {"mixer": self.layers[i]}

    def empty_cache(self, i: int, rows: int) -> LayerCache:
        return cast(Layer, self.layers[i]).empty_cache(rows)

    def block(self, i: int, r: Tensor, cache: LayerCache, at: Tap) -> tuple[Tensor, LayerCache]:
        r, here = self.arrive(i, r, at), at.within(f"layers.{i}")
        r = here("resid_pre", r)
        out, memory = self.layers[i](r, cache, here)
        return self.leave(i, here("resid_post", r + out)), memory

    def block_from_start(self, i: int, r: Tensor, starts: Sequence[int], at: Tap) -> tuple[Tensor, list[Any]]:
        r, here, layer = self.arrive(i, r, at), at.within(f"layers.{i}"), cast(Layer, self.layers[i])
        if not layer.in_one_pass(r.to(layer.in_proj.weight.dtype), here):
            return super().block_from_start(i, r, starts, at)
        r = here("resid_pre", r)
        out, memories = layer.from_start(r, starts, here)
        return self.leave(i, here("resid_post", r + out)), memories

    @property
    def ending(self) -> tuple[nn.Module, Tensor]:
        return self.norm_f, self.embedding.weight if self.lm_head is None else self.lm_head.weight


# (name, axes, configuration fields of the unit sizes), in the order of the forward
LAYER_SITES: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("resid_pre", RESIDUAL, ("d_model",)),
    ("norm", RESIDUAL, ("d_model",)),
    ("x", CHANNELS, ("d_inner",)),
    ("z", CHANNELS, ("d_inner",)),
    ("conv", CHANNELS, ("d_inner",)),
    ("u", CHANNELS, ("d_inner",)),
    ("dt", CHANNELS, ("d_inner",)),
    ("B", SHARED, ("d_state",)),
    ("C", SHARED, ("d_state",)),
    ("decay", STATES, ("d_inner", "d_state")),
    ("write", STATES, ("d_inner", "d_state")),
    ("state", STATES, ("d_inner", "d_state")),
    ("readout", STATES, ("d_inner", "d_state")),
    ("scan_out", CHANNELS, ("d_inner",)),
    ("y", CHANNELS, ("d_inner",)),
    ("gate", CHANNELS, ("d_inner",)),
    ("gated", CHANNELS, ("d_inner",)),
    ("out", RESIDUAL, ("d_model",)),
    ("resid_post", RESIDUAL, ("d_model",)),
]
