"""Temporal causality: the exact derivatives of a Mamba layer's states and scan by the inputs of the positions before.

With h_t = Ā_t ⊙ h_{t-1} + (Δ_t u_t) ⊗ B_t and y_t = h_t C_t + D ⊙ u_t (Gu & Dao 2023), where Δ, B and C are functions
of u, and P_{t,s} = Π_{r=s+1..t} Ā_r, the derivative of channel e's mode n at t by u of channel f at s = t - k is

    ∂h_t[e,n]/∂u_s[f] = P_{t,s}[e,n] · (  Δ_s[e] B_s[n] · [e = f]                                        direct
                                        + Δ_s[e] u_s[e] · W_B[n,f]                                       through B
                                        + (A Ā_s h_{s-1} + u_s B_s)[e,n] · σ_s[e] · (W_dt W_d)[e,f] )    through Δ

with σ = 1 - exp(-Δ) the slope of softplus. The *direct* path is the first line, Δ, B and C held; the *total* derivative
has all three, and at lag 0 the terms of u through C and D. As the last two lines are of low rank, no matrix of channels
by channels is held: norms over all f come from Gram matrices of the weights, and time runs a chunk at a time.

Matrix memories (Mamba-2, delta rules) have derivatives of their own, in :mod:`.memory_jacobians`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..interventions.model import Model
from ..interventions.run import run
from ..models.parts.recurrence import Recurrence
from ..models.placement import near
from ..scan import states
from ..scan.checks import accumulate
from ..scan.selective import decays
from ..utils.errors import MechintError
from .attention import scans
from .memory_jacobians import LinearisedMemory, linearise_memory, memory_lags

PATHS = ("direct", "total")
SOURCES = ("u", "x")
NORMED = (
    "temporal causality: where Δ, B and C are normed, the derivatives of y are written, as curves and norms; take "
    "mechint.attribution.jacobians.lags with of='y'"
)
"""Said of whole Jacobians and of states."""


@dataclass(frozen=True)
class Linearised:
    """One layer around its own run, in the model's precision, at least float32.

    Attributes:
        conv, u, dt: [batch, position, channel].
        B, C: [batch, position, state].
        A: [channel, state]; D: [channel]; taps: [channel, tap], the last is the current token's.
        W_B, W_C: [state, channel], the rows of x_proj that make B and C.
        W_dt: [channel, channel], ∂(Δ before softplus)/∂u, of the layer's rank.
        norms: Slopes of the norms of Δ's low rank, B and C (Falcon-Mamba, Jamba), whose rows W_B, W_C and W_dt are
            without them; None for none.
    """

    conv: Tensor
    u: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    A: Tensor
    D: Tensor
    taps: Tensor
    W_B: Tensor
    W_C: Tensor
    W_dt: Tensor
    norms: Norms | None = None

    @property
    def length(self) -> int:
        return self.u.shape[1]

    @property
    def width(self) -> int:
        """Channels."""
        return self.u.shape[2]


class NormSlope(NamedTuple):
    """An RMS norm around what it normed: r (I - x̂ x̂ᵀ / n) by rows, times the weight."""

    unit: Tensor  # x̂ [batch, position, n], of mean square 1
    root: Tensor  # r [batch, position, 1], 1 over the root of the mean square
    weight: Tensor  # [n]

    @classmethod
    def of(cls, module: Any, raw: Tensor) -> NormSlope:
        root = torch.rsqrt(raw.square().mean(-1, keepdim=True) + module.eps)
        weight = getattr(module, "weight", None)
        own = torch.ones_like(raw[0, 0]) if weight is None else accumulate(weight.detach())
        return cls(raw * root, root, own)

    def back(self, v: Tensor, s: slice) -> Tensor:
        """The derivative by what was normed, of one by what the norm gives, [batch, T, channel, n], at positions s."""
        v, unit = v * self.weight, self.unit[:, s].unsqueeze(2)
        return self.root[:, s].unsqueeze(2) * (v - unit * (v * unit).mean(-1, keepdim=True))


@dataclass(frozen=True)
class Norms:
    """The norms of a mixer's low rank of Δ, B and C, and the maps before and behind them.

    Attributes:
        rows: x_proj, whose rows make the low rank, B and C, [R + 2 state, channel].
        dt: dt_proj, [channel, R].
    """

    rows: Tensor
    dt: Tensor
    low: NormSlope
    B: NormSlope
    C: NormSlope


class Slab(NamedTuple):
    """One lag at the positions ``first`` … ``first + T - 1`` of time; [batch, T, channel] each.

    ``own`` is the derivative by the channel's own u, ``norm`` the length of the one by the u of all channels. For
    states ``norm`` is over the states as well, and ``own`` is the length of the own part.
    """

    first: int
    lag: int
    own: dict[str, Tensor]
    norm: dict[str, Tensor]
    rows: slice = slice(None)
    """The prompts that it is of."""


@torch.no_grad()
def linearise(model: Model, tokens: Tensor, layer: int) -> Linearised | LinearisedMemory:
    """Records the values that the derivatives of one layer are made of, in one run.

    Raises:
        MechintError: the layer has no recurrence, or there is no such layer.
    """
    if not 0 <= layer < model.num_layers:
        raise MechintError(
            f"layer {layer} does not exist; the model has {model.num_layers} (0 to {model.num_layers - 1})"
        )
    if reason := no_derivatives(model, layer):
        raise MechintError(reason)
    [mixer] = scans(model, layer)
    mixer = near(mixer, model.device)
    if isinstance(mixer, Recurrence):
        return linearise_memory(model, tokens, layer, mixer)
    names = ("conv", "u", "dt", "B", "C")
    at = f"layers.{layer}."
    found = run(model, tokens, [at + name for name in names], logits_at=tokens.new_zeros(len(tokens), 0).long())
    rank, size = mixer.sizes[:2]
    rows, dt_rows = (accumulate(module.weight.detach()) for module in (mixer.x_proj, mixer.dt_proj))
    low, W_B, W_C = rows.split([rank, size, size])
    norms = None
    if mixer.normed:
        raw = F.linear(accumulate(found[at + "u"]), rows).split([rank, size, size], -1)
        modules = (mixer.dt_layernorm, mixer.b_layernorm, mixer.c_layernorm)
        norms = Norms(rows, dt_rows, *(NormSlope.of(*pair) for pair in zip(modules, raw, strict=True)))
    return Linearised(
        **{name: accumulate(found[at + name]) for name in names},
        A=-torch.exp(accumulate(mixer.A_log.detach())),
        D=accumulate(mixer.D.detach()),
        taps=accumulate(mixer.conv1d.weight.detach()[:, 0]),
        W_B=W_B,
        W_C=W_C,
        W_dt=dt_rows @ low,
        norms=norms,
    )


def no_derivatives(model: Model, layer: int) -> str:
    """Says why a layer has no derivatives by lag; empty where it has."""
    found = scans(model, layer)
    this = f"layer {layer} of this {model.config.family} model"
    if not found:
        return (
            f"temporal causality differentiates a recurrence, and {this} has none; cut its flow instead of that "
            "(the analysis patch)"
        )
    return ""


def check_lag(max_lag: int, length: int) -> None:
    if not 0 <= max_lag < length:
        raise MechintError(
            f"max_lag is {max_lag}, and the prompts have {length} tokens: there are lags 0 to {length - 1}; "
            f"lower max_lag or give longer prompts"
        )


@torch.no_grad()
def lags(local: Linearised | LinearisedMemory, max_lag: int, of: str = "y", chunk: int = 32) -> Iterator[Slab]:
    """Every lag 0 … max_lag at every position, by u of the same layer, a chunk of positions at a time.

    Args:
        of: ``y`` (scan and D) or ``state``; of a matrix memory ``y`` alone.
        chunk: Positions of a selective scan held at once; memory is about (4 chunk + max_lag) · channel · state numbers
            a row. All states of one prompt of a matrix memory are held.
    """
    check_lag(max_lag, local.length)
    if of not in ("y", "state"):
        raise MechintError(f"temporal causality is of 'y' or of 'state', not of {of!r}")
    if isinstance(local, LinearisedMemory):
        if of == "state":
            raise MechintError(
                "temporal causality: the state of a matrix memory is no one number of a channel; take of='y', or "
                "mechint.attribution.memory_jacobians.carried_queries for what is read of a state later"
            )
        for row, lag, direct, total in memory_lags(local, max_lag):
            both = {"direct": direct, "total": direct}
            yield Slab(lag, lag, both, {"direct": direct.abs(), "total": total}, slice(row, row + 1))
        return
    if local.norms is not None and of == "state":
        raise MechintError(NORMED)
    grams = Grams.of(local, of) if local.norms is None else NormedGrams.of(local.norms)
    before: tuple[Tensor, Tensor] | None = None  # (decay, slope by Δ) of the positions that lags reach back to
    for first, h in states(local.u, local.dt, local.A, local.B, chunk=chunk):
        here = slice(first, first + h.shape[1])
        dt, u, B = local.dt[:, here], local.u[:, here], local.B[:, here]
        decay, by_dt = decays(dt, local.A), slope_by_dt(local.A, h, dt, u, B)
        reach = 0 if before is None else before[0].shape[1]
        held = (decay, by_dt)
        if before is not None:
            held = (torch.cat([before[0], decay], 1), torch.cat([before[1], by_dt], 1))
        before = tuple(x[:, max(0, x.shape[1] - max_lag) :] for x in held)  # type: ignore[assignment]
        product = local.C[:, here].unsqueeze(2).expand_as(h).clone() if of == "y" else torch.ones_like(h)
        for lag in range(min(max_lag, here.stop - 1) + 1):
            skip = max(0, lag - first)  # positions of the chunk that the lag would reach before the start from
            at, source = slice(skip, h.shape[1]), slice(reach + skip - lag, reach + h.shape[1] - lag)
            if lag:
                product[:, at] *= held[0][:, source.start + 1 : source.stop + 1]
            s = slice(first + skip - lag, here.stop - lag)
            dt_s, u_s, B_s = local.dt[:, s], local.u[:, s], local.B[:, s]
            through_dt = product[:, at] * held[1][:, source]
            parts = (dt_s, dt_s * u_s, B_s, through_dt, product[:, at])
            last = (h, local.D) if lag == 0 else None
            here_grams = grams.at(s)
            own, norm = here_grams.y(*parts, last) if of == "y" else here_grams.state(*parts)
            yield Slab(first + skip, lag, own, norm)


def slope_by_dt(A: Tensor, h: Tensor, dt: Tensor, u: Tensor, B: Tensor) -> Tensor:
    """∂h_s/∂(Δ_s before softplus), [batch, position, channel, state]; A Ā_s h_{s-1} is A (h_s - Δ_s u_s B_s)."""
    B = B.unsqueeze(2)
    return (A * (h - (dt * u).unsqueeze(-1) * B) + u.unsqueeze(-1) * B) * -torch.expm1(-dt).unsqueeze(-1)


@dataclass(frozen=True)
class Grams:
    """Inner products of the weights' rows, by which norms over all input channels need no input channels."""

    diagonal_B: Tensor  # [channel, state]: W_B[n, e]
    diagonal_C: Tensor
    diagonal_dt: Tensor  # [channel]: W_dt[e, e]
    shared: Tensor  # [2 state, 2 state]: of W_B and W_C
    mixed: Tensor  # [channel, 2 state]: W_dt[e] with each row of them
    square_dt: Tensor  # [channel]

    @classmethod
    def of(cls, local: Linearised, of: str) -> Grams:
        both = torch.cat([local.W_B, local.W_C])
        return cls(
            local.W_B.T, local.W_C.T, local.W_dt.diagonal(), both @ both.T, local.W_dt @ both.T,
            local.W_dt.square().sum(1),
        )  # fmt: skip

    def at(self, s: slice) -> Grams:
        """The same at all positions."""
        return self

    def y(
        self, dt: Tensor, du: Tensor, B: Tensor, through_dt: Tensor, product: Tensor, last: tuple[Tensor, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(own, norm) of ∂y_t/∂u_s; product: C_t ⊙ P_{t,s}. ``last`` = (h_t, D) at lag 0."""
        direct = dt * (product @ B.unsqueeze(-1)).squeeze(-1)
        gamma = through_dt.sum(-1)
        beta = product * du.unsqueeze(-1)  # on the rows of W_B
        crossed = (beta * self.diagonal_B).sum(-1)
        if last is not None:
            beta = torch.cat([beta, last[0]], -1)  # on those of W_C
            direct = direct + last[1]
            crossed = crossed + (last[0] * self.diagonal_C).sum(-1)
        size = beta.shape[-1]
        own = direct + crossed + gamma * self.diagonal_dt
        square = direct.square() + ((beta @ self.shared[:size, :size]) * beta).sum(-1) + gamma.square() * self.square_dt
        square += 2 * (direct * (crossed + gamma * self.diagonal_dt) + gamma * (beta * self.mixed[:, :size]).sum(-1))
        return {"direct": direct, "total": own}, {"direct": direct.abs(), "total": square.clamp(min=0).sqrt()}

    def state(
        self, dt: Tensor, du: Tensor, B: Tensor, through_dt: Tensor, product: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(own, norm) of ∂h_t/∂u_s, lengths over the states of a channel; product: P_{t,s}."""
        n = product.shape[-1]
        a, b, c = product * dt.unsqueeze(-1) * B.unsqueeze(2), product * du.unsqueeze(-1), through_dt
        diagonal = self.diagonal_dt.unsqueeze(-1)
        own = a + b * self.diagonal_B + c * diagonal
        square = a * (2 * own - a) + b.square() * self.shared.diagonal()[:n] + c.square() * self.square_dt.unsqueeze(-1)
        square += 2 * b * c * self.mixed[:, :n]
        length = lambda x: x.square().sum(-1).sqrt()
        norm = {"direct": length(a), "total": square.sum(-1).clamp(min=0).sqrt()}
        return {"direct": norm["direct"], "total": length(own)}, norm


@dataclass(frozen=True)
class NormedGrams:
    """The same where the low rank of Δ, B and C are normed: their slopes differ from position to position."""

    norms: Norms
    gram: Tensor  # [R + 2 state, R + 2 state], of x_proj's rows
    s: slice
    """The source positions."""

    @classmethod
    def of(cls, norms: Norms) -> NormedGrams:
        return cls(norms, norms.rows @ norms.rows.T, slice(0))

    def at(self, s: slice) -> NormedGrams:
        return NormedGrams(self.norms, self.gram, s)

    def y(
        self, dt: Tensor, du: Tensor, B: Tensor, through_dt: Tensor, product: Tensor, last: tuple[Tensor, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As :meth:`Grams.y`."""
        norms, s = self.norms, self.s
        direct = dt * (product @ B.unsqueeze(-1)).squeeze(-1)
        by_low = through_dt.sum(-1, keepdim=True) * norms.low.back(norms.dt.expand(*dt.shape[:2], -1, -1), s)
        by_B = norms.B.back(product * du.unsqueeze(-1), s)
        by_C = torch.zeros_like(by_B)
        if last is not None:
            by_C = norms.C.back(last[0], s)
            direct = direct + last[1]
        raw = torch.cat([by_low, by_B, by_C], -1)  # by what x_proj gives, [batch, T, channel, R + 2 state]
        crossed = (raw * norms.rows.T).sum(-1)
        square = direct.square() + 2 * direct * crossed + ((raw @ self.gram) * raw).sum(-1)
        own = direct + crossed
        return {"direct": direct, "total": own}, {"direct": direct.abs(), "total": square.clamp(min=0).sqrt()}

    def state(self, *parts: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        raise MechintError(NORMED)


@torch.no_grad()
def jacobian(
    local: Linearised,
    channels: Sequence[int],
    max_lag: int,
    of: str = "y",
    source: str = "x",
    memory_mib: float = 2048.0,
) -> dict[str, Tensor]:
    """The whole derivatives of chosen channels, by every input channel.

    Args:
        channels: Whose y or states are differentiated.
        max_lag: Lags 0 … max_lag.
        of: ``y`` or ``state``.
        source: ``u``, what the scan reads, or ``x``, what the convolution reads: there lag k has what the K taps bring.
        memory_mib: Largest size of the result.

    Returns:
        ``direct`` and ``total``, each [batch, position, lag, chosen channel, (state,) input channel]; zeros where the
        lag reaches before the first position.

    Raises:
        MechintError: more lags than positions, a channel that does not exist, or a result larger than the memory.
    """
    check_lag(max_lag, local.length)
    if local.norms is not None:
        raise MechintError(NORMED)
    if source not in SOURCES or of not in ("y", "state"):
        raise MechintError(f"a Jacobian is of 'y' or 'state' by 'u' or 'x', not of {of!r} by {source!r}")
    batch, length, width = local.u.shape
    if bad := [c for c in channels if not 0 <= c < width]:
        raise MechintError(f"channel {bad[0]} does not exist; the layer has {width} (0 to {width - 1})")
    size = local.A.shape[1]
    each = (len(channels), size, width) if of == "state" else (len(channels), width)
    shape = (batch, length, max_lag + 1, *each)
    need = 2 * torch.Size(shape).numel() * local.u.element_size() / 2**20
    if need > memory_mib:
        raise MechintError(
            f"the Jacobians of {len(channels)} channels at {length} positions and {max_lag + 1} lags take {need:.0f} "
            f"MiB, more than {memory_mib:g}; take fewer channels, or the norms that "
            "mechint.attribution.jacobians.lags streams"
        )
    found = {path: local.u.new_zeros(shape) for path in PATHS}
    rows = Rows(local, torch.as_tensor(list(channels), device=local.u.device), of)
    inner: list[dict[str, Tensor]] = []  # by u, at this lag and the K - 1 before it, this one first
    for lag in range(max_lag + 1):
        inner = [rows.by_u(lag), *inner[: local.taps.shape[1] - 1 if source == "x" else 0]]
        for path in PATHS:
            found[path][:, lag:, lag] = rows.by_x(inner, path, lag) if source == "x" else inner[0][path]
    return found


class Rows:
    """The derivatives of some channels by all, one lag after another: [batch, L - lag, chosen, (state,) channel]."""

    def __init__(self, local: Linearised, chosen: Tensor, of: str) -> None:
        self.local, self.chosen, self.of = local, chosen, of
        h = torch.cat([part for _, part in states(local.u, local.dt, local.A, local.B)], 1)
        self.h = h[:, :, chosen]  # [B, L, chosen, N]
        self.A, self.dt, self.u = local.A[chosen], local.dt[..., chosen], local.u[..., chosen]
        self.decay = decays(self.dt, self.A)
        self.by_dt = slope_by_dt(self.A, self.h, self.dt, self.u, local.B)
        self.product = torch.ones_like(self.h)  # P_{t,t-lag} at t = lag … L - 1
        self.slope = silu_slope(local.conv)  # [B, L, E]

    def by_u(self, lag: int) -> dict[str, Tensor]:
        """Call for lags 0, 1, … in their order."""
        local, length = self.local, self.local.length
        s = slice(0, length - lag)
        if lag:  # P_{t,t-lag} = P_{t,t-lag+1} Ā_{t-lag+1}
            self.product = self.product[:, 1:] * self.decay[:, 1 : length - lag + 1]
        dt, u, B = self.dt[:, s], self.u[:, s], local.B[:, s].unsqueeze(2)
        direct = self.product * dt.unsqueeze(-1) * B  # [B, T, chosen, N]
        through_B = self.product * (dt * u).unsqueeze(-1)
        through_dt = self.product * self.by_dt[:, s]
        if self.of == "state":
            W_dt = local.W_dt[self.chosen].unsqueeze(1)  # [chosen, 1, E]
            rest = through_B.unsqueeze(-1) * local.W_B + through_dt.unsqueeze(-1) * W_dt
            return {"direct": self.on_own(direct), "total": self.on_own(direct) + rest}
        C = local.C[:, lag:].unsqueeze(2)
        own = (C * direct).sum(-1)
        rest = (C * through_B) @ local.W_B + (C * through_dt).sum(-1, keepdim=True) * local.W_dt[self.chosen]
        if lag == 0:
            own = own + local.D[self.chosen]
            rest = rest + self.h @ local.W_C
        return {"direct": self.on_own(own), "total": self.on_own(own) + rest}

    def on_own(self, value: Tensor) -> Tensor:
        """[B, T, chosen, (N)] -> the same by all input channels, zero but for each channel's own."""
        own = F.one_hot(self.chosen, self.local.u.shape[-1]).to(value)  # [chosen, E]
        return value.unsqueeze(-1) * (own.unsqueeze(1) if self.of == "state" else own)

    def by_x(self, inner: list[dict[str, Tensor]], path: str, lag: int) -> Tensor:
        """∂/∂x_s = Σ_j ∂/∂u_{s+j} · SiLU'(c_{s+j}) w[K-1-j] at s = t - lag; ``inner[j]`` is by u at lag - j."""
        total = torch.zeros_like(inner[0][path])
        for j, part in enumerate(inner):
            tap = self.slope[:, j : j + total.shape[1]] * self.local.taps[:, -1 - j]  # [B, T, E]
            total += part[path][:, j:] * tap.view(*tap.shape[:2], *[1] * (total.dim() - 3), -1)
        return total


def silu_slope(conv: Tensor) -> Tensor:
    gate = torch.sigmoid(conv)
    return gate * (1 + conv * (1 - gate))
