"""Probes find what was put in, score held-out templates, and refuse labels that say nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mechint.analyses.probes import fitting
from mechint.analyses.probes.fitting import (
    METHODS,
    Fit,
    Labelled,
    derived,
    detectable,
    group_folds,
    needed,
    probe,
    refuse_derived,
    split_by_group,
)
from mechint.utils.errors import MechintError


def made(n: int = 240, units: int = 20, classes: int = 3, noise: float = 0.3, seed: int = 0) -> Labelled:
    """Classes shown by units 2, 5 and 11; the others are noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    X = rng.normal(size=(n, units)) * 3.0 + 7.0
    for k, unit in enumerate((2, 5, 11)):
        X[:, unit] = (y == k) * 2.0 + noise * rng.normal(size=n)
    return Labelled(X, y, np.arange(n))


@pytest.mark.parametrize("method", METHODS)
def test_what_was_put_in_is_found(method: str) -> None:
    train, test = split_by_group(made(), 0.6, 0)
    found = probe(train, test, method, shuffles=19, draws=100)
    assert found.score["value"] > 0.9 and found.p == 1 / 101 and found.classes == 3
    assert set(found.units[:3]) <= {2, 5, 11} if method == "logistic" else {2, 5, 11} >= set(found.units[:2])
    assert found.selectivity["value"] == pytest.approx(found.score["value"] - found.shuffled["value"])
    assert abs(float(found.shuffled["value"]) - 1 / 3) < 0.1
    if method != "logistic":
        used = [point["units"] for point in found.path]
        assert used[0] <= 1 and used[-1] > used[0]  # the path begins where no unit is used
    again = probe(train, test, method, shuffles=19, draws=100)
    assert again.report() == found.report()


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_chance(method: str) -> None:
    data = made(seed=1)
    data = Labelled(np.random.default_rng(2).normal(size=data.X.shape), data.y, data.groups)
    found = probe(*split_by_group(data, 0.6, 0), method, shuffles=19, draws=100)
    assert found.score["low"] < 1 / 3 + 0.1 and abs(float(found.selectivity["value"])) < 0.2
    assert found.p > 0.02


def test_weights_are_those_of_the_activations_as_they_are() -> None:
    data = made(classes=2)
    scaled = Labelled(data.X * 1000.0 + 5.0, data.y, data.groups)
    a, b = (probe(*split_by_group(d, 0.6, 0), "lasso", shuffles=2, draws=100) for d in (data, scaled))
    np.testing.assert_allclose(a.weights, b.weights * 1000.0, rtol=1e-5, atol=1e-8)
    assert a.score == b.score


def test_a_quantity_is_regressed() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 12))
    y = 2 * X[:, 3] - X[:, 7] + 0.5 * rng.normal(size=200)
    found = probe(*split_by_group(Labelled(X, y, np.arange(200)), 0.6, 0), "lasso", shuffles=19, draws=200)
    assert found.units[:2] == [3, 7] and 0.8 < float(found.score["value"]) < 1 and found.classes == 0
    assert float(found.shuffled["value"]) < 0.2


def test_no_template_crosses_a_split() -> None:
    groups = np.repeat(np.arange(40), 5)
    data = Labelled(np.zeros((200, 2)), np.arange(200) % 2, groups)
    train, test = split_by_group(data, 0.5, 3)
    assert not set(train.groups) & set(test.groups) and len(train) + len(test) == 200
    folds = group_folds(groups, 3, 0)
    assert all(len(set(folds[groups == g])) == 1 for g in range(40)) and set(folds) == {0, 1, 2}


def refused(train: Labelled, test: Labelled, match: str, method: str = "lasso") -> None:
    with pytest.raises(MechintError, match=match):
        probe(train, test, method, "depth", shuffles=2, draws=100)


def test_what_says_nothing_is_refused() -> None:
    train, test = split_by_group(made(), 0.6, 0)
    one = Labelled(train.X, np.zeros(len(train), dtype=int), train.groups)
    refused(one, test, "'depth': all 144 training prompts have the label 0")
    refused(train, Labelled(test.X, test.y, np.zeros(len(test), dtype=int) + train.groups[0]), "split by template")
    few = test.rows(np.arange(5))
    refused(train, few, "5 held-out templates are too few: with 80 % power they could .* Ask for more prompts")
    refused(train, test, "no method 'laso'", "laso")
    refused(Labelled(train.X[:3], train.y, train.groups), test, "do not belong together")
    refused(train, Labelled(test.X * np.nan, test.y, test.groups), "not finite")
    real = Labelled(train.X, train.y + 0.5, train.groups)
    refused(real, Labelled(test.X, test.y + 0.5, test.groups), "needs classes", "logistic")


def test_labels_made_of_activations_are_refused() -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 10))
    linear = Labelled(X, X @ rng.normal(size=10), np.arange(200))
    refused(*split_by_group(linear, 0.6, 0), "function of the probed activations")
    for cut in (np.median(X[:, 4]), X[:, 4].mean()):
        above = Labelled(X, (X[:, 4] > cut).astype(int), np.arange(200))
        refused(*split_by_group(above, 0.6, 0), "whether unit 4 is above its")
    assert not derived(*split_by_group(made(noise=0.01), 0.6, 0))  # shown perfectly, and the task's own
    assert not derived(*split_by_group(made(classes=2, noise=0.01), 0.6, 0))


@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e4])
def test_whether_a_quantity_is_made_of_activations_does_not_depend_on_its_unit(unit: float) -> None:
    """A thousandth of the variation that activations do not give back is no rounding, in grams as in tonnes."""
    rng = np.random.default_rng(4)
    X = rng.normal(size=(200, 10))
    exact = X @ rng.normal(size=10)
    near = exact + 1e-3 * exact.std() * rng.normal(size=200)
    said = [bool(derived(*split_by_group(Labelled(X, unit * y, np.arange(200)), 0.6, 0))) for y in (exact, near)]
    assert said == [True, False]


@pytest.mark.parametrize("prompts, units, strong", [(16, 768, 0), (40, 64, 24), (60, 64, 24), (200, 128, 40)])
def test_labels_that_units_tell_apart_are_not_refused(prompts: int, units: int, strong: int) -> None:
    """By chance, of few prompts and many units; or because many units know the label, some of them barely."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        y = np.arange(prompts) % 2
        size = np.r_[rng.uniform(2, 5, strong), np.zeros(units - strong)]
        data = Labelled(rng.normal(size=(prompts, units)) + np.outer(2 * y - 1, size), y, np.arange(prompts))
        assert not derived(*split_by_group(data, 0.6, 0))


def test_on_shuffled_prompts_only_activations_give_back_a_label() -> None:
    rng = np.random.default_rng(2)
    X = rng.normal(size=(400, 6))
    refuse_derived(X, rng.integers(3, size=400))
    with pytest.raises(MechintError, match="function of the probed activations"):
        refuse_derived(X, (2.0 * X[:, 0] - X[:, 3]))
    gap = X[np.abs(X[:, 1] - 0.3) > 0.2]
    with pytest.raises(MechintError, match="function of the probed activations"):
        refuse_derived(gap, (gap[:, 1] > 0.3).astype(int))


def test_power_is_that_of_the_binomial() -> None:
    """Against the simulated share of tests that find the accuracy."""
    n, chance = 60, 0.25
    accuracy = detectable(n, chance)
    rng = np.random.default_rng(0)
    critical = np.quantile(rng.binomial(n, chance, 200_000), 0.95)
    found = float((rng.binomial(n, accuracy, 200_000) > critical).mean())
    assert 0.7 < found < 0.92
    assert detectable(needed(0.5, chance), chance) <= 0.5 and detectable(2, 0.9) == float("inf")


def test_methods_are_refused_nothing_else(monkeypatch: Any) -> None:
    train, test = split_by_group(made(n=60), 0.6, 0)
    dead = Labelled(np.concatenate([train.X, np.ones((len(train), 1))], 1), train.y, train.groups)
    alive = Labelled(np.concatenate([test.X, np.ones((len(test), 1))], 1), test.y, test.groups)
    for method in METHODS:  # a unit that is always the same has no weight, and no division by zero
        found = probe(dead, alive, method, shuffles=2, draws=100)
        assert 20 not in found.units and np.isfinite(found.weights).all()


def test_a_label_is_refused_by_prompts_that_it_was_not_fitted_on() -> None:
    """With more units than prompts, any label is a function of the first half; the second half tells."""
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(40, 60)), rng.integers(2, size=40)
    X[20], y[20] = X[0], y[0]
    refuse_derived(X, y)


@pytest.mark.parametrize("method", ["lasso", "elasticnet"])
def test_units_that_never_change_have_no_weight_and_classes_their_shares(method: str) -> None:
    fit = Fit(Labelled(np.full((8, 5), 3.0), np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.arange(8)), method)
    W, b = fit.solve(Labelled(np.full((8, 5), 3.0), np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.arange(8)), 1.0)
    assert W.shape == (3, 5) and not W.any() and b.tolist() == [0.5, 0.25, 0.25]


def few_values(seed: int, first: int, prompts: int = 48) -> Labelled:
    """A quantity of two values that hangs on the template, read by the first of four units; most have the smaller."""
    rng = np.random.default_rng(seed)
    y = ((rng.random(12) < 0.25) * 2.5)[np.arange(prompts) // 4]
    X = np.column_stack([y + 0.3 * rng.normal(size=prompts), rng.normal(size=(prompts, 3))])
    return Labelled(X, y, np.arange(prompts) // 4 + first)


@pytest.mark.parametrize("seed", [4, 6, 7])
def test_a_quantity_that_is_the_same_throughout_a_fold_is_read_all_the_same(seed: int) -> None:
    """R² of such a fold alone is -∞ at every penalty, by which the probe that uses no unit would be chosen."""
    train, test = few_values(seed, 0), few_values(seed + 50, 100)
    folds = group_folds(train.groups, 3, 0)
    assert any(np.ptp(train.y[folds == k]) == 0 for k in range(3))
    found = probe(train, test, "lasso", shuffles=2, draws=99)
    assert found.units[0] == 0 and found.across_folds > 0.8 and float(found.score["value"]) > 0.8
    fit, said = Fit(train, "lasso"), np.zeros(len(train))
    for k in range(3):
        weights, offset = fit.solve(train.rows(folds != k), found.strength)
        said[folds == k] = train.X[folds == k] @ weights[0] + offset[0]
    rest, all_ = ((train.y - said) ** 2).sum(), ((train.y - train.y.mean()) ** 2).sum()
    assert found.across_folds == pytest.approx(1 - rest / all_)


@pytest.mark.parametrize("seed", range(5))
def test_a_probe_that_says_the_same_of_every_prompt_beats_no_permutation(seed: int) -> None:
    """All permutations score what the labels do, but for the order in which numbers are added."""
    rng = np.random.default_rng(seed)
    data = Labelled(rng.normal(size=(40, 4)), rng.normal(size=40), np.arange(40))
    fit = Fit(data, "lasso")
    assert fit.permutation_p(data, np.zeros((1, 4)), np.array([0.3]), 99, seed) == 1.0


def test_fits_have_one_thread_for_products_and_give_the_others_back() -> None:
    threads = lambda: [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert before and set(fitting.on_one_thread(threads)()) == {1}
        assert threads() == before
    for work in (fitting.probe, fitting.reading, fitting.penalty, fitting.hits_of):
        assert hasattr(work, "__wrapped__")
