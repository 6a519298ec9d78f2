"""Copies of the tree in which mutants are tested: the checkout itself is never changed."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "lib" / "mechint"
COPIED = ("lib", "tests", "scripts", "pyproject.toml")
"""What tests need of the tree."""
HEAVY = ("pytest", "hypothesis", "torch", "scipy.stats", "sklearn.linear_model", "transformers", "matplotlib.pyplot")
"""Imported once, before a process for each mutant is made."""


def import_heavy() -> None:
    """Imports what is heavy, with one thread: a forked process waits for ever for the other threads of OpenMP."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)


WAITS = 20
"""By how much the limit of a process's wall clock exceeds that of its time of the processor."""


class Change(Protocol):
    """A mutant of either kind."""

    @property
    def file(self) -> str: ...

    def apply(self, text: str) -> str: ...


class Job(Protocol):
    """Tests that run in a copy of the tree, with a mutant in it or (None) without."""

    @property
    def change(self) -> Change | None: ...

    @property
    def tests(self) -> Sequence[str]: ...

    @property
    def seconds(self) -> int: ...


J = TypeVar("J", bound=Job)


def copy(to: Path) -> Path:
    """A copy of the tree."""
    to.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to / name)
    return to


def run(jobs: Sequence[J], trees: Sequence[Path]) -> Iterator[tuple[J, bool]]:
    """For each job whether it is noticed (:func:`noticed`); as many jobs at a time as there are trees."""
    free, running, waiting = list(trees), dict[int, tuple[J, Path, str]](), list(reversed(jobs))
    try:
        while waiting or running:
            while waiting and free:
                job, tree = waiting.pop(), free.pop()
                text = (library(tree) / job.change.file).read_text() if job.change else ""
                if job.change:
                    (library(tree) / job.change.file).write_text(job.change.apply(text))
                running[start(tree, job.tests, job.seconds)] = job, tree, text
            pid, status = os.wait()
            job, tree, text = running.pop(pid)
            if job.change:
                (library(tree) / job.change.file).write_text(text)
            free.append(tree)
            yield job, noticed(status)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def library(tree: Path) -> Path:
    return tree / LIBRARY.relative_to(ROOT)


def start(tree: Path, tests: Sequence[str], seconds: int) -> int:
    """Starts a process that runs tests in a tree and returns its id; its status is 0 where all pass.

    It imports the tree's library and tests, and shares what this process has imported of others.
    """

    def work() -> int:
        enter(tree)
        return run_tests(tests)

    return fork(work, seconds)


def noticed(status: int) -> bool:
    """True if the process of a mutant ended with a failed test, or used up its time of the processor.

    A process that only waited too long is no sign of a mutant: the machine may have been busy.
    """
    return os.waitstatus_to_exitcode(status) not in (0, -signal.SIGALRM)


def fork(work: Callable[[], int], seconds: int) -> int:
    """Starts a process that does some work without a word and returns its id.

    It is ended by SIGPROF after that many seconds of the processor, and by SIGALRM where it waits for ever.
    """
    if pid := os.fork():
        return pid
    status = 1
    try:
        silent()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(WAITS * seconds)
        status = work()
    finally:
        os._exit(status)


def enter(tree: Path) -> None:
    """Makes this process import the library and the tests of a copy, whatever it has imported of another."""
    os.chdir(tree)
    here = (ROOT, ROOT / "lib")
    sys.path[:] = [str(tree / "lib"), str(tree), *(p for p in sys.path if Path(p).resolve() not in here)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("mechint", "tests", "scripts")]:
        del sys.modules[name]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    sys.dont_write_bytecode = True


def run_tests(tests: Sequence[str], plugins: Sequence[object] = (), *more: str) -> int:
    """Runs quick tests of the working directory until one fails, with more options of pytest; 0 where all pass."""
    pytest, hypothesis = importlib.import_module("pytest"), importlib.import_module("hypothesis")
    patient = hypothesis.settings(deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    hypothesis.settings.register_profile("mutants", patient)  # recording lines takes time
    hypothesis.settings.load_profile("mutants")
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not exhaustive", *more]
    return int(pytest.main([*options, *tests], plugins=[*plugins]))


def silent() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
