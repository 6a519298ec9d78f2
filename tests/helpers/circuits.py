"""A small known circuit, its prompts and options for its search."""

from __future__ import annotations

from typing import Any

import torch

from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench
from mechint.analyses.circuits.ssm import SSMCircuitConfig
from mechint.analyses.loader import PromptLoader
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from mechint.tasks import TaskConfig, make_task
from tests.helpers.builders import tiny_mamba

TASK = TaskConfig(name="recall", pairs=2, keys=12, values=12)


KEPT = ((1, 4, 9, 13), (2, 3, 8, 11))  # the channels of each layer that anything reads


def known_circuit(seed: int = 4) -> Any:
    """A random Mamba in which nothing reads any channel but ``KEPT``: neither out_proj nor x_proj."""
    model = tiny_mamba(seed)
    with torch.no_grad():
        for layer, kept in zip(model.layers, KEPT, strict=True):
            idle = [e for e in range(14) if e not in kept]
            layer.out_proj.weight[:, idle] = 0
            layer.x_proj.weight[:, idle] = 0
            layer.out_proj.weight[:, list(kept)] *= 16  # so that each of them matters, see below
            layer.D[list(kept)] = 1.0
    return model.requires_grad_(False)


def loaders(count: int = 48, batch: int = 16) -> list[PromptLoader]:
    task = make_task(TASK)
    return [PromptLoader(task, split, count, batch, 0) for split in ("discovery", "evaluation")]


def bench(model: Any, unit: str = "channel", ablation: str = "mean") -> Bench:
    units, loader = Units(model, SSM_UNITS[unit]), loaders()[0]
    return Bench(model, units, Ablation(model, units, ablation, loader.batches, loader.task.aligned), loader.batches)


def uneven(build: Any = tiny_mamba, kind: Any = SSM_UNITS["channel"], ablation: str = "zero") -> Bench:
    """Ten prompts in batches of 4, 3 and 3, in float64."""
    model = build(3, torch.float64).requires_grad_(False)
    units, loader = Units(model, kind), PromptLoader(make_task(TASK), "discovery", 10, 4, 0)
    assert [len(batch) for batch in loader.batches] == [4, 3, 3]
    return Bench(model, units, Ablation(model, units, ablation, loader.batches, loader.task.aligned), loader.batches)


def truth() -> torch.Tensor:
    mask = torch.zeros(2, 14)
    for layer, kept in enumerate(KEPT):
        mask[layer, list(kept)] = 1
    return mask.view(-1)


SMALL = SSMCircuitConfig(steps=60, prompts=48, eval_prompts=48, random_circuits=4, bootstrap=100, min_accuracy=0.0)
