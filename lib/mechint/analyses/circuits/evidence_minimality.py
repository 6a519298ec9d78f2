"""Does a circuit need each of its units? Every one of them is removed alone, in one sweep over the circuit, and then
those that cost least together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.sweep import sweep
from ...utils.statistics import ClusterBootstrap, Number, number
from ..metrics import Answers
from .bench import Bench

SIGNIFICANT = 0.05


@torch.no_grad()
def removed(bench: Bench, mask: Tensor, units: list[int], metric: str, memory_mib: float = 1024.0) -> Tensor:
    """A metric of the circuit without each of these units in turn.

    The circuit's own edits are the base of the sweep and a cell drops one unit more, so layers below a unit are those
    of the circuit and are not computed again.

    Args:
        bench: Prompts, and what dropped units become.
        mask: The circuit, [units] of 0 and 1.
        units: Numbers of units.
        metric: Of :meth:`mechint.analyses.metrics.Answers.metrics`.
        memory_mib: What the sweep may hold.

    Returns:
        [prompts, len(units)], float64 on the CPU.
    """
    parts = []
    for batch, fills, answers in zip(bench.batches, bench.fills, bench.answers, strict=True):
        base, cells = bench.units.removals(mask, units, fills)
        found = sweep(
            bench.model,
            batch.tokens,
            cells,
            functools.partial(read, answers, metric),
            base=base,
            logits_at=batch.positions,
            memory_mib=memory_mib,
            title="units removed",
            by_head=True,
        )
        parts.append(found.T.double())
    return torch.cat(parts)


def read(answers: Answers, metric: str, cells: Tensor) -> Tensor:
    """A metric of what the head reads in each cell, [cell, prompt, answer, model] -> [cell, prompt]."""
    return torch.stack([answers.metrics(cell)[metric] for cell in cells])


def largest(most: int, may: Callable[[int], bool]) -> int:
    """The largest count, up to ``most``, that may be; 0 always may. Counts of 1, 2, 4, … are tried, and where one may
    not, halves of what lies between it and the last that may."""
    low, high = 0, 1
    while high <= most and may(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if may(middle) else (low, middle)
    return low


def share_needed(tried: list[dict[str, Any]], size: int, draws: int, seed: int) -> Number:
    """The share of the units tried whose removal certainly costs faithfulness: minimality.

    A removal is certain where its p of one side, adjusted for all removals that were tried (the chance that any of them
    is named wrongly is 5 %), is at most :data:`SIGNIFICANT`.

    Known exactly when every unit of the circuit was tried; else with an interval over the units drawn.
    """
    needed = np.array([entry["p"] <= SIGNIFICANT and entry["drop"]["value"] > 0 for entry in tried], dtype=np.float64)
    if len(tried) == size:
        share = float(needed.mean())
        return number(share, share, share, size, "every unit was tried")
    return ClusterBootstrap(np.arange(len(needed)), draws, seed, over="tried units").share(needed)
