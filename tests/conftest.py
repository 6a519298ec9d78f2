"""Fixtures of several files, and the markers that leave some parameters of a test to `make check-all`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from mechint.report import figure_style, write_report
from mechint.utils.files import write_bytes
from tests.helpers.commands import Here
from tests.helpers.report_runs import FILES, build_run

settings.register_profile("whole", deadline=None)  # no test fails because the machine does other things as well
settings.register_profile("quick", settings.get_profile("whole"), max_examples=25)  # of `make check`
settings.load_profile("whole")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report written; tests that change files take a copy."""
    run = build_run(tmp_path_factory.mktemp("runs") / "stepV0")
    assert [path.name for path in write_report(run)] == FILES
    return run


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "stepV0"))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are files of a few bytes: most of the time of a small run would go into drawing them."""
    monkeypatch.setattr(figure_style, "save_figure", lambda path, size, draw: write_bytes(path, b"no figure"))


@pytest.fixture
def without_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Circuits are not searched again for their controls, which have tests of their own."""
    monkeypatch.setattr("mechint.analyses.circuits.analyzer.CircuitAnalyzer.controls", ())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs commands in this process: to start another one takes seconds."""
    return Here(monkeypatch, capsys)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks as slow the parameters that ``slow_except`` does not match, and those in which ``slow_where`` is found.

    A pattern that matches none of the parameters is an error, unless single tests were asked for by name.
    """
    matched: dict[tuple[str, str], bool] = {}
    for item in items:
        for mark in (*item.iter_markers("slow_where"), *item.iter_markers("slow_except")):
            match = re.search if mark.name == "slow_where" else re.fullmatch
            found = bool(match(mark.args[0], parameters(item)))
            if found == (mark.name == "slow_where"):
                item.add_marker(pytest.mark.slow)
            pattern = item.nodeid.split("[")[0], mark.args[0]
            matched[pattern] = matched.get(pattern, False) or found
    stale = [f"{test}: {pattern!r} matches no parameter" for (test, pattern), found in matched.items() if not found]
    if stale and not any("::" in argument for argument in config.args):
        raise pytest.UsageError("\n".join(stale))


def parameters(item: pytest.Item) -> str:
    """The part of a test's name that names its parameters."""
    return item.callspec.id if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
