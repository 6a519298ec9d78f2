"""Temporal causality of matrix memories: the exact derivatives of what is read by what was given at positions before.

With m_j = a_j ⊙ S_{j-1}, S_j = T_j m_j + k_j (s_j u_j)ᵀ, T_j = I − s_j k_j k_jᵀ (delta rules) or I, and
y_i = S_iᵀ q_i + D u_i, the *carried query*

    g_{i,j} = a_{j+1} ⊙ T_{j+1} … a_i ⊙ T_i q_i,        g_{i,i} = q_i,

is ∂y_i[v]/∂S_j[:, v], one vector [key] for all value channels v of a head. With e_v = u_v − k·m[:, v] (u_v where
nothing is erased), the derivatives of y_i[v] by what head h is given at j = i - lag are

    ∂/∂u[v]  = s g·k  (+ D at lag 0)                                     direct
    ∂/∂k     = s (e_v g − (g·k) m[:, v])     (s u_v g without erasing)    through the key
    ∂/∂s     = (g·k) e_v                                                 through the strength Δ or β
    ∂/∂log a = (T g) ⊙ m[:, v]                                           through the decay
    ∂/∂q     = S_i[:, v]                      (at lag 0)                  through the query

The *total* derivative is by all that a head is given at j: values, keys and queries as they come out of the convolution
(before they are divided by their lengths, where they are), and the numbers that softplus makes Δ and σ makes β of.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interventions.model import Model
from ..interventions.run import run
from ..models.parts.delta import GatedDelta
from ..models.parts.mamba2 import Mamba2Mixer
from ..models.parts.recurrence import Recurrence
from ..scan.checks import accumulate
from ..scan.matrix import Writes, states
from ..utils.errors import MechintError


@dataclass(frozen=True)
class LinearisedMemory:
    """One matrix memory around its own run, in the model's precision, at least float32.

    Attributes:
        u: Values before the strength, [batch, position, head, value].
        key, query: [batch, position, head, key].
        strength: s, Δ or β, [batch, position, head].
        log_decay: log a, [batch, position, head], or with a last axis [key].
        by_strength: Slope of s by the number that it is made of.
        by_decay: Slope of log a by the number that Δ is made of, shaped as ``log_decay``.
        key_length, query_length: Lengths that keys and queries were divided by, [batch, position, head]; None where
            they are as the convolution gives them.
        D: [head]; None for none.
        erases: True if a write erases what the memory holds along its key.
        one_number: True if strength and decay are made of one number (Mamba-2).
    """

    u: Tensor
    key: Tensor
    query: Tensor
    strength: Tensor
    log_decay: Tensor
    by_strength: Tensor
    by_decay: Tensor
    key_length: Tensor | None
    query_length: Tensor | None
    D: Tensor | None
    erases: bool
    one_number: bool

    @property
    def length(self) -> int:
        return self.u.shape[1]

    @property
    def width(self) -> int:
        """Channels: heads times value channels."""
        return self.u.shape[2] * self.u.shape[3]

    def row(self, number: int) -> LinearisedMemory:
        """One prompt alone."""
        one = lambda x: x[number : number + 1] if isinstance(x, Tensor) else x
        per_head = {"D": self.D, "erases": self.erases, "one_number": self.one_number}
        names = [name for name in self.__dataclass_fields__ if name not in per_head]
        return LinearisedMemory(**{name: one(getattr(self, name)) for name in names}, **per_head)  # type: ignore[arg-type]

    def wide_decay(self) -> Tensor:
        """a, of every key channel, [batch, position, head, key or 1]."""
        decay = self.log_decay.exp()
        return decay if decay.dim() == 4 else decay.unsqueeze(-1)

    def writes(self) -> Writes:
        """The inputs of the recurrence."""
        erase = self.strength.unsqueeze(-1) * self.key if self.erases else None
        value = self.strength.unsqueeze(-1) * self.u
        return Writes(self.log_decay.exp(), self.key, value, erase, self.key if self.erases else None)


@torch.no_grad()
def linearise_memory(model: Model, tokens: Tensor, layer: int, part: Recurrence) -> LinearisedMemory:
    """Records the values that the derivatives of a matrix memory are made of, in one run."""
    names = ("conv", "u", "dt", "key", "query", *["beta"] * part.erases)
    at = f"layers.{layer}."
    found = run(model, tokens, [at + name for name in names], logits_at=tokens.new_zeros(len(tokens), 0).long())
    values = {name: accumulate(found[at + name]) for name in names}
    return LinearisedMemory(**memory_of_part(part, values))


@functools.singledispatch
def memory_of_part(part: nn.Module, at: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of :class:`LinearisedMemory` from recorded sites."""
    raise MechintError(f"temporal causality: no derivatives are written for parts of the kind {type(part).__name__}")


@memory_of_part.register
def of_mamba2(part: Mamba2Mixer, at: dict[str, Tensor]) -> dict[str, Any]:
    rate, dt = -torch.exp(accumulate(part.A_log)), at["dt"]
    low, high = part.limits
    slope = -torch.expm1(-dt) * ((dt > low) & (dt < high))  # of softplus; a clamped Δ does not move
    return {
        "u": at["u"], "key": at["key"], "query": at["query"], "strength": dt, "log_decay": rate * dt,
        "by_strength": slope, "by_decay": rate * slope, "key_length": None, "query_length": None,
        "D": accumulate(part.D), "erases": False, "one_number": True,
    }  # fmt: skip


@memory_of_part.register
def of_delta(part: GatedDelta, at: dict[str, Tensor]) -> dict[str, Any]:
    rate, dt, beta = -torch.exp(accumulate(part.A_log)).flatten(), at["dt"], at["beta"]
    rate = rate[:, None] if part.key_decay else rate
    queries, keys, _ = F.silu(at["conv"]).split(part.sizes, -1)
    shared = part.heads // part.key_heads
    length = lambda x: torch.rsqrt(x.unflatten(-1, (part.key_heads, -1)).square().sum(-1) + 1e-6).reciprocal()
    key_length, query_length = (length(x).repeat_interleave(shared, 2) for x in (keys, queries))
    largest = 2.0 if part.doubled else 1.0
    return {
        "u": at["u"], "key": at["key"], "query": at["query"], "strength": beta, "log_decay": rate * dt,
        "by_strength": beta * (1 - beta / largest), "by_decay": rate * -torch.expm1(-dt), "key_length": key_length,
        "query_length": query_length, "D": None, "erases": True, "one_number": False,
    }  # fmt: skip


def memories(local: LinearisedMemory) -> Tensor:
    """S of every position, [batch, position, head, key, value]."""
    start = local.u.new_zeros(local.u.shape[0], *local.key.shape[2:], local.u.shape[-1])
    return torch.stack([*states(local.writes(), start)], 1)


def carried_queries(local: LinearisedMemory, max_lag: int) -> Iterator[Tensor]:
    """g_{i, i - lag} at every position i ≥ lag, [batch, position, head, key], for lags 0 … max_lag.

    Its length says how strongly what is read at i depends on the memory at i - lag.
    """
    g, decay = local.query, local.wide_decay()
    yield g
    for lag in range(1, max_lag + 1):
        passed = slice(1, local.length - lag + 1)  # the position that the query is carried back over
        g = g[:, 1:]
        if local.erases:
            along = (g * local.key[:, passed]).sum(-1, keepdim=True)
            g = g - local.strength[:, passed].unsqueeze(-1) * along * local.key[:, passed]
        g = g * decay[:, passed]
        yield g


@torch.no_grad()
def memory_lags(local: LinearisedMemory, max_lag: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(prompt, lag, direct, total) at every position i ≥ lag of a prompt, [1, position, channel] each.

    ``direct`` is signed, by the channel's own u, which is all of u that it reads; ``total`` is the length of the
    derivative by all that the head is given. One prompt's memories are held at once.
    """
    for number in range(len(local.u)):
        one = local.row(number)
        held = memories(one)
        kept = F.pad(held, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1] * one.wide_decay().unsqueeze(-1)  # m
        along_key = torch.einsum("bthk,bthkv->bthv", one.key, kept)
        error = one.u - along_key if one.erases else one.u
        by_query = of_length(held, one.query * one.query.shape[-1] ** 0.5, one.query_length, one.query.shape[-1])
        size = kept.square().sum(-2)
        for lag, g in enumerate(carried_queries(one, max_lag)):
            at = slice(0, one.length - lag)
            key, s, m = one.key[:, at], one.strength[:, at].unsqueeze(-1), kept[:, at]
            reach = (g * key).sum(-1, keepdim=True)  # g·k
            direct = (s * reach).expand_as(one.u[:, at])
            read = torch.einsum("bthk,bthkv->bthv", g, m)  # g·m
            e, k_m = error[:, at], along_key[:, at]
            total = through_key(one, at, g, reach, e, k_m, read, size[:, at])
            by_strength = reach * e * one.by_strength[:, at].unsqueeze(-1)
            by_decay = one.by_decay[:, at]
            turned = g - s * reach * key if one.erases else g
            if by_decay.dim() == 4:
                total = total + torch.einsum("bthk,bthkv->bthv", (turned * by_decay).square(), m.square())
            else:
                slope = (read - s * reach * k_m if one.erases else read) * by_decay.unsqueeze(-1)
                if one.one_number:
                    by_strength = by_strength + slope
                else:
                    total = total + slope.square()
            total = total + by_strength.square()
            if lag == 0:
                direct = direct if one.D is None else direct + one.D[:, None]
                total = total + by_query
            total = total + direct.square()
            yield number, lag, direct.flatten(2), total.clamp(min=0).sqrt().flatten(2)


def of_length(held: Tensor, unit: Tensor, length: Tensor | None, size: int) -> Tensor:
    """Squared length of the derivative by the query before its division, [batch, position, head, value]."""
    square = held.square().sum(-2)
    if length is None:
        return square
    along = torch.einsum("bthk,bthkv->bthv", unit, held)
    square = square + (unit.square().sum(-1, keepdim=True) - 2) * along.square()
    return square / (length.square().unsqueeze(-1) * size)


def through_key(
    one: LinearisedMemory, at: slice, g: Tensor, reach: Tensor, e: Tensor, k_m: Tensor, read: Tensor, size: Tensor
) -> Tensor:
    """Squared length of the derivative by the key before its division, [batch, position, head, value].

    Args:
        reach, e, k_m, read, size: g·k, e_v, k·m[:, v], g·m[:, v] and the squared length of m[:, v].
    """
    s = one.strength[:, at].unsqueeze(-1)
    square = e.square() * g.square().sum(-1, keepdim=True)
    along = e * reach
    if one.erases:
        square = square - 2 * e * reach * read + reach.square() * size
        along = along - reach * k_m
    if one.key_length is not None:  # the derivative by the key loses what lies along it, and is divided by its length
        own = one.key[:, at].square().sum(-1, keepdim=True)
        square = (square + (own - 2) * along.square()) / one.key_length[:, at].square().unsqueeze(-1)
    return s.square() * square
