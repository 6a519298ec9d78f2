"""Intervals against theory, and the small measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechint.statistics import (
    ClusterBootstrap,
    area,
    exact,
    holm,
    jaccard,
    permutation_test,
    spread,
    stability,
    student,
    t_quantile,
    t_tail,
)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """With clusters that share a random effect; a bootstrap over single prompts would cover far too seldom."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for trial in range(200):
        clusters = np.repeat(np.arange(40), 5)
        values = rng.normal(size=40)[clusters] + 0.1 * rng.normal(size=200)
        interval = ClusterBootstrap(clusters, 400, trial).interval(lambda m: m, values)
        covered += interval["low"] <= 0 <= interval["high"]
        single = ClusterBootstrap(np.arange(200), 400, trial).interval(lambda m: m, values)
        naive += single["low"] <= 0 <= single["high"]
    assert covered >= 178  # 95 % of 200, less three standard errors
    assert naive <= 150


def test_ratios_use_the_same_draws() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(5, 1, 60)
    interval = ClusterBootstrap(np.arange(60), 500, 0).interval(lambda x, y: x / y, a, 2 * a)
    assert interval["low"] == pytest.approx(0.5)
    assert interval["high"] == pytest.approx(0.5)
    assert interval["n"] == 60


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=30)
    intervals = [ClusterBootstrap(np.arange(30), 100, seed).interval(lambda m: m, values) for seed in (4, 4, 5)]
    assert intervals[0] == intervals[1] != intervals[2]
    with pytest.raises(ValueError, match="29 values for a bootstrap over 30"):
        ClusterBootstrap(np.arange(30), 100, 0).means(values[:29])


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_jaccard(a: set[int], b: set[int]) -> None:
    assert jaccard(a, b) == jaccard(b, a)
    assert jaccard(a, a) == 1.0
    assert 0 <= jaccard(a, b) <= 1
    assert (jaccard(a, b) == 1) == (a == b)


def test_stability_and_spread() -> None:
    assert stability([{1, 2}]) is None
    assert stability([{1, 2}, {2, 3}]) == {
        "value": 1 / 3, "low": None, "high": None, "n": 1, "interval": "one pair of searches: no interval"
    }  # fmt: skip
    number = stability([{1, 2}, {1, 2}, {2, 3}])
    assert number is not None
    assert (number["low"], number["high"], number["n"]) == (pytest.approx(1 / 3), 1.0, 3)
    assert number["value"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert spread([1.0, 2.0, 3.0], "runs")["value"] == 2.0
    assert exact(7)["low"] == exact(7)["high"] == 7


def test_area_is_the_trapezoid_rule() -> None:
    assert area([0.0, 0.5, 1.0], np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])) == pytest.approx([0.75, 1.0])


def test_students_t_is_that_of_the_tables() -> None:
    """Quantiles as printed in any table, tails in closed form for 1 and 2 degrees of freedom."""
    for freedom, quantile in ((1, 12.7062), (2, 4.30265), (3, 3.18245), (9, 2.26216), (30, 2.04227), (1000, 1.96234)):
        assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)
    for t in (0.0, 0.3, 2.0, 40.0):
        assert t_tail(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-8)
        assert t_tail(-t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-8)


def test_students_interval_holds_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = [n["low"] <= 5 <= n["high"] for n in (student(random.normal(5, 2, 3), "seeds")[0] for _ in range(600))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)
    found, p = student([1.0, 1.0, 1.0], "seeds")
    assert (found["low"], found["high"], p) == (1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="at least two"):
        student([1.0], "seeds")


def test_a_permutation_test_is_exact_and_says_its_smallest_p() -> None:
    assert permutation_test([1, 2, 3, 4], [5, 6, 7, 8]) == (pytest.approx(2 / 70), pytest.approx(2 / 70))
    assert permutation_test([1.0, 1.0], [1.0, 1.0])[0] == 1.0
    p, least = permutation_test([0, 1, 2], [0.5, 1.5, 2.5])
    assert p > 0.5 and least == pytest.approx(0.1)
    rng = np.random.default_rng(0)
    false = [permutation_test(rng.normal(size=4), rng.normal(size=4))[0] <= 0.05 for _ in range(300)]
    assert np.mean(false) < 0.09


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
