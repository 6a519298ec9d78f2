"""The scan in Triton, for float32 on a CUDA device: the states stay in registers, none is kept but at chunk edges.

One program walks one batch row and one block of channels through the positions, with its states [BLOCK_E, BLOCK_N] in
registers; N is padded to a power of two with zeros, which stay zeros. The backward saves the state every CHUNK
positions, recomputes a chunk into scratch memory and walks it back. Sums across blocks are left to torch, without
atomics, so that a run repeats to the bit. Sums and products are never fused: torch's own recurrence, over decays and
read-outs from here, then rounds as the scan does.

Importing this module imports Triton. With TRITON_INTERPRET=1 set before that, the kernels run on the CPU, slowly.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Triton evaluates the annotations of a kernel and allows few, so the kernels have none but constexpr.

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..utils.compiled import Array
from ..utils.errors import MechintError
from . import native
from .checks import CHANNELS, RATES, SHARED, STATE, check_sizes
from .trial import try_scan

CHUNK = 64
"""Positions between two saved states. Memory of a backward: L / CHUNK states saved and CHUNK states of scratch."""
BLOCK_E = 32
"""Channels in a block. The blocks' shares of ∂B and ∂C take 2 / BLOCK_E of what all L states would."""
PER_THREAD = 8
"""States that a thread holds, from which the number of warps follows."""


def check() -> None:
    """Runs a small scan and its gradients, on the CUDA device or in the interpreter, beside the plain torch one.

    A missing compiler, an old device or wrong numbers show here, before the kernel serves anyone.

    Raises:
        Unavailable: it ran, but not to the same numbers. Where it can't run, Triton raises errors of many kinds.
    """
    try_scan(Scan, CHUNK + 5, 3, "cpu" if INTERPRETED else "cuda")


@triton.jit
def _block(E, N, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's channels and states, their places in an [E, N] array, and which of each there are."""
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    in_e, in_n = e < E, n < N
    return e, n, e[:, None] * N + n[None, :], in_e, in_n, in_e[:, None] & in_n[None, :]


@triton.jit
def _decay(d, a):
    """exp(Δ A): [BLOCK_E], [BLOCK_E, BLOCK_N] -> [BLOCK_E, BLOCK_N]."""
    return tl.exp(d[:, None] * a)


@triton.jit
def _read(h, c):
    """Σ_n C h: [BLOCK_E, BLOCK_N], [BLOCK_N] -> [BLOCK_E]."""
    return tl.sum(h * c[None, :], 1)


@triton.jit
def _forward(
    u, dt, A, B, C, initial, y, last, boundaries, slots, marked, stop, L, E, N, chunks, places,
    CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``stop`` of the L positions. Shapes as in selective_scan, and those that are None are not written:

    boundaries: The state before every CHUNK-th position, [rows, chunks, E, N].
    marked: The states after chosen positions, [rows, places, E, N]; slots [L] says where each is put, -1 for nowhere.
    """
    row = tl.program_id(0).to(tl.int64)  # whole arrays may be longer than 2^31
    e, n, at, in_e, in_n, inside = _block(E, N, BLOCK_E, BLOCK_N)
    a = tl.load(A + at, mask=inside, other=0.0)
    h = tl.load(initial + row * E * N + at, mask=inside, other=0.0)
    for t in range(stop):
        if boundaries is not None:  # noqa: SIM102 (this condition is known when compiling, the next is not)
            if t % CHUNK == 0:
                tl.store(boundaries + (row * chunks + t // CHUNK) * E * N + at, h, mask=inside)
        here = row * L + t
        d = tl.load(dt + here * E + e, mask=in_e, other=0.0)
        x = tl.load(u + here * E + e, mask=in_e, other=0.0)
        b = tl.load(B + here * N + n, mask=in_n, other=0.0)
        h = _decay(d, a) * h + (d * x)[:, None] * b[None, :]
        if y is not None:
            c = tl.load(C + here * N + n, mask=in_n, other=0.0)
            tl.store(y + here * E + e, _read(h, c), mask=in_e)
        if marked is not None:
            slot = tl.load(slots + t)
            if slot >= 0:
                tl.store(marked + (row * places + slot) * E * N + at, h, mask=inside)
    if last is not None:
        tl.store(last + row * E * N + at, h, mask=inside)


@triton.jit
def _backward(
    u, dt, A, B, C, boundaries, grad_y, grad_last, scratch, d_u, d_dt, d_A, d_B, d_C, d_initial,
    rows, L, E, N, chunks, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients have their tensors' shapes, but d_A [rows, E, N] and d_B, d_C [blocks, rows, L, N] are shares to sum.

    scratch: The state before each position of the chunk at hand, [rows, CHUNK, E, N].
    """
    row = tl.program_id(0).to(tl.int64)
    share = tl.program_id(1).to(tl.int64) * rows * L
    e, n, at, in_e, in_n, inside = _block(E, N, BLOCK_E, BLOCK_N)
    a = tl.load(A + at, mask=inside, other=0.0)
    g = tl.load(grad_last + row * E * N + at, mask=inside, other=0.0)  # ∂/∂h_t from what comes after t
    into_a = tl.zeros([BLOCK_E, BLOCK_N], tl.float32)
    for back in range(chunks):
        chunk = chunks - 1 - back
        start = chunk * CHUNK
        count = tl.minimum(CHUNK, L - start)
        h = tl.load(boundaries + (row * chunks + chunk) * E * N + at, mask=inside, other=0.0)
        for k in range(count):
            tl.store(scratch + (row * CHUNK + k) * E * N + at, h, mask=inside)
            here = row * L + start + k
            d = tl.load(dt + here * E + e, mask=in_e, other=0.0)
            x = tl.load(u + here * E + e, mask=in_e, other=0.0)
            b = tl.load(B + here * N + n, mask=in_n, other=0.0)
            h = _decay(d, a) * h + (d * x)[:, None] * b[None, :]
        tl.debug_barrier()  # a thread may read what another of the program wrote
        for j in range(count):
            k = count - 1 - j
            here = row * L + start + k
            d = tl.load(dt + here * E + e, mask=in_e, other=0.0)
            x = tl.load(u + here * E + e, mask=in_e, other=0.0)
            b = tl.load(B + here * N + n, mask=in_n, other=0.0)
            c = tl.load(C + here * N + n, mask=in_n, other=0.0)
            gy = tl.load(grad_y + here * E + e, mask=in_e, other=0.0)
            before = tl.load(scratch + (row * CHUNK + k) * E * N + at, mask=inside, other=0.0)
            decay = _decay(d, a)
            write = d * x
            after = decay * before + write[:, None] * b[None, :]
            g += gy[:, None] * c[None, :]
            tl.store(d_C + (share + here) * N + n, tl.sum(gy[:, None] * after, 0), mask=in_n)
            tl.store(d_B + (share + here) * N + n, tl.sum(g * write[:, None], 0), mask=in_n)
            into_write = tl.sum(g * b[None, :], 1)
            g *= decay
            exponent = g * before  # ∂/∂(Δ A)
            into_a += exponent * d[:, None]
            tl.store(d_u + here * E + e, into_write * d, mask=in_e)
            tl.store(d_dt + here * E + e, tl.sum(exponent * a, 1) + into_write * x, mask=in_e)
        tl.debug_barrier()  # the next chunk overwrites the scratch
    tl.store(d_A + row * E * N + at, into_a, mask=inside)
    tl.store(d_initial + row * E * N + at, g, mask=inside)


@triton.jit
def _decays(dt, A, out, E, N, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr):
    """dt [positions, E], A [E, N] -> out [positions, E, N]."""
    t = tl.program_id(0).to(tl.int64)
    e, _, at, in_e, _, inside = _block(E, N, BLOCK_E, BLOCK_N)
    d = tl.load(dt + t * E + e, mask=in_e, other=0.0)
    a = tl.load(A + at, mask=inside, other=0.0)
    tl.store(out + t * E * N + at, _decay(d, a), mask=inside)


@triton.jit
def _reads(states, C, out, E, N, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr):
    """states [positions, E, N], C [positions, N] -> out [positions, E]."""
    t = tl.program_id(0).to(tl.int64)
    e, n, at, in_e, in_n, inside = _block(E, N, BLOCK_E, BLOCK_N)
    h = tl.load(states + t * E * N + at, mask=inside, other=0.0)
    c = tl.load(C + t * N + n, mask=in_n, other=0.0)
    tl.store(out + t * E + e, _read(h, c), mask=in_e)


INTERPRETED = not isinstance(_forward, triton.runtime.JITFunction)
"""True if Triton was imported with TRITON_INTERPRET=1: its kernels then take tensors on the CPU."""


def _launch(kernel: Any, programs: int, channels: int, states: int, *arguments: Any, **constants: int) -> None:
    """``programs`` x blocks of channels, on the device of the first argument; channels = E, states = N.

    Raises:
        MechintError: a tensor of another kind, device or layout than the kernels step through.
    """
    for place, tensor in enumerate(arguments):
        if isinstance(tensor, torch.Tensor):
            kind = torch.int32 if tensor.dtype == torch.int32 else torch.float32
            array = Array(tensor, tuple(tensor.shape), kind, written=True)  # no copy is taken: all have no gaps already
            array.ready(f"{kernel.fn.__name__}: argument {place}", arguments[0].device)
    if not programs or not channels:
        return
    wide = triton.next_power_of_2(states)
    warps = min(8, max(1, BLOCK_E * wide // (32 * PER_THREAD)))
    device = arguments[0].device
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[programs, triton.cdiv(channels, BLOCK_E)](
            *arguments, **constants, BLOCK_E=BLOCK_E, BLOCK_N=wide, num_warps=warps, enable_fp_fusion=False
        )


class Scan(torch.autograd.Function):
    """As :func:`mechint.scan.selective.selective_scan`, whose arguments are ours."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> Any:
        u, dt, A, B, C, initial = (x.contiguous() for x in (u, dt, A, B, C, initial))
        (rows, L, E), N = u.shape, A.shape[1]
        y, last, chunks, boundaries = torch.empty_like(u), torch.empty_like(initial), triton.cdiv(L, CHUNK), None
        if any(ctx.needs_input_grad):
            boundaries = u.new_empty(rows, chunks, E, N)
        outputs = (y, last, boundaries, None, None)
        _launch(_forward, rows, E, N, u, dt, A, B, C, initial, *outputs, L, L, E, N, chunks, 0, CHUNK=CHUNK)
        if boundaries is not None:
            ctx.save_for_backward(u, dt, A, B, C, boundaries)
            ctx.chunk = CHUNK
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> Any:
        u, dt, A, B, C, boundaries = ctx.saved_tensors
        grad_y, grad_last = grad_y.contiguous(), grad_last.contiguous()
        (rows, L, E), N = u.shape, A.shape[1]
        d_u, d_dt, d_initial = torch.empty_like(u), torch.empty_like(dt), torch.empty_like(grad_last)
        d_A, scratch = u.new_empty(rows, E, N), u.new_empty(rows, ctx.chunk, E, N)
        d_B, d_C = (u.new_empty(triton.cdiv(E, BLOCK_E), rows, L, N) for _ in range(2))
        arguments = (u, dt, A, B, C, boundaries, grad_y, grad_last, scratch, d_u, d_dt, d_A, d_B, d_C, d_initial)
        _launch(_backward, rows, E, N, *arguments, rows, L, E, N, boundaries.shape[1], CHUNK=ctx.chunk)
        return d_u, d_dt, d_A.sum(0), d_B.sum(0), d_C.sum(0), d_initial


class Decay(native.Decay):
    """As there, gradients included, with the exponential of these kernels."""

    @staticmethod
    def forward(ctx: Any, dt: Tensor, A: Tensor) -> Tensor:
        dt, A = dt.contiguous(), A.contiguous()
        decay = dt.new_empty(*dt.shape, A.shape[1])
        _launch(_decays, dt.shape[0] * dt.shape[1], *A.shape, dt, A, decay, *A.shape)
        ctx.save_for_backward(dt, A, decay)
        return decay


class ReadOut(native.ReadOut):
    """As there, gradients included, with the sum of these kernels."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, C: Tensor) -> Tensor:
        states, C = states.contiguous(), C.contiguous()
        y = states.new_empty(states.shape[:-1])
        _launch(_reads, states.shape[0] * states.shape[1], *states.shape[2:], states, C, y, *states.shape[2:])
        ctx.save_for_backward(states, C)
        return y


@torch.no_grad()
def states_at(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, initial: Tensor, positions: Sequence[int]) -> Tensor:
    """The states after these positions alone, in their order, with no gradient: the scan stops after the last one.

    Args:
        u, dt, A, B, initial: As in :func:`mechint.scan.selective.selective_scan`.
        positions: P positions from 0 to L - 1.

    Returns:
        [batch, P, channel, state].

    Raises:
        MechintError: shapes that disagree, or a position outside the sequence.
    """
    shapes = {"u": (u, CHANNELS), "dt": (dt, CHANNELS), "A": (A, RATES), "B": (B, SHARED), "initial": (initial, STATE)}
    check_sizes("states_at", {**shapes}, empty=True)
    u, dt, A, B, initial = (x.contiguous() for x in (u, dt, A, B, initial))
    (rows, L, E), N = u.shape, A.shape[1]
    if any(not 0 <= p < L for p in positions):
        raise MechintError(f"states at positions {list(positions)} of a sequence of {L}")
    order = sorted(set(positions))
    place = {p: k for k, p in enumerate(order)}
    slots = torch.tensor([place.get(t, -1) for t in range(L)], dtype=torch.int32, device=u.device)
    marked, stop = u.new_empty(rows, len(order), E, N), order[-1] + 1 if order else 0
    outputs = (None, None, None, slots, marked)
    _launch(_forward, rows, E, N, u, dt, A, B, None, initial, *outputs, stop, L, E, N, 0, len(order), CHUNK=CHUNK)
    return marked if order == list(positions) else marked[:, [place[p] for p in positions]]
