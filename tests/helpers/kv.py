"""A small transformer with a known circuit of key and value channels."""

from __future__ import annotations

from typing import Any

import torch

from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits.bench import Bench
from mechint.analyses.circuits.kv import KVCircuitConfig
from mechint.analyses.loader import PromptLoader
from mechint.interventions.unit_kinds import KV_UNITS
from mechint.interventions.units import Units
from mechint.tasks import TaskConfig, make_task
from tests.helpers.builders import tiny_gpt2


def known_circuit(seed: int = 1, **sizes: Any) -> Any:
    """A random GPT-2 that reads no keys but ``KEYS`` (no query meets the others) and no values but ``VALUES``."""
    model = tiny_gpt2(seed, vocab_size=32, **sizes)
    with torch.no_grad():
        for layer, keys, values in zip(model.layers, KEYS, VALUES, strict=True):
            queries, out = layer.attn.c_attn, layer.attn.c_proj
            queries.weight[[row for row in range(12) if row not in keys]] = 0
            queries.bias[[row for row in range(12) if row not in keys]] = 0
            queries.weight[list(keys)] *= 4  # so that each of them matters
            out.weight[:, [column for column in range(12) if column not in values]] = 0
            out.weight[:, list(values)] *= 2
    return model.requires_grad_(False)


def truth() -> torch.Tensor:
    mask = torch.zeros(2, 2, 12)  # [layer, K or V, channel]
    for layer in range(2):
        mask[layer, 0, list(KEYS[layer])] = 1
        mask[layer, 1, list(VALUES[layer])] = 1
    return mask.view(-1)


def loaders(count: int = 48, batch: int = 16) -> list[PromptLoader]:
    task = make_task(TASK)
    return [PromptLoader(task, split, count, batch, 0) for split in ("discovery", "evaluation")]


SMALL = KVCircuitConfig(
    steps=60, prompts=48, eval_prompts=48, random_circuits=4, bootstrap=100, min_accuracy=0.0, target_sparsity=39 / 48
)


TASK = TaskConfig(name="recall", pairs=2, keys=12, values=12)


KEYS = ((1, 6), (3, 9))  # of the 12 key channels of each layer (3 heads of 4), those that queries meet


VALUES = ((2, 7, 10), (0, 10))  # of the 12 value channels, those that the output projection reads


def bench(model: Any, unit: str = "kv", ablation: str = "mean") -> Bench:
    units, loader = Units(model, KV_UNITS[unit]), loaders()[0]
    return Bench(model, units, Ablation(model, units, ablation, loader.batches, loader.task.aligned), loader.batches)
