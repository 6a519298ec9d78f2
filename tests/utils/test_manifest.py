"""The manifest of a run: command, versions, processor and state of the checkout; and one version for all."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mechint
from mechint.report.words import flat
from mechint.utils import rundir
from tests.helpers.paths import ROOT


def test_it_says_how_a_run_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mechint", "trace", "--trace-draws=5"])
    found = rundir.manifest(seed=7)
    assert found["argv"] == ["mechint", "trace", "--trace-draws=5"] and found["seed"] == 7
    assert f"torch=={importlib.metadata.version('torch')}" in found["packages"]
    assert len(set(found["packages"])) == len(found["packages"]) > 20
    names = [one.partition("==")[0] for one in found["packages"]]
    assert names == sorted(names)
    assert found["processor"].strip() and found["mechint"] == mechint.__version__


def test_a_page_shows_no_command_line() -> None:
    """The same results give the same page, however they were asked for."""
    shown = dict(flat({"argv": ["mechint", "--seed=1"], "packages": ["a==1", "b==2"]}))
    assert shown == {"packages": "a==1, b==2"}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit in which the library seems to lie."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "lib/mechint/utils").mkdir(parents=True)
    (tmp_path / "kept file").write_text("one")
    (tmp_path / ".gitignore").write_text("ignored\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(rundir, "__file__", str(tmp_path / "lib/mechint/utils/rundir.py"))
    return tmp_path


def test_changed_and_untracked_files_are_told_apart(checkout: Path) -> None:
    state = rundir.git_state()
    assert state is not None and re.fullmatch("[0-9a-f]{40}", state["commit"])
    assert (state["changed"], state["untracked"], state["untracked_count"]) == (False, [], 0)
    (checkout / "new file").write_text("two")
    (checkout / "ignored").write_text("two")
    state = rundir.git_state()
    assert state is not None and (state["changed"], state["untracked"]) == (False, ["new file"])
    (checkout / "kept file").write_text("two")
    state = rundir.git_state()
    assert state is not None and (state["changed"], state["untracked"]) == (True, ["new file"])


def test_of_many_untracked_files_the_first_are_named(checkout: Path) -> None:
    for k in range(rundir.MOST_NAMED + 5):
        (checkout / f"new{k:03}").touch()
    state = rundir.git_state()
    assert state is not None and len(state["untracked"]) == rundir.MOST_NAMED
    assert state["untracked_count"] == rundir.MOST_NAMED + 5 and state["untracked"][0] == "new000"


def test_the_version_stands_in_one_place() -> None:
    """The pages that repeat it say the same, and the package takes it from the module."""
    said = {
        "CITATION.cff": re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE),
        "README.md": re.findall(r"version = \{([^}]+)\}", (ROOT / "README.md").read_text()),
    }
    assert said == {name: [mechint.__version__] for name in said}
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and 'attr = "mechint.utils.version.__version__"' in project
    assert f"## {mechint.__version__}" in (ROOT / "CHANGELOG.md").read_text()
