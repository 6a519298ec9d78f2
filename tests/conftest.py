"""Fixtures of several files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mechint.report import write_report
from tests.helpers.report_runs import FILES, build_run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report written; tests that change files take a copy."""
    run = build_run(tmp_path_factory.mktemp("runs") / "stepV0")
    assert [path.name for path in write_report(run)] == FILES
    return run


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "stepV0"))
