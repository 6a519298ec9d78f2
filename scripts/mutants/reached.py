"""Finds which tests run which lines of the library, so that a mutant meets only tests that can notice it."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from scripts.mutants import trees


class Recorder:
    """A pytest plugin that records the lines of some files that each test runs, and the seconds it takes.

    A line that the set-up of a test runs counts for every test of its file: others may share the fixture.
    """

    def __init__(self, tree: Path, files: Sequence[str]) -> None:
        self.tree = tree
        self.names = {str(trees.library(tree) / file): file for file in files}
        self.lines: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.seconds: dict[str, float] = defaultdict(float)
        self.files: dict[CodeType, str | None] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        yield from self.record(item.nodeid.split("::")[0], item.nodeid)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        yield from self.record(item.nodeid, item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}: {str(report.longrepr)[-500:]}")

    def record(self, holder: str, test: str) -> Iterator[None]:
        reached, began = self.lines[holder], time.process_time()

        def lines(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line":
                reached[self.files[frame.f_code] or ""].add(frame.f_lineno)
            return lines

        def calls(frame: FrameType, event: str, argument: Any) -> Any:
            code = frame.f_code
            if code not in self.files:
                self.files[code] = self.names.get(code.co_filename)
            return lines if self.files[code] else None

        sys.settrace(calls)
        try:
            yield
        finally:
            sys.settrace(None)
            self.seconds[test] += time.process_time() - began


@dataclass
class Reached:
    """The lines that every test runs (``lines[test][file]``), and the seconds it takes; a test may be a whole file."""

    lines: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def tests(self, file: str, first: int, last: int) -> tuple[list[str], list[str]]:
        """Tests that run a line of a statement, quick ones first, and then the other tests of their files.

        With ``last`` 0 every test that runs a line of the file: what stands outside functions is run by the import.
        """
        wanted = set(range(first, last + 1))
        hits = {t for t, files in self.lines.items() if file in files and (not last or wanted & files[file])}
        homes = {test.split("::")[0] for test in hits}
        near = [t for t in self.seconds if t in hits or t.split("::")[0] in hits]
        others = [t for t in self.seconds if t.split("::")[0] in homes and t not in near]
        return sorted(near, key=self.seconds.__getitem__), sorted(others, key=self.seconds.__getitem__)


def record(tree: Path, tests: Sequence[str], files: Sequence[str]) -> Reached:
    """Runs tests without a mutant in this process, which has entered the tree; exits where one fails.

    The modules stay imported, and processes that are forked from here need not import them again.
    """
    kept = os.dup(1), os.dup(2)
    trees.silent()
    recorder = Recorder(tree, files)
    try:
        status = trees.run_tests(tests, [recorder])
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
    if status:
        sys.exit(f"error: without a mutant pytest's status is {status}; {' '.join(recorder.failed)}")
    lines = {t: {f: n for f, n in found.items() if f} for t, found in recorder.lines.items()}
    return Reached(lines, dict(recorder.seconds))
