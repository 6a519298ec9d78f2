"""Intervals and summaries: what stands behind every number of a report."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95
"""Coverage of every interval."""

Number = dict[str, Any]
"""A reported number: value, low, high, n, and what the interval is an interval of; low and high may be None."""


def number(value: float, low: float, high: float, n: int, interval: str) -> Number:
    return {"value": float(value), "low": float(low), "high": float(high), "n": int(n), "interval": interval}


def alone(value: float, n: int, of: str) -> Number:
    """A number of one thing: it has no interval."""
    return {"value": float(value), "low": None, "high": None, "n": int(n), "interval": f"one {of}: no interval"}


def exact(value: int) -> Number:
    """A count: known without error."""
    return {"value": int(value), "low": int(value), "high": int(value), "n": 1, "interval": "exact count"}


def certain(found: Number) -> bool:
    """Whether a number is above zero: by its interval, or as it stands where it is of one thing alone."""
    return float(found["value"] if found["low"] is None else found["low"]) > 0


def said(found: Number, form: str = ".3f") -> str:
    """``0.912 [0.874, 0.950]``, or why there is no interval or one without width; for terminals and notes."""
    value = f"{found['value']:{form}}"
    if found["low"] is None:
        return f"{value} ({found.get('interval', 'no interval')})"
    if found["low"] == found["high"]:
        return f"{value} ({found.get('interval', 'exact')})"
    return f"{value} [{found['low']:{form}}, {found['high']:{form}}]"


class ClusterBootstrap:
    """Percentile bootstrap that draws whole clusters (templates) with replacement (Efron & Tibshirani 1993, ch. 8).

    The same draws serve every statistic, so that differences and areas under curves keep their pairing.
    """

    def __init__(
        self, clusters: Sequence[int] | NDArray[np.int64], draws: int, seed: int, over: str = "templates"
    ) -> None:
        self.over = over
        _, self.cluster = np.unique(np.asarray(clusters), return_inverse=True)
        self.n = len(self.cluster)
        count = int(self.cluster.max()) + 1
        rng = np.random.default_rng(seed)
        self.weights = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)  # [draws, C]
        self.sizes = np.bincount(self.cluster, minlength=count).astype(np.float64)  # [C]
        lone = "prompt" if self.n == 1 and over == "templates" else over.removesuffix("s")
        self.single = lone if count == 1 else ""
        """What there is one of, so that nothing has an interval; empty where there are more."""

    def means(self, values: Array) -> tuple[Array, Array]:
        """Means of [n, …] values: over the sample [1, …], and over each draw [draws, …]."""
        values = np.asarray(values, dtype=np.float64)
        if len(values) != self.n:
            raise ValueError(f"{len(values)} values for a bootstrap over {self.n}")
        sums = np.zeros((len(self.sizes), *values.shape[1:]))
        np.add.at(sums, self.cluster, values)
        shape = (-1,) + (1,) * (values.ndim - 1)
        drawn = np.tensordot(self.weights, sums, 1) / (self.weights @ self.sizes).reshape(shape)
        return values.mean(0, keepdims=True), drawn

    def having(self, present: NDArray[np.bool_]) -> NDArray[np.int64]:
        """In how many clusters something is there: [n, …] -> […]."""
        return np.stack([present[self.cluster == c].any(0) for c in range(len(self.sizes))]).sum(0)

    def interval(self, statistic: Callable[..., Array], *values: Array) -> Number:
        """The statistic of the means of each of ``values``, with its interval.

        ``statistic`` takes arrays of means whose first axis is the draw and returns one number for each draw.
        """
        pairs = [self.means(value) for value in values]
        point = float(np.asarray(statistic(*(p[0] for p in pairs))).reshape(-1)[0])
        if self.single:
            return alone(point, self.n, self.single)
        drawn = np.asarray(statistic(*(p[1] for p in pairs))).reshape(-1)
        drawn = drawn[np.isfinite(drawn)]  # a share of an effect that a draw happens not to have is no number
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        # a percentile interval of a skewed statistic may miss its own point estimate by a rounding error
        return number(point, min(low, point), max(high, point), self.n, f"95 % bootstrap over {self.over}")

    def share(self, values: Array) -> Number:
        """The mean of values from 0 to 1, such as whether answers are right, with its interval.

        Where all are 0, or all 1, so is every draw, and the interval is the exact one of Clopper & Pearson (1934) for
        as many independent trials as there are clusters: those of one cluster may all have said the same.
        """
        mean = float(np.mean(values))
        if self.single or mean not in (0.0, 1.0):
            return self.interval(lambda means: means, values)
        far = ((1 - LEVEL) / 2) ** (1 / len(self.sizes))
        low, high = (far, 1.0) if mean else (0.0, 1 - far)
        return number(mean, low, high, self.n, f"95 % exact (Clopper & Pearson) over {self.over}")


def spread(values: Sequence[float], what: str) -> Number:
    """Median and the central 95 % of repeated measurements."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return number(median, low, high, len(values), f"2.5 to 97.5 % over {what}")


def jaccard(a: set[int], b: set[int]) -> float:
    """Share of the union that both hold; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a | b else 1.0


def stability(sets: Sequence[set[int]]) -> Number | None:
    """Mean pairwise Jaccard index of repeated searches, with the least and the most alike pair; None for one set."""
    pairs = [jaccard(a, b) for a, b in itertools.combinations(sets, 2)]
    if not pairs:
        return None
    if len(pairs) == 1:
        return alone(pairs[0], 1, "pair of searches")
    return number(float(np.mean(pairs)), min(pairs), max(pairs), len(pairs), "least and most alike pair of searches")


def area(fractions: Sequence[float], values: Array) -> Array:
    """Trapezoid area under values [draws, sizes] over fractions [sizes], divided by the range of the fractions."""
    x = np.asarray(fractions, dtype=np.float64)
    steps = np.diff(x)
    middle = (values[:, 1:] + values[:, :-1]) / 2
    return np.asarray((middle * steps).sum(1) / (x[-1] - x[0]))


def t_tail(t: float, freedom: int) -> float:
    """Two-sided p-value of Student's t: the integral of its density outside ±|t|.

    With t = √ν · tan θ it is the integral of cos^(ν-1) θ, a sum of smooth terms (midpoint rule, error below 1e-9).
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    middles = (np.arange(4000) + 0.5) / 4000
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    inside = 2 * scale * angle * float(np.mean(np.cos(angle * middles) ** (freedom - 1)))
    return min(1.0, max(0.0, 1.0 - inside))


@functools.cache
def t_quantile(freedom: int) -> float:
    """The t outside of which 1 - :data:`LEVEL` lies, by halving."""
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - LEVEL else (low, middle)
    return high


def student(values: Sequence[float] | Array, what: str) -> tuple[Number, float]:
    """The mean of independent values with Student's interval, and the two-sided p-value of "the mean is zero".

    Raises:
        ValueError: fewer than two values.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        raise ValueError("an interval of a mean needs at least two values")
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    mean = float(x.mean())
    half = t_quantile(len(x) - 1) * error
    p = t_tail(mean / error, len(x) - 1) if error > 0 else float(mean == 0)
    return number(mean, mean - half, mean + half, len(x), f"95 % by Student's t over {what}"), p


def benjamini_hochberg(p: Array) -> Array:
    """Adjusted p-values that keep the false discovery rate (Benjamini & Hochberg 1995), of the shape given."""
    flat = np.asarray(p, dtype=np.float64).reshape(-1)
    order = np.argsort(flat)[::-1]
    scaled = flat[order] * len(flat) / np.arange(len(flat), 0, -1)
    found = np.empty_like(flat)
    found[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return found.reshape(np.shape(p))


def max_t(values: Array, clusters: Sequence[int] | NDArray[np.int64], draws: int, seed: int) -> Array:
    """p-values of "the mean is zero" for every cell, adjusted for looking at all of them.

    Sign flips of whole clusters, and the maximum over the cells in each draw (Westfall & Young 1993): the chance that
    any cell of a map without effects is called significant at p ≤ α is at most α, whatever the cells' correlation.

    Args:
        values: [n, …]; NaN where a prompt has no such cell.
        clusters: Of each of the n, flipped together.

    Returns:
        Two-sided adjusted p-values, […]; never below 1 / (draws + 1).
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    flat = np.nan_to_num(np.asarray(values, dtype=np.float64)).reshape(len(values), -1)
    sums = np.zeros((int(cluster.max()) + 1, flat.shape[1]))
    np.add.at(sums, cluster, flat)
    scale = np.sqrt((sums**2).sum(0))
    scale[scale == 0] = np.inf
    observed = np.abs(sums.sum(0)) / scale
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(draws, len(sums)))
    largest = (np.abs(signs @ sums) / scale).max(1)  # [draws]
    # a flip that is the sample itself, or its mirror image, must count as being as large
    above = (largest[:, None] >= observed * (1 - 1e-12)).sum(0)
    return np.asarray(((1 + above) / (1 + draws)).reshape(np.shape(values)[1:]))


def permutation_test(a: Sequence[float], b: Sequence[float], most: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """Two-sided p-value of "the two have one mean", from shuffling who belongs to which (Fisher 1935).

    All shuffles are tried where there are at most ``most``; otherwise that many are drawn.

    Returns:
        The p-value, and the smallest that so many values can have.
    """
    both = np.asarray([*a, *b], dtype=np.float64)
    size, count = len(a), math.comb(len(both), len(a))
    observed = abs(np.mean(a) - np.mean(b))
    if count <= most:
        chosen = np.array(list(itertools.combinations(range(len(both)), size)))
    else:
        rng = np.random.default_rng(seed)
        chosen = np.array([np.arange(size), *(rng.permutation(len(both))[:size] for _ in range(most - 1))])
    sums = both[chosen].sum(1)
    apart = np.abs(sums / size - (both.sum() - sums) / (len(both) - size))
    mirrored = 2 if size == len(b) else 1  # of equal sizes, who is who exchanged is as far apart
    return float(np.mean(apart >= observed * (1 - 1e-9) - 1e-12)), mirrored / len(chosen)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, so that the chance of any false one is at most α (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: the correlation of the ranks, ties at their mean rank; None where one of them does not vary."""

    def ranks(values: Sequence[float]) -> Array:
        _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
        return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])

    x, y = ranks(a), ranks(b)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
