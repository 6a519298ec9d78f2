"""The Python that make uses: PYTHON=, an active virtual environment, or a .venv of its own. Nothing is downloaded."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.kconfig_tree import ROOT, Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path / "tree")
    (made.root / "requirements.txt").write_text("# nothing\n")
    (made.root / "requirements-dev.txt").write_text("# nothing\n")
    return made


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.slow
def test_an_own_environment_is_made_once_and_again_when_its_requirements_change(tree: Tree) -> None:
    stamp = tree.root / ".venv/.ready"
    first = tree.make(".venv/.ready", own=True)
    assert first.returncode == 0, first.stderr
    assert "making .venv with Python 3" in first.stdout and ".venv is ready" in first.stdout
    assert stamp.exists()
    assert tree.make("-q", ".venv/.ready", own=True).returncode == 0, "not made twice"

    later = stamp.stat().st_mtime + 10
    (tree.root / "requirements.txt").write_text("./no-such-package\n")
    os.utime(tree.root / "requirements.txt", (later, later))
    failed = tree.make("mechint", own=True)
    assert failed.returncode != 0 and "pip could not install requirements.txt" in failed.stderr
    assert "making .venv" not in failed.stdout, "the environment itself is kept"
    assert tree.make("-q", ".venv/.ready", own=True).returncode != 0, "a failed install is not taken for a finished one"


def test_an_interrupted_install_leaves_no_stamp(tree: Tree) -> None:
    for number in ("", "3"):
        program(
            tree.root / f"bin/python{number}", f'case "$*" in *environment.py*) exec "{sys.executable}" "$@";; esac'
        )
    program(tree.root / ".venv/bin/python", 'case "$*" in *install*) kill -INT $PPID; sleep 1; exit 1;; esac')
    result = tree.make("mechint", own=True, PATH=f"{tree.root / 'bin'}:{os.environ['PATH']}")
    assert result.returncode != 0
    assert "interrupted" in result.stderr
    assert not (tree.root / ".venv/.ready").exists()


@pytest.mark.parametrize("how", ["PYTHON", "VIRTUAL_ENV"])
def test_a_named_or_active_environment_is_used_and_never_installed_into(tree: Tree, how: str) -> None:
    log = tree.root / "log"
    python = program(tree.root / "mine/bin/python", f'echo "$*" >> "{log}"; exec "{sys.executable}" "$@"')
    value = str(python) if how == "PYTHON" else str(tree.root / "mine")
    assert tree.make("defconfig", own=True, **{how: value}).returncode == 0
    assert "environment.py check requirements.txt" in log.read_text() and "scripts.kconfig defconfig" in log.read_text()

    (tree.root / "requirements.txt").write_text("numpy==1\nno_such_package_here==1.0; python_version > '3'\n")
    failed = tree.make("mechint", own=True, **{how: value})
    assert failed.returncode != 0
    assert (
        "lacks no_such_package_here; run: " in failed.stderr and "-m pip install -r requirements.txt" in failed.stderr
    )
    assert "pip" not in log.read_text() and not (tree.root / ".venv").exists()


def test_the_own_environment_is_the_own_one_when_it_is_active(tree: Tree) -> None:
    shown = tree.make("-n", "mechint", own=True, VIRTUAL_ENV=str(tree.root / ".venv")).stdout
    assert "environment.py make .venv" in shown


def test_a_misspelt_name_fails_before_anything_is_installed(tree: Tree) -> None:
    result = tree.make("defconfig-mamba-130m-mechin", own=True)
    assert result.returncode != 0 and "did you mean mamba-130m-mechint" in result.stderr
    assert tree.make("list-defconfigs", own=True).returncode == 0
    assert not (tree.root / ".venv").exists()


def test_an_old_python_is_refused_in_one_line(tree: Tree) -> None:
    script = ROOT / "scripts/kconfig/environment.py"
    code = f"""
import runpy, sys
sys.version_info = (3, 9, 1)
sys.argv = ["environment.py", *sys.argv[1:]]
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    for arguments in (["make", ".venv", ".venv/.ready", "requirements.txt"], ["check", "requirements.txt"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tree.root,
            env={**os.environ, "PATH": str(tree.root)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2
        assert "Python 3.10 or newer is needed" in result.stderr and "3.9.1" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_packages_are_known_by_their_distributions_names(tmp_path: Path) -> None:
    """A package that is imported by another name is found; one that only other machines need is not asked for."""
    script = ROOT / "scripts/kconfig/environment.py"
    (tmp_path / "wanted.txt").write_text(
        "pytest-xdist==1\nscikit-learn==1\nno-such-thing==1; platform_system == 'Plan9'\n"
    )
    ask = lambda: subprocess.run(
        [sys.executable, script, "check", tmp_path / "wanted.txt"], capture_output=True, text=True
    )
    assert (ask().returncode, ask().stderr) == (0, "")
    (tmp_path / "wanted.txt").write_text("no-such-thing==1\n")
    assert ask().returncode == 2 and "lacks no-such-thing; run: " in ask().stderr


def test_the_pins_are_exact_and_cover_both_sides_of_every_marker() -> None:
    for file in ("requirements.txt", "requirements-dev.txt"):
        lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
        assert all("==" in line for line in lines)
        marked = [line.split("==")[0] for line in lines if ";" in line]
        assert all(marked.count(name) == 2 for name in marked)
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text().splitlines()
