"""The scan in C, for float32 on a CPU: compiled once, in about a second, where there is a C compiler.

A plain shared library called through ctypes: no build step, no headers of torch. Measured on two cores against the
chunked scan in plain torch (`make bench`), and chosen for it; where no compiler is found the chunked one serves.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..utils.compiled import Arguments, Unavailable, call, compile_library, reads, steps_through, writes
from ..utils.errors import MechintError

__all__ = ["Decay", "ReadOut", "Scan", "Unavailable", "library"]

SOURCE = Path(__file__).with_name("native.c")
WIDTH = 8
"""Channels in a block; the W of native.c."""
CHUNK = 64
"""Positions between two saved states; a chunk's states and decays for one block stay in the second-level cache."""
GROUPS = 16
"""Shares of ∂B and ∂C, each summed over neighbouring blocks: as many as threads may want, whatever their number is, so
that the bits do not depend on it. Together they take 2 GROUPS / E of what all states would."""
SMALL = 1 << 14
"""State updates below which threads cost more than they save."""


@functools.cache
def library() -> Any:
    """The compiled library, from the cache or from a compiler.

    Raises:
        Unavailable: no compiler, or it could not compile or write.
    """
    return compile_library(SOURCE)


def _call(name: str, pieces: int, updates: int, arguments: Arguments, scratch: int | None = None) -> None:
    """Calls a function of native.c on all its pieces, with threads where that many updates are worth them."""
    call(library(), name, arguments, pieces, torch.get_num_threads() if updates >= SMALL else 1, scratch)


def forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    y: Tensor,
    last: Tensor | None,
    boundaries: Tensor | None,
) -> None:
    """scan_forward of native.c; z's rows are a whole number of equally spaced positions."""
    (rows, length, channels), (_, states) = u.shape, A.shape
    one, apart = (rows, length, channels), 0 if z is None else z.stride(1)
    if (D is None) != (z is None):
        raise MechintError("scan: D and z go together")
    if rows and not len(initial):
        raise MechintError(f"scan: initial has no row for a batch of {rows}")
    arguments: Arguments = {
        "u": reads(u, *one),
        "dt": reads(dt, *one),
        "A": reads(A.t(), states, channels),
        "B": reads(B, rows, length, states),
        "C": reads(C, rows, length, states),
        "initial": reads(initial, len(initial), channels, states),
        "D": reads(D, channels),
        "z": steps_through(z, (length * apart, apart, 1), *one),
        "y": writes(y, *one),
        "last": writes(last, rows, channels, states),
        "boundaries": writes(boundaries, rows, -(-length // CHUNK), channels, states),
        "stride": apart,
        "rows": len(initial),
        "L": length,
        "E": channels,
        "N": states,
        "chunk": CHUNK,
    }
    _call("scan_forward", rows * -(-channels // WIDTH), u.numel() * states, arguments, 2 * states * WIDTH)


class Scan(torch.autograd.Function):
    """As :func:`mechint.scan.selective.selective_scan`, whose arguments are ours."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> Any:
        u, dt, A, B, C, initial = (x.contiguous() for x in (u, dt, A, B, C, initial))
        rows, length, channels = u.shape
        states = A.shape[1]
        y, last = torch.empty_like(u), u.new_empty(rows, channels, states)
        boundaries = None
        if any(ctx.needs_input_grad):
            boundaries = u.new_empty(rows, -(-length // CHUNK), channels, states)
        forward(u, dt, A, B, C, initial, None, None, y, last, boundaries)
        if boundaries is not None:
            ctx.save_for_backward(u, dt, A, B, C, boundaries)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> Any:
        u, dt, A, B, C, boundaries = ctx.saved_tensors
        (rows, length, channels), (_, states) = u.shape, A.shape
        groups = min(GROUPS, -(-channels // WIDTH))
        d_u, d_dt, d_initial = torch.empty_like(u), torch.empty_like(dt), u.new_empty(rows, channels, states)
        d_A = u.new_empty(rows, channels, states)
        d_B, d_C = (u.new_empty(groups, rows, length, states) for _ in range(2))
        one, shared, state = (rows, length, channels), (rows, length, states), (rows, channels, states)
        arguments: Arguments = {
            "u": reads(u, *one),
            "dt": reads(dt, *one),
            "A": reads(A, channels, states),
            "B": reads(B, *shared),
            "C": reads(C, *shared),
            "boundaries": reads(boundaries, rows, -(-length // CHUNK), channels, states),
            "dy": reads(grad_y, *one),
            "dlast": reads(grad_last, *state),
            "du_": writes(d_u, *one),
            "ddt": writes(d_dt, *one),
            "dA": writes(d_A, *state),
            "dB": writes(d_B, groups, *shared),
            "dC": writes(d_C, groups, *shared),
            "dh0": writes(d_initial, *state),
            "rows": rows,
            "L": length,
            "E": channels,
            "N": states,
            "chunk": CHUNK,
            "groups": groups,
        }
        work = (5 + 4 * CHUNK) * states * WIDTH
        _call("scan_backward", rows * groups, u.numel() * states, arguments, work)
        return d_u, d_dt, d_A.sum(0), d_B.sum(0), d_C.sum(0), d_initial


def elementwise(name: str, x: Tensor) -> Tensor:
    """mix_silu or mix_softplus of native.c, of any shape."""
    flat = x.reshape(-1)
    out = flat.new_empty(flat.shape)
    arguments: Arguments = {
        "x": reads(flat, len(flat)),
        "out": writes(out, len(flat)),
        "size": len(flat),
    }
    _call(name, -(-len(flat) // WIDTH), len(flat), arguments)
    return out.view(x.shape)


def finish(
    y: Tensor, u: Tensor | None, skip: Tensor | None, gate: Tensor, weight: Tensor, eps: float, group: int, raw: bool,
    order: int,
) -> Tensor:  # fmt: skip
    """mix_finish of native.c: y, u and the gate [row, channel], skip and weight [channel]; channels are neighbours."""
    rows, channels = y.shape
    out = y.new_empty(y.shape)
    u_stride = 0 if u is None else u.stride(0)
    arguments: Arguments = {
        "y": reads(y, rows, channels),
        "u": steps_through(u, (u_stride, 1), rows, channels),
        "skip": reads(skip, channels),
        "gate": steps_through(gate, (gate.stride(0), 1), rows, channels),
        "weight": reads(weight, channels),
        "eps": reads(torch.tensor([eps]), 1),
        "out": writes(out, rows, channels),
        "u_stride": u_stride,
        "gate_stride": gate.stride(0),
        "E": channels,
        "group": group,
        "raw": int(raw),
        "order": order,
    }
    _call("mix_finish", rows, y.numel(), arguments)
    return out


def convolve(x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, silu: bool) -> None:
    """mix_conv of native.c: x's and memory's channels are neighbours, and so are memory's positions."""
    (rows, length, channels), taps = x.shape, len(weight)
    if not taps or (rows and not len(memory)):
        raise MechintError(f"convolve: {taps} taps and a memory of {len(memory)} rows for a batch of {rows}")
    arguments: Arguments = {
        **_inputs(x, memory, weight),
        "bias": reads(bias, channels),
        "out": writes(out, rows, length, channels),
        "row_stride": x.stride(0),
        "stride": x.stride(1),
        "memory_stride": memory.stride(0),
        "rows": len(memory),
        "L": length,
        "E": channels,
        "K": taps,
        "silu": int(silu),
    }
    _call("mix_conv", rows * length, x.numel() * taps, arguments)


def _inputs(x: Tensor, memory: Tensor, weight: Tensor) -> Arguments:
    """The inputs of a convolution as C takes them: weight [tap, channel]."""
    (rows, length, channels), taps = x.shape, len(weight)
    return {
        "x": steps_through(x, (x.stride(0), x.stride(1), 1), rows, length, channels),
        "memory": steps_through(memory, (memory.stride(0), channels, 1), len(memory), taps - 1, channels),
        "weight": reads(weight, taps, channels),
    }


def convolve_back(grad: Tensor, x: Tensor, memory: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mix_conv_back of native.c: gradients of x, memory, weight [K, channel] and bias; x and memory as above.

    The memory has a row for each of the batch.
    """
    (rows, length, channels), taps = x.shape, len(weight)
    if len(memory) != rows:
        raise MechintError(f"convolve: the memory has {len(memory)} rows for a batch of {rows}")
    found = (x.new_empty(x.shape), x.new_empty(memory.shape), weight.new_empty(weight.shape), x.new_empty(channels))
    arguments: Arguments = {
        "grad": reads(grad, rows, length, channels),
        **_inputs(x, memory, weight),
        "dx": writes(found[0], rows, length, channels),
        "dmemory": writes(found[1], rows, taps - 1, channels),
        "dweight": writes(found[2], taps, channels),
        "dbias": writes(found[3], channels),
        "row_stride": x.stride(0),
        "stride": x.stride(1),
        "memory_stride": memory.stride(0),
        "rows": rows,
        "L": length,
        "E": channels,
        "K": taps,
        "chunk": CHUNK,
    }
    _call("mix_conv_back", -(-channels // WIDTH), x.numel() * taps, arguments, 3 * taps * WIDTH)
    return found


class Decay(torch.autograd.Function):
    """exp(Δ A): Δ [batch, position, channel], A [channel, state] -> [batch, position, channel, state]."""

    @staticmethod
    def forward(ctx: Any, dt: Tensor, A: Tensor) -> Tensor:
        dt, A = dt.contiguous(), A.contiguous()
        decay = dt.new_empty(*dt.shape, A.shape[1])
        channels, states = A.shape
        arguments: Arguments = {
            "dt": reads(dt, *dt.shape[:2], channels),
            "A": reads(A, channels, states),
            "decay": writes(decay, *dt.shape[:2], channels, states),
            "E": channels,
            "N": states,
        }
        _call("scan_decay", dt.shape[0] * dt.shape[1], decay.numel(), arguments)
        ctx.save_for_backward(dt, A, decay)
        return decay

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        dt, A, decay = ctx.saved_tensors
        exponent = grad * decay
        return (exponent * A).sum(-1), (exponent * dt.unsqueeze(-1)).sum((0, 1))


class ReadOut(torch.autograd.Function):
    """Σ_n C h: states [batch, position, channel, state], C [batch, position, state] -> [batch, position, channel]."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, C: Tensor) -> Tensor:
        states, C = states.contiguous(), C.contiguous()
        y = states.new_empty(states.shape[:-1])
        batch, length, channels, size = states.shape
        arguments: Arguments = {
            "h": reads(states, batch, length, channels, size),
            "C": reads(C, batch, length, size),
            "y": writes(y, batch, length, channels),
            "E": channels,
            "N": size,
        }
        _call("scan_read", batch * length, states.numel(), arguments)
        ctx.save_for_backward(states, C)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        states, C = ctx.saved_tensors
        return grad.unsqueeze(-1) * C.unsqueeze(-2), torch.matmul(grad.unsqueeze(-2), states).squeeze(-2)
