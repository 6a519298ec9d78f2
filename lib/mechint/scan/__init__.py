"""The selective scan, with one entry point for each of its three quantities. Back ends are files beside this one.

========= ============================================== =======================================================
back end  where                                          how
========= ============================================== =======================================================
native    float32 on a CPU, with a C compiler            C, states in registers; compiled once, in a second
triton    float32 on a CUDA device, with Triton          one kernel, states in registers; agrees to rounding
chunked   any device and precision                       plain torch, a chunk of states at a time
========= ============================================== =======================================================

Within one back end the scan, its decays and its read-outs come from the same operations, so that recording or
identically editing a state keeps every bit of the logits. Between back ends the last bits differ. That holds on a CPU;
on a CUDA device, whose compilers may order a sum in another way for each shape, equality of the last bit is not
demanded: the scan and its pieces agree to rounding there, whichever the back end.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import MechintError
from . import chunked, native
from .attention import attention_map, hidden_attention, states
from .checks import CHANNELS, RATES, SHARED, STATE, STATES, check_sizes, widest
from .reference import recurrence

__all__ = [
    "attention_map",
    "available",
    "chosen",
    "decays",
    "hidden_attention",
    "read_out",
    "recurrence",
    "selective_scan",
    "states",
    "using",
]

BACK_ENDS = ("native", "triton", "chunked")
USUAL = {"cpu": ("native", "faster C"), "cuda": ("triton", "Triton")}
"""For each type of device: its own back end, and what that one is."""
_asked: str | None = None
_told = False
_told_of_triton = False


def available() -> dict[str, str]:
    """Every back end with '' when it can be used, else why not."""
    return {name: _missing(name) for name in BACK_ENDS}


def _missing(name: str) -> str:
    """Why a back end cannot be used, '' when it can."""
    if name == "native":
        try:
            native.library()
        except native.Unavailable as reason:
            return str(reason)
    return _missing_triton() if name == "triton" else ""


@functools.cache
def _missing_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available() and not _interpreted():
        return "no CUDA device"
    try:
        _module("triton").check()
    except Exception as error:  # of many kinds, an import's too: whatever is wrong with Triton, chunked can do the work
        lines = str(error).strip().splitlines()
        return f"its kernel fails ({lines[0] if lines else type(error).__name__})"
    return ""


def _module(name: str) -> Any:
    """A back end's module. That of Triton is imported when first used: it takes a while, and few need it."""
    if name == "triton":
        from . import triton_kernel

        return triton_kernel
    return native if name == "native" else chunked


def _interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU; it reads this variable when it is imported."""
    asked = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")
    return asked and _module("triton").INTERPRETED


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Within this context the back end is ``name``.

    Raises:
        MechintError: there is no such back end, or not on this machine.
    """
    global _asked
    if name not in BACK_ENDS:
        raise MechintError(f"no scan back end {name!r}; there are {', '.join(BACK_ENDS)}")
    if reason := _missing(name):
        raise MechintError(f"the scan back end {name!r} is not on this machine: {reason}; take 'chunked'")
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


def chosen(like: Tensor | None = None) -> str:
    """The back end that a tensor like this one is computed by (by default float32 on the CPU).

    One that was asked for gives way to the chunked one for tensors that it cannot take: the native one takes none but
    the CPU's, and triton none of those but in Triton's interpreter. The first time that a device's own back end is
    missing, a line on stderr says so.
    """
    global _told, _told_of_triton
    device = "cpu" if like is None else like.device.type
    if device not in USUAL or (like is not None and like.dtype != torch.float32):
        return "chunked"
    usual, language = USUAL[device]
    if _asked is not None:
        takes = _asked == usual or (_asked == "triton" and device == "cpu" and _interpreted())
        return _asked if takes else "chunked"
    reason = _missing(usual)
    if reason and not (_told if usual == "native" else _told_of_triton):
        if usual == "native":
            _told = True
        else:
            _told_of_triton = True
        print(f"scan: plain torch in place of the {language} one, because {reason}", file=sys.stderr)
    return "chunked" if reason else usual


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
    y, last = _module(chosen(u)).Scan.apply(u, dt, A, B, C, initial)
    return y, last


def decays(dt: Tensor, A: Tensor) -> Tensor:
    """exp(Δ A), [batch, position, channel, state], as the scan computes it; arguments as there."""
    check_sizes("decays", {"dt": (dt, CHANNELS), "A": (A, RATES)}, empty=True)
    dt, A = (x.to(widest(dt, A)) for x in (dt, A))
    name = chosen(dt)
    return torch.exp(dt.unsqueeze(-1) * A) if name == "chunked" else _module(name).Decay.apply(dt, A)


def read_out(states: Tensor, C: Tensor) -> Tensor:
    """Σ_n C h, [batch, position, channel], as the scan computes it: states [batch, position, channel, state]."""
    check_sizes("read_out", {"states": (states, STATES), "C": (C, SHARED)}, empty=True)
    states, C = (x.to(widest(states, C)) for x in (states, C))
    name = chosen(states)
    return chunked.read_out(states, C) if name == "chunked" else _module(name).ReadOut.apply(states, C)
