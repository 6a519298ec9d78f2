"""The simulation of intervals and p-values: its populations are as they say, and it sees what is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks import coverage
from benchmarks.coverage import EFFECTS, POPULATIONS, clustered, covered, true_auroc, wrong

NORMAL = POPULATIONS[0]


@pytest.mark.parametrize("population", EFFECTS, ids=lambda population: population.name)
def test_populations_have_no_mean_and_prompts_of_a_cluster_are_alike(population: coverage.Population) -> None:
    random = np.random.default_rng(0)
    cluster = np.repeat(np.arange(20_000), 2)
    values = clustered(random, population, cluster)[:, 0]
    error = values.std() / math.sqrt(20_000)
    assert abs(values.mean()) < 5 * error
    alike = np.corrcoef(values[::2], values[1::2])[0, 1]
    assert alike == pytest.approx(coverage.ALIKE, abs=0.1)


def test_the_true_auroc_of_normal_latents() -> None:
    assert true_auroc(NORMAL) == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=2e-3)


def test_an_interval_that_is_too_narrow_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert covered("mean over seeds", NORMAL, 16, 40) > 0.8
    narrow = lambda random, population, count: (1.0, {"value": 1.0, "low": 0.99, "high": 1.01})
    monkeypatch.setitem(coverage.INTERVALS, "narrow", lambda *of: (narrow(*of)[0] + of[0].normal(), narrow(*of)[1]))
    assert covered("narrow", NORMAL, 16, 200) < 0.1


def test_p_values_that_are_not_adjusted_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(coverage.ADJUSTED, "none", lambda random, population, count: random.random(40))
    assert wrong("none", NORMAL, 8, 200) > 0.7
    monkeypatch.setitem(coverage.ADJUSTED, "Bonferroni", lambda random, population, count: 40 * random.random(40))
    assert wrong("Bonferroni", NORMAL, 8, 200) < 0.1


@pytest.mark.parametrize("name", coverage.INTERVALS)
def test_every_interval_has_its_truth_inside_most_often(name: str) -> None:
    assert covered(name, NORMAL, 32, 12) >= 0.5


@pytest.mark.parametrize("name", coverage.ADJUSTED)
def test_every_adjustment_gives_p_values(name: str) -> None:
    p = coverage.ADJUSTED[name](np.random.default_rng(0), NORMAL, 16)
    assert p.size and ((p[~np.isnan(p)] > 0) & (p[~np.isnan(p)] <= 1)).all()
