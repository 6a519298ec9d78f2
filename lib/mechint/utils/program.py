"""Settings of a program of this package that are made before the imports that take seconds.

An interrupt while it imports is one line, and no traceback; threads of OpenMP that have nothing to do soon stop
spinning; freed memory is kept for the next tensor. This module is imported before all others and does nothing in a
program that only uses the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import INTERRUPTED

STAT = Path("/proc/stat")
SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def is_ours() -> bool:
    """True if the running program is ``mechint``, ``python -m mechint`` or a script of the repository."""
    if "-m" in sys.orig_argv[:-1]:
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == __package__.partition(".")[0]
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return script is not None and (Path(script).resolve().parent == SCRIPTS or Path(script).name == "mechint")


FEW, MANY = "1000", "5000"
"""Looks for work that a waiting thread of OpenMP takes before it sleeps, where other programs use cores and where none
does. By default it spins for milliseconds behind every small operation, which is little better on idle cores than some
thousand looks, and takes three times as long once another program wants a core."""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
"""Variables of the environment; where one is set, threads wait as the environment says."""


gives_way = False
"""True if this program chooses its threads, and how they wait."""


def give_way() -> None:
    """Lets waiting threads sleep soon; read when OpenMP is loaded, with torch. No result depends on it."""
    global gives_way
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = FEW if shared() else MANY
        gives_way = True


WORTH = 1 << 26
"""Multiply-adds of a layer below which a second thread costs as much as it saves; see docs/speed.md."""


@contextlib.contextmanager
def suited(work: int) -> Iterator[None]:
    """One thread for little work; elsewhere, and in programs that only use the package, as many as before.

    The choice depends on the work alone, so that two runs have the same bytes.

    Args:
        work: Multiply-adds of a layer.
    """
    import torch  # not before the settings above

    before = torch.get_num_threads()
    if before == 1 or work >= WORTH or not gives_way:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shared(looks: int = 5, seconds: float = 0.002) -> bool:
    """True if other programs want one of the cores, or where the system does not say."""
    running = []
    for _ in range(looks):
        try:
            running.append(int(re.findall(r"^procs_running (\d+)$", STAT.read_text(), re.M)[0]))
        except (OSError, IndexError):
            return True
        time.sleep(seconds)
    return min(running) > 1  # this program is one of them


FROM_HEAP = 64 << 20
"""Bytes from which a tensor has memory of its own, which is given back with it. With twice as much, free pieces between
tensors in use took 4 GB in a trace of states that needs 1.7; with half, small models ask for five times the pages."""
LARGE_FROM_HEAP, LARGE_TRIM = 16 << 20, 64 << 20
"""The same for a model of many weights, and the free bytes at the end of its heap from which they are given back."""
LARGE = 1 << 24
"""Weights from which a model is large: 64 MiB in float32."""
NEVER = -1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of malloc.h."""


def keep_memory(large: bool = False) -> None:
    """Keeps freed memory for the next tensor, where the C library is glibc and the environment does not decide it.

    By default glibc gives the free end of its heap back where that is longer than twice the largest block freed so far,
    and soon asks the system for the same pages again: up to a fifth of the time of a search in a small model.

    Args:
        large: True keeps less, for a model of many weights: its work is long beside the pages that it asks for, and the
            gaps between what is kept are large.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    change(M_MMAP_THRESHOLD, LARGE_FROM_HEAP if large else FROM_HEAP)
    change(M_TRIM_THRESHOLD, LARGE_TRIM if large else NEVER)


def give_back() -> None:
    """Gives kept memory that is free back to the system, so that one piece of work leaves no gaps to the next."""
    if not is_ours():
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    trim(0)


def end(*_: object) -> None:
    os.write(2, f"error: {INTERRUPTED}\n".encode())
    os._exit(130)


if is_ours():
    give_way()
    keep_memory()
in_main_thread = threading.current_thread() is threading.main_thread()
if in_main_thread and is_ours() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, end)  # errors.exit_status takes it away
