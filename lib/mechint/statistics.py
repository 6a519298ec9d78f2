"""Intervals and summaries: what stands behind every number of a report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95
"""Coverage of every interval."""
FEWEST = 4
"""Clusters without which there is no interval."""
FEW = 8
"""Clusters below which pages and terminals warn."""
FEWEST_TESTED = 6
"""Clusters without which there is no p-value."""
ROUNDING = 1e-12
"""Differences below this share of the largest value are none."""
ROOM = 2**22
"""Numbers of one block of draws in memory."""
SMALLEST_ERROR = 0.3
"""The least standard error of a draw, as a share of the sample's."""

UNADJUSTED = "; of each cell alone, while p is adjusted for all of them"
"""What pages and terminals say of the intervals of cells that were chosen among many."""

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


def effective(sizes: Array) -> Array:
    """How many clusters of one size would say as much: (Σ n)² / Σ n² over the first axis (Kish 1965)."""
    squares = (sizes**2).sum(0)
    return np.asarray(np.divide(sizes.sum(0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0))


def said_p(p: float | None) -> str:
    """An adjusted p-value for terminals; says so where nothing could be tested, and where it may be chance."""
    if p is None:
        return "no p-value: too few clusters have it"
    return f"adjusted p {p:.2g}" + ("" if p <= 1 - LEVEL else ", which may be chance")


def sureness(p: float | None, size: float | None) -> tuple[bool, float]:
    """A key that sorts what is significant before what is not, and either by size, the largest first."""
    return not (p is not None and p <= 1 - LEVEL), -abs(size or 0.0)


def widened(found: Number, baselines: Array, what: str) -> Number:
    """A difference from the mean of several baselines, with an interval that counts their own variation too.

    Args:
        found: The difference, with the interval of what was measured against that mean as if it were exact.
        baselines: The baselines' own values, independent of the sample of prompts, [draw].
        what: What they are draws of.
    """
    if found["low"] is None or len(baselines) < 2:
        return found
    half = t_quantile(len(baselines) - 1) * float(np.std(baselines, ddof=1)) / math.sqrt(len(baselines))
    value = found["value"]
    low, high = value - math.hypot(value - found["low"], half), value + math.hypot(found["high"] - value, half)
    return {**found, "low": low, "high": high, "interval": f"{found['interval']} and {len(baselines)} {what}"}


class ClusterBootstrap:
    """Bootstrap-t intervals over whole clusters (templates), never narrower than Student's.

    Clusters are drawn with replacement (Efron & Tibshirani 1993, ch. 12). The standard error is the jackknife's over
    clusters, and each draw is divided by its own, that of the clusters' influences in it (never less than
    :data:`SMALLEST_ERROR` of the sample's, so that a draw of clusters that are all alike says little). On either side
    the edge is the further one of this bootstrap's and of Student's, whose degrees of freedom are the effective number
    of clusters less one. A plain percentile interval of eight clusters holds the truth in 88 % of samples; this one in
    97 %.

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
        self.effective = float(effective(self.sizes))
        """The effective number of clusters."""
        self.too_few = ""
        """Why nothing has an interval; empty where there are clusters enough."""
        if count == 1:
            lone = "prompt" if self.n == 1 and over == "templates" else over.removesuffix("s")
            self.too_few = f"one {lone}: no interval"
        elif count < FEWEST:
            self.too_few = f"{count} {over}: no interval, which takes {FEWEST}"

    @property
    def kind(self) -> str:
        """What an interval is an interval of, or why there is none."""
        return self.too_few or f"95 % bootstrap-t over {self.clusters}"

    @property
    def clusters(self) -> str:
        """``12 templates``, with the effective number where that is another."""
        count = len(self.sizes)
        apart = f" (effectively {self.effective:.1f})" if self.effective < 0.95 * count else ""
        return f"{count} {self.over}{apart}"

    def sums(self, values: NDArray[Any]) -> Array:
        """Sums over each cluster, [n, …] -> [C, …]."""
        values = np.asarray(values, dtype=np.float64)
        if len(values) != self.n:
            raise ValueError(f"{len(values)} values for a bootstrap over {self.n}")
        order = np.argsort(self.cluster, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)
        return np.asarray(np.add.reduceat(values[order], starts, axis=0))

    def means(self, values: Array) -> tuple[Array, Array]:
        """Means of [n, …] values: over the sample [1, …], and over each draw [draws, …]."""
        sums = self.sums(values)
        drawn = np.tensordot(self.weights, sums, 1) / beside(self.weights @ self.sizes, sums)
        return np.asarray(values, dtype=np.float64).mean(0, keepdims=True), drawn

    def left_out(self, values: Array) -> Array:
        """Means of [n, …] values without each cluster, [C, …]."""
        sums = self.sums(values)
        return np.asarray((sums.sum(0) - sums) / beside(self.n - self.sizes, sums))

    def having(self, present: NDArray[np.bool_]) -> NDArray[np.int64]:
        """In how many clusters something is there: [n, …] -> […]."""
        return np.asarray((self.sums(present) > 0).sum(0))

    def estimate(
        self, statistic: Callable[..., Array], *values: Array, present: NDArray[np.bool_] | None = None
    ) -> tuple[Array, Array, Array]:
        """The statistic of the means of each of ``values``, and the edges of its interval, each […].

        Args:
            statistic: Takes arrays of means whose first axis is the draw, and returns [draws, …].
            present: [n, …] of a statistic to which not every one of the n says something; the others count for nothing
                in its degrees of freedom.

        Returns:
            Edges are NaN where fewer than :data:`FEWEST` clusters say something, or the statistic is no number without
            one of them.
        """
        pairs = [self.means(value) for value in values]
        point, drawn = (np.asarray(statistic(*side), dtype=np.float64) for side in zip(*pairs, strict=True))
        point = point[0] if point.ndim else point
        if self.too_few:
            return point, np.full_like(point, np.nan), np.full_like(point, np.nan)
        left = np.asarray(statistic(*map(self.left_out, values)), dtype=np.float64)
        held = self.sums(np.ones(self.n) if present is None else present)
        low, high = self.edges(point, drawn, left, effective(held) - 1)
        enough = (held > 0).sum(0) >= FEWEST
        return point, np.where(enough, low, np.nan), np.where(enough, high, np.nan)

    def edges(self, point: Array, drawn: Array, left: Array, freedom: Array) -> tuple[Array, Array]:
        """Both edges from the draws [draws, …] and the statistics without each cluster [C, …]."""
        count = len(left)
        with np.errstate(invalid="ignore", divide="ignore"):
            influence = (count - 1) * (left.mean(0) - left)
            error = np.sqrt((influence**2).mean(0) / (count - 1))
            first, second = (np.tensordot(self.weights, power, 1) / count for power in (influence, influence**2))
            own = np.sqrt(np.maximum(second - first**2, 0) / (count - 1))
            t = (drawn - point) / np.maximum(own, SMALLEST_ERROR * error)
        t = np.where(error > 0, t, 0.0)
        ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        usable = np.isfinite(t)  # a share of an effect that a draw happens not to have is no number
        if usable.all():
            lower, upper = np.quantile(t, ends, axis=0)
        else:
            some = usable.any(0)
            lower, upper = np.nanquantile(np.where(usable | ~some, np.where(some, t, 0.0), np.nan), ends, axis=0)
        half = t_quantile(np.maximum(freedom, 1.0))
        return point - np.maximum(upper, half) * error, point - np.minimum(lower, -half) * error

    def interval(
        self, statistic: Callable[..., Array], *values: Array, within: tuple[float, float] = (-math.inf, math.inf)
    ) -> Number:
        """The statistic of the means of each of ``values``, with its interval.

        Args:
            statistic: Takes arrays of means whose first axis is the draw and returns one number for each draw.
            within: What the statistic can't leave; nor does the interval.
        """
        point, low, high = (
            float(edge.reshape(-1)[0])
            for edge in self.estimate(lambda *means: np.asarray(statistic(*means)).reshape(-1), *values)
        )
        if self.too_few:
            return self.counted({**alone(point, self.n, ""), "interval": self.too_few})
        if math.isnan(low):
            why = f"no number without one of the {self.over}: no interval"
            return self.counted({**alone(point, self.n, ""), "interval": why})
        return self.counted(number(point, max(low, within[0]), min(high, within[1]), self.n, self.kind))

    def counted(self, found: Number) -> Number:
        """A number with how many clusters it is over, and with their effective number."""
        return {**found, "clusters": len(self.sizes), "clusters_effective": round(self.effective, 3)}

    def share(self, values: Array) -> Number:
        """The mean of values from 0 to 1, such as whether answers are right, with its interval.

        It is Clopper & Pearson's (1934) for as many independent trials as would vary as much (Korn & Graubard 1998), by
        the jackknife over clusters and Student's t. Where all are 0, or all 1, there are as many trials as clusters:
        those of one cluster may all have said the same.
        """
        mean = float(np.mean(values))
        if self.too_few:
            return self.interval(lambda means: means, values)
        trials, words = float(len(self.sizes)), "exact (Clopper & Pearson)"
        if mean not in (0.0, 1.0):
            left = self.left_out(values)
            varies = float(((left - left.mean()) ** 2).mean()) * (len(left) - 1)
            fewer = (t_quantile(self.n - 1) / t_quantile(max(self.effective - 1, 1))) ** 2
            trials = min(mean * (1 - mean) / max(varies, 1e-300) * fewer, self.n)
            words = "Korn & Graubard"
        right, wrong = mean * trials, (1 - mean) * trials
        low = stats.beta.ppf((1 - LEVEL) / 2, right, wrong + 1) if mean > 0 else 0.0
        high = stats.beta.ppf((1 + LEVEL) / 2, right + 1, wrong) if mean < 1 else 1.0
        return self.counted(number(mean, low, high, self.n, f"95 % {words} over {self.clusters}"))


def beside(values: Array, like: Array) -> Array:
    """Values [k] as [k, 1, …], to divide what has as many axes as ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


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


def t_tail(t: float, freedom: float) -> float:
    """Two-sided p-value of Student's t."""
    return float(2 * stats.t.sf(abs(t), freedom))


def t_quantile(freedom: Any) -> Any:
    """The t outside of which 1 - :data:`LEVEL` lies, for one number of degrees of freedom or an array of them."""
    found = stats.t.ppf((1 + LEVEL) / 2, freedom)
    return found if np.ndim(found) else float(found)


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
    return np.asarray(stats.false_discovery_control(np.asarray(p, dtype=np.float64), axis=None)).reshape(np.shape(p))


def max_t(values: Array, clusters: Sequence[int] | NDArray[np.int64], draws: int, seed: int) -> Array:
    """p-values of "the mean is zero" for every cell, adjusted for looking at all of them.

    A step-down bootstrap of the largest t (Romano & Wolf 2005): clusters are drawn with replacement, a cell's t in a
    draw is that of its clusters' means less its mean in the sample, divided by the draw's own standard error, and a
    cell is compared with the largest t of itself and of all cells with a smaller t. It does not ask that effects be
    symmetric about zero, as flips of signs do, and it keeps the cells' correlation. Every cluster counts once, however
    many prompts it has.

    Args:
        values: [n, …]; NaN where a prompt has no such cell.
        clusters: Of each of the n, drawn together.

    Returns:
        Two-sided adjusted p-values, […], never below 1 / (draws + 1) or 2 / 2^clusters; 1 for cells that are zero
        throughout; NaN for cells of fewer than :data:`FEWEST_TESTED` clusters, which can't support one.
    """
    shape = np.shape(values)[1:]
    means, there = cluster_means(np.asarray(values, dtype=np.float64).reshape(len(values), -1), clusters)
    count = there.sum(0)
    enough = count >= FEWEST_TESTED
    found = np.full(means.shape[1], np.nan)
    means, there, count = means[:, enough], there[:, enough], count[enough]
    if not len(count):
        return found.reshape(shape)
    middle = means.sum(0) / count
    rest = np.where(there, means - middle, 0.0)
    rest[np.abs(rest) <= ROUNDING * np.abs(means).max(0)] = 0.0
    observed = t_of(middle, (rest**2).sum(0), count)
    order = np.argsort(-observed, kind="stable")
    sorted_t, rest, there = observed[order], rest[:, order], there[:, order].astype(np.float64)
    weights = np.random.default_rng(seed).multinomial(len(rest), np.full(len(rest), 1 / len(rest)), size=draws)
    above = np.zeros(len(order))
    squares = rest**2
    step = max(1, ROOM // len(order))
    for start in range(0, draws, step):
        drawn = weights[start : start + step].astype(np.float64)
        size = drawn @ there
        moved = np.divide(drawn @ rest, size, out=np.zeros_like(size), where=size > 1)
        t = t_of(moved, np.maximum(drawn @ squares - size * moved**2, 0.0), size)
        largest = np.maximum.accumulate(t[:, ::-1], axis=1)[:, ::-1]  # of a cell and of those with a smaller t
        above += (largest >= sorted_t).sum(0)
    above[np.isinf(sorted_t)] = 0  # no draw moves what is the same in every cluster
    least = np.maximum(1 / (1 + draws), 2.0 ** (1 - count[order]))
    p = np.maximum.accumulate(np.maximum((1 + above) / (1 + draws), least))
    adjusted = np.empty_like(p)
    adjusted[order] = np.where(sorted_t > 0, p, 1.0)
    found[enough] = adjusted
    return found.reshape(shape)


def cluster_means(values: Array, clusters: Sequence[int] | NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_]]:
    """Means over each cluster's values that are no NaN, [n, cell] -> [C, cell] (0 for none), and whether it has any."""
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(cluster)
    order, starts = np.argsort(cluster, kind="stable"), np.cumsum([0, *sizes[:-1]])
    present = ~np.isnan(values)
    sums = np.add.reduceat(np.where(present, values, 0.0)[order], starts, axis=0)
    counts = np.add.reduceat(present[order].astype(np.float64), starts, axis=0)
    return sums / np.maximum(counts, 1), counts > 0


def t_of(mean: Array, squares: Array, count: Array) -> Array:
    """|t| of means, from the sums of squares about them; 0 for 0, infinite for another mean without any variation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) * np.sqrt(count * (count - 1) / squares)
    return np.asarray(np.where(mean == 0, 0.0, np.where(squares > 0, t, np.inf)))


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


def rank_correlation(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float | None:
    """Spearman's: the correlation of the ranks, ties at their mean rank; None where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)


def draws_needed(tests: int, alpha: float = 1 - LEVEL) -> int:
    """Draws without which not even the best of so many tests could reach α after Holm: its p is 1 / (draws + 1)."""
    return max(0, math.ceil(round(tests / alpha, 9)) - 1)
