"""Paired timing: the candidates of one question take turns, so that a slow minute of the machine meets them all."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mechint.utils.memory import peak_bytes

Work = Callable[[], Any]


@dataclass
class Measured:
    """One candidate: seconds of each turn, and the most MiB of torch tensors that its work held at once."""

    seconds: list[float]
    peak_mib: float


Rows = dict[str, Measured]


class Aim(Protocol):
    """What a question asks of its rows; the judgement has claim, value, least, most, bound, at_most, unit and holds."""

    def judge(self, rows: Rows) -> dict[str, Any]: ...


@dataclass
class Target:
    """``slow`` over ``fast`` is to be at least (or, for a floor, at most) ``bound``: seconds, or peak memory."""

    slow: str
    fast: str
    bound: float
    at_most: bool = False
    of: str = "seconds"

    def judge(self, rows: Rows) -> dict[str, Any]:
        slow, fast = rows[self.slow], rows[self.fast]
        if self.of == "memory":
            return judgement(f"memory of {self.slow} / {self.fast}", [slow.peak_mib / fast.peak_mib], self)
        ratios = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=False)]
        return judgement(f"{self.slow} / {self.fast}", ratios, self)


@dataclass
class Limit:
    """The seconds (unit s), or the peak memory (unit MiB), of one candidate are to be at most ``bound``."""

    name: str
    bound: float
    unit: str = "s"
    at_most: bool = True

    def judge(self, rows: Rows) -> dict[str, Any]:
        row = rows[self.name]
        return judgement(self.name, row.seconds if self.unit == "s" else [row.peak_mib], self, self.unit)


@dataclass
class Slope:
    """What all candidates cost grows as ``size`` to a power that is to be at most ``bound``: seconds, or memory."""

    size: str
    sizes: list[float]
    """Of the candidates, in their order."""
    bound: float
    of: str = "seconds"
    at_most: bool = True

    def judge(self, rows: Rows) -> dict[str, Any]:
        if self.of == "memory":
            turns = [[row.peak_mib for row in rows.values()]]
        else:
            turns = [list(turn) for turn in zip(*(row.seconds for row in rows.values()), strict=False)]
        grows = "memory grows" if self.of == "memory" else "seconds grow"
        return judgement(f"{grows} as {self.size} to the power of", [slope(self.sizes, t) for t in turns], self)


def slope(x: list[float], y: list[float]) -> float:
    """Of the line through the points by least squares, both axes logarithmic."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def judgement(claim: str, values: list[float], aim: Any, unit: str = "") -> dict[str, Any]:
    """The median of the paired turns, with the least and the most, beside the bound."""
    value = statistics.median(values)
    return {
        "claim": claim,
        "value": value,
        "least": min(values),
        "most": max(values),
        "bound": aim.bound,
        "at_most": aim.at_most,
        "unit": unit,
        "holds": value <= aim.bound if aim.at_most else value >= aim.bound,
    }


@dataclass
class Question:
    """One row group of the table: candidates that do the same work, and what is asked of them."""

    section: str
    title: str
    candidates: dict[str, Work]
    targets: list[Any] = field(default_factory=list)
    scale: dict[str, float] = field(default_factory=dict)
    """Seconds are multiplied by this where a candidate does only a part of the work (said in the table)."""
    rounds: int = 5
    limit: float = 40.0
    """Seconds after which a candidate gets no further turn; each has one at least."""
    cold: tuple[str, ...] = ()
    """Candidates too slow for a warm-up: they have no peak memory, which is measured in it."""
    curve: str = ""
    """For candidates that are one work at growing sizes: what grows."""


class Skipped(Exception):
    """Why a section cannot be measured on this machine."""


def measure(question: Question) -> dict[str, Any]:
    """Seconds (median, least, most, turns) and peak MiB of torch tensors of every candidate, and the targets."""
    seconds: dict[str, list[float]] = {name: [] for name in question.candidates}
    peak = {
        name: math.nan if name in question.cold else peak_bytes(work) / 2**20  # warms up, too
        for name, work in question.candidates.items()
    }
    for _ in range(question.rounds):
        for name, work in question.candidates.items():
            if sum(seconds[name]) / question.scale.get(name, 1.0) > question.limit:
                continue
            gc.collect()
            start = time.perf_counter()
            work()
            seconds[name].append((time.perf_counter() - start) * question.scale.get(name, 1.0))
    rows = [
        {
            "name": name,
            "median_s": statistics.median(took),
            "least_s": min(took),
            "most_s": max(took),
            "turns": len(took),
            "peak_mib": None if name in question.cold else peak[name],
            "extrapolated": question.scale.get(name, 1.0),
        }
        for name, took in seconds.items()
    ]
    measured = {name: Measured(took, peak[name]) for name, took in seconds.items()}
    return {
        "section": question.section,
        "title": question.title,
        "curve": question.curve,
        "rows": rows,
        "targets": [target.judge(measured) for target in question.targets],
    }
