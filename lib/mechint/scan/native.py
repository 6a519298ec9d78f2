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

from ..compiled import Unavailable, compile_library, pointers, share

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


def _call(name: str, pieces: int, updates: int, work: int, *arguments: Tensor | int | None) -> None:
    """Calls a function of native.c on all its pieces; ``work`` floats of scratch for each thread, 0 for none."""
    function, fixed = getattr(library(), name), pointers(*arguments)

    def one(first: int, last: int) -> None:
        scratch = torch.empty(work)
        function(*fixed, *pointers(first, last, *([scratch] if work else [])))

    share(one, pieces, torch.get_num_threads() if updates >= SMALL else 1)


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
    """scan_forward of native.c; all but A and z are contiguous."""
    (rows, length, channels), states = u.shape, A.shape[1]
    apart = 0 if z is None else z.stride(1)
    sizes = (apart, len(initial), length, channels, states, CHUNK)
    arguments = (u, dt, A.t().contiguous(), B, C, initial, D, z, y, last, boundaries, *sizes)
    _call("scan_forward", rows * -(-channels // WIDTH), u.numel() * states, 2 * states * WIDTH, *arguments)


class Scan(torch.autograd.Function):
    """As :func:`mechint.scan.selective_scan`, whose arguments are ours."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> Any:
        u, dt, B, C, initial = (x.contiguous() for x in (u, dt, B, C, initial))
        rows, length, channels = u.shape
        states = A.shape[1]
        y, last = torch.empty_like(u), torch.empty_like(initial)
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
        grad_y, grad_last = grad_y.contiguous(), grad_last.contiguous()
        rows, length, channels = u.shape
        states, groups = A.shape[1], min(GROUPS, -(-channels // WIDTH))
        d_u, d_dt, d_initial = torch.empty_like(u), torch.empty_like(dt), torch.empty_like(grad_last)
        d_A = A.new_empty(rows, channels, states)
        d_B, d_C = (u.new_empty(groups, rows, length, states) for _ in range(2))
        work = (5 + 4 * CHUNK) * states * WIDTH
        outputs = (d_u, d_dt, d_A, d_B, d_C, d_initial)
        sizes = (rows, length, channels, states, CHUNK, groups)
        arguments = (u, dt, A, B, C, boundaries, grad_y, grad_last, *outputs, *sizes)
        _call("scan_backward", rows * groups, u.numel() * states, work, *arguments)
        return d_u, d_dt, d_A.sum(0), d_B.sum(0), d_C.sum(0), d_initial


def elementwise(name: str, x: Tensor) -> Tensor:
    """mix_silu or mix_softplus of native.c, of any shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _call(name, -(-x.numel() // WIDTH), x.numel(), 0, x, out, x.numel())
    return out


def convolve(x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, silu: bool) -> None:
    """mix_conv of native.c: x's and memory's channels are neighbours, and so are memory's positions."""
    rows, length, channels = x.shape
    taps = len(weight)
    strides = (x.stride(0), x.stride(1), memory.stride(0), len(memory))
    arguments = (x, memory, weight, bias, out, *strides, length, channels, taps, int(silu))
    _call("mix_conv", rows * length, x.numel() * taps, 0, *arguments)


def convolve_back(grad: Tensor, x: Tensor, memory: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mix_conv_back of native.c: gradients of x, memory, weight [K, channel] and bias; x and memory as above."""
    rows, length, channels = x.shape
    taps = len(weight)
    found = (x.new_empty(x.shape), x.new_empty(memory.shape), torch.empty_like(weight), x.new_empty(channels))
    sizes = (x.stride(0), x.stride(1), memory.stride(0), rows, length, channels, taps, CHUNK)
    arguments = (grad, x, memory, weight, *found, *sizes)
    _call("mix_conv_back", -(-channels // WIDTH), x.numel() * taps, 3 * taps * WIDTH, *arguments)
    return found


class Decay(torch.autograd.Function):
    """exp(Δ A): Δ [batch, position, channel], A [channel, state] -> [batch, position, channel, state]."""

    @staticmethod
    def forward(ctx: Any, dt: Tensor, A: Tensor) -> Tensor:
        dt, A = dt.contiguous(), A.contiguous()
        decay = dt.new_empty(*dt.shape, A.shape[1])
        rows = dt.shape[0] * dt.shape[1]
        _call("scan_decay", rows, decay.numel(), 0, dt, A, decay, *A.shape)
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
        rows = states.shape[0] * states.shape[1]
        _call("scan_read", rows, states.numel(), 0, states, C, y, *states.shape[2:])
        ctx.save_for_backward(states, C)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        states, C = ctx.saved_tensors
        return grad.unsqueeze(-1) * C.unsqueeze(-2), torch.matmul(grad.unsqueeze(-2), states).squeeze(-2)
