"""A copy of the menus, the Makefile and their glue in a directory of its own; the runners only note what they get."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

STUB = """\
import json, os, sys
with open("calls.jsonl", "a") as file:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=file)
sys.exit(int(os.environ.get("STUB_STATUS", 0)))
"""


class Tree:
    """The copy at ``root``; every command runs there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("mamba", "gpt2", "scripts/kconfig"):
            shutil.copytree(ROOT / name, root / name, ignore=ignore)
        for file in (*ROOT.glob("Kconfig*"), ROOT / "Makefile", *ROOT.glob("requirements*.txt")):
            shutil.copy(file, root / file.name)
        (root / "scripts/__init__.py").touch()
        for menu in ROOT.glob("lib/mechint/analyses/*/Kconfig*"):
            copy = root / menu.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(menu, copy)
        (root / "lib/mechint/models/loading").mkdir(parents=True)
        shutil.copy(ROOT / "lib/mechint/models/loading/old_names.py", root / "lib/mechint/models/loading")
        for runner in ("train.py", "run_mechint_analysis.py", "ground_truth.py"):
            (root / "scripts" / runner).write_text(STUB)

    @property
    def config(self) -> str:
        return (self.root / ".config").read_text()

    def put(self, *paths: str) -> None:
        """Empty files, with their directories."""
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).touch()

    def make(self, *arguments: str, own: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        """``make`` with this test's Python, or its own environment when ``own``; no terminal, no caller's flags."""
        inherited = {
            "MAKEFLAGS",
            "MFLAGS",
            "MAKELEVEL",
            "MODELS",
            "BASELINE",
            "SKIP_STEPS",
            "PROCESSES",
            "SCORE",
            "EXPORT",
            "LATENTS",
            "SUBMIT",
            *("SET", "RERUN", "FRAGMENTS", "FROM", "O", "KCONFIG_CONFIG"),
            "V",
            "DRY_RUN",
            "VIRTUAL_ENV",
            "PYTHON",
            "PYTHONPATH",
        }
        clean = {name: value for name, value in os.environ.items() if name not in inherited}
        if not own:
            clean["PYTHON"] = sys.executable
        return subprocess.run(
            ["make", *arguments],
            cwd=self.root,
            env={**clean, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
            timeout=120,
        )

    def calls(self) -> list[list[str]]:
        """[runner, argument, ...] of every run since the last time this was asked."""
        file = self.root / "calls.jsonl"
        if not file.exists():
            return []
        lines = file.read_text().splitlines()
        file.unlink()
        return [json.loads(line) for line in lines]
