"""Checkpoints and experiments that are run as a user would."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mechint.analyses.circuits.ssm import SSMCircuitConfig
from mechint.analyses.options import RunConfig
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.runner.request import Experiment
from mechint.tasks import TaskConfig
from tests.helpers.builders import tiny_mamba

SSM = SSMCircuitConfig(
    steps=10, prompts=16, eval_prompts=64, random_circuits=2, bootstrap=100, min_accuracy=0.0, seeds=2,
    search="budget", budget=6, ablation="zero", removed_units=8,
)  # fmt: skip


def checkpoint(path: Path, seed: int = 0, **sizes: Any) -> Path:
    model = tiny_mamba(seed, **sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": to_hf_state_dict(model), "config": hf_config(model)}, path)
    return path


def experiment(pattern: Path | str, output: Path, **changes: Any) -> Experiment:
    run = RunConfig(checkpoint=str(pattern), output_dir=str(output), batch_size=8)
    names = {field.name for field in dataclasses.fields(RunConfig)}
    run = dataclasses.replace(run, **{key: value for key, value in changes.items() if key in names})
    ssm = dataclasses.replace(SSM, **{key: value for key, value in changes.items() if key not in names})
    return Experiment(run, TASK, {"ssm": ssm})


TASK = TaskConfig(name="recall", pairs=2, keys=12, values=12)
