"""Attention: its sites, its memory, the reading itself, and the part that is made of them.

Axes: B batch, L positions of this forward, S sources (positions so far), H heads, G heads that have keys and values of
their own, d dimension of a head.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...interventions.sites import Site
from ...interventions.taps import Scope, SideBySide
from ...interventions.unit_kinds import ATTENTION_UNITS
from ...scan.checks import accumulate
from .base import Part, PartSite
from .rotation import Rotation, crossing

HEADS = ("batch", "position", "head", "dimension")
SOURCES = ("batch", "position", "head", "source")
NEURONS = ("batch", "position", "neuron")

LayerSites = list[tuple[str, tuple[str, ...], tuple[str, ...]]]
"""(name, axes, configuration fields of the unit sizes), in the order of the forward; no field: as many as positions."""


def layer_sites(layer: int, table: LayerSites, config: Any) -> Iterable[Site]:
    """The sites of one layer."""
    for name, axes, fields in table:
        units = tuple(getattr(config, field) if field else 0 for field in fields)
        yield Site(f"layers.{layer}.{name}", axes, units, -math.inf if name == "scores" else 0.0)


@dataclass
class LayerCache:
    """Keys and values of the positions before, in pieces [B, ·, G, d], oldest first.

    The caches behind successive positions share their pieces, so that a sweep may hold one for every position.
    """

    keys: list[Tensor]
    values: list[Tensor]
    beyond: bool = False
    """True if its keys are turned as those of a long run are (:class:`~.rotation.Long`)."""

    def behind(self, k: Tensor, v: Tensor) -> LayerCache:
        """The memory with the keys and values of further positions, [B, L, G, d]."""
        return LayerCache(grown(self.keys, k), grown(self.values, v), self.beyond)

    def before(self, position: int) -> LayerCache:
        """The memory of the positions before this one; it holds no copies of them."""
        keys, values = (torch.cat(pieces, 1)[:, :position] for pieces in (self.keys, self.values))
        return LayerCache([keys], [values], self.beyond) if position else LayerCache([], [])

    def turned(self, border: int, length: int) -> LayerCache:
        """This memory before a run that goes on to ``length`` positions, for a rotation that changes behind ``border``.

        Raises:
            MechintError: it has keys that are turned otherwise.
        """
        beyond = length > border
        if self.keys and self.beyond != beyond:
            raise crossing(border, sum(piece.shape[1] for piece in self.keys), length)
        return LayerCache(self.keys, self.values, beyond)

    def taking(self, other: LayerCache, kinds: Collection[str]) -> LayerCache:
        """This memory with keys or values of another one instead of its own, at the positions that it has.

        Args:
            other: It has at least as many positions, and as many rows or one.
            kinds: Sites: ``k`` or ``k_rot`` takes the keys, ``v`` the values.
        """
        if not self.keys:
            return self

        def taken(own: list[Tensor], others: list[Tensor]) -> list[Tensor]:
            whole = torch.cat(own, 1)
            return [torch.cat(others, 1)[:, : whole.shape[1]].expand_as(whole)]

        keys = taken(self.keys, other.keys) if {"k", "k_rot"} & set(kinds) else self.keys
        return LayerCache(keys, taken(self.values, other.values) if "v" in kinds else self.values, self.beyond)

    def repeat(self, times: int) -> LayerCache:
        """The same memory for that many copies of the batch, one copy after another."""
        keys, values = ([piece.repeat(times, 1, 1, 1) for piece in pieces] for pieces in (self.keys, self.values))
        return LayerCache(keys, values, self.beyond)


def grown(pieces: list[Tensor], new: Tensor) -> list[Tensor]:
    """The pieces and one more; short ones are joined, so that of t positions there are at most log2 t + 1 pieces."""
    pieces = [*pieces, new]
    while len(pieces) > 1 and pieces[-1].shape[1] >= pieces[-2].shape[1]:
        pieces[-2:] = [torch.cat(pieces[-2:], 1)]
    return pieces


@dataclass(frozen=True)
class Reading:
    """The weights of the sources: scale, cap and window of the scores."""

    scale: float | None = None
    """The products of queries and keys are multiplied by this; None is d^(-1/2)."""
    cap: float = 0.0
    """Scores are cap · tanh(score / cap) (Gemma 2); 0 leaves them as they are."""
    window: int = 0
    """Positions that one reads, itself included; 0 for all before it."""


PLAIN = Reading()


def read(q: Tensor, k: Tensor, v: Tensor, cache: Any, at: Scope, how: Reading = PLAIN) -> tuple[Tensor, Any]:
    """Appends k and v [B, L, G, d] to the memory and attends with q [B, L, H, d] -> [B, L, H, d], memory.

    Forwards side by side ([1, token, ·, d]) each read a memory of their own, a list of which is given and returned.
    """
    if not isinstance(at.tap, SideBySide):
        cache = cache.behind(k, v)
        return attend(q, cache, at, None, how), cache
    keys, values = (at.tap.split(x) for x in (k, v))
    caches = [memory.behind(*new) for memory, *new in zip(cache, keys, values, strict=True)]
    places: Sequence[Tensor | None] = at.tap.only or [None] * len(caches)
    parts = zip(at.tap.behind(at.tap.wanted(q)), caches, at.each(), places, strict=True)
    return at.tap.join(attend(*part, how) for part in parts), caches


def attend(q: Tensor, cache: LayerCache, at: Scope, places: Tensor | None = None, how: Reading = PLAIN) -> Tensor:
    """Causal attention of q [B, L, H, d] on a memory that ends with the same positions -> head_out [B, L, H, d].

    With places [B, L] the queries are those of some of the positions that this forward added, and none is edited.

    In plain products: a fused kernel rounds otherwise, and reading a pattern must not change a bit. Where the run says
    that nothing inside is read, as a search of circuits does, the kernel saves the memory of every pattern.
    """
    keys, values = torch.cat(cache.keys, 1), torch.cat(cache.values, 1)  # [B, S, G, d] each
    if (shared := q.shape[2] // keys.shape[2]) > 1:  # heads next to each other read the same keys and values
        keys, values = keys.repeat_interleave(shared, 2), values.repeat_interleave(shared, 2)  # [B, S, H, d]
    L, S = q.shape[1], keys.shape[1]
    plain = not how.cap and (not how.window or how.window >= S)
    if at.tap.fused and L == S and places is None and plain and not at.wants("scores", "pattern"):
        q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))
        head_out = F.scaled_dot_product_attention(q, keys, values, is_causal=True, scale=how.scale)
        return at("head_out", head_out.transpose(1, 2).contiguous())
    scale = q.shape[-1] ** -0.5 if how.scale is None else how.scale
    scores = accumulate(q.transpose(1, 2) @ keys.permute(0, 2, 3, 1)) * scale  # [B, H, L, S]
    if how.cap:
        scores = how.cap * torch.tanh(scores / how.cap)
    order = torch.arange(S, device=q.device)
    reader = order[S - L :, None] if places is None else (at.offset + places)[:, None, :, None]
    future = order > reader  # [L, S], or [B, 1, L, S]: what is hidden
    if how.window:
        future = future | (order <= reader - how.window)
    if edited := bool(at.edits("scores")):
        scores = edit_sources("scores", scores, future, at)
    scores = scores.masked_fill(future, -math.inf)
    scores = at.keep("scores", scores.transpose(1, 2)).transpose(1, 2)
    if edited:
        alone = (scores == -math.inf).all(-1, keepdim=True)  # every source is cut: reads nothing, gives no NaN
        pattern = scores.masked_fill(alone, 0.0).softmax(-1).masked_fill(alone, 0.0)
    else:
        pattern = scores.softmax(-1)  # [B, H, L, S]
    if at.wants("pattern"):
        pattern = edit_sources("pattern", pattern, future, at).masked_fill(future, 0.0)
        pattern = at.keep("pattern", pattern.transpose(1, 2)).transpose(1, 2)
        pattern = pattern.masked_fill(future, 0.0)  # masked again, so that the recorded pattern has no gradient there
    head_out = pattern.to(values.dtype) @ values.transpose(1, 2)  # [B, H, L, d]
    return at("head_out", head_out.transpose(1, 2).contiguous())


def edit_sources(name: str, tensor: Tensor, future: Tensor, at: Scope) -> Tensor:
    """``tensor`` [B, H, L, S] edited at a site of (head, source) units.

    An edit sees the same in prefill and token by token: a source for every position of the whole run, 0 at those that
    come after the reader. The caller hides what it puts there.
    """
    tensor = tensor.masked_fill(future, 0.0).transpose(1, 2)  # [B, L, H, S]
    S = tensor.shape[-1]
    for edit in at.edits(name):
        tensor = edit.apply(F.pad(tensor, (0, (edit.length or S) - S)), at.offset)[..., :S]
    return tensor.transpose(1, 2).contiguous()


class Clip(nn.Module):
    """Bounds the size of every entry (OLMo)."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def bounded(self, x: Tensor) -> Tensor:
        return x.clamp(-self.limit, self.limit)

    def forward(self, x: Tensor) -> Tensor:
        return self.bounded(x)


class Attention(Part):
    """Grouped causal attention (Vaswani et al. 2017; Ainslie et al. 2023). ``q`` and ``k`` are before the rotation.

    ``head_out`` is what each head reads. Where there is an output gate, ``head_gated`` is what the output projection
    reads, and the projection itself where there is none.

    Args:
        d_model, n_head, n_kv_head, d_head: Sizes; every ``n_head / n_kv_head`` heads share keys and values.
        bias: True if the projections of queries, keys and values have a bias.
        out_bias: True if the output projection has one.
        rotation: None for none.
        how: Scale, cap and window of the scores.
        norms: Norms of each head's queries and keys, or of all of them at once (whole); None for none.
        gated: True if the query projection also gives a sigmoid gate of the output, as wide as the queries.
        key_scale: Multiplies the keys (Falcon-H1).
        in_scale, out_scale: Multiply what the part reads and gives (Falcon-H1).
        n_in: Width of what it reads, where that is not ``d_model``.
        clip: The largest size of entries of queries, keys and values, behind norms of them; 0 for any.
    """

    out = "attn_out"
    mixes = True
    mediators = ("attn_out", "q", "k", "v", "pattern", "head_out")
    paths = ("scores",)
    patched = ("head_out",)
    single = ("head_out", "attn_out")
    ranked = "head_out"
    unit_kinds = ATTENTION_UNITS
    scored_unit = "kv"

    def __init__(
        self,
        d_model: int,
        n_head: int,
        n_kv_head: int,
        d_head: int,
        *,
        bias: bool = False,
        out_bias: bool = False,
        rotation: Rotation | None = None,
        how: Reading = PLAIN,
        norms: tuple[nn.Module, nn.Module] | None = None,
        whole_norms: bool = False,
        gated: bool = False,
        key_scale: float = 1.0,
        in_scale: float = 1.0,
        out_scale: float = 1.0,
        n_in: int = 0,
        clip: float = 0.0,
    ) -> None:
        super().__init__()
        n_in = n_in or d_model
        self.d_head, self.n_head, self.n_kv_head = d_head, n_head, n_kv_head
        self.q_proj = nn.Linear(n_in, n_head * d_head * (2 if gated else 1), bias=bias)
        self.k_proj = nn.Linear(n_in, n_kv_head * d_head, bias=bias)
        self.v_proj = nn.Linear(n_in, n_kv_head * d_head, bias=bias)
        self.o_proj = nn.Linear(n_head * d_head, d_model, bias=out_bias)
        self.normed, self.whole_norms = norms is not None, whole_norms
        if norms is not None:
            self.q_norm, self.k_norm = norms
        self.clip = Clip(clip) if clip else None
        self.rotation, self.how, self.gated = rotation, how, gated
        self.key_scale, self.in_scale, self.out_scale = key_scale, in_scale, out_scale
        self.local = (
            "q", *["q_rot"] * (rotation is not None), "scores", "pattern", "head_out",
            *["attn_gate", "head_gated"] * gated, "attn_out",
        )  # fmt: skip
        self.projected = ("head_gated",) if gated else ("head_out",)
        self.memory = ("v", "k" if rotation is None else "k_rot")
        self.border = rotation.original if rotation is not None and rotation.long is not None else 0

    def sites(self) -> list[PartSite]:
        queries, keys = (self.n_head, self.d_head), (self.n_kv_head, self.d_head)
        found = [PartSite("q", HEADS, queries), PartSite("k", HEADS, keys), PartSite("v", HEADS, keys)]
        if self.rotation is not None:
            found += [PartSite("q_rot", HEADS, queries), PartSite("k_rot", HEADS, keys)]
        found += [
            PartSite("scores", SOURCES, (self.n_head, 0), -math.inf), PartSite("pattern", SOURCES, (self.n_head, 0))
        ]  # fmt: skip
        found.append(PartSite("head_out", HEADS, queries))
        if self.gated:
            found += [PartSite("attn_gate", HEADS, queries), PartSite("head_gated", HEADS, queries)]
        return found

    def empty_cache(self, rows: int) -> LayerCache:
        return LayerCache([], [])

    def forward(self, n: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        n = n if self.in_scale == 1.0 else n * self.in_scale
        size = (-1, self.d_head)
        q, gate = self.q_proj(n), None
        if self.gated:  # a head's queries and then its gate
            q, gate = q.unflatten(-1, (self.n_head, -1)).chunk(2, -1)
            q = q.flatten(2)
        k, v = self.k_proj(n), self.v_proj(n)
        k = k if self.key_scale == 1.0 else k * self.key_scale
        if self.normed and self.whole_norms:
            q, k = self.q_norm(accumulate(q)), self.k_norm(accumulate(k))
        if self.clip is not None:
            q, k, v = self.clip(q), self.clip(k), self.clip(v)
        q, k = q.unflatten(-1, size), k.unflatten(-1, size)  # [B, L, H, d], [B, L, G, d]
        if self.normed and not self.whole_norms:
            q, k = self.q_norm(accumulate(q)), self.k_norm(accumulate(k))
        # contiguous, as an edited tensor is: products of other strides may differ in the last bit
        q, k = at("q", q.contiguous()), at("k", k.contiguous())
        v = at("v", v.unflatten(-1, size).contiguous())  # [B, L, G, d]
        if self.rotation is not None:
            q = at("q_rot", self.rotation.turn(q, at.positions(q)))
            k = at("k_rot", self.rotation.turn(k, at.positions(k)))
        if self.border:
            length = int(at.positions(k).max()) + 1
            each = [memory.turned(self.border, length) for memory in (cache if isinstance(cache, list) else [cache])]
            cache = each if isinstance(cache, list) else each[0]
        head_out, cache = read(q, k, v, cache, at, self.how)  # [B, L, H, d]
        if gate is not None:
            head_out = at("head_gated", head_out * at("attn_gate", torch.sigmoid(at.wanted(gate))))
        out = self.o_proj(head_out.flatten(2))
        return out if self.out_scale == 1.0 else out * self.out_scale, cache
