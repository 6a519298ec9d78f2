"""Attention as all transformers here have it: its sites, its memory, and the reading itself.

Axes: B batch, L positions of this forward, S sources (positions so far), H heads, G heads that have keys and values of
their own, d dimension of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interventions.sites import Site
from ...interventions.taps import Scope, SideBySide
from ...scan.checks import accumulate

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

    def behind(self, k: Tensor, v: Tensor) -> LayerCache:
        """The memory with the keys and values of further positions, [B, L, G, d]."""
        return LayerCache(grown(self.keys, k), grown(self.values, v))

    def before(self, position: int) -> LayerCache:
        """The memory of the positions before this one; it holds no copies of them."""
        keys, values = (torch.cat(pieces, 1)[:, :position] for pieces in (self.keys, self.values))
        return LayerCache([keys], [values]) if position else LayerCache([], [])

    def repeat(self, times: int) -> LayerCache:
        """The same memory for that many copies of the batch, one copy after another."""
        keys, values = ([piece.repeat(times, 1, 1, 1) for piece in pieces] for pieces in (self.keys, self.values))
        return LayerCache(keys, values)


def grown(pieces: list[Tensor], new: Tensor) -> list[Tensor]:
    """The pieces and one more; short ones are joined, so that of t positions there are at most log2 t + 1 pieces."""
    pieces = [*pieces, new]
    while len(pieces) > 1 and pieces[-1].shape[1] >= pieces[-2].shape[1]:
        pieces[-2:] = [torch.cat(pieces[-2:], 1)]
    return pieces


def read(q: Tensor, k: Tensor, v: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
    """Appends k and v [B, L, G, d] to the memory and attends with q [B, L, H, d] -> [B, L, H, d], memory.

    Forwards side by side ([1, token, ·, d]) each read a memory of their own, a list of which is given and returned.
    """
    if not isinstance(at.tap, SideBySide):
        cache = cache.behind(k, v)
        return attend(q, cache, at), cache
    keys, values = (at.tap.split(x) for x in (k, v))
    caches = [memory.behind(*new) for memory, *new in zip(cache, keys, values, strict=True)]
    places: Sequence[Tensor | None] = at.tap.only or [None] * len(caches)
    parts = zip(at.tap.behind(at.tap.wanted(q)), caches, at.each(), places, strict=True)
    return at.tap.join(attend(*part) for part in parts), caches


def attend(q: Tensor, cache: LayerCache, at: Scope, places: Tensor | None = None) -> Tensor:
    """Causal attention of q [B, L, H, d] on a memory that ends with the same positions -> head_out [B, L, H, d].

    With places [B, L] the queries are those of some of the positions that this forward added, and none is edited.

    In plain products: a fused kernel rounds otherwise, and reading a pattern must not change a bit. Where the run says
    that nothing inside is read, as a search of circuits does, the kernel saves the memory of every pattern.
    """
    keys, values = torch.cat(cache.keys, 1), torch.cat(cache.values, 1)  # [B, S, G, d] each
    if (shared := q.shape[2] // keys.shape[2]) > 1:  # heads next to each other read the same keys and values
        keys, values = keys.repeat_interleave(shared, 2), values.repeat_interleave(shared, 2)  # [B, S, H, d]
    L, S = q.shape[1], keys.shape[1]
    if at.tap.fused and L == S and places is None and not at.wants("scores", "pattern"):
        q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))
        head_out = F.scaled_dot_product_attention(q, keys, values, is_causal=True)
        return at("head_out", head_out.transpose(1, 2).contiguous())
    scores = accumulate(q.transpose(1, 2) @ keys.permute(0, 2, 3, 1)) * q.shape[-1] ** -0.5  # [B, H, L, S]
    order = torch.arange(S, device=q.device)
    reader = order[S - L :, None] if places is None else (at.offset + places)[:, None, :, None]
    future = order > reader  # [L, S], or [B, 1, L, S]
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
    come after the reader. What it puts there is for the caller to hide.
    """
    tensor = tensor.masked_fill(future, 0.0).transpose(1, 2)  # [B, L, H, S]
    S = tensor.shape[-1]
    for edit in at.edits(name):
        tensor = edit.apply(F.pad(tensor, (0, (edit.length or S) - S)), at.offset)[..., :S]
    return tensor.transpose(1, 2).contiguous()
