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
from pathlib import Path
from typing import Any

from torch import Tensor

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-psabi")


class Unavailable(Exception):
    """Why there is no compiled code on this machine."""


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
        Unavailable: CC is no command line, or there is no compiler.
    """
    try:
        compiler = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise Unavailable(f"CC={os.environ['CC']!r} is no command line ({error})") from None
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
    """What the library is compiled for: a home directory may be shared between machines."""
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
            failed.append(error)  # nothing can be raised through C

    openmp.GOMP_parallel(BODY(body), None, threads, 0)
    if failed:
        raise failed[0]


def pointers(*arguments: Tensor | int | None) -> list[Any]:
    """C arguments: the data of a tensor, a size, or NULL."""
    found: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(ctypes.c_void_p(argument.data_ptr()))
        else:
            found.append(ctypes.c_void_p(None) if argument is None else ctypes.c_size_t(argument))
    return found
