"""Measures the cost of a method: seconds, and its peak memory beside the memory in use before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextlib.contextmanager
def cost() -> Iterator[dict[str, float | None]]:
    """A dictionary that has ``seconds`` and ``peak_mib`` when the block is left.

    The peak is of the process's resident memory above what it held at the start, on Linux; of a GPU's allocations
    where one is in use; None where neither can be read.
    """
    found: dict[str, float | None] = {}
    give_back()
    gpu = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        before: float | None = torch.cuda.memory_allocated() / 2**20
    else:
        before = resident("VmRSS") if reset() else None
    start = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - start
    after = torch.cuda.max_memory_allocated() / 2**20 if gpu else resident("VmHWM")
    found["peak_mib"] = None if before is None or after is None else max(0.0, after - before)


@contextlib.contextmanager
def standing() -> Iterator[None]:
    """Leaves all objects that are there at the start, such as modules, out of the collections of garbage of the block.

    Each :func:`cost` collects garbage first; to look at everything that was imported would take it 0.1 to 0.2 seconds.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back() -> None:
    """Frees what others left, and returns freed memory that the C library keeps; a block that takes either hides it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's; others keep no large blocks
        trim(0)


def reset() -> bool:
    """Sets the high-water mark of resident memory to what is resident now; whether that worked."""
    try:
        RESET.write_text("5")
    except OSError:  # not Linux, or not allowed
        return False
    return True


def resident(name: str) -> float | None:
    """A line of /proc/self/status in MiB; None where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":")), None)
