"""The selective scan, its decays and its read-outs: whichever back end is chosen, one function each."""

from __future__ import annotations

import torch
from torch import Tensor

from . import chunked
from .checks import CHANNELS, RATES, SHARED, STATE, STATES, check_sizes, widest
from .choice import chosen, module

PLAIN = ("chunked", "mamba_ssm")
"""Back ends whose decays and read-outs are plain torch's."""


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Σ_n C_t[n] h_t[n] with h_t = exp(Δ_t A) ⊙ h_{t-1} + (Δ_t u_t) ⊗ B_t (Gu & Dao 2023, algorithm 2).

    Args:
        u, dt: Input and step size, [batch, position, channel].
        A: Negative decay rates, [channel, state].
        B, C: Write and read directions, [batch, position, state].
        initial: State before the first position, [batch, channel, state]; zeros when None.

    Returns:
        The read-out without the D term, [batch, position, channel], and the last state, [batch, channel, state]; in
        float32, or in float64 where an argument is: half precision is widened before anything is summed.

    Raises:
        MechintError: shapes that disagree (the axis is named).
    """
    shapes = {"u": (u, CHANNELS), "dt": (dt, CHANNELS), "A": (A, RATES), "B": (B, SHARED), "C": (C, SHARED)}
    check_sizes("selective_scan", {**shapes, "initial": (initial, STATE)}, empty=True)
    dtype = widest(u, dt, A, B, C, initial)
    u, dt, A, B, C = (x.to(dtype) for x in (u, dt, A, B, C))
    initial = u.new_zeros(u.shape[0], *A.shape) if initial is None else initial.to(dtype)
    y, last = module(chosen(u)).Scan.apply(u, dt, A, B, C, initial)
    return y, last


def decays(dt: Tensor, A: Tensor) -> Tensor:
    """exp(Δ A), [batch, position, channel, state], as the scan computes it; arguments as there."""
    check_sizes("decays", {"dt": (dt, CHANNELS), "A": (A, RATES)}, empty=True)
    dt, A = (x.to(widest(dt, A)) for x in (dt, A))
    name = chosen(dt)
    return torch.exp(dt.unsqueeze(-1) * A) if name in PLAIN else module(name).Decay.apply(dt, A)


def read_out(states: Tensor, C: Tensor) -> Tensor:
    """Σ_n C h, [batch, position, channel], as the scan computes it: states [batch, position, channel, state]."""
    check_sizes("read_out", {"states": (states, STATES), "C": (C, SHARED)}, empty=True)
    states, C = (x.to(widest(states, C)) for x in (states, C))
    name = chosen(states)
    return chunked.read_out(states, C) if name in PLAIN else module(name).ReadOut.apply(states, C)
