"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), in one file: all but the reading
of attention, which other transformers share.

Axes: B batch, L position, D model, H head, G heads that have keys and values of their own (all, or one where K = V is
tied globally), d dimension of a head, M neuron, V vocabulary. Every tensor that :attr:`GPT2.sites` lists passes through
``at(name, tensor)``, where it can be recorded and edited.
"""

from __future__ import annotations

import functools
import math
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
from .parts.norms import LayerNorm, NoNorm, tell_readers

LAYER_SITES: LayerSites = [
    ("resid_pre", RESIDUAL, ("d_model",)),
    ("ln_1", RESIDUAL, ("d_model",)),
    ("q", HEADS, ("n_head", "d_head")),
    ("k", HEADS, ("n_kv_head", "d_head")),
    ("v", HEADS, ("n_kv_head", "d_head")),
    ("scores", SOURCES, ("n_head", "")),
    ("pattern", SOURCES, ("n_head", "")),
    ("head_out", HEADS, ("n_head", "d_head")),
    ("attn_out", RESIDUAL, ("d_model",)),
    ("resid_mid", RESIDUAL, ("d_model",)),
    ("ln_2", RESIDUAL, ("d_model",)),
    ("mlp_pre", NEURONS, ("d_mlp",)),
    ("mlp_post", NEURONS, ("d_mlp",)),
    ("mlp_out", RESIDUAL, ("d_model",)),
    ("resid_post", RESIDUAL, ("d_model",)),
]


@dataclass(frozen=True)
class GPT2Config:
    """Sizes and switches of a GPT-2; all but the heads and the activation can be read off the tensors."""

    vocab_size: int
    n_ctx: int
    """Positions that have an embedding: the longest prompt."""
    d_model: int
    n_layer: int
    n_head: int
    d_mlp: int
    activation: str = "gelu_tanh"
    """``gelu_tanh`` (the published model's approximation) or ``gelu`` (exact)."""
    bias: bool = True
    norm_bias: bool = True
    kv_tied: bool = False
    """True if one projection serves as key and as value."""
    kv_global: bool = False
    """True if that one projection is the key and the value of all heads, instead of one for each."""
    tied: bool = True
    norm_eps: float = 1e-5
    norms: bool = True
    """True if a norm precedes each part of a layer; without, the parts read the residual stream itself."""
    final_norm: bool = True
    """True if a norm follows the last layer."""
    family = "gpt2"

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    @property
    def n_kv_head(self) -> int:
        """Heads that have keys and values of their own."""
        return 1 if self.kv_global else self.n_head


class Attention(nn.Module):
    def __init__(self, c: GPT2Config) -> None:
        super().__init__()
        self.c = c
        self.sizes = [c.d_model, *[c.n_kv_head * c.d_head] * (1 if c.kv_tied else 2)]
        self.c_attn = nn.Linear(c.d_model, sum(self.sizes), bias=c.bias)
        self.c_proj = nn.Linear(c.d_model, c.d_model, bias=c.bias)

    def forward(self, n: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        """n [B, L, D] -> attention output [B, L, D], and the cache behind these positions."""
        parts = [part.unflatten(-1, (-1, self.c.d_head)) for part in self.c_attn(n).split(self.sizes, -1)]
        # contiguous, as an edited tensor is: products of other strides may differ in the last bit
        q = at("q", parts[0].contiguous())  # [B, L, H, d]
        k = at("k", parts[1].contiguous())  # [B, L, G, d]
        v = at("v", parts[-1].contiguous())  # [B, L, G, d], made like k where they are tied
        head_out, cache = read(q, k, v, cache, at)  # [B, L, H, d]
        return at("attn_out", self.c_proj(head_out.flatten(2))), cache


class MLP(nn.Module):
    def __init__(self, c: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(c.d_model, c.d_mlp, bias=c.bias)
        self.c_proj = nn.Linear(c.d_mlp, c.d_model, bias=c.bias)
        self.approximate = "tanh" if c.activation == "gelu_tanh" else "none"

    def forward(self, n: Tensor, at: Scope) -> Tensor:  # [B, L, D]
        pre = at("mlp_pre", self.c_fc(n))  # [B, L, M]
        post = at("mlp_post", F.gelu(pre, approximate=self.approximate))  # [B, L, M]
        return at("mlp_out", self.c_proj(post))


class Layer(nn.Module):
    def __init__(self, c: GPT2Config) -> None:
        super().__init__()
        self.ln_1: Any = LayerNorm(c.d_model, c.norm_eps, c.norm_bias) if c.norms else NoNorm()
        self.attn = Attention(c)
        self.ln_2: Any = LayerNorm(c.d_model, c.norm_eps, c.norm_bias) if c.norms else NoNorm()
        self.mlp = MLP(c)
        tell_readers(self.ln_1, self.attn)
        tell_readers(self.ln_2, self.mlp)

    def forward(self, r: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        """The residual stream [B, L, D] through the layer, and the cache behind these positions."""
        r = at("resid_pre", r)
        attn_out, cache = self.attn(at("ln_1", self.ln_1(r)), cache, at)
        r = at("resid_mid", at.wanted(r) + attn_out)
        mlp_out = self.mlp(at("ln_2", self.ln_2(r)), at)
        return at("resid_post", r + mlp_out), cache


class GPT2(LanguageModel):
    """A GPT-2 language model. ``head_out`` is what each head reads, before the output projection mixes the heads."""

    Config = GPT2Config
    side_by_side = True
    first_sites = ("embed", "pos_embed")
    carried_sites = ()  # later positions read the recorded keys and values themselves
    mediators = ("resid_post", "attn_out", "mlp_out", "q", "k", "v", "pattern", "head_out", "mlp_post")
    mixers = ("attn_out", "mlp_out")
    parts = MappingProxyType(
        {"block": ("resid_pre", "resid_post"), "attn": ("ln_1", "attn_out"), "mlp": ("ln_2", "mlp_out")}
    )
    paths = ("scores",)  # as in a prompt without the source (Geva et al. 2023, section 4)
    patched = ("head_out",)
    single = ("mlp_post", "head_out", "attn_out", "mlp_out")
    ranked = "mlp_post"
    memory = ("v", "k")
    projected = ("head_out", "mlp_post")
    unit_kinds = KV_UNITS
    scored_unit = "kv"
    placeable = True
    local_sites = (
        "q", "scores", "pattern", "head_out", "attn_out", "resid_mid", "ln_2", "mlp_pre", "mlp_post", "mlp_out",
        "resid_post",
    )  # fmt: skip
    late_sites = MappingProxyType({"mlp_post": ("", "mlp.c_proj"), "mlp_out": ("", "")})

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        if config.d_model % config.n_head:
            raise MechintError(f"a width of {config.d_model} can't be divided among {config.n_head} heads")
        if config.kv_global and not config.kv_tied:
            raise MechintError("keys and values of all heads are one projection only where keys are values (kv_tied)")
        self.config = config
        sizes = (config.vocab_size, config.d_model)
        self.wte = nn.Embedding(*sizes, _weight=torch.empty(sizes))
        self.wpe = nn.Embedding(config.n_ctx, config.d_model, _weight=torch.empty(config.n_ctx, config.d_model))
        self.layers: nn.ModuleList = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.ln_f: Any = LayerNorm(config.d_model, config.norm_eps, config.norm_bias) if config.final_norm else NoNorm()
        tell_readers(self.ln_f, self.wte)
        self.lm_head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        if not self.wte.weight.is_meta:  # drawing on the meta device would import torch's compiler, 2 s
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation (section 2.3)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith("c_proj.weight")
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer) if deep else 0.02)
            elif name.endswith("bias"):
                parameter.zero_()

    @property
    def embeddings(self) -> Tensor:
        return self.wte.weight

    @functools.cached_property
    def sites(self) -> dict[str, Site]:
        """Every site of the forward, in its order."""
        c = self.config
        sites = [Site(name, RESIDUAL, (c.d_model,)) for name in self.first_sites]
        sites += [site for i in range(c.n_layer) for site in layer_sites(i, LAYER_SITES, c)]
        return {site.name: site for site in [*sites, *outer_sites(c.d_model, c.vocab_size)]}

    def check_length(self, length: int) -> None:
        if length > self.config.n_ctx:
            raise MechintError(
                f"{length} positions are too many: this model has embeddings for {self.config.n_ctx}; shorten the "
                "prompt, or generate less"
            )

    def begin(self, tokens: Tensor, at: Tap) -> Tensor:
        end = at.offset + tokens.shape[1]
        self.check_length(end)
        embed = at("embed", accumulate(self.wte(tokens)))  # [B, L, D]
        positions = self.wpe(torch.arange(at.offset, end, device=tokens.device))  # [L, D]
        return embed + at("pos_embed", accumulate(positions).expand_as(embed))

    def parts_of(self, i: int) -> dict[str, nn.Module]:
        layer = cast(Layer, self.layers[i])
        return {"attn": layer.attn, "mlp": layer.mlp}

    def empty_cache(self, i: int, rows: int) -> LayerCache:
        return LayerCache([], [])

    def block(self, i: int, r: Tensor, cache: Any, at: Tap) -> tuple[Tensor, Any]:
        r, memory = self.layers[i](self.arrive(i, r, at), cache, at.within(f"layers.{i}"))
        return self.leave(i, r), memory

    def norm_at(self, i: int, kind: str) -> nn.Module | None:
        return self.layers[i].get_submodule(kind) if kind in ("ln_1", "ln_2") else None

    def block_from_start(self, i: int, r: Tensor, starts: Sequence[int], at: Tap) -> tuple[Tensor, list[Any]]:
        r, memory = self.block(i, r, self.empty_cache(i, len(r)), at)
        return r, [memory.before(start) for start in starts]

    @property
    def ending(self) -> tuple[nn.Module, Tensor]:
        return self.ln_f, self.wte.weight if self.lm_head is None else self.lm_head.weight
