"""The scan in C, for float32 on a CPU: compiled once, in about a second, where there is a C compiler.

A plain shared library called through ctypes: no build step, no headers of torch. Measured on two cores against the
chunked scan in plain torch (`make bench`), and chosen for it; where no compiler is found the chunked one serves.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-psabi")
WIDTH = 8
"""Channels in a block; the W of native.c."""
CHUNK = 64
"""Positions between two saved states; a chunk's states and decays for one block stay in the second-level cache."""
GROUPS = 16
"""Shares of ∂B and ∂C, each summed over neighbouring blocks: as many as threads may want, whatever their number is, so
that the bits do not depend on it. Together they take 2 GROUPS / E of what all states would."""
SMALL = 1 << 14
"""State updates below which threads cost more than they save."""


class Unavailable(Exception):
    """Why there is no native scan on this machine."""


@functools.cache
def library() -> Any:
    """The compiled library, from the cache or from a compiler.

    Raises:
        Unavailable: no compiler, or it could not compile or write.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or ""]
    if not compiler[0]:
        raise Unavailable("no C compiler was found")
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + repr((compiler, FLAGS, processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mechint"
    path = folder / f"scan-{key}.so"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                built = Path(temporary) / "scan.so"
                done = subprocess.run(
                    [*compiler, *FLAGS, "-o", str(built), str(SOURCE)], capture_output=True, text=True
                )
                if done.returncode:
                    lines = done.stderr.strip().splitlines()
                    raise Unavailable(f"{compiler[0]} could not compile it ({lines[0] if lines else 'no message'})")
                built.rename(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(str(error)) from None


def processor() -> str:
    """What the library is compiled for: a home directory may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "scan")


def _share(call: Callable[..., None], pieces: int, updates: int) -> None:
    """``call(first, last)`` over all pieces, shared among torch's number of threads; ctypes lets them run at once."""
    threads = min(torch.get_num_threads(), pieces) if updates >= SMALL else 1
    if threads == 1:
        call(0, pieces)
        return
    edges = [pieces * k // threads for k in range(threads + 1)]
    waiting = [_pool(threads).submit(call, *edge) for edge in itertools.pairwise(edges)]
    for done in waiting:
        done.result()


def _pointers(*arguments: Tensor | int | None) -> list[Any]:
    found: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(ctypes.c_void_p(argument.data_ptr()))
        else:
            found.append(ctypes.c_void_p(None) if argument is None else ctypes.c_size_t(argument))
    return found


def _call(name: str, pieces: int, updates: int, work: int, *arguments: Tensor | int | None) -> None:
    """Calls a function of native.c on all its pieces; ``work`` floats of scratch for each thread, 0 for none."""
    function, pointers = getattr(library(), name), _pointers(*arguments)

    def one(first: int, last: int) -> None:
        scratch = torch.empty(work)
        function(*pointers, *_pointers(first, last, *([scratch] if work else [])))

    _share(one, pieces, updates)


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
        d_B, d_C = (u.new_zeros(groups, rows, length, states) for _ in range(2))
        work = (5 + 2 * CHUNK) * states * WIDTH
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
