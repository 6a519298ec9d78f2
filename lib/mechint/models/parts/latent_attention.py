"""Latent attention (DeepSeek-AI 2024, "DeepSeek-V2"): all heads' keys and values are made of one small vector.

Axes: B batch, L position, D model, H head, r width of the small vector, d width of a head's own keys, s width of the
keys that all heads share, e width of a head's values. There is no rotation (Kimi Linear).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...interventions.taps import Scope
from ...interventions.unit_kinds import ATTENTION_UNITS
from .attention import HEADS, SOURCES, LayerCache, read
from .base import Part, PartSite
from .norms import RMSNorm

LATENT = ("batch", "position", "dimension")
EPS = 1e-6
"""The constant of the small vectors' norms, whatever the configuration says of the other norms."""


class LatentAttention(Part):
    """Causal attention whose keys and values are made of a ``latent`` [B, L, r], with a ``shared_key`` [B, L, s].

    ``k`` [B, L, H, d + s] is what queries meet: a head's own key, and the shared one. ``q`` is as wide.

    Args:
        d_model, n_head: D and H.
        own, shared, values: d, s and e.
        rank: r.
        query_rank: Width of a small vector in front of the queries; 0 for none.
        bias: True if the projections to the small vectors and the output projection have one.
    """

    out = "attn_out"
    mixes = True
    mediators = ("attn_out", "q", "latent", "k", "v", "pattern", "head_out")
    paths = ("scores",)
    patched = ("head_out",)
    single = ("head_out", "attn_out")
    ranked = "head_out"
    memory = ("v", "k")
    projected = ("head_out",)
    unit_kinds = ATTENTION_UNITS

    def __init__(
        self,
        d_model: int,
        n_head: int,
        own: int,
        shared: int,
        values: int,
        rank: int,
        query_rank: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.n_head, self.own, self.shared, self.values, self.rank = n_head, own, shared, values, rank
        self.query_rank = query_rank
        wide = n_head * (own + shared)
        if query_rank:
            self.q_a_proj = nn.Linear(d_model, query_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(query_rank, EPS)
            self.q_b_proj = nn.Linear(query_rank, wide, bias=False)
        else:
            self.q_proj = nn.Linear(d_model, wide, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(d_model, rank + shared, bias=bias)
        self.kv_a_layernorm = RMSNorm(rank, EPS)
        self.kv_b_proj = nn.Linear(rank, n_head * (own + values), bias=False)
        self.o_proj = nn.Linear(n_head * values, d_model, bias=bias)
        self.local = (*["query_latent"] * (query_rank > 0), "q", "scores", "pattern", "head_out", "attn_out")

    def sites(self) -> list[PartSite]:
        H, keys = self.n_head, (self.n_head, self.own + self.shared)
        return [
            *[PartSite("query_latent", LATENT, (self.query_rank,))] * (self.query_rank > 0),
            PartSite("q", HEADS, keys), PartSite("latent", LATENT, (self.rank,)),
            PartSite("shared_key", LATENT, (self.shared,)), PartSite("k", HEADS, keys),
            PartSite("v", HEADS, (H, self.values)), PartSite("scores", SOURCES, (H, 0), -torch.inf),
            PartSite("pattern", SOURCES, (H, 0)), PartSite("head_out", HEADS, (H, self.values)),
        ]  # fmt: skip

    def empty_cache(self, rows: int) -> LayerCache:
        return LayerCache([], [])

    def forward(self, n: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        """n [B, L, D] -> the output [B, L, D], and the keys and values behind these positions."""
        if self.query_rank:
            q = self.q_b_proj(at("query_latent", self.q_a_layernorm(self.q_a_proj(n))))
        else:
            q = self.q_proj(n)
        # contiguous, as an edited tensor is: products of other strides may differ in the last bit
        q = at("q", q.unflatten(-1, (self.n_head, -1)).contiguous())  # [B, L, H, d+s]
        latent, shared = self.kv_a_proj_with_mqa(n).split([self.rank, self.shared], -1)
        latent = at("latent", self.kv_a_layernorm(latent.contiguous()))  # [B, L, r]
        shared = at("shared_key", shared.contiguous())  # [B, L, s]
        k, v = self.kv_b_proj(latent).unflatten(-1, (self.n_head, -1)).split([self.own, self.values], -1)
        k = torch.cat([k, shared.unsqueeze(2).expand(-1, -1, self.n_head, -1)], -1)
        k, v = at("k", k), at("v", v.contiguous())  # [B, L, H, d+s], [B, L, H, e]
        head_out, cache = read(q, k, v, cache, at)  # [B, L, H, e]
        return self.o_proj(head_out.flatten(2)), cache
