"""The selective scan, with one entry point for each of its three quantities. Back ends are files beside this one.

========= ============================================== =======================================================
back end  where                                          how
========= ============================================== =======================================================
native    float32 on a CPU, with a C compiler            C, states in registers; compiled once, in a second
chunked   any device and precision                       plain torch, a chunk of states at a time
========= ============================================== =======================================================

Within one back end the scan, its decays and its read-outs come from the same operations, so that recording or
identically editing a state keeps every bit of the logits. Between back ends the last bits differ.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import MechintError
from . import chunked, native
from .reference import recurrence

__all__ = ["available", "chosen", "decays", "read_out", "recurrence", "selective_scan", "using"]

BACK_ENDS = ("native", "chunked")
_asked: str | None = None
_told = False


def available() -> dict[str, str]:
    """Every back end with '' when it can be used, else why not."""
    try:
        native.library()
    except native.Unavailable as reason:
        return {"native": str(reason), "chunked": ""}
    return {"native": "", "chunked": ""}


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Within this context the back end is ``name``.

    Raises:
        MechintError: there is no such back end, or not on this machine.
    """
    global _asked
    if name not in BACK_ENDS:
        raise MechintError(f"no scan back end {name!r}; there are {', '.join(BACK_ENDS)}")
    if reason := available()[name]:
        raise MechintError(f"the scan back end {name!r} is not on this machine: {reason}; take 'chunked'")
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


def chosen(like: Tensor | None = None) -> str:
    """The back end that a tensor like this one is computed by (by default float32 on the CPU).

    The first time the native one is missing, a line on stderr says so.
    """
    global _told
    if like is not None and (like.dtype != torch.float32 or like.device.type != "cpu"):
        return "chunked"
    if _asked is not None:
        return _asked
    reason = available()["native"]
    if reason and not _told:
        _told = True
        print(f"scan: plain torch in place of the faster C one, because {reason}", file=sys.stderr)
    return "chunked" if reason else "native"


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
        The read-out without the D term, [batch, position, channel], and the last state, [batch, channel, state].
    """
    if initial is None:
        initial = u.new_zeros(u.shape[0], *A.shape)
    scan = native.Scan if chosen(u) == "native" else chunked.Scan
    y, last = scan.apply(u, dt, A, B, C, initial)
    return y, last


def decays(dt: Tensor, A: Tensor) -> Tensor:
    """exp(Δ A), [batch, position, channel, state], as the scan computes it; arguments as there."""
    return native.Decay.apply(dt, A) if chosen(dt) == "native" else torch.exp(dt.unsqueeze(-1) * A)


def read_out(states: Tensor, C: Tensor) -> Tensor:
    """Σ_n C h, [batch, position, channel], as the scan computes it: states [batch, position, channel, state]."""
    return native.ReadOut.apply(states, C) if chosen(states) == "native" else chunked.read_out(states, C)
