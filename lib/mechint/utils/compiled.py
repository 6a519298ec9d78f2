"""Small C libraries, compiled when they are first used and called through ctypes: no build step, no torch headers."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import MechintError

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-psabi")


class Unavailable(Exception):
    """Why compiled code, or a back end of the scan, can not be used on this machine."""


_failed: dict[tuple[Path, str], str] = {}
"""Why a source could not be compiled, by it and what CC said: it is not tried again at every scan."""


def compile_library(source: Path) -> Any:
    """The compiled library of a C file, from the cache or from a compiler.

    Raises:
        Unavailable: no source or no compiler, or it could not compile or write; the callers then compute in torch.
    """
    attempt = (source, os.environ.get("CC", ""))
    if attempt not in _failed:
        try:
            return _compile(source, find_compiler())
        except Unavailable as reason:
            _failed[attempt] = str(reason)
    raise Unavailable(_failed[attempt])


def find_compiler() -> list[str]:
    """The words of CC, or the machine's own compiler.

    Raises:
        Unavailable: CC is not a command line, or there is no compiler.
    """
    try:
        compiler = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise Unavailable(f"CC={os.environ['CC']!r} is not a command line ({error})") from None
    compiler = compiler or [shutil.which("cc") or shutil.which("gcc") or ""]
    if not compiler[0]:
        raise Unavailable("no C compiler was found")
    return compiler


def _compile(source: Path, compiler: list[str]) -> Any:
    try:
        key = hashlib.sha256(source.read_bytes() + repr((compiler, FLAGS, processor())).encode()).hexdigest()[:16]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mechint"
        path = folder / f"{source.parent.name}-{key}.so"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                built = Path(temporary) / "built.so"
                done = subprocess.run(
                    [*compiler, *FLAGS, "-o", str(built), str(source)], capture_output=True, text=True
                )
                if done.returncode:
                    lines = done.stderr.strip().splitlines()
                    raise Unavailable(f"{compiler[0]} could not compile it ({lines[0] if lines else 'no message'})")
                built.rename(path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home; ValueError: a NUL in CC's words
        raise Unavailable(str(error)) from None


def processor() -> str:
    """Describes the processor that the library is compiled for: machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> Any:
    """The OpenMP that torch has loaded, or None: its threads wait by spinning, and others would compete with them."""
    try:
        process = ctypes.CDLL(None)
        return process if process.GOMP_parallel and process.omp_get_thread_num and process.omp_get_num_threads else None
    except (AttributeError, OSError, TypeError):  # no such function; TypeError: no such handle on Windows
        return None


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "compiled")


def share(call: Callable[..., None], pieces: int, threads: int) -> None:
    """``call(first, last)`` over all pieces, shared among torch's own threads or ours; ctypes lets them run at once."""
    threads = min(threads, pieces)
    if threads <= 1:
        call(0, pieces)
        return
    edges = [pieces * k // threads for k in range(threads + 1)]
    parts = list(itertools.pairwise(edges))
    openmp = _openmp()
    if openmp is None:
        waiting = [_pool(threads).submit(call, *part) for part in parts]
        for done in waiting:
            done.result()
        return
    failed: list[BaseException] = []

    def body(_: int | None) -> None:
        try:  # OpenMP may give fewer threads than asked for
            for part in parts[openmp.omp_get_thread_num() :: openmp.omp_get_num_threads()]:
                call(*part)
        except BaseException as error:
            failed.append(error)  # an exception cannot pass through C

    openmp.GOMP_parallel(BODY(body), None, threads, 0)
    if failed:
        raise failed[0]


@dataclass(frozen=True)
class Array:
    """A tensor as C takes it: so many numbers of one kind, at places that follow from the sizes that C is told."""

    tensor: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    written: bool = False
    strides: tuple[int, ...] | None = None
    """Steps between neighbours on each axis, counted in numbers; None for a layout without gaps."""

    def ready(self, where: str, device: torch.device | str = "cpu") -> Tensor | None:
        """The tensor, or a copy without gaps where it is only read and has another layout.

        Raises:
            MechintError: another shape, kind or device, or a layout that C cannot write to or step through.
        """
        x = self.tensor
        if x is None:
            return None
        wanted = f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)} on {torch.device(device).type}"
        if x.layout != torch.strided or (x.dtype, tuple(x.shape), x.device.type) != (
            self.dtype,
            self.shape,
            torch.device(device).type,
        ):
            kind = str(x.dtype).removeprefix("torch.")
            raise MechintError(f"{where} must be {wanted}; got {kind} {list(x.shape)} on {x.device.type}")
        if self._fits(x):
            return x
        if self.written or self.strides is not None:
            raise MechintError(
                f"{where} is laid out with strides {x.stride()}, which its shape {wanted} does not allow"
            )
        return plain(x).contiguous()

    def _fits(self, x: Tensor) -> bool:
        if plain(x) is not x:
            return False
        if self.strides is None:
            return x.is_contiguous()
        steps = zip(x.shape, x.stride(), self.strides, strict=True)
        return not x.numel() or all(size == 1 or own == told for size, own, told in steps)


def plain(x: Tensor) -> Tensor:
    """x, or a copy where its memory does not hold its numbers as they are: negated lazily, or at an odd address."""
    if x.is_neg():
        return x.resolve_neg()
    return x.clone() if x.data_ptr() % x.element_size() else x


Arguments = dict[str, Array | int]
"""The arguments of a C function, by their names in C and in their order."""


def reads(tensor: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> Array:
    """Describes an array that C only reads: any layout will do, since a tensor with gaps is copied first."""
    return Array(tensor, shape, dtype)


def steps_through(tensor: Tensor | None, strides: tuple[int, ...], *shape: int) -> Array:
    """Describes an array that C reads with strides that it is told."""
    return Array(tensor, shape, torch.float32, strides=strides)


def writes(tensor: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> Array:
    """Describes an array that C writes to; a layout with gaps is an error."""
    return Array(tensor, shape, dtype, written=True)


def call(
    library: Any,
    name: str,
    arguments: Arguments,
    pieces: int | None,
    threads: int = 1,
    scratch: int | None = None,
) -> None:
    """Calls a C function once everything that it is given was checked: nothing else here hands a pointer to C.

    Args:
        arguments: Arrays, and sizes of at least 0.
        pieces: Number of pieces to share among the threads, passed after the arguments as (first, last); None for a
            function that does all at once.
        scratch: float32 numbers of scratch memory for each thread, the last argument; None where there is none.

    Raises:
        MechintError: an array that is not what it must be (it is named), or a size below 0.
    """
    held: list[Tensor | None] = []  # copies live until C is done
    fixed: list[Any] = []
    for key, value in arguments.items():
        if isinstance(value, Array):
            held.append(value.ready(f"{name}: {key}"))
            fixed.append(_pointer(held[-1]))
        elif value < 0:
            raise MechintError(f"{name}: {key} is {value}; at least 0 is needed")
        else:
            fixed.append(ctypes.c_size_t(value))
    function = getattr(library, name)
    if pieces is None:
        function(*fixed)
        return

    def one(first: int, last: int) -> None:
        work = None if scratch is None else torch.empty(max(scratch, 1), dtype=torch.float32, device="cpu")
        own = [] if scratch is None else [_pointer(work)]
        function(*fixed, ctypes.c_size_t(first), ctypes.c_size_t(last), *own)

    if pieces:
        share(one, pieces, threads)


NOWHERE = torch.zeros(1)
"""A stand-in for an empty array: C may not be given NULL, even to copy nothing from."""


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is None:
        return ctypes.c_void_p(None)
    return ctypes.c_void_p((tensor if tensor.numel() else NOWHERE).data_ptr())
