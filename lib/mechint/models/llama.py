"""Llama (Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"), in one file: all but the reading
of attention, which other transformers share.

Axes: B batch, L position, D model, H head, G heads that have keys and values of their own, d dimension of a head,
M neuron, V vocabulary. Every tensor that :attr:`Llama.sites` lists passes through ``at(name, tensor)``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interventions.sites import RESIDUAL, Site
from ..interventions.taps import Scope, Tap
from ..interventions.unit_kinds import KV_UNITS
from ..scan.checks import accumulate
from ..utils.errors import MechintError
from .base import LanguageModel, outer_sites
from .parts.attention import HEADS, NEURONS, SOURCES, LayerCache, LayerSites, layer_sites, read
from .parts.norms import NoNorm, RMSNorm, tell_readers
from .parts.rotation import Rotation

LAYER_SITES: LayerSites = [
    ("resid_pre", RESIDUAL, ("d_model",)),
    ("ln_1", RESIDUAL, ("d_model",)),
    ("q", HEADS, ("n_head", "d_head")),
    ("k", HEADS, ("n_kv_head", "d_head")),
    ("v", HEADS, ("n_kv_head", "d_head")),
    ("q_rot", HEADS, ("n_head", "d_head")),
    ("k_rot", HEADS, ("n_kv_head", "d_head")),
    ("scores", SOURCES, ("n_head", "")),
    ("pattern", SOURCES, ("n_head", "")),
    ("head_out", HEADS, ("n_head", "d_head")),
    ("attn_out", RESIDUAL, ("d_model",)),
    ("resid_mid", RESIDUAL, ("d_model",)),
    ("ln_2", RESIDUAL, ("d_model",)),
    ("mlp_pre", NEURONS, ("d_mlp",)),
    ("mlp_up", NEURONS, ("d_mlp",)),
    ("mlp_post", NEURONS, ("d_mlp",)),
    ("mlp_out", RESIDUAL, ("d_model",)),
    ("resid_post", RESIDUAL, ("d_model",)),
]


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and switches of a Llama; all but the heads and the rotation can be read off the tensors."""

    vocab_size: int
    d_model: int
    n_layer: int
    n_head: int
    n_kv_head: int
    d_head: int
    d_mlp: int
    rope_theta: float = 10000.0
    rope_factor: float = 1.0
    """Wavelengths of the rotation are stretched by this: the long ones where ``rope_original`` is set, else all."""
    rope_low: float = 1.0
    rope_high: float = 4.0
    """Wavelengths above original / low are stretched, those below original / high are kept (Llama 3)."""
    rope_original: int = 0
    """Positions of the first training, for Llama 3's scaling."""
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    norm_eps: float = 1e-6
    norms: bool = True
    """True if a norm precedes each part of a layer; without, the parts read the residual stream itself."""
    final_norm: bool = True
    """True if a norm follows the last layer."""
    family = "llama"

    @property
    def rotation(self) -> Rotation:
        """The turn of queries and keys by their positions."""
        return Rotation(self.rope_theta, 0, self.rope_factor, self.rope_low, self.rope_high, self.rope_original)


class Attention(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.c, self.rotation = c, c.rotation
        self.q_proj = nn.Linear(c.d_model, c.n_head * c.d_head, bias=c.attention_bias)
        self.k_proj = nn.Linear(c.d_model, c.n_kv_head * c.d_head, bias=c.attention_bias)
        self.v_proj = nn.Linear(c.d_model, c.n_kv_head * c.d_head, bias=c.attention_bias)
        self.o_proj = nn.Linear(c.n_head * c.d_head, c.d_model, bias=c.attention_bias)

    def forward(self, n: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        """n [B, L, D] -> attention output [B, L, D], and the cache behind these positions."""
        size = (-1, self.c.d_head)
        q = at("q", self.q_proj(n).unflatten(-1, size))  # [B, L, H, d]
        k = at("k", self.k_proj(n).unflatten(-1, size))  # [B, L, G, d]
        v = at("v", self.v_proj(n).unflatten(-1, size))  # [B, L, G, d]
        q = at("q_rot", self.rotation.turn(q, at.positions(q)))
        k = at("k_rot", self.rotation.turn(k, at.positions(k)))
        head_out, cache = read(q, k, v, cache, at)  # [B, L, H, d]
        return at("attn_out", self.o_proj(head_out.flatten(2))), cache


class MLP(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.d_model, c.d_mlp, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.d_model, c.d_mlp, bias=c.mlp_bias)
        self.down_proj = nn.Linear(c.d_mlp, c.d_model, bias=c.mlp_bias)

    def forward(self, n: Tensor, at: Scope) -> Tensor:  # [B, L, D]
        pre = at("mlp_pre", self.gate_proj(n))  # [B, L, M]
        up = at("mlp_up", self.up_proj(n))  # [B, L, M]
        return at("mlp_out", self.down_proj(at("mlp_post", F.silu(pre) * up)))


class Layer(nn.Module):
    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm: Any = RMSNorm(c.d_model, c.norm_eps) if c.norms else NoNorm()
        self.self_attn = Attention(c)
        self.post_attention_layernorm: Any = RMSNorm(c.d_model, c.norm_eps) if c.norms else NoNorm()
        self.mlp = MLP(c)
        tell_readers(self.input_layernorm, self.self_attn)
        tell_readers(self.post_attention_layernorm, self.mlp)

    def forward(self, r: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        """The residual stream [B, L, D] through the layer, and the cache behind these positions."""
        r = at("resid_pre", r)
        attn_out, cache = self.self_attn(at("ln_1", self.input_layernorm(r)), cache, at)
        r = at("resid_mid", at.wanted(r) + attn_out)
        mlp_out = self.mlp(at("ln_2", self.post_attention_layernorm(r)), at)
        return at("resid_post", r + mlp_out), cache


class Llama(LanguageModel):
    """A Llama language model. ``q`` and ``k`` are before the rotation, ``mlp_pre`` is the gate before its SiLU."""

    Config = LlamaConfig
    side_by_side = True
    first_sites = ("embed",)
    mediators = ("resid_post", "attn_out", "mlp_out", "q", "k", "v", "pattern", "head_out", "mlp_post")
    mixers = ("attn_out", "mlp_out")
    parts = MappingProxyType(
        {"block": ("resid_pre", "resid_post"), "attn": ("ln_1", "attn_out"), "mlp": ("ln_2", "mlp_out")}
    )
    paths = ("scores",)  # as in a prompt without the source (Geva et al. 2023, section 4)
    patched = ("head_out",)
    single = ("mlp_post", "head_out", "attn_out", "mlp_out")
    ranked = "mlp_post"
    memory = ("v", "k_rot")
    projected = ("head_out", "mlp_post")
    unit_kinds = KV_UNITS
    scored_unit = "kv"
    placeable = True
    local_sites = (
        "q", "q_rot", "scores", "pattern", "head_out", "attn_out", "resid_mid", "ln_2", "mlp_pre", "mlp_up", "mlp_post",
        "mlp_out", "resid_post",
    )  # fmt: skip
    late_sites = MappingProxyType({"mlp_post": ("", "mlp.down_proj"), "mlp_out": ("", "")})

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        c = config
        if c.n_head % c.n_kv_head or c.d_head % 2:
            raise MechintError(
                f"{c.n_head} heads of {c.d_head} dimensions over {c.n_kv_head} that have keys: the heads must be a "
                "multiple, and the dimensions even"
            )
        self.config = config
        self.embed_tokens = nn.Embedding(c.vocab_size, c.d_model, _weight=torch.empty(c.vocab_size, c.d_model))
        self.layers: nn.ModuleList = nn.ModuleList(Layer(c) for _ in range(c.n_layer))
        self.norm: Any = RMSNorm(c.d_model, c.norm_eps) if c.final_norm else NoNorm()
        tell_readers(self.norm, self.embed_tokens)
        self.lm_head = None if c.tied else nn.Linear(c.d_model, c.vocab_size, bias=False)
        if not self.embed_tokens.weight.is_meta:
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)

    @property
    def embeddings(self) -> Tensor:
        return self.embed_tokens.weight

    @functools.cached_property
    def sites(self) -> dict[str, Site]:
        """Every site of the forward, in its order."""
        c = self.config
        sites = [Site("embed", RESIDUAL, (c.d_model,))]
        sites += [site for i in range(c.n_layer) for site in layer_sites(i, LAYER_SITES, c)]
        return {site.name: site for site in [*sites, *outer_sites(c.d_model, c.vocab_size)]}

    def begin(self, tokens: Tensor, at: Tap) -> Tensor:
        return at("embed", accumulate(self.embed_tokens(tokens)))

    def parts_of(self, i: int) -> dict[str, nn.Module]:
        layer = cast(Layer, self.layers[i])
        return {"attn": layer.self_attn, "mlp": layer.mlp}

    def empty_cache(self, i: int, rows: int) -> LayerCache:
        return LayerCache([], [])

    def block(self, i: int, r: Tensor, cache: Any, at: Tap) -> tuple[Tensor, Any]:
        r, memory = self.layers[i](self.arrive(i, r, at), cache, at.within(f"layers.{i}"))
        return self.leave(i, r), memory

    def norm_at(self, i: int, kind: str) -> nn.Module | None:
        names = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
        return self.layers[i].get_submodule(names[kind]) if kind in names else None

    def block_from_start(self, i: int, r: Tensor, starts: Sequence[int], at: Tap) -> tuple[Tensor, list[Any]]:
        r, memory = self.block(i, r, self.empty_cache(i, len(r)), at)
        return r, [memory.before(start) for start in starts]

    @property
    def ending(self) -> tuple[nn.Module, Tensor]:
        return self.norm, self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
