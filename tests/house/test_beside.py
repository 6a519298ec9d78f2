"""The types that are checked beside the tests: a failure of either is one of both, and is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    for name, status in (("fine", 0), ("bad", 3), ("worse", 5)):
        (tmp_path / f"{name}.py").write_text(
            f"import sys\nprint('{name}', *sys.argv[1:], flush=True)\nsys.exit({status})"
        )
    return tmp_path


@pytest.mark.parametrize(
    ("commands", "status", "out", "err"),
    [
        ("fine a -- fine b", 0, "fine b\n", ""),
        ("bad a -- fine b", 3, "fine b\n", "bad a\nbad a failed\n"),
        ("fine a -- bad b", 3, "bad b\n", ""),
        ("bad a -- worse b", 5, "worse b\n", "bad a\nbad a failed\n"),
        ("fine a", 2, "", "error: give two commands with -- between them\n"),
        ("-- fine", 2, "", "error: give two commands with -- between them\n"),
    ],
)
def test_either_failure_is_told(modules: Path, commands: str, status: int, out: str, err: str) -> None:
    script = Path(__file__).parents[2] / "scripts" / "beside.py"
    ran = subprocess.run([sys.executable, script, *commands.split()], cwd=modules, capture_output=True, text=True,
                         env={"PYTHONPATH": str(modules)})  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, out, err)
