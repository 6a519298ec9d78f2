"""An analysis is one folder and one experiment: those of docs/extending.md, added to a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.kconfig.defconfigs import find_all
from scripts.kconfig.loading import Menu
from tests.helpers.experiments import checkpoint
from tests.helpers.paths import ROOT

FILE = re.compile(r"^`((?:lib|mamba)/[\w./-]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the files that the page adds; each of them is new."""
    root = tmp_path_factory.mktemp("tree") / "copy"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("lib", "scripts", "mamba", "gpt2", "defconfigs"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for file in ROOT.glob("Kconfig*"):
        shutil.copy(file, root)
    added = FILE.findall((ROOT / "docs" / "extending.md").read_text())
    assert [Path(name).name for name, _ in added] == [
        "__init__.py", "options.py", "analyzer.py", "report.py", "Kconfig", "mamba-tiny-margin",
    ]  # fmt: skip
    assert len({Path(name).parent for name, _ in added[:-1]}) == 1
    for name, text in added:
        assert not (root / name).exists()
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    checkpoint(root / "model.pt")
    return root


def call(tree: Path, *words: str) -> str:
    """What a command of the copy prints."""
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tree / "lib"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_menu_and_its_experiment_are_found(tree: Path) -> None:
    menu = Menu(tree)
    assert {"KNLP_MECHINT_MARGIN", "KNLP_MECHINT_MARGIN_BOOTSTRAP"} <= set(menu.syms)
    assert "mamba-tiny-margin" in find_all(tree) and "mamba-tiny-margin" not in find_all(ROOT)


@pytest.mark.slow
def test_it_runs_and_is_drawn_logged_and_read_like_the_others(tree: Path) -> None:
    said = call(
        tree, "-m", "mechint", "--checkpoint=model.pt", "--output-dir=out", "--no-ssm", "--margin",
        "--task-pairs=2", "--task-keys=12", "--task-values=12", "--margin-eval-prompts=32", "--margin-bootstrap=100",
    )  # fmt: skip
    raw = json.loads((tree / "out" / "results.json").read_text())
    assert raw["report"] == raw["analysis"] == "margin" and raw["metrics"]["margin"]["n"] == 32
    assert "margin  " in said and (tree / "out" / "margin.png").exists()
    page, text = ((tree / "out" / name).read_text() for name in ("report.html", "margin_report.md"))
    assert "logits above every other token" in page and "logits above every other token" in text
    read = (
        "import mechint; from mechint.analyses.base import analysis_of\n"
        "found = mechint.results('out'); [row] = found.rows(); print(row['metric'], row['n'], found.headline)\n"
        "print(*analysis_of('out').to_log('out').summary)"
    )
    first, second = call(tree, "-c", read).splitlines()
    assert first.startswith("margin 32 The right answer lies")
    assert second.split() == ["mechint/margin", "mechint/margin_low", "mechint/margin_high"]
