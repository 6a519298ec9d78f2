#!/usr/bin/env python3
"""Trains a small language model on a task, or goes on where a killed run was."""

from __future__ import annotations

import argparse
import faulthandler
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from mechint.tasks.config import TaskConfig
from mechint.training.options import ARCHITECTURES, TrainConfig
from mechint.training.variants import plan_steps, train_steps
from mechint.utils.errors import exit_status
from mechint.utils.options import Parser, add_flags, entered, from_flags


def parser() -> Parser:
    top = Parser(description=__doc__)
    top.add_argument("--dry-run", action="store_true", help="say what would be trained, and train nothing")
    top.add_argument(
        "--family", choices=tuple(ARCHITECTURES), default="mamba", help="the model family (default: mamba)"
    )
    add_flags(top, TaskConfig, "task", "task")
    add_flags(top, TrainConfig, "train", "training")
    # as it was documented before there were groups of flags
    top.add_argument("--output-dir", dest="train_output_dir", default=argparse.SUPPRESS, help="--train-output-dir")
    for family, architecture in ARCHITECTURES.items():
        add_flags(top, architecture, family, f"architecture of a {family}")
    return top


def main() -> None:
    flags = parser().parse_all()
    job = (
        from_flags(flags, TaskConfig, "task"),
        from_flags(flags, TrainConfig, "train"),
        from_flags(flags, ARCHITECTURES[flags.family], flags.family),
    )
    if flags.dry_run:
        print(plan_steps(*job))
    else:
        train_steps(*job)


if __name__ == "__main__":
    entered()
    faulthandler.enable()  # a crash in compiled code says in which line it was called
    sys.exit(exit_status(main))
