"""Paired timing: the candidates of one question take turns, so that a slow minute of the machine meets them all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mechint.sweep_plan import peak_bytes

Work = Callable[[], Any]


@dataclass
class Target:
    """``slow`` over ``fast`` is to be at least (or, for a floor, at most) ``bound``."""

    slow: str
    fast: str
    bound: float
    at_most: bool = False


@dataclass
class Question:
    """One row group of the table: candidates that do the same work, and what is asked of their ratio."""

    section: str
    title: str
    candidates: dict[str, Work]
    targets: list[Target] = field(default_factory=list)
    scale: dict[str, float] = field(default_factory=dict)
    """Seconds are multiplied by this where a candidate does only a part of the work (said in the table)."""
    rounds: int = 5
    limit: float = 40.0
    """Seconds after which a candidate gets no further turn; each has one at least."""


def measure(question: Question) -> dict[str, Any]:
    """Seconds (median, least, most, turns) and peak MiB of torch tensors of every candidate, and the targets."""
    seconds: dict[str, list[float]] = {name: [] for name in question.candidates}
    peak = {name: peak_bytes(work) / 2**20 for name, work in question.candidates.items()}  # warms up, too
    for _ in range(question.rounds):
        for name, work in question.candidates.items():
            if sum(seconds[name]) > question.limit:
                continue
            gc.collect()
            start = time.perf_counter()
            work()
            seconds[name].append((time.perf_counter() - start) * question.scale.get(name, 1.0))
    rows = {
        name: {
            "median_s": statistics.median(took),
            "least_s": min(took),
            "most_s": max(took),
            "turns": len(took),
            "peak_mib": peak[name],
            "extrapolated": question.scale.get(name, 1.0),
        }
        for name, took in seconds.items()
    }
    return {
        "section": question.section,
        "title": question.title,
        "rows": rows,
        "targets": [judge(target, seconds) for target in question.targets],
    }


def judge(target: Target, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The median of the ratios of paired turns, with the least and the most."""
    ratios = [slow / fast for slow, fast in zip(seconds[target.slow], seconds[target.fast], strict=False)]
    ratio = statistics.median(ratios)
    return {
        "slow": target.slow,
        "fast": target.fast,
        "ratio": ratio,
        "least": min(ratios),
        "most": max(ratios),
        "bound": target.bound,
        "at_most": target.at_most,
        "holds": ratio <= target.bound if target.at_most else ratio >= target.bound,
    }
