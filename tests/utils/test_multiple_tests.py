"""Adjusted p-values of clusters of any size, some without a cell, against loops over draws and cells."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from mechint.utils.multiple_tests import ABOVE, BOTH, benjamini_hochberg, max_t, max_t_of, missed
from mechint.utils.statistics import ClusterBootstrap, Estimate

DRAWS = 60


def excess(influence: np.ndarray, held: np.ndarray) -> float:
    """The share of a variance that samples may miss, cell by cell."""
    found = []
    for own, size in zip(influence.T, held.T, strict=True):
        count = sum(size > 0)
        if any(own != 0):
            found.append((count * sum(own**4) / sum(own**2) ** 2 - 3) / count)
    return min(max(float(np.mean(found)), 0.0), 1.0) if found else 0.0


def quotient(mean: float, error: float) -> float:
    return 0.0 if mean == 0 else mean / error if error > 0 else math.copysign(math.inf, mean)


def step_down(bootstrap: ClusterBootstrap, found: Estimate, side: str) -> list[float]:
    """The p-values of :func:`max_t_of`, one draw and one cell at a time."""
    influence, held = found.influence, found.held
    tested = [k for k in range(held.shape[1]) if sum(held[:, k] > 0) >= 6 and not math.isnan(found.p[k])]
    share = excess(influence[:, tested], held[:, tested])
    floor = math.sqrt(share * np.mean([found.error[k] ** 2 for k in tested]))
    t = {k: quotient(found.value[k], max(found.error[k], floor)) for k in tested}
    rows = []
    for weight in bootstrap.weights:
        drawn = [c for c, times in enumerate(weight) for _ in range(int(times))]
        moved, variance = {}, {}
        for k in tested:
            size = held[:, k] * len(held) / held[:, k].sum()
            count = sum(size[c] > 0 for c in drawn)
            if count < 2:
                moved[k] = variance[k] = 0.0
                continue
            whole = sum(size[c] for c in drawn)
            moved[k] = sum(influence[c, k] for c in drawn) / whole
            rest = sum((influence[c, k] - moved[k] * size[c]) ** 2 for c in drawn)
            variance[k] = rest * count / (count - 1) / whole**2
        least = share * np.mean(list(variance.values()))
        rows.append({k: quotient(moved[k], math.sqrt(max(variance[k], least))) for k in tested})
    p = {}
    for sign in (1, -1) if side == BOTH else (1,):
        order, largest = sorted(tested, key=lambda k: -sign * t[k]), 0.0
        for rank, k in enumerate(order):
            over = sum(max(sign * row[j] for j in order[rank:]) >= sign * t[k] - 1e-12 for row in rows)
            over = 0 if sign * t[k] == math.inf else over
            largest = max(largest, (1 + over) / (1 + DRAWS))
            if side == ABOVE or sign * t[k] > 0:
                p[k] = largest
    result = []
    for k in range(held.shape[1]):
        count, alone = sum(held[:, k] > 0), found.p[k]
        if k not in tested or (count < 16 and share > 0.15):
            result.append(math.nan)
        elif t[k] == 0:
            result.append(1.0)
        elif side == BOTH:
            result.append(min(1.0, max(2 * max(p[k], 1 / (1 + DRAWS), 0.5**count), alone)))
        else:
            result.append(max(p[k], 1 / (1 + DRAWS), 0.5**count, alone / 2 if t[k] > 0 else 1 - alone / 2))
    return result


def sample(count: int, seed: int, lacking: bool) -> tuple[np.ndarray, list[int]]:
    """Values of prompts in so many clusters of one to four; cells far above zero, about it, below it, zero, and few."""
    rng = np.random.default_rng(seed)
    clusters = [c for c in range(count) for _ in range(1 + c % 4)]
    middle = np.array([0.8, 0.3, 0.1, -0.1, -0.6, 0.0, 0.5])
    values = middle + rng.normal(0, 0.8, (count, 7))[clusters] + 0.2 * rng.normal(size=(len(clusters), 7))
    values[:, 5] = 0.0
    if lacking:
        of = np.array(clusters)
        values[np.isin(of, [0, 3]), 0] = np.nan
        values[of < count - 6, 2] = np.nan  # six clusters have it
        values[of < count - 5, 6] = np.nan  # five
        values[1::3, 4] = np.nan
    return values, clusters


@pytest.mark.parametrize("side", [BOTH, ABOVE])
@pytest.mark.parametrize(("count", "heavy", "lacking"), [(9, 0, False), (9, 0, True), (9, 9, True), (19, 9, True)])
def test_clusters_of_any_size_with_cells_that_some_lack(side: str, count: int, heavy: float, lacking: bool) -> None:
    values, clusters = sample(count, count, lacking)
    values[-1, :5] += 6 * heavy
    bootstrap = ClusterBootstrap(clusters, DRAWS, 1)
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = bootstrap.tested(np.divide, np.nan_to_num(values), there.astype(float), present=there)
    ours, slow = max_t_of(bootstrap, found, side), step_down(bootstrap, found, side)
    assert ours == pytest.approx(np.array(slow), nan_ok=True)
    assert np.isnan(ours).any() == lacking and np.isnan(ours[0]) == bool(heavy and count < 16)


@pytest.mark.parametrize("middle", [0.1, -0.1, -0.6])
def test_one_cell_alone(middle: float) -> None:
    """Below zero, where the question is of what is above it, the p of the cell alone is that of the other tail."""
    values = np.array([0.9, -1.0, 0.4, -0.3, 0.7, -0.6, 0.2])[:, None] + middle
    bootstrap = ClusterBootstrap(range(7), DRAWS, 0)
    found = bootstrap.tested(lambda mean: mean, values)
    for side in (BOTH, ABOVE):
        assert max_t_of(bootstrap, found, side) == pytest.approx(np.array(step_down(bootstrap, found, side)))
    assert max_t_of(bootstrap, found, ABOVE)[0] >= 1 - found.p[0] / 2 - 1e-12 or middle > 0


def test_cells_that_no_prompt_of_a_draw_has_warn_of_nothing() -> None:
    """A cell that one prompt alone has is in few draws, and one that no prompt has in none: no division by zero."""
    values = np.random.default_rng(0).normal(size=(12, 3))
    values[1:, 1] = np.nan
    values[:, 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = max_t(values, np.arange(12), 99, 0)
    assert 0 < p[0] <= 1 and np.isnan(p[1:]).all()


def test_what_samples_may_miss_by_hand() -> None:
    """(9, -1 × 9): Σ² 90, Σ⁴ 6570, so (10 · 6570 / 8100 - 3) / 10 = 0.5111…; (3, -1, -1, -1) of four clusters:
    Σ² 12, Σ⁴ 84, (4 · 84 / 144 - 3) / 4 = -1 / 6; a cell without variation counts for nothing."""
    heavy = np.array([9.0, *[-1.0] * 9])
    few = np.array([3.0, -1, -1, -1, *[0.0] * 6])
    here, some = np.ones(10), np.array([2.0] * 4 + [0.0] * 6)
    cells = lambda *columns: np.stack(columns, 1)
    assert missed(cells(heavy), cells(here)) == pytest.approx(0.51111, abs=1e-5)
    assert missed(cells(heavy, few), cells(here, some)) == pytest.approx((0.511111 - 1 / 6) / 2, abs=1e-5)
    assert missed(cells(heavy, 0 * few), cells(here, some)) == pytest.approx(0.51111, abs=1e-5)
    assert missed(cells(few), cells(some)) == 0.0 and missed(cells(0 * few), cells(here)) == 0.0
    assert missed(cells(*[np.eye(1, 1000)[0]] * 2), np.ones((1000, 2))) == pytest.approx(0.997)


def test_false_discovery_rates_keep_the_shape() -> None:
    """0.005 · 4 / 1, 0.02 · 4 / 2, then 0.03 · 4 / 3 and the largest as it is."""
    found = benjamini_hochberg(np.array([[0.9, 0.02], [0.005, 0.03]]))
    assert found == pytest.approx(np.array([[0.9, 0.04], [0.02, 0.04]]))
