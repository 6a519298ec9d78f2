"""Mamba-1 (Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"), whole, in one file.

Axes: B batch, L position, D model, E channel, N state, K taps, R rank of Δ, V vocabulary. Every tensor that
:attr:`Mamba.sites` lists passes through ``at(name, tensor)``, where it can be recorded and edited.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import scan
from ..interventions.edits import Edit
from ..interventions.sites import RESIDUAL, Site
from ..interventions.taps import Scope, SiteEdit, Tap
from ..interventions.unit_kinds import SSM_UNITS
from ..scan.checks import accumulate
from .base import LanguageModel, outer_sites
from .parts.convolution import CausalConvolution
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


class Layer(nn.Module):
    """Norm and mixer; the residual connection is the model's."""

    def __init__(self, c: MambaConfig) -> None:
        super().__init__()
        self.c = c
        self.norm: Any = RMSNorm(c.d_model, c.norm_eps) if c.norms else NoNorm()
        self.in_proj = nn.Linear(c.d_model, 2 * c.d_inner, bias=c.proj_bias)
        tell_readers(self.norm, self.in_proj)
        self.conv1d = CausalConvolution(c.d_inner, c.d_conv, c.conv_bias)
        self.x_proj = nn.Linear(c.d_inner, c.dt_rank + 2 * c.d_state, bias=False)
        self.dt_proj = nn.Linear(c.dt_rank, c.d_inner)
        self.A_log = nn.Parameter(torch.empty(c.d_inner, c.d_state))
        self.D = nn.Parameter(torch.empty(c.d_inner))
        self.out_proj = nn.Linear(c.d_inner, c.d_model, bias=c.proj_bias)
        if not self.D.is_meta:  # drawing on the meta device would import torch's compiler, 2 s
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation (section 3.6 and the authors' code)."""
        c = self.c
        dt = torch.exp(torch.rand(c.d_inner) * math.log(100) + math.log(1e-3)).clamp(min=1e-4)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus⁻¹(dt), dt ~ logU[1e-3, 1e-1]
        nn.init.uniform_(self.dt_proj.weight, -(c.dt_rank**-0.5), c.dt_rank**-0.5)
        self.A_log.copy_(torch.arange(1, c.d_state + 1).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        self.out_proj.weight /= math.sqrt(c.n_layer)

    def forward(self, r: Tensor, cache: LayerCache, at: Scope) -> tuple[Tensor, LayerCache]:
        """r [B, L, D] -> mixer output [B, L, D], and the cache behind these positions."""
        n = at("norm", self.norm(r))  # [B, L, D]
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
        return at("out", out), new

    def in_one_pass(self, x: Tensor, at: Scope) -> bool:
        """True if :meth:`mix_in_one_pass` can take inputs like x."""
        if at.cuts("out") or at.wants(*INSIDE) or not scan.one_pass(x):
            return False
        return not torch.is_grad_enabled() or not (x.requires_grad or any(p.requires_grad for p in self.parameters()))

    def mix_in_one_pass(
        self, x: Tensor, z: Tensor, cache: LayerCache, at: Scope, starts: Sequence[int] = (0,)
    ) -> tuple[Tensor, list[Any]]:
        """:meth:`mix` to the bit, where nobody looks inside, and the memory behind the piece that begins at each start.

        No memory where nothing goes on.
        """
        u = scan.convolved(x, cache.conv, self.conv1d.weight[:, 0], self.conv1d.bias)  # [B, L, E]
        low, B, C = self.x_proj(u).split([self.c.dt_rank, self.c.d_state, self.c.d_state], dim=-1)
        wide, A = (u, self.dt_proj(low), B, C, z), -torch.exp(self.A_log)  # A [E, N]
        inner: list[Tensor] = []
        memories: list[Any] = []
        state: Any = cache.state
        for begin, end in itertools.pairwise([*starts, x.shape[1]]):
            u, dt, B, C, z = (tensor[:, begin:end] for tensor in wide)
            piece, state = scan.gated(u, dt, A, B, C, self.D, z, state, at.goes_on)
            inner.append(piece)
            past = x[:, max(end - self.c.d_conv + 1, 0) : end]
            if state is None:
                return piece, [None]  # without a memory there was only one piece
            kept = cache.whole().conv[:, past.shape[1] :]
            memories.append(LayerCache(torch.cat([kept, past], 1), state))
        return torch.cat(inner, 1) if len(inner) > 1 else inner[0], memories

    def from_start(self, r: Tensor, starts: Sequence[int], at: Scope) -> tuple[Tensor, list[LayerCache]]:
        """:meth:`forward` in one pass from position 0, and the memory of the positions before each start."""
        x, z = self.in_proj(at("norm", self.norm(r))).chunk(2, dim=-1)
        inner, memories = self.mix_in_one_pass(x, z, empty := self.empty_cache(len(r)), at, starts)
        return at("out", self.out_proj(at("gated", inner))), [empty, *memories[:-1]]

    def mix(
        self, x: Tensor, z: Tensor, cache: LayerCache, at: Scope, decay_of: Tensor | None = None
    ) -> tuple[Tensor, LayerCache]:
        """x, z [B, L, E] -> y ⊙ SiLU(z) [B, L, E], not yet passed through its site.

        ``decay_of``: u whose Δ the decays come from, if not our own.
        """
        conv, memory = self.conv1d(x, cache.conv, at)  # [B, L, E], [B, K-1, E]
        u = at("u", scan.silu(conv))  # [B, L, E]
        low, B, C = self.x_proj(u).split([self.c.dt_rank, self.c.d_state, self.c.d_state], dim=-1)
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
        return at("dt", scan.softplus(self.dt_proj(self.x_proj(u)[..., : self.c.dt_rank])))

    def scan(
        self, selected: Selected, dt_decay: Tensor, cache: LayerCache, at: Scope
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Σ_n C h [B, L, E], the last state [B, E, N], and what each cut's sources have in it."""
        u, dt, B, C = selected
        A = -torch.exp(accumulate(self.A_log))  # [E, N]
        if dt_decay is dt and not at.wants("decay", "write", "state", "readout"):
            return *scan.selective_scan(u, dt, A, B, C, cache.state), []
        edits, cuts = at.edits("state"), at.cuts("state")
        seen = at.records("state") or at.wants("decay", "write", "readout") or cuts
        if dt_decay is dt and not seen and all(edit.positions is not None for edit in edits):
            return *self.scan_in_pieces(selected, A, cache.state, edits, at.offset), []
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

    def scan_in_pieces(
        self, selected: Selected, A: Tensor, state: Tensor, edits: list[SiteEdit], offset: int
    ) -> tuple[Tensor, Tensor]:
        """The scan, stopped at each position whose state is edited: no other state is ever held."""
        length, begin, read = selected.u.shape[1], 0, []
        stops = sorted({p - offset for edit in edits for p in edit.positions or () if 0 <= p - offset < length})
        for t in stops:
            u, dt, B, C = (tensor[:, begin : t + 1] for tensor in selected)
            y, state = scan.selective_scan(u, dt, A, B, C, state)
            for edit in edits:
                state = edit.apply(state.unsqueeze(1), offset + t).squeeze(1)
            read += [y[:, :-1], scan.read_out(state.unsqueeze(1), C[:, -1:])]
            begin = t + 1
        if begin < length:
            u, dt, B, C = (tensor[:, begin:] for tensor in selected)
            y, state = scan.selective_scan(u, dt, A, B, C, state)
            read.append(y)
        return torch.cat(read, 1), state

    def cut(self, cut: Edit, out: Tensor, x: Tensor, z: Tensor, history: Tensor, at: Scope) -> Tensor:
        """``out`` [B, L, D] with the targets' rows taken from the layer that never saw x of the sources.

        history: x of every position so far, [B, t, E]. The masked layer starts from position 0 again: the slow,
        obvious way, which holds in prefill and token by token alike.
        """
        present = torch.ones_like(history[:1])  # [1, t, E]
        channels = torch.arange(self.c.d_inner) if cut.units is None else torch.as_tensor(list(cut.units))
        for source in cut.sources or ():
            if source < history.shape[1]:
                present[:, source, channels] = 0
        z = F.pad(z, (0, 0, history.shape[1] - z.shape[1], 0))
        inside = at.editing_only()
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
        c, like = self.c, self.in_proj.weight
        state = accumulate(like.new_zeros(rows, c.d_inner, c.d_state))
        return LayerCache(self.conv1d.empty_memory(rows), state)


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
    projected = ("gated",)
    unit_kinds = SSM_UNITS
    scored_unit = "channel"
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

    def empty_cache(self, i: int, rows: int) -> LayerCache:
        return cast(Layer, self.layers[i]).empty_cache(rows)

    def block(self, i: int, r: Tensor, cache: LayerCache, at: Tap) -> tuple[Tensor, LayerCache]:
        here = at.within(f"layers.{i}")
        r = here("resid_pre", r)
        out, memory = self.layers[i](r, cache, here)
        return here("resid_post", r + out), memory

    def block_from_start(self, i: int, r: Tensor, starts: Sequence[int], at: Tap) -> tuple[Tensor, list[Any]]:
        here, layer = at.within(f"layers.{i}"), cast(Layer, self.layers[i])
        if not layer.in_one_pass(r.to(layer.in_proj.weight.dtype), here):
            return super().block_from_start(i, r, starts, at)
        r = here("resid_pre", r)
        out, memories = layer.from_start(r, starts, here)
        return here("resid_post", r + out), memories

    @property
    def ending(self) -> tuple[nn.Module, Tensor]:
        return self.norm_f, self.embedding.weight if self.lm_head is None else self.lm_head.weight


CHANNELS = ("batch", "position", "channel")


STATES = ("batch", "position", "channel", "state")


SHARED = ("batch", "position", "state")


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


INSIDE = ("x", "z", "conv", "conv_state", "u", "dt", "B", "C", "decay", "write", "state", "readout", "scan_out", "y",
          "gate")  # fmt: skip
"""Sites between the projections of a mixer."""
