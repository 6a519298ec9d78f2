"""Matrix memories as parts have them: their sites, their edits and cuts, and what they remember.

Axes: B batch, L position, H head, K key, V value, E convolution channel; the formula is :mod:`mechint.scan.matrix`'s.
Sites: ``key`` k, ``value`` v, ``query`` q, ``decay`` a, ``erase`` p (delta rules alone), ``write`` k vᵀ, ``state`` S,
``readout`` (what q reads of S) and ``scan_out`` y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...interventions.taps import Scope
from ...interventions.unit_kinds import MEMORY_UNITS
from ...scan.matrix import HEADS, KEYS, Writes, decayed, matrix_scan, read_at, written
from ...scan.matrix_native import each_head
from .base import Part, PartSite

VALUES = (*HEADS, "value")
STATES = (*KEYS, "value")


def initial_step_biases(count: int) -> Tensor:
    """Biases from which step sizes Δ = softplus(bias) begin log-uniform in [0.001, 0.1] (Gu & Dao 2023, sec. 3.6)."""
    dt = torch.exp(torch.rand(count) * math.log(100) + math.log(1e-3)).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))  # softplus⁻¹(dt)


@dataclass
class MemoryCache:
    """The memory of a recurrence of the positions before."""

    conv: Tensor  # [B, K-1, E], oldest first
    state: Tensor  # [B, H, K, V]
    shares: list[Tensor] = field(default_factory=list)  # for each cut at `state`, its sources' share of its rows

    def repeat(self, times: int) -> MemoryCache:
        """The same memory for that many copies of the batch, one copy after another."""
        each = lambda x: x.repeat(times, *[1] * (x.dim() - 1))
        return replace(
            self, conv=each(self.conv), state=each(self.state), shares=[each(share) for share in self.shares]
        )


class Recurrence(Part):
    """A part with a matrix memory behind a convolution.

    A subclass sets ``conv1d`` and the sizes, makes the writes, and calls :meth:`remember`.
    """

    out = "ssm_out"
    mixes = True
    carried = ("state", "conv_state", "write", "readout")  # recorded position by position, and put together behind
    paths = ("state", "conv")
    patched = ("y", "state")
    single = ("y", "gated", "ssm_out")
    ranked = "gated"
    memory = ("state", "conv_state")
    unit_kinds = MEMORY_UNITS
    scored_unit = "ssm_channel"
    heads: int
    """H."""
    key_size: int
    """K."""
    value_size: int
    """V."""
    erases = False
    """True if writes erase along their key."""
    key_decay = False
    """True if every key channel has a decay of its own."""
    conv1d: Any

    def memory_sites(self) -> list[PartSite]:
        """The sites from the writes to the read-out."""
        H, K, V = self.heads, self.key_size, self.value_size
        keys = lambda name: PartSite(name, KEYS, (H, K))
        return [
            PartSite("value", VALUES, (H, V)), keys("key"), keys("query"),
            keys("decay") if self.key_decay else PartSite("decay", HEADS, (H,)),
            *[keys("erase")] * self.erases,
            *(PartSite(name, STATES, (H, K, V)) for name in ("write", "state", "readout")),
            PartSite("scan_out", VALUES, (H, V)),
        ]  # fmt: skip

    def empty_cache(self, rows: int) -> MemoryCache:
        weight = self.conv1d.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        state = torch.zeros(rows, self.heads, self.key_size, self.value_size, dtype=dtype, device=weight.device)
        return MemoryCache(self.conv1d.empty_memory(rows), state)

    def remember(self, w: Writes, query: Tensor, cache: MemoryCache, at: Scope) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Passes the writes through their sites, and reads.

        Args:
            w: Before any edit, in at least float32.
                Keys are those of heads, [B, L, H, K], or those of groups of neighbouring heads, [B, L, G, K].
            query: q, shaped as the keys.

        Returns:
            y [B, L, H, V], the last state [B, H, K, V], and each cut's share of it.
        """
        stops = at.stops("state", w.key.shape[1])
        if stops is None or at.wants("key", "query", "write", "readout"):
            w, query = w._replace(key=each_head(w.key, self.heads)), each_head(query, self.heads)
        # `key` is what is written along; the erased direction may be the same tensor, which no edit here changes
        value, key, query = at("value", w.value), at("key", w.key.view_as(w.key)), at("query", query)
        decay = at("decay", w.decay)
        erase = None if w.erase is None else at("erase", w.erase)
        w = Writes(decay, key, value, erase, w.erased)
        if stops is not None and not at.wants("write", "readout"):
            y, state = stopped_scan(w, query, cache.state, stops, at)
            return at("scan_out", y), state, []
        y, state, shares = self.watched(w, query, cache, at)
        return at("scan_out", y), state, shares

    def watched(self, w: Writes, query: Tensor, cache: MemoryCache, at: Scope) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The scan with edits and records of writes, states and read-outs; only what is recorded is held."""
        cuts = at.cuts("state")
        state, shares = cache.state, list(cache.shares) or [torch.zeros_like(cut.own(cache.state)) for cut in cuts]
        length = w.key.shape[1]
        kept: dict[str, list[Tensor]] = {name: [] for name in ("write", "state", "readout") if at.records(name)}
        places = {name: at.places(name, length) for name in kept}
        read_outs = []
        for t in range(length):
            here = at.offset + t
            write = edited(at, "write", written(w, t), here)
            share_before = shares
            state = edited(at, "state", decayed(state, w, t) + write, here)
            shares = []
            for cut, share in zip(cuts, share_before, strict=True):
                own = Writes(*(None if x is None else cut.own(x) for x in w))  # type: ignore[arg-type]
                share = decayed(share, own, t)
                share = share + cut.own(write) if here in (cut.sources or ()) else share
                shares.append(edited_share(at, cut, state, share, here))
            read = state
            for cut, share in zip(cuts, shares, strict=True):
                less = (cut.own(read) - share).unsqueeze(1)
                read = cut.graft(read.unsqueeze(1), less, here).squeeze(1)
            read = edited(at, "readout", read, here)
            read_outs.append(read_at(query, read, t))
            for name, tensor in (("write", write), ("state", state), ("readout", read)):
                if name in kept and ((some := places[name]) is None or t in some):
                    kept[name].append(tensor)
        for name, tensors in kept.items():
            at.store(name, torch.stack(tensors, 1) if tensors else state.unsqueeze(1)[:, :0])
        return torch.stack(read_outs, 1), state, shares


def stopped_scan(w: Writes, query: Tensor, state: Tensor, stops: list[int], at: Scope) -> tuple[Tensor, Tensor]:
    """:func:`mechint.scan.matrix.matrix_scan`, to the bit, stopped where ``state`` is edited or recorded."""

    def piece(begin: int, end: int, state: Tensor) -> tuple[Tensor, Tensor]:
        own = Writes(*(None if x is None else x[:, begin:end] for x in w))  # type: ignore[arg-type]
        return matrix_scan(own, query[:, begin:end], state)

    def read(t: int, state: Tensor) -> Tensor:
        return read_at(each_head(query[:, t : t + 1], state.shape[1]), state, 0).unsqueeze(1)

    return in_pieces(at, state, stops, w.key.shape[1], piece, read)


def in_pieces(
    at: Scope, state: Tensor, stops: Sequence[int], length: int,
    piece: Callable[[int, int, Tensor], tuple[Tensor, Tensor]], read: Callable[[int, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A scan that stops at each position whose state is edited or recorded, and holds no other state.

    Args:
        state: Before the first position, [B, …].
        stops: Positions of this forward, ascending.
        piece: Scans the positions ``begin … end - 1`` from a state; gives the read-outs [B, end - begin, …] and the
            state behind them.
        read: Reads a state at a position, [B, 1, …].

    Returns:
        The read-outs [B, L, …] and the last state.
    """
    edits, kept = at.edits("state"), at.places("state", length) or []
    begin, found, states = 0, list[Tensor](), list[Tensor]()
    for t in stops:
        y, state = piece(begin, t + 1, state)
        for edit in edits:
            state = edit.apply(state.unsqueeze(1), at.offset + t).squeeze(1)
        found += [y[:, :-1], read(t, state)] if edits else [y]
        states += [state] if t in kept else []
        begin = t + 1
    if begin < length:
        y, state = piece(begin, length, state)
        found.append(y)
    if at.records("state"):
        at.store("state", torch.stack(states, 1) if states else state.unsqueeze(1)[:, :0])
    return torch.cat(found, 1) if len(found) > 1 else found[0], state


def edited(at: Scope, name: str, tensor: Tensor, position: int) -> Tensor:
    """A tensor [B, ...] of one position with the edits at a site."""
    for edit in at.edits(name):
        tensor = edit.apply(tensor.unsqueeze(1), position).squeeze(1)
    return tensor


def edited_share(at: Scope, cut: Any, state: Tensor, share: Tensor, position: int) -> Tensor:
    """A cut's share [own rows, ...] of a state [B, ...] with the edits of the state, which name rows of the batch."""
    if not (edits := at.edits("state")):
        return share
    rows = cut.own(torch.arange(len(state), device=state.device))
    whole = torch.zeros_like(state).index_copy(0, rows, share)
    for edit in edits:
        whole = edit.on_share().apply(whole.unsqueeze(1), position).squeeze(1)
    return whole[rows]
