"""Small trainings that impose a circuit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mechint.ground_truth import IMPOSED
from mechint.tasks import TaskConfig
from mechint.training.trainer import Job, make_job

TASK = TaskConfig(name="recall", pairs=3, keys=6, values=6)


SHORT = {"steps": 4, "batch_size": 8, "warmup": 1, "eval_prompts": 16}


def few(name: str, directory: Path, **changes: Any) -> Job:
    kind = IMPOSED[name]
    options = dataclasses.replace(kind.options, output_dir=str(directory), **SHORT, **changes)
    return make_job(kind.asked, options, kind.architecture)
