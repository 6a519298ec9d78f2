"""Turns sparsities of every prompt into results: means with intervals, and how far the measures agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from ...utils.statistics import Array, ClusterBootstrap, Number, rank_correlation
from ..random_weights import Quantities, quantity
from .measures import FALLING, MEASURES

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)


def quantities(results: dict[str, Any]) -> Quantities:
    """Lists the quantities compared with shuffled weights: every measure of every layer and site."""
    return [
        quantity(name, value, cell["site"], cell["layer"])
        for cell in results["cells"]
        for name, value in cell["measures"].items()
    ]


def mean_of(bootstrap: ClusterBootstrap, values: Array) -> Number:
    return bootstrap.interval(lambda mean: mean, values)


def profile(bootstrap: ClusterBootstrap, mean: Array, square: Array) -> dict[str, Number]:
    """Percentiles over the units of their variance over tokens, as multiples of the mean variance."""

    def of(percentile: int) -> Callable[[Array, Array], Array]:
        def statistic(first: Array, second: Array) -> Array:
            variance = np.maximum(second - first**2, 0.0)
            total = variance.mean(1)
            return np.asarray(np.percentile(variance, percentile, axis=1) / np.where(total > 0, total, np.nan))

        return statistic

    if not np.any(square - mean**2 > 0):
        return {}
    return {f"p{p}": bootstrap.interval(of(p), mean, square) for p in PERCENTILES}


def oriented(entries: list[dict[str, Any]], measure: str, key: str) -> Array:
    """A measure of all cells, higher where sparser."""
    values = np.array([entry["measures"][measure][key] for entry in entries])
    return -values if measure in FALLING else values


def agreement(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's correlation of every two measures over the cells, both turned so that higher is sparser."""
    values = {measure: oriented(entries, measure, "value") for measure in MEASURES}
    return {
        "measures": list(MEASURES),
        "spearman": [[rank_correlation(values[a], values[b]) for b in MEASURES] for a in MEASURES],
        "n": len(entries),
    }


def disagreements(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of cells that one measure orders one way and another one the other, each with intervals apart.

    For each two measures: how many of all pairs of cells, and the pair with the largest smaller gap.
    """
    ends = {m: [oriented(entries, m, key) for key in ("value", "low", "high")] for m in MEASURES}
    found = []
    for a, b in itertools.combinations(MEASURES, 2):
        pairs = []
        for i, j in itertools.combinations(range(len(entries)), 2):
            gaps = [gap(ends[m], i, j) for m in (a, b)]
            if gaps[0] * gaps[1] < 0:
                pairs.append((min(map(abs, gaps)), i, j, gaps[0] > 0))
        total = len(entries) * (len(entries) - 1) // 2
        if pairs:
            _, i, j, first = max(pairs, key=lambda pair: pair[0])
            sparser, other = (i, j) if first else (j, i)
            where = [{"layer": entries[k]["layer"], "site": entries[k]["site"]} for k in (sparser, other)]
            found.append(
                {
                    "measures": [a, b],
                    "pairs": len(pairs),
                    "of": total,
                    "sparser_by_first": where[0],
                    "by_second": where[1],
                }
            )
    return sorted(found, key=lambda entry: -entry["pairs"])


def gap(ends: list[Array], i: int, j: int) -> float:
    """The difference in sparsity of cells i and j, above 0 where i is sparser; 0 unless their intervals are apart."""
    value, low, high = (np.sort([end[[i, j]] for end in ends], 0)[k] for k in (1, 0, 2))
    apart = low[0] > high[1] or low[1] > high[0]
    return float(value[0] - value[1]) if apart else 0.0
