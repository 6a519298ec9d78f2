"""Intervals and summaries: what stands behind every number of a report.

One file: all of them share their levels, limits and words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95
"""Coverage of every interval."""
FEWEST = 4
"""Clusters without which there is no interval."""
FEWEST_SIDE = 3
"""Clusters with prompts of a class, and with others, without which an AUROC has no interval."""
FEW = 8
"""Clusters below which pages and terminals warn."""
FEWEST_TESTED = 6
"""Clusters without which there is no p-value."""
ROUNDING = 1e-12
"""Differences below this share of the largest value are none."""
TIES = 1e-9
"""Draws within this share of the largest value reach it, see :func:`p_of_draws`."""
ROOM = 2**22
"""Numbers of one block of draws in memory."""
SMALLEST_ERROR = 0.3
"""The least standard error of a draw, as a share of the sample's."""

MANY_TIMES = 10.0
"""Shares of more than so many times the whole, of either sign, are written as multiples of it: what they are a share of
is small beside what is compared with it, and hundreds of per cent hide that."""

UNADJUSTED = "; of each cell alone, while p is adjusted for all of them"
"""The note that pages and terminals print beside the intervals of cells chosen among many."""

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
    """True if a number's interval, or without an interval the number itself, lies above zero."""
    return float(found["value"] if found["low"] is None else found["low"]) > 0


def said(found: Number, form: str = ".3f") -> str:
    """``0.912 [0.874, 0.950]``, or why there is no interval or one without width; for terminals and notes.

    A form in per cent becomes ``-33.0 [-33.4, -32.6] times the whole`` where one of them is beyond :data:`MANY_TIMES`.
    """
    if form.endswith("%") and max(abs(float(found[key] or 0.0)) for key in ("value", "low", "high")) > MANY_TIMES:
        return f"{said(found, '.1f')} times the whole"
    value = f"{found['value']:{form}}"
    if found["low"] is None:
        return f"{value} ({found.get('interval', 'no interval')})"
    if found["low"] == found["high"]:
        return f"{value} ({found.get('interval', 'exact')})"
    return f"{value} [{found['low']:{form}}, {found['high']:{form}}]"


def said_share(share: float, form: str = ".0%") -> str:
    """A share without an interval, as :func:`said` writes it."""
    return f"{share:.1f} times the whole" if abs(share) > MANY_TIMES else f"{share:{form}}"


def effective(sizes: Array) -> Array:
    """Effective number of clusters: (Σ n)² / Σ n² over the first axis (Kish 1965)."""
    squares = (sizes**2).sum(0)
    return np.asarray(np.divide(sizes.sum(0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0))


def said_p(p: float | None) -> str:
    """An adjusted p-value for terminals; says so where nothing could be tested, and where it may be chance."""
    if p is None:
        return "no p-value: too few clusters for one"
    return f"adjusted p {p:.2g}" + ("" if p <= 1 - LEVEL else ", which may be chance")


def sureness(p: float | None, size: float | None) -> tuple[bool, float]:
    """A key that sorts what is significant before what is not, and either by size, the largest first."""
    return not (p is not None and p <= 1 - LEVEL), -abs(size or 0.0)


@dataclass(frozen=True)
class Estimate:
    """A statistic of many cells, each […], with its intervals and what tests of it are made of."""

    value: Array
    low: Array
    high: Array
    p: Array
    """p of "it is zero", for each cell alone: at most 0.05 where the interval excludes zero; NaN without one."""
    error: Array
    """Standard errors."""
    influence: Array
    """Influence of each cluster, [C, …]: without the cluster the value would be about this / (C - 1) less."""
    held: Array
    """Number of values that each cluster contributes, [C, …]."""


def joined(parts: Sequence[Estimate]) -> Estimate:
    """Estimates of several lots of cells as one, along the last axis."""
    names = [field.name for field in fields(Estimate)]
    return Estimate(**{name: np.concatenate([getattr(part, name) for part in parts], -1) for name in names})


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
        """Names the kind of interval, or says why there is none."""
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
        """The value of :meth:`tested` and the edges of its interval, each […]."""
        found = self.tested(statistic, *values, present=present)
        return found.value, found.low, found.high

    def tested(
        self, statistic: Callable[..., Array], *values: Array, present: NDArray[np.bool_] | None = None
    ) -> Estimate:
        """The statistic of the means of each of ``values``, with intervals and p-values of the same bootstrap.

        Args:
            statistic: Takes arrays of means whose first axis is the draw, and returns [draws, …].
            present: [n, …] of a statistic to which not every one of the n says something; the others count for nothing
                in its degrees of freedom.

        Returns:
            Edges and p are NaN where fewer than :data:`FEWEST` clusters say something, or the statistic is NaN without
            one of them.
        """
        pairs = [self.means(value) for value in values]
        point, drawn = (np.asarray(statistic(*side), dtype=np.float64) for side in zip(*pairs, strict=True))
        point = point[0] if point.ndim else point
        held = np.asarray(self.sums(np.ones(self.n) if present is None else present))
        held = np.broadcast_to(
            held.reshape(len(held), *[1] * (point.ndim + 1 - held.ndim), *held.shape[1:]), (len(held), *point.shape)
        )
        if self.too_few:
            none = np.full_like(point, np.nan)
            return Estimate(point, none, none, none, none, np.full_like(held, np.nan), held)
        left = np.asarray(statistic(*map(self.left_out, values)), dtype=np.float64)
        found = self.edges(point, drawn, left, held)
        enough = (held > 0).sum(0) >= FEWEST
        kept = {name: np.where(enough, getattr(found, name), np.nan) for name in ("low", "high", "p")}
        return replace(found, **kept)

    def edges(self, point: Array, drawn: Array, left: Array, held: Array) -> Estimate:
        """Intervals and p-values from the draws [draws, …] and the statistics without each cluster [C, …]."""
        count, freedom = len(left), np.maximum(effective(held) - 1, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            influence = (count - 1) * (left.mean(0) - left)
            influence = np.where(np.abs(influence) <= ROUNDING * np.abs(point), 0.0, influence)
            error = np.sqrt((influence**2).mean(0) / (count - 1))
            first, second = (np.tensordot(self.weights, power, 1) / count for power in (influence, influence**2))
            own = np.sqrt(np.maximum(second - first**2, 0) / (count - 1))
            t = (drawn - point) / np.maximum(own, SMALLEST_ERROR * error)
            observed = np.where(point == 0, 0.0, point / error)
        t = np.where(error > 0, t, 0.0)
        usable = np.isfinite(t)  # a share of an effect is NaN in a draw without the effect
        ordered = np.sort(np.where(usable | ~usable.any(0), np.where(usable, t, 0.0), np.inf), axis=0)
        some = np.where(usable.any(0), usable.sum(0), len(t))
        lower, upper = (quantile(ordered, some, end) for end in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        half = t_quantile(freedom)
        low, high = point - np.maximum(upper, half) * error, point - np.minimum(lower, -half) * error
        p = np.maximum(beyond(ordered, some, observed), t_tail(observed, freedom))
        p = np.where(np.isfinite(error), np.where(point == 0, 1.0, p), np.nan)
        return Estimate(point, low, high, p, error, influence, held)

    def interval(
        self, statistic: Callable[..., Array], *values: Array, within: tuple[float, float] = (-math.inf, math.inf)
    ) -> Number:
        """The statistic of the means of each of ``values``, with its interval.

        Args:
            statistic: Takes arrays of means whose first axis is the draw and returns one number for each draw.
            within: Range that the statistic, and so the interval, can't leave.
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

    def over_baselines(self, values: Array, baselines: Array, what: str) -> Number:
        """Difference between the mean of values [n] and that of several baselines [baseline, n] on the same prompts.

        A draw takes clusters and baselines with replacement, so the difference stays paired and the baselines' own
        variation counts. Its standard error is of both, in the sample as in each draw; edges are no nearer than
        Student's, with Satterthwaite's (1946) degrees of freedom.

        Args:
            what: Population that the baselines are drawn from.
        """
        paired, several = values - baselines.mean(0), len(baselines)
        found = self.interval(lambda mean: mean, paired)
        if found["low"] is None or several < 2:
            return found
        count, draws = len(self.sizes), len(self.weights)
        taken = np.random.default_rng(several).multinomial(several, np.full(several, 1 / several), size=draws)
        sums = self.sums(np.stack([values, *baselines], 1))
        means = self.weights @ sums / (self.weights @ self.sizes)[:, None]  # of each draw, [draw, 1 + baseline]
        middle = (taken * means[:, 1:]).sum(1) / several
        left = self.left_out(paired)
        influence = (count - 1) * (left.mean() - left)
        around = self.weights @ influence**2 / count - (self.weights @ influence / count) ** 2
        between = (taken * means[:, 1:] ** 2).sum(1) / several - middle**2
        own = np.sqrt(np.maximum(around, 0) / (count - 1) + np.maximum(between, 0) / (several - 1))
        parts = float((influence**2).mean()) / (count - 1), float(np.var(baselines.mean(1), ddof=1)) / several
        error = math.sqrt(sum(parts))
        if error == 0:
            return found
        t = (means[:, 0] - middle - found["value"]) / np.maximum(own, SMALLEST_ERROR * error)
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / max(self.effective - 1, 1.0) + parts[1] ** 2 / (several - 1))
        lower, upper = np.quantile(t, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        half = t_quantile(freedom)
        low, high = found["value"] - max(upper, half) * error, found["value"] - min(lower, -half) * error
        return {**found, "low": float(low), "high": float(high), "interval": f"{self.kind} and {several} {what}"}

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
        left = self.left_out(values)
        varies = float(((left - left.mean()) ** 2).mean()) * (len(left) - 1)
        low, high = of_trials(mean, varies, self.n, max(self.effective - 1, 1), len(self.sizes))
        words = "exact (Clopper & Pearson)" if mean in (0.0, 1.0) else "Korn & Graubard"
        return self.counted(number(mean, low, high, self.n, f"95 % {words} over {self.clusters}"))


def of_trials(mean: float, varies: float, n: int, freedom: float, least: int) -> tuple[float, float]:
    """Clopper & Pearson's (1934) interval of a share, for as many trials as would vary as much (Korn & Graubard 1998).

    Args:
        mean: The share.
        varies: Its squared standard error.
        n: Values that the share is of; trials are no more.
        freedom: Degrees of freedom of the standard error.
        least: Independent trials where the share is 0 or 1, which has no standard error.
    """
    trials = float(least)
    if mean not in (0.0, 1.0):
        fewer = (t_quantile(n - 1) / t_quantile(freedom)) ** 2
        trials = min(mean * (1 - mean) / max(varies, 1e-300) * fewer, n)
    right, wrong = mean * trials, (1 - mean) * trials
    low = scipy.special.betaincinv(right, wrong + 1, (1 - LEVEL) / 2) if mean > 0 else 0.0
    high = scipy.special.betaincinv(right + 1, wrong, (1 + LEVEL) / 2) if mean < 1 else 1.0
    return float(low), float(high)


def auroc_over_clusters(scores: Array, positive: NDArray[np.bool_], clusters: NDArray[np.int64], over: str) -> Number:
    """The chance that a prompt of a class has a larger score than one of the others, with its interval over clusters.

    The standard error is Obuchowski's (1997, equations 2 to 5): of the sums over each cluster of how the prompts of
    either side rank among the other side. The interval is that of a share with this standard error
    (:func:`of_trials`), with Satterthwaite's (1946) degrees of freedom. Where the two sides are wholly apart there are
    as many trials as pairs of different clusters, one of each side.

    Args:
        scores: [n].
        positive: True for those of the class, [n].
        clusters: The cluster of each, [n].
        over: Name of the clusters.
    """
    _, place = np.unique(clusters, return_inverse=True)
    ours, others, count = scores[positive], scores[~positive], int(place.max()) + 1
    joint = ranks(scores)
    above = (joint[positive] - ranks(ours)) / len(others)  # share of the others that each of ours exceeds
    below = 1 - (joint[~positive] - ranks(others)) / len(ours)
    area = float(above.mean())
    sides = [(place[positive], above - area), (place[~positive], below - area)]
    sums = [np.bincount(at, part, count) / len(part) for at, part in sides]
    held = [np.bincount(at, minlength=count).astype(np.float64) for at, _ in sides]
    there = [int((size > 0).sum()) for size in held]
    known = {"clusters": count, "clusters_effective": round(float(effective(sum(held, np.zeros(count)))), 3)}
    if min(there) < FEWEST_SIDE:
        why = f"{count} {over}, {there[0]} with the class and {there[1]} with others: no interval"
        return {**alone(area, len(scores), ""), "interval": why, **known}
    parts = [c / (c - 1) * float((part**2).sum()) for part, c in zip(sums, there, strict=True)]
    varies = max(sum(parts) + 2 * count / (count - 1) * float((sums[0] * sums[1]).sum()), 0.0)
    squares = [part**2 / max(float(effective(size)) - 1, 1) for part, size in zip(parts, held, strict=True)]
    freedom = sum(parts) ** 2 / sum(squares) if sum(squares) else 1.0
    low, high = of_trials(area, varies, len(scores), freedom, min(*there, count // 2))
    return {**number(area, low, high, len(scores), f"95 % Korn & Graubard over {count} {over}"), **known}


def cluster_shuffles(clusters: NDArray[np.int64], draws: int, seed: int) -> NDArray[np.int64]:
    """Whole clusters change places: in each draw the value whose label each value gets, [draws, n].

    A cluster gets the labels of another one in a random order: some of them if that is larger, all and further draws of
    them if it is smaller. Labels that are alike within clusters stay so.
    """
    rng = np.random.default_rng(seed)
    _, place = np.unique(clusters, return_inverse=True)
    n, sizes = len(place), np.bincount(place)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    inside = np.empty(n, dtype=np.int64)
    inside[np.argsort(place, kind="stable")] = np.arange(n)
    inside -= starts[place]
    found = []
    for _ in range(draws):
        donor = rng.permutation(len(sizes))[place]
        order = np.argsort(place + rng.random(n))
        again = (rng.random(n) * sizes[donor]).astype(np.int64)
        found.append(order[starts[donor] + np.where(inside < sizes[donor], inside, again)])
    return np.stack(found)


def quantile(ordered: Array, count: Any, share: float) -> Array:
    """Quantiles of the first ``count`` […] of ordered [draws, …] values; between two of them by a straight line."""
    at = share * (np.asarray(count) - 1)
    below = np.floor(at).astype(np.int64)
    first, second = (
        np.take_along_axis(ordered, np.minimum(k, np.asarray(count) - 1)[None], 0)[0] for k in (below, below + 1)
    )
    return np.asarray(first + (second - first) * (at - below))


def beyond(ordered: Array, count: Any, t: Array) -> Array:
    """Twice the share of draws on the far side of t, the inverse of :func:`quantile`; at least 2 / (draws + 1)."""
    total = np.asarray(count)
    below = (ordered < t).sum(0)
    first, second = (np.take_along_axis(ordered, np.clip(k, 0, total - 1)[None], 0)[0] for k in (below - 1, below))
    with np.errstate(invalid="ignore", divide="ignore"):
        between = np.where(second > first, (t - first) / (second - first), 0.0)
    inside = (below > 0) & (below < total)
    share = np.where(inside, (below - 1 + np.where(inside, between, 0.0)) / np.maximum(total - 1, 1), below > 0)
    tail = np.where(t > 0, 1 - share, share)
    return np.asarray(np.clip(2 * tail, 2 / (total + 1), 1.0))


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


def chance_jaccard(counts: Sequence[int], width: int | Sequence[int]) -> float:
    """The Jaccard index of two random sets that hold as many of the units of each layer: E|∩| / E|∪|.

    Args:
        counts: Units that a set holds of each layer.
        width: Units of every layer, or of each.
    """
    widths = [width] * len(counts) if isinstance(width, int) else width
    shared = sum(count * count / own for count, own in zip(counts, widths, strict=True))
    return shared / (2 * sum(counts) - shared)


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


def t_tail(t: Any, freedom: Any) -> Any:
    """Two-sided p-value of Student's t, for one number or an array of them.

    By ``scipy.special``: importing ``scipy.stats``, which asks the same functions, takes a second of every start.
    """
    found = 2 * scipy.special.stdtr(freedom, -np.abs(t))
    return found if np.ndim(found) else float(found)


def t_quantile(freedom: Any) -> Any:
    """The t outside of which 1 - :data:`LEVEL` lies, for one number of degrees of freedom or an array of them."""
    found = scipy.special.stdtrit(freedom, (1 + LEVEL) / 2)
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


SEED_DRAWS = 9_999
"""Draws of seeds, so that p of a mean over them can be as small as 2 in 10,000."""


def over_seeds(values: Sequence[float] | Array, what: str) -> tuple[Number, float]:
    """The mean of independent values, its bootstrap-t interval, never narrower than Student's, and p of "it is zero".

    Student's interval of a few skewed values is too narrow on one side. Fewer than :data:`FEWEST` have Student's own.

    Raises:
        ValueError: fewer than two values.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < FEWEST:
        return student(x, what)
    bootstrap = ClusterBootstrap(range(len(x)), SEED_DRAWS, 0, what)
    found = bootstrap.tested(lambda mean: mean, x)
    return number(float(found.value), float(found.low), float(found.high), len(x), bootstrap.kind), float(found.p)


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


def p_of_draws(value: float, draws: Sequence[float] | Array, rounding: float = 0.0) -> float:
    """The share of draws that reach a value, the value among them: (1 + #{draw ≥ value}) / (1 + draws).

    Phipson & Smyth 2010. A draw that is the value but for rounding reaches it: else rounding alone would decide where
    draws and value are one, such as random subspaces of a candidate that is the whole site.

    Args:
        value: Observed.
        draws: The same of random objects, [draw].
        rounding: The distance within which numbers are equal, if that is more than :data:`TIES` of the largest.
    """
    drawn = np.asarray(draws, dtype=np.float64)
    largest = max(abs(value), float(np.abs(drawn).max(initial=0.0)))
    return float((1 + (drawn >= value - max(rounding, TIES * largest)).sum()) / (1 + len(drawn)))


def rank_correlation(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float | None:
    """Spearman's: the correlation of the ranks, ties at their mean rank; None where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(scipy.stats.spearmanr(a, b).statistic)


def ranks(values: Array, axis: int | None = None) -> Array:
    """Ranks from 1, ties at their mean rank: along an axis, or of all values, which keep their shape."""
    return np.asarray(scipy.stats.rankdata(values, axis=axis), dtype=np.float64).reshape(values.shape)


def pearson_along(a: Array, b: Array) -> Array:
    """Pearson's correlation along the last axis, at any scale; NaN where one of the two does not vary."""
    a, b = (centred(x, -1) for x in (a, b))
    below = np.sqrt((a**2).sum(-1)) * np.sqrt((b**2).sum(-1))
    return np.divide((a * b).sum(-1), below, out=np.full_like(below, np.nan), where=below > 0)


def centred(x: Array, axis: int | None = None) -> Array:
    """Values less their mean along an axis, or less that of all; 0 where they vary by no more than rounding."""
    apart = x - x.mean(axis, keepdims=True)
    least = ROUNDING * np.abs(x).max(axis, keepdims=True, initial=0.0)
    return np.where(np.abs(apart).max(axis, keepdims=True, initial=0.0) <= least, 0.0, apart)


def pearson_moments(a: Array, b: Array) -> tuple[Array, ...]:
    """The products whose means :func:`pearson_of_means` takes, each of the shape of a and b; both are centred first, so
    that rounding is small."""
    a, b = centred(a), centred(b)
    return a, b, a * a, b * b, a * b


def pearson_of_means(a: Array, b: Array, aa: Array, bb: Array, ab: Array) -> Array:
    """Pearson's correlation from the means of :func:`pearson_moments`; NaN where one of the two does not vary."""
    varies = [
        np.where((rest := square - mean * mean) > ROUNDING * square, rest, 0.0) for mean, square in ((a, aa), (b, bb))
    ]
    below = np.sqrt(varies[0]) * np.sqrt(varies[1])
    return np.divide(ab - a * b, below, out=np.full_like(below, np.nan), where=below > 0)


def pearson(a: Array, b: Array) -> float | None:
    """Pearson's correlation; None where one of the two does not vary, is a single number, or is not finite."""
    if len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    found = float(pearson_along(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)))
    return None if math.isnan(found) else found


def draws_needed(tests: int, alpha: float = 1 - LEVEL) -> int:
    """Draws without which not even the best of so many tests could reach α after Holm: its p is 1 / (draws + 1)."""
    return max(0, math.ceil(round(tests / alpha, 9)) - 1)
