#!/usr/bin/env python3
"""Runs the analyses that are switched on over every checkpoint that a pattern names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint.analysis import analyses
from mechint.errors import exit_status
from mechint.experiment import Experiment, run_experiment
from mechint.options import add_flags, from_flags
from mechint.run_config import RunConfig
from mechint.tasks.config import TaskConfig
from scripts.kconfig.defconfig_text import defconfig_text


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    add_flags(top, RunConfig)
    add_flags(top, TaskConfig, "task")
    for analysis in analyses().values():
        top.add_argument(
            f"--{analysis.name}",
            action=argparse.BooleanOptionalAction,
            default=analysis.default,
            dest=f"run_{analysis.name}",
            help=f"run the analysis: {analysis.title}",
        )
        add_flags(top, analysis.config, analysis.name, analysis.title)
    return top


def main() -> None:
    flags = parser().parse_args()
    configs: dict[str, Any] = {
        name: from_flags(flags, analysis.config, name)
        for name, analysis in analyses().items()
        if getattr(flags, f"run_{name}")
    }
    run, task = from_flags(flags, RunConfig), from_flags(flags, TaskConfig, "task")
    experiment = Experiment(run, task, configs, lambda run, configs: defconfig_text(run, task, configs))
    run_experiment(experiment, flags.dry_run)


if __name__ == "__main__":
    sys.exit(exit_status(main))
