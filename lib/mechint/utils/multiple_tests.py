"""Adjusts p-values for the number of tests.

Many cells of one map: a step-down bootstrap of the largest t, side by side (:func:`max_t`). A list of p-values: Holm's
method and Benjamini and Hochberg's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from .statistics import FEWEST_TESTED, ROOM, Array, ClusterBootstrap, Estimate

HEAVY, MANY = 0.15, 16
"""Cells of fewer clusters than ``MANY`` have no p-value if samples may miss more than the share ``HEAVY`` of the
variance (:func:`missed`): of 64 cells without any effect one would be significant at 5 % in 10 % of such maps."""
BOTH, ABOVE = "both", "above"
"""Sides of a test: "the mean is zero", or "the mean is not above zero"."""


def max_t(values: Array, clusters: Sequence[int] | NDArray[np.int64], draws: int, seed: int, side: str = BOTH) -> Array:
    """Adjusted p-values of "the mean is zero" of every cell of [n, …] values, NaN where a prompt has no such cell.

    The mean is over all prompts that have the cell, as it is printed; ``clusters`` of them are drawn together. See
    :func:`max_t_of`.
    """
    bootstrap = ClusterBootstrap(clusters, draws, seed)
    there = ~np.isnan(values)
    return max_t_of(bootstrap, bootstrap.tested(over_present, np.nan_to_num(values), there, present=there), side)


def over_present(sums: Array, there: Array) -> Array:
    """Means of the values that are there; NaN in a draw that has none of them."""
    return np.divide(sums, there, out=np.full(np.shape(sums), np.nan), where=np.asarray(there) > 0)


def max_t_of(bootstrap: ClusterBootstrap, found: Estimate, side: str = BOTH) -> Array:
    """p-values of "the statistic is zero" for every cell, adjusted for looking at all of them.

    A step-down bootstrap of the largest t (Romano & Wolf 2005), for either side alone: where effects are skewed, t of a
    sample is skewed the other way, and the long tail of one side says nothing about the other. In a draw of clusters a
    cell's t is that of the clusters' influences, divided by the draw's own standard error; a cell is compared with the
    largest t of itself and of all cells with a smaller t. It does not ask that effects be symmetric about zero, as
    flips of signs do, and it keeps the cells' correlation.

    A cell that owes its mean to few prompts has a standard error of nearly nothing in a sample, or draw, without them.
    All cells together show how wrong standard errors may be, see :func:`missed`: no standard error is less
    than that share of the root mean square of all.

    Args:
        found: Result of :meth:`mechint.utils.statistics.ClusterBootstrap.tested`.
        side: :data:`BOTH`, or :data:`ABOVE` where the sentence is about what is above zero alone.

    Returns:
        […], never below the p-value of the cell alone nor 2 / (draws + 1) nor 2 / 2^clusters (half of each for one
        side); 1 for cells that are zero throughout; NaN for cells of fewer than
        :data:`.statistics.FEWEST_TESTED` clusters, which can't support one, and where too few clusters carry the
        effects for so few to be trusted (:data:`HEAVY`).
    """
    shape, draws = np.shape(found.value), len(bootstrap.weights)
    point, alone, error = (np.reshape(part, -1) for part in (found.value, found.p, found.error))
    influence, held = (part.reshape(len(part), -1) for part in (found.influence, found.held))
    enough = ((held > 0).sum(0) >= FEWEST_TESTED) & ~np.isnan(alone)
    p = np.full(len(point), np.nan)
    if not enough.any():
        return p.reshape(shape)
    point, alone, error, influence, held = (part[..., enough] for part in (point, alone, error, influence, held))
    share = missed(influence, held)
    count = (held > 0).sum(0)
    t = t_of(point, np.maximum(error, np.sqrt(share * (error**2).mean())))
    least = np.maximum(1 / (1 + draws), 0.5**count)
    if side == BOTH:
        upper, lower = tails(bootstrap, influence, held, share, t, (1, -1))
        each = np.maximum(2 * np.maximum(np.where(t > 0, upper, lower), least), alone)
    else:
        [upper] = tails(bootstrap, influence, held, share, t, (1,))
        each = np.maximum(np.maximum(upper, least), np.where(t > 0, alone / 2, 1 - alone / 2))
    trusted = (count >= MANY) | (share <= HEAVY)
    p[enough] = np.where(trusted, np.where(t == 0, 1.0, np.minimum(each, 1.0)), np.nan)
    return p.reshape(shape)


def missed(influence: Array, held: Array) -> float:
    """The share of a cell's variance that samples may miss because few clusters carry it, from all cells together.

    It is the mean of (kurtosis - 3) / clusters, from 0 to 1: by how much, squared, a variance of so many clusters is
    off beyond what it is for normal values. Both arrays are [cluster, cell].
    """
    squares = (influence**2).sum(0)
    varies = squares > 0
    if not varies.any():
        return 0.0
    count = (held > 0).sum(0)[varies]
    kurtosis = count * (influence[:, varies] ** 4).sum(0) / squares[varies] ** 2
    return float(np.clip(((kurtosis - 3) / count).mean(), 0.0, 1.0))


def tails(
    bootstrap: ClusterBootstrap, influence: Array, held: Array, share: float, t: Array, signs: Sequence[int]
) -> list[Array]:
    """For each side, step-down shares of draws whose largest t is at least a cell's, one added to both counts, [cell].

    Args:
        influence, held: Influence of each cluster on each cell, and number of its prompts that have the cell, [cluster,
        cell].
        share: Share of the mean square of all cells' standard errors that bounds every standard error from below.
        t: Observed, [cell].
        signs: 1 for the side above zero, -1 for the one below.
    """
    size = held * (len(held) / held.sum(0))
    if (size == size[:, :1]).all():
        size = size[:, :1]
    parts = (influence, influence**2, influence * size, size, size**2, (size > 0).astype(np.float64))
    orders = [np.argsort(-sign * t, kind="stable") for sign in signs]
    above = [np.zeros(len(t)) for _ in signs]
    step = max(1, ROOM // len(t))
    for start in range(0, len(bootstrap.weights), step):
        drawn = bootstrap.weights[start : start + step]
        sums, squares, both, sizes, sizes_squared, count = (drawn @ part for part in parts)
        some = count > 1
        moved = np.divide(sums, sizes, out=np.zeros_like(sums), where=some)
        around = np.maximum(squares - 2 * moved * both + moved**2 * sizes_squared, 0.0)
        variance = around * np.divide(count, sizes**2 * (count - 1), out=np.zeros_like(sizes), where=some)
        draw = t_of(moved, np.sqrt(np.maximum(variance, share * variance.mean(1, keepdims=True))))
        for sign, order, found in zip(signs, orders, above, strict=True):
            ranked = sign * draw[:, order[::-1]]
            largest = np.maximum.accumulate(ranked, axis=1)[:, ::-1]  # running maximum over the cells with a smaller t
            found += (largest >= sign * t[order]).sum(0)
    shares = []
    for sign, order, found in zip(signs, orders, above, strict=True):
        found[sign * t[order] == np.inf] = 0  # a value equal in every cluster does not vary between draws
        p = np.empty(len(order))
        p[order] = np.maximum.accumulate((1 + found) / (1 + len(bootstrap.weights)))
        shares.append(p)
    return shares


def t_of(mean: Array, error: Array) -> Array:
    """Means over standard errors; 0 for 0, infinite for another mean without any variation."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(mean == 0, 0.0, mean / error))


def beside_draws(values: Array, draws: Array) -> Array:
    """p-values of "a random draw reaches as much" for every cell, adjusted for all cells.

    A cell counts in standard deviations of its draws, the observed value among them, so that large cells do not drown
    small ones. A step-down over the largest cell of each draw (Westfall & Young 1993): a draw is one object, such as a
    direction at every strength, so the cells' correlation is kept.

    Args:
        values: Observed, [cell].
        draws: The same of random objects, [draw, cell].

    Returns:
        [cell], never below 1 / (draws + 1); NaN without draws.
    """
    if len(draws) == 0:
        return np.full(np.shape(values), np.nan)
    every = np.concatenate([np.asarray(values)[None], draws])
    spread = every.std(0)
    level = np.divide(every - every.mean(0), spread, out=np.zeros_like(every), where=spread > 0)
    order = np.argsort(-level[0], kind="stable")
    ranked = level[:, order]
    largest = np.maximum.accumulate(ranked[:, ::-1], axis=1)[:, ::-1]
    p = np.empty(len(order))
    p[order] = np.maximum.accumulate((largest >= ranked[0]).mean(0))
    return p


def benjamini_hochberg(p: Array) -> Array:
    """Adjusted p-values that keep the false discovery rate (Benjamini & Hochberg 1995), of the shape given."""
    found = scipy.stats.false_discovery_control(np.asarray(p, dtype=np.float64), axis=None)
    return np.asarray(found).reshape(np.shape(p))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, so that the chance of any false one is at most α (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted
