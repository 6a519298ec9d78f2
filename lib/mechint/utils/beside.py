"""Work that a second process does beside this one, on a core that would be idle.

Layers of a small model get one thread (:func:`.program.suited`), so the other cores wait. A piece of work whose result
is needed later goes to one of them: a forked copy of this process, which has all that is in memory, and one thread.
Results do not depend on it, because the copy computes what this process would have computed. A copy that dies or fails
is noted, and its work is done here.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import torch

from . import program, progress, workers
from .errors import one_line

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
"""Name of linux/prctl.h: the signal that a process gets when the one that made it ends."""


def hands(work: int, device: torch.device) -> int:
    """Further processes that can work on a model: one for each core that its layers leave idle.

    None in a program that only uses the package, with one thread (``OMP_NUM_THREADS=1``), where torchrun or PROCESSES=
    shares out the cores, on other devices, and on systems other than Linux.

    Args:
        work: Multiply-adds of a layer.
        device: The device of the model.
    """
    small = program.gives_way and work < program.WORTH and device.type == "cpu"
    alone = workers.worker()[1] == 1 and not torch.cuda.is_initialized()
    return torch.get_num_threads() - 1 if small and alone and sys.platform == "linux" else 0


class Beside(Generic[T]):
    """A function that runs in a forked copy of this process, from now on.

    Args:
        work: The function. It is given ``told``, which waits for the next value of :meth:`tell` and returns it. It must
            not count on threads of this process, nor leave anything but its result, which is pickled, and files.
    """

    def __init__(self, work: Callable[[Callable[[], Any]], T]) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self._front = mmap.mmap(-1, 1)  # shared with the copy: 1 once this process waits, and the copy may draw bars
        arguments = (work, theirs, self._ours, self._front, os.getpid())
        self._process = context.Process(target=_run, args=arguments, daemon=True)
        with warnings.catch_warnings():  # of idle threads of OpenMP, which a copy of one thread never asks for
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def tell(self, value: Any) -> None:
        """Gives the copy a value; nothing happens if it has ended."""
        with contextlib.suppress(OSError):  # result() says so
            self._ours.send_bytes(pickle.dumps(value))

    def result(self) -> tuple[T] | None:
        """Waits for the result, and makes the points of curves of the copy; None, with a note on standard error, if it
        died or failed."""
        self._front[0] = 1
        try:
            found, failure, points = pickle.loads(self._ours.recv_bytes())
        except (EOFError, OSError):
            self._process.join()
            found, failure, points = None, f"ended with status {self._process.exitcode}", []
        self.stop()
        for curve, values in points:
            progress.point(curve, values)
        if failure is None:
            return (found,)
        print(f"note: a process beside this one {failure}; its work is done here", file=sys.stderr, flush=True)
        return None

    def stop(self) -> None:
        """Ends the copy, whatever it does."""
        self._process.kill()
        self._process.join()
        self._ours.close()


def _run(
    work: Callable[[Callable[[], Any]], Any], theirs: Connection, ours: Connection, front: mmap.mmap, parent: int
) -> None:
    """The life of the copy, which ends without the cleaning up that is this process's own."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt reaches both, and one of them says so
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            return
        ours.close()
        torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
        terminal = sys.stderr.isatty()
        progress.hidden = lambda: terminal and not front[0]
        points: list[tuple[str, dict[str, float]]] = []
        with progress.listening(lambda curve, values: points.append((curve, dict(values)))):
            try:
                said = pickle.dumps((work(lambda: pickle.loads(theirs.recv_bytes())), None, points))
            except Exception as error:  # said by the first process, which does the work and raises what it has to
                said = pickle.dumps((None, f"failed ({type(error).__name__}: {one_line(error)})", []))
        theirs.send_bytes(said)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
