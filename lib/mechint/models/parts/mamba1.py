"""Mamba-1's mixer (Gu & Dao 2023), also with norms of B, C and the low rank of Δ (Falcon-Mamba, Jamba).

Axes: B batch, L position, D model, E channel, N state, K taps, R rank of Δ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import scan
from ...interventions.edits import Edit
from ...interventions.taps import Scope
from ...interventions.unit_kinds import SSM_UNITS
from ...scan.checks import accumulate
from .base import Part, PartSite
from .convolution import CHANNELS, CausalConvolution
from .mamba1_kept import kept_channels, mix_kept
from .recurrence import in_pieces, initial_step_biases

STATES = (*CHANNELS, "state")
SHARED = ("batch", "position", "state")
INSIDE = ("x", "z", "conv", "conv_state", "u", "dt", "B", "C", "decay", "write", "state", "readout", "scan_out", "y",
          "gate")  # fmt: skip
"""Sites between the projections of a mixer."""


class Selected(NamedTuple):
    """The inputs of the scan, in at least float32."""

    u: Tensor  # [B, L, E]
    dt: Tensor  # [B, L, E]
    B: Tensor  # [B, L, N]
    C: Tensor  # [B, L, N]


@dataclass
class LayerCache:
    """The memory of one layer of the positions before."""

    conv: Tensor  # [B, K-1, E], oldest first
    state: Tensor  # [B, E, N]
    shares: list[Tensor] = field(default_factory=list)  # for each cut at `state`, its sources' share of its rows
    history: Tensor | None = None  # for a cut at `out`: x of all positions so far [B, t, E]

    copies: int = 1
    """Number of copies of the batch that this memory is for, one after another; all remember the same."""

    def repeat(self, times: int) -> LayerCache:
        """The same memory for that many copies of the batch."""
        return replace(self, copies=self.copies * times)

    def whole(self) -> LayerCache:
        """With the rows of every copy written out."""
        if self.copies == 1:
            return self

        def each(tensor: Tensor) -> Tensor:
            return tensor.repeat(self.copies, 1, 1)

        history = None if self.history is None else each(self.history)
        return LayerCache(each(self.conv), each(self.state), [each(share) for share in self.shares], history)


class Mamba1Mixer(Part):
    """One decay for every channel and state; Δ, B and C are read off each position's u.

    Args:
        d_model, d_inner, d_state, taps, dt_rank: D, E, N, K and R.
        conv_bias, proj_bias: Biases of the convolution and of the projections.
        norm: In front of the mixer, where the layer is a mixer with its norm and nothing else (Mamba-1); None for none.
        inner_norm: The size of its last axis -> the norm of B, C and the low rank of Δ; None for none.
        depth: The initial output projection is divided by the root of it.
    """

    out = "out"
    mixes = True
    carried = ("state", "conv_state")  # an edit of one position is carried on to the next
    local = ("C", "readout", "scan_out", "y", "z", "gate", "gated", "out")  # within one position
    late = MappingProxyType(
        {"y": ("gate", "out_proj"), "gate": ("y", "out_proj"), "gated": ("", "out_proj"), "out": ("", "")}
    )
    mediators = ("out", "conv", "dt", "B", "C", "write", "state", "readout", "gate")
    paths = ("out", "state", "conv")  # the whole mixer, its scan alone, its convolution alone
    patched = ("gated", "state")  # all that a channel computes, and what it remembers alone
    single = ("x", "u", "y", "gate", "gated", "out")
    ranked = "gated"
    memory = ("state", "conv_state")
    projected = ("gated",)
    unit_kinds = SSM_UNITS
    norm: Any

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        d_state: int,
        taps: int,
        dt_rank: int,
        *,
        conv_bias: bool = True,
        proj_bias: bool = False,
        norm: nn.Module | None = None,
        inner_norm: Callable[[int], nn.Module] | None = None,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.sizes = [dt_rank, d_state, d_state]
        if norm is not None:
            self.norm = norm
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=proj_bias)
        self.conv1d = CausalConvolution(d_inner, taps, conv_bias)
        self.x_proj = nn.Linear(d_inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=proj_bias)
        self.normed = inner_norm is not None
        if inner_norm is not None:
            self.dt_layernorm, self.b_layernorm, self.c_layernorm = map(inner_norm, self.sizes)
        if not self.D.is_meta:  # drawing on the meta device would import torch's compiler, 2 s
            self.reset_parameters(depth)

    @torch.no_grad()
    def reset_parameters(self, depth: int) -> None:
        """The published initialisation (section 3.6 and the authors' code)."""
        d_inner, d_state = self.A_log.shape
        dt_rank = self.sizes[0]
        self.dt_proj.bias.copy_(initial_step_biases(d_inner))
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        self.A_log.copy_(torch.arange(1, d_state + 1).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        self.out_proj.weight /= math.sqrt(depth)

    def sites(self) -> list[PartSite]:
        E, N = self.A_log.shape
        channels = lambda *names: [PartSite(name, CHANNELS, (E,)) for name in names]
        states = [PartSite(name, STATES, (E, N)) for name in ("decay", "write", "state", "readout")]
        return [
            *channels("x", "z"), *self.conv1d.sites(), *channels("u", "dt"), PartSite("B", SHARED, (N,)),
            PartSite("C", SHARED, (N,)), *states, *channels("scan_out", "y", "gate", "gated"),
        ]  # fmt: skip

    def selection(self, u: Tensor) -> list[Tensor]:
        """The low rank of Δ [B, L, R], B and C [B, L, N] of u [B, L, E], normed where they are."""
        return self.normed_selection(self.x_proj(u))

    def normed_selection(self, selected: Tensor) -> list[Tensor]:
        """:meth:`selection` of what the projection gives, [B, L, R + 2 N]."""
        split = selected.split(self.sizes, dim=-1)
        if not self.normed:
            return split
        norms = (self.dt_layernorm, self.b_layernorm, self.c_layernorm)
        return [norm(accumulate(part)).to(part.dtype) for norm, part in zip(norms, split, strict=True)]

    def forward(self, n: Tensor, cache: LayerCache, at: Scope) -> tuple[Tensor, LayerCache]:
        """n [B, L, D] -> the mixer's output [B, L, D], and the cache behind these positions.

        Where nothing goes on from these positions and a circuit drops many channels, only the others are computed, and
        the cache is the one before.
        """
        kept = kept_channels(self, n, at, INSIDE) if at.active else None
        if kept is not None:
            return mix_kept(self, n, cache, at, kept), cache
        x, z = self.in_proj(n).chunk(2, dim=-1)  # [B, L, E] each
        cuts = at.cuts("out")
        if self.in_one_pass(x, at):
            inner, [new] = self.mix_in_one_pass(x, z, cache, at)  # [B, L, E]
        else:
            cache = cache.whole()
            # contiguous, as an edited tensor is: the vector and scalar loops of an operation differ in the last bit
            x = at("x", x.contiguous())
            z = at("z", z.contiguous())
            inner, new = self.mix(x, z, cache, at)  # [B, L, E]
        out = self.out_proj(at("gated", inner))  # [B, L, D]
        if cuts:
            new.history = x if cache.history is None else torch.cat([cache.history, x], 1)
            for cut in cuts:
                out = self.cut(cut, out, x, z, new.history, at)
        return out, new

    def in_one_pass(self, x: Tensor, at: Scope) -> bool:
        """True if :meth:`mix_in_one_pass` can take inputs like x."""
        return not at.cuts("out") and not at.wants(*INSIDE) and scan.one_pass(x, self)

    def mix_in_one_pass(
        self, x: Tensor, z: Tensor, cache: LayerCache, at: Scope, starts: Sequence[int] = (0,)
    ) -> tuple[Tensor, list[Any]]:
        """:meth:`mix` to the bit, where no site inside is read, and the memory behind each piece; starts begin pieces.

        No memory where nothing goes on.
        """
        u = scan.convolved(x, cache.conv, self.conv1d.weight[:, 0], self.conv1d.bias)  # [B, L, E]
        low, B, C = self.selection(u)
        wide, A = (u, self.dt_proj(low), B, C, z), -torch.exp(self.A_log)  # A [E, N]
        inner: list[Tensor] = []
        memories: list[Any] = []
        state: Any = cache.state
        for begin, end in itertools.pairwise([*starts, x.shape[1]]):
            u, dt, B, C, z = (tensor[:, begin:end] for tensor in wide)
            piece, state = scan.gated(u, dt, A, B, C, self.D, z, state, at.goes_on)
            inner.append(piece)
            past = x[:, max(end - self.conv1d.kernel_size[0] + 1, 0) : end]
            if state is None:
                return piece, [None]  # without a memory there was only one piece
            kept = cache.whole().conv[:, past.shape[1] :]
            memories.append(LayerCache(torch.cat([kept, past], 1), state))
        return torch.cat(inner, 1) if len(inner) > 1 else inner[0], memories

    def from_start(self, n: Tensor, starts: Sequence[int], at: Scope) -> tuple[Tensor, list[LayerCache]]:
        """:meth:`forward` in one pass from position 0, and the memory of the positions before each start."""
        x, z = self.in_proj(n).chunk(2, dim=-1)
        inner, memories = self.mix_in_one_pass(x, z, empty := self.empty_cache(len(n)), at, starts)
        return self.out_proj(at("gated", inner)), [empty, *memories[:-1]]

    def mix(
        self, x: Tensor, z: Tensor, cache: LayerCache, at: Scope, decay_of: Tensor | None = None
    ) -> tuple[Tensor, LayerCache]:
        """x, z [B, L, E] -> y ⊙ SiLU(z) [B, L, E], not yet passed through its site.

        ``decay_of``: u whose Δ the decays come from, if not our own.
        """
        conv, memory = self.conv1d(x, cache.conv, at)  # [B, L, E], [B, K-1, E]
        u = at("u", scan.silu(conv))  # [B, L, E]
        low, B, C = self.selection(u)
        dt = at("dt", scan.softplus(self.dt_proj(low)))  # [B, L, R] -> [B, L, E]
        B = at("B", B)  # [B, L, N]
        C = at("C", C)  # [B, L, N]
        wide = Selected(*(accumulate(tensor) for tensor in (u, dt, B, C)))
        dt_decay = wide.dt if decay_of is None else accumulate(self.step_size(decay_of, at))
        scan_out, state, shares = self.scan(wide, dt_decay, cache, at)  # [B, L, E], [B, E, N]
        scan_out = at("scan_out", scan_out)
        y = at("y", (scan_out + accumulate(self.D) * wide.u).to(x.dtype))
        gate = at("gate", scan.silu(z))  # [B, L, E]
        return y * gate, LayerCache(memory, state, shares)

    def step_size(self, u: Tensor, at: Scope) -> Tensor:
        """Δ of u [B, L, E], with the edits at ``dt``."""
        return at("dt", scan.softplus(self.dt_proj(self.selection(u)[0])))

    def scan(
        self, selected: Selected, dt_decay: Tensor, cache: LayerCache, at: Scope
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Σ_n C h [B, L, E], the last state [B, E, N], and what each cut's sources have in it."""
        u, dt, B, C = selected
        A = -torch.exp(accumulate(self.A_log))  # [E, N]
        if dt_decay is dt and not at.wants("decay", "write", "state", "readout"):
            return *scan.selective_scan(u, dt, A, B, C, cache.state), []
        edits, cuts, stops = at.edits("state"), at.cuts("state"), at.stops("state", u.shape[1])
        if dt_decay is dt and stops is not None and not at.wants("decay", "write", "readout"):

            def piece(begin: int, end: int, state: Tensor) -> tuple[Tensor, Tensor]:
                u, dt, B, C = (tensor[:, begin:end] for tensor in selected)
                return scan.selective_scan(u, dt, A, B, C, state)

            read_at = lambda t, state: scan.read_out(state.unsqueeze(1), C[:, t : t + 1])
            return *in_pieces(at, cache.state, stops, u.shape[1], piece, read_at), []
        decay = at("decay", scan.decays(dt_decay, A))  # [B, L, E, N]
        write = at("write", (dt * u).unsqueeze(-1) * B.unsqueeze(-2))  # [B, L, E, N]
        shares = list(cache.shares) or [torch.zeros_like(cut.own(cache.state)) for cut in cuts]  # [own rows, E, N]
        removed: list[list[Tensor]] = [[] for _ in cuts]

        def on_step(t: int, state: Tensor) -> Tensor:  # [B, E, N]
            for edit in edits:
                state = edit.apply(state.unsqueeze(1), at.offset + t).squeeze(1)
            for k, cut in enumerate(cuts):
                share = cut.own(decay[:, t]) * shares[k]
                if at.offset + t in (cut.sources or ()):
                    share = share + cut.own(write[:, t])
                if edits:  # they name rows of the whole batch
                    rows = cut.own(torch.arange(len(state), device=state.device))
                    whole = torch.zeros_like(state).index_copy(0, rows, share)
                    for edit in edits:
                        whole = edit.on_share().apply(whole.unsqueeze(1), at.offset + t).squeeze(1)
                    share = whole[rows]
                shares[k] = share
                removed[k].append(share)
            return state

        states = scan.recurrence(decay, write, cache.state, on_step if edits or cuts else None)
        read = at.keep("state", states)
        for cut, share_at in zip(cuts, removed, strict=True):
            read = cut.graft(read, cut.own(read) - torch.stack(share_at, 1), at.offset)
        read = at("readout", read)  # [B, L, E, N]
        return scan.read_out(read, C), states[:, -1], shares

    def cut(self, cut: Edit, out: Tensor, x: Tensor, z: Tensor, history: Tensor, at: Scope) -> Tensor:
        """``out`` [B, L, D] with the targets' rows taken from the layer that never saw x of the sources.

        history: x of every position so far, [B, t, E]. The masked layer starts from position 0 again: the slow,
        obvious way, which holds in prefill and token by token alike.
        """
        present = torch.ones_like(history[:1])  # [1, t, E]
        channels = torch.arange(len(self.D)) if cut.units is None else torch.as_tensor(list(cut.units))
        for source in cut.sources or ():
            if source < history.shape[1]:
                present[:, source, channels] = 0
        z = F.pad(z, (0, 0, history.shape[1] - z.shape[1], 0))
        inside = at.from_start()
        apart = not inside.active  # edits inside the layer name rows of the whole batch
        if apart:
            history, z = cut.own(history), cut.own(z)
        empty, decay_of = self.empty_cache(len(z)), None
        if cut.decay == "kept":
            decay_of = inside("u", scan.silu(self.conv1d(history, empty.conv, inside)[0]))
        inner, _ = self.mix(history * present, z, empty, inside, decay_of)
        whole = self.out_proj(inside("gated", inner)[:, -x.shape[1] :])
        return cut.graft(out, whole if apart else cut.own(whole), at.offset)

    def empty_cache(self, rows: int) -> LayerCache:
        state = accumulate(self.in_proj.weight.new_zeros(rows, *self.A_log.shape))
        return LayerCache(self.conv1d.empty_memory(rows), state)
