"""The command that trains a small language model on a task: its flags, and what runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..tasks.config import TaskConfig
from ..training.options import ARCHITECTURES, TrainConfig
from ..training.variants import plan_steps, train_steps
from ..utils.options import Parser, add_flags, from_flags

TITLE = "Trains a small language model on a task, or resumes a killed training."


def parser() -> Parser:
    top = Parser(description=TITLE)
    top.add_argument("--help-all", action="help", help="show every option and exit")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what the flags say; ``arguments`` stand instead of the process's own."""
    flags = parser().parse_all(arguments)
    job = (
        from_flags(flags, TaskConfig, "task"),
        from_flags(flags, TrainConfig, "train"),
        from_flags(flags, ARCHITECTURES[flags.family], flags.family),
    )
    if flags.dry_run:
        print(plan_steps(*job))
    else:
        train_steps(*job)
