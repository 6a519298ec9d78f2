"""Intervals against theory, and the small measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechint.statistics import (
    FEWEST_TESTED,
    ClusterBootstrap,
    area,
    draws_needed,
    effective,
    exact,
    holm,
    jaccard,
    max_t,
    number,
    permutation_test,
    rank_correlation,
    said_p,
    spread,
    stability,
    student,
    sureness,
    t_quantile,
    t_tail,
    widened,
)

POPULATIONS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "lognormal": lambda rng, shape: np.exp(rng.normal(size=shape)) - math.exp(0.5),
}


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
    three = stability([{1, 2}, {1, 2}, {2, 3}])
    assert three is not None
    assert (three["low"], three["high"], three["n"]) == (pytest.approx(1 / 3), 1.0, 3)
    assert three["value"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
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
    assert t_tail(20, 30) == pytest.approx(6.7e-19, rel=0.01)  # far out, where 1 less the rest is rounding


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


def test_draws_needed_are_those_that_the_best_of_so_many_tests_takes() -> None:
    for tests, alpha, draws in ((1, 0.05, 19), (11, 0.05, 219), (20, 0.01, 1999), (0, 0.05, 0)):
        assert draws_needed(tests, alpha) == draws
        if tests:
            best = [1 / (draws + 1), *[1.0] * (tests - 1)]
            assert holm(best)[0] == pytest.approx(alpha)


def test_intervals_of_few_clusters_hold_the_truth() -> None:
    """Percentile intervals of 4 and 8 clusters held it in 80 % and 88 % of normal samples, of lognormal in 77 %."""
    for name, clusters, least in (
        ("normal", 4, 0.93),
        ("normal", 8, 0.93),
        ("exponential", 8, 0.9),
        ("lognormal", 16, 0.88),
    ):
        held = 0
        for trial in range(200):
            x = POPULATIONS[name](np.random.default_rng((trial, clusters)), clusters)
            found = ClusterBootstrap(np.arange(clusters), 200, trial).interval(lambda mean: mean, x)
            held += found["low"] <= 0 <= found["high"]
        assert held / 200 >= least, (name, clusters)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["normal", "exponential", "lognormal"])
@pytest.mark.parametrize("clusters", [4, 8, 16, 32])
def test_intervals_hold_the_truth(name: str, clusters: int) -> None:
    """To within three standard errors of 0.93; lognormal means as often as is attained."""
    least = {4: 0.84, 8: 0.87, 16: 0.89, 32: 0.91}[clusters] if name == "lognormal" else 0.93
    least -= 0.03 if name == "exponential" and clusters < 8 else 0.0
    held = 0
    for trial in range(2000):
        x = POPULATIONS[name](np.random.default_rng((trial, clusters)), clusters)
        found = ClusterBootstrap(np.arange(clusters), 400, trial).interval(lambda mean: mean, x)
        held += found["low"] <= 0 <= found["high"]
    assert held / 2000 >= least - 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_an_interval_is_never_narrower_than_student_s() -> None:
    for trial in range(20):
        x = np.random.default_rng(trial).exponential(size=10)
        ours = ClusterBootstrap(np.arange(10), 300, trial).interval(lambda mean: mean, x)
        plain, _ = student(x, "")
        assert ours["low"] <= plain["low"] + 1e-12 and ours["high"] >= plain["high"] - 1e-12


def test_an_interval_stays_within_what_its_statistic_can_be() -> None:
    x = np.array([0.0, 0.0, 0.1, 0.9])
    found = ClusterBootstrap(np.arange(4), 100, 0).interval(lambda mean: mean, x, within=(0, math.inf))
    assert found["low"] == 0 and found["high"] > 1


def test_the_effective_number_of_clusters() -> None:
    for sizes, found in (([5, 5, 5], 3.0), ([8, 1, 1], 100 / 66), ([7], 1.0), ([0, 2, 2], 2.0), ([0, 0], 0.0)):
        assert float(effective(np.array(sizes, dtype=float))) == pytest.approx(found)


def test_a_difference_from_several_baselines_counts_their_own_variation() -> None:
    """Half widths add as squares: 3 of the prompts, and t · s / √n = 4.3027 · 2 / √3 of three baselines."""
    found = number(1.0, -2.0, 5.0, 9, "95 % over prompts")
    wide = widened(found, np.array([0.0, 2.0, 4.0]), "random rankings")
    half = 4.302653 * 2 / math.sqrt(3)
    assert wide["low"] == pytest.approx(1 - math.hypot(3, half)) and wide["high"] == pytest.approx(
        1 + math.hypot(4, half)
    )
    assert (wide["value"], wide["interval"]) == (1.0, "95 % over prompts and 3 random rankings")
    assert widened(found, np.array([3.0]), "draws") is found
    assert widened(number(1, 0, 2, 3, "x"), np.ones(5), "draws")["low"] == 0


def test_what_terminals_say_of_adjusted_p_values_and_in_which_order() -> None:
    assert said_p(0.001) == "adjusted p 0.001" and said_p(0.44) == "adjusted p 0.44, which may be chance"
    assert said_p(0.05) == "adjusted p 0.05" and "no p-value" in said_p(None)
    entries = [(0.3, 9.0), (0.01, -0.2), (None, 50.0), (0.05, 0.1), (0.002, 0.15)]
    assert sorted(entries, key=lambda e: sureness(*e)) == [
        (0.01, -0.2), (0.002, 0.15), (0.05, 0.1), (None, 50.0), (0.3, 9.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ([1, 2, 3, 4], [10, 20, 90, 100], 1.0), ([1, 1, 2], [5, 5, 1], -1.0), ([1, 2, 3], [1, 3, 2], 0.5),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486833), ([1, 1, 1], [1, 2, 3], None), ([1], [2], None), ([], [], None),
    ],
)  # fmt: skip
def test_rank_correlations_by_hand(a: list[float], b: list[float], value: float | None) -> None:
    assert rank_correlation(a, b) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]), ([0.5, 0.001], [0.5, 0.002]), ([0.04] * 3, [0.12] * 3),
        ([0.6, 0.7], [1.0, 1.0]), ([0.2], [0.2]),
    ],
)  # fmt: skip
def test_holm_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted)


@pytest.mark.parametrize(
    ("a", "b", "p", "least"),
    [
        ([0], [1], 1.0, 1.0), ([0, 0], [1, 1], 1 / 3, 1 / 3), ([5, 6, 7], [1, 2, 3], 0.1, 0.1),
        ([0], [1, 2, 3], 0.5, 0.25), ([3, 1], [1, 2], 1.0, 1 / 3),
    ],
)  # fmt: skip
def test_permutation_tests_by_hand(a: list[float], b: list[float], p: float, least: float) -> None:
    assert permutation_test(a, b) == (pytest.approx(p), pytest.approx(least))


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        (set(), set(), 1.0),
        ({1}, set(), 0.0),
        ({1, 2, 3}, {2, 3, 4}, 0.5),
        ({1, 2}, {1, 2}, 1.0),
        ({1}, {1, 2, 3, 4}, 0.25),
    ],
)
def test_jaccard_by_hand(a: set[int], b: set[int], value: float) -> None:
    assert jaccard(a, b) == value


def test_spread_and_area_by_hand() -> None:
    found = spread(list(range(41)), "draws")
    assert (found["value"], found["low"], found["high"], found["n"]) == pytest.approx((20, 1, 39, 41))
    assert found["interval"] == "2.5 to 97.5 % over draws"
    assert area([0.2, 0.4, 1.0], np.array([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])) == pytest.approx([0.5, 1.0])


# ---- adjusted p-values ----------------------------------------------------------------------------------------------


def by_hand(x: np.ndarray, draws: int, seed: int) -> list[float]:
    """Step-down p-values of [cluster, cell] without NaN, one draw and one cell at a time."""
    n, cells = x.shape
    t = lambda sample, centre: abs(np.mean(sample) - centre) / (np.std(sample, ddof=1) / math.sqrt(len(sample)))
    own = [t(x[:, k], 0.0) for k in range(cells)]
    order = sorted(range(cells), key=lambda k: -own[k])
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    above = [0] * cells
    with np.errstate(divide="ignore", invalid="ignore"):
        for w in weights:
            drawn = [t(np.repeat(x[:, k], w), x[:, k].mean()) for k in range(cells)]
            for rank, k in enumerate(order):
                above[k] += max(drawn[j] for j in order[rank:]) >= own[k]
    found, largest = [0.0] * cells, 0.0
    for k in order:
        largest = max(largest, (1 + above[k]) / (1 + draws), 1 / (1 + draws), 2.0 ** (1 - n))
        found[k] = largest
    return found


def test_adjusted_p_values_are_those_of_a_slow_hand_written_step_down() -> None:
    for n in (6, 12):
        x = np.random.default_rng(n).exponential(size=(n, 5)) - np.array([1.0, 1, 0.6, 0.5, -1])
        assert max_t(x, np.arange(n), 150, 3) == pytest.approx(by_hand(x, 150, 3))


def test_adjusted_p_values_are_over_means_of_clusters() -> None:
    """Not over prompts, nor over sums: three large clusters decide no more than three small ones."""
    rng = np.random.default_rng(0)
    means = rng.normal(0.8, 0.6, (12, 4))
    sizes = np.array([40, 30, 20, *[1] * 9])
    many = max_t(np.repeat(means, sizes, 0), np.repeat(np.arange(12), sizes), 300, 1)
    assert many == pytest.approx(max_t(means, np.arange(12), 300, 1))
    assert max_t(np.repeat(means[:6], 50, 0), np.repeat(np.arange(6), 50), 500, 0).min() >= 2.0**-5


def test_what_is_the_same_in_every_cluster_is_as_certain_as_their_number_allows() -> None:
    """A cell of exactly 1.0, beside one of about 0.02 and cells of noise; zero everywhere has p = 1."""
    for clusters, draws, least in ((6, 999, 1 / 32), (8, 999, 1 / 128), (40, 999, 1 / 1000)):
        rng = np.random.default_rng(clusters)
        noise = rng.normal(size=(clusters, 30))
        ones, small = np.ones((clusters, 1)), 0.02 + 0.001 * rng.normal(size=(clusters, 1))
        p = max_t(np.concatenate([ones, small, noise, 0 * ones], 1), np.arange(clusters), draws, 0)
        assert p[0] == pytest.approx(least) and p[0] <= p[1] and p[-1] == 1
        assert p[2:].min() > 0.05


def test_cells_that_too_few_clusters_have_get_no_p_value() -> None:
    x = np.random.default_rng(0).normal(3, 0.1, (10, 3))
    x[FEWEST_TESTED - 1 :, 1] = np.nan
    x[FEWEST_TESTED:, 2] = np.nan
    p = max_t(x, np.arange(10), 200, 0)
    assert np.isnan(p).tolist() == [False, True, False] and p[0] < 0.05
    assert np.isnan(max_t(x[:5], np.arange(5), 200, 0)).all()
    assert np.isnan(max_t(np.ones((20, 2)), np.zeros(20), 200, 0)).all()


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(0.5, 1, (12, 9))
    whole = max_t(x, np.arange(12), 100, 5)
    monkeypatch.setattr("mechint.statistics.ROOM", 30)
    assert max_t(x, np.arange(12), 100, 5).tolist() == whole.tolist()


def errors(name: str, clusters: int, cells: int, trials: int) -> float:
    """Share of maps without any effect in which some cell is called significant at 5 %."""
    found = 0
    for trial in range(trials):
        rng = np.random.default_rng((trial, clusters, cells))
        found += max_t(POPULATIONS[name](rng, (clusters, cells)), np.arange(clusters), 199, trial).min() <= 0.05
    return found / trials


def test_adjusted_p_values_hold_their_level_where_effects_are_skewed() -> None:
    """Flips of signs would call 0.56 of such maps significant: 50 exponential cells of 16 clusters."""
    assert errors("exponential", 16, 50, 200) <= 0.07
    assert errors("normal", 32, 30, 200) <= 0.09  # 0.05 and three standard errors


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("clusters", [16, 32, 64])
@pytest.mark.parametrize("cells", [64, 1024])
def test_adjusted_p_values_hold_their_level(name: str, clusters: int, cells: int) -> None:
    trials = 1000 if cells == 64 else 300
    assert errors(name, clusters, cells, trials) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
