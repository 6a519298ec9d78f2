"""Finds which tests run which lines of the library, so that a mutant meets only tests that can notice it.

What the tests of a file run is kept in ``.pytest_cache/mutants``, beside the contents of all the files that they ran.
It is recorded again once one of these has changed.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from scripts.mutants import trees

KEPT = trees.ROOT / ".pytest_cache" / "mutants"
NONE = int(pytest.ExitCode.NO_TESTS_COLLECTED)
MEASURED = ("analyses", "attribution", "utils/statistics.py", "utils/multiple_tests.py")
"""What is recorded together: a record of these serves whichever of them is mutated."""


@dataclass
class Record:
    """What the tests of one file run.

    Attributes:
        sources: The library's files and folders of which lines were noted.
        contents: The digest of every file of the tree of which a function ran, by its path.
        lines: The lines that each test runs, ``lines[test][file]``; a test may be the whole file.
        seconds: The time of the processor that each test took.
    """

    sources: list[str]
    contents: dict[str, str] = field(default_factory=dict)
    lines: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def holds(self, tree: Path, files: Sequence[str]) -> bool:
        """True if the record is of all these files of the library, and in a tree nothing that its tests ran differs."""
        return all(within(file, self.sources) for file in files) and all(
            digest(tree / path) == found for path, found in self.contents.items()
        )


def within(file: str, sources: Sequence[str]) -> bool:
    """True if a file is one of the sources, or in a folder that is one."""
    return any(file == source or file.startswith(f"{source}/") for source in sources)


@functools.cache
def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


class Recorder:
    """A pytest plugin that makes the :class:`Record` of every test file that it sees, and keeps it.

    A line that the set-up of a test runs counts for every test of its file: others may share the fixture. What
    functions remember is dropped before each test, so that each runs all that it needs.
    """

    def __init__(self, tree: Path, sources: Sequence[str]) -> None:
        self.tree, self.sources = tree, list(sources)
        self.library = f"{trees.library(tree)}/"
        self.lines: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.seconds: dict[str, float] = defaultdict(float)
        self.files: dict[CodeType, str | None] = {}
        """The path in the library of a function's file, where its lines are noted."""
        self.ran: set[CodeType] = set()
        self.caches: list[Any] = []
        self.failed: list[str] = []

    def pytest_collection_finish(self) -> None:
        here = lambda thing: str(getattr(thing, "__module__", "")).split(".")[0] in ("mechint", "tests")
        self.caches = [x for x in gc.get_objects() if isinstance(x, functools._lru_cache_wrapper) and here(x)]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        for cache in self.caches:
            cache.cache_clear()
        yield
        home = home_of(item.nodeid)
        if not self.failed and (nextitem is None or home_of(nextitem.nodeid) != home):
            keep(home, self.record_of(home))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        yield from self.record(home_of(item.nodeid), item.nodeid)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        yield from self.record(item.nodeid, item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}: {str(report.longrepr)[-500:]}")

    def record(self, holder: str, test: str) -> Iterator[None]:
        reached, files, ran = self.lines[holder], self.files, self.ran
        began = time.process_time()

        def lines(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line":
                reached[files[frame.f_code] or ""].add(frame.f_lineno)
            return lines

        def calls(frame: FrameType, event: str, argument: Any) -> Any:
            code = frame.f_code
            ran.add(code)
            if code not in files:
                files[code] = self.source_of(code.co_filename)
            return lines if files[code] else None

        sys.settrace(calls)
        try:
            yield
        finally:
            sys.settrace(None)
            self.seconds[test] += time.process_time() - began

    def source_of(self, path: str) -> str | None:
        file = path.removeprefix(self.library)
        return file if file != path and within(file, self.sources) else None

    def record_of(self, home: str) -> Record:
        """What has been seen since the last test file: nothing else runs between two of them."""
        start = f"{self.tree}/"
        of_tree = {code.co_filename.removeprefix(start) for code in self.ran if code.co_filename.startswith(start)}
        self.ran.clear()
        mine = [test for test in self.lines if home_of(test) == home]
        return Record(
            self.sources,
            {path: digest(self.tree / path) for path in sorted({home, "tests/conftest.py", *of_tree})},
            {test: {file: sorted(found) for file, found in self.lines[test].items()} for test in mine},
            {test: seconds for test, seconds in self.seconds.items() if home_of(test) == home},
        )


@dataclass
class Reached:
    """The records of all test files as one: the lines that every test runs, and the seconds it takes."""

    lines: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        self.lines |= {t: {file: set(found) for file, found in files.items()} for t, files in record.lines.items()}
        self.seconds |= record.seconds

    def tests(self, file: str, first: int, last: int) -> list[str]:
        """Tests that run a line of a statement, quick ones first.

        With ``last`` 0 every test that runs a line of the file: what stands outside functions is run by the import.
        """
        wanted = set(range(first, last + 1))
        hits = {t for t, files in self.lines.items() if file in files and (not last or wanted & files[file])}
        near = [t for t in self.seconds if t in hits or home_of(t) in hits]
        return sorted(near, key=self.seconds.__getitem__)


def home_of(test: str) -> str:
    """The file of a test."""
    return test.split("::")[0]


def place(home: str) -> Path:
    return KEPT / f"{home.replace('/', '.')}.json"


def keep(home: str, record: Record) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    place(home).write_text(json.dumps(asdict(record)))


def kept(home: str) -> Record | None:
    return Record(**json.loads(place(home).read_text())) if place(home).exists() else None


def reach(tree: Path, tests: Sequence[str], files: Sequence[str]) -> Reached:
    """Which tests run which lines of some files of the library; exits where a test fails without a mutant.

    This process has entered the tree. It imports all tests, and processes that are forked from here need not.
    """
    homes = sorted({p.relative_to(tree).as_posix() for test in tests for p in test_files(tree / test)})
    old = {home: record for home in homes if (record := kept(home)) and record.holds(tree, files)}
    sources = [*MEASURED, *(file for file in files if not within(file, MEASURED))]
    recorder, began = Recorder(tree, sources), time.monotonic()
    outputs = os.dup(1), os.dup(2)
    trees.silent()
    try:
        if old:
            trees.run_tests([*old], [], "--collect-only")
        status = trees.run_tests(new, [recorder]) if (new := [home for home in homes if home not in old]) else 0
    finally:
        os.dup2(outputs[0], 1)
        os.dup2(outputs[1], 2)
    if status not in (0, NONE):
        sys.exit(f"error: without a mutant pytest's status is {status}; {' '.join(recorder.failed)}")
    found = Reached()
    for home in homes:
        if record := old.get(home) or kept(home):  # a file of slow tests alone has none
            found.add(record)
    print(
        f"{len(found.seconds)} tests of {len(homes)} files; lines of {len(new)} recorded in "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    return found


def test_files(path: Path) -> list[Path]:
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
