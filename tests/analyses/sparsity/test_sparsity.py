"""Sparsity: each measure against its formula, its invariances and its ends; thresholds from other prompts; refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mechint
from mechint.analyses.options import layer_list
from mechint.analyses.sparsity.analyzer import SparsityAnalyzer
from mechint.analyses.sparsity.measures import FALLING, MEASURES, SCALE_FREE, Scale
from mechint.analyses.sparsity.results import disagreements, profile
from mechint.utils.errors import MechintError
from mechint.utils.statistics import ClusterBootstrap
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.examples import examples
from tests.helpers.sparsity import SMALL, loaders


def scale(a: Tensor) -> Scale:
    return Scale(a.square().mean((0, 1)).sqrt(), 0.3, 0.01, 0.1)


def by_formula(name: str, x: np.ndarray, of: Scale) -> float:
    """Straight from the table, one token at a time, in loops."""
    size, n = np.abs(x), len(x)
    if name == "gini":  # the mean difference of all pairs
        return sum(abs(a - b) for a in size for b in size) / (2 * n * n * size.mean())
    if name == "hoyer":
        return (n**0.5 - size.sum() / (size**2).sum() ** 0.5) / (n**0.5 - 1)
    if name == "entropy":
        return -sum(p * np.log(p) for p in size / size.sum() if p > 0) / np.log(n)
    if name == "participation":
        return (x**2).sum() ** 2 / (n * (x**4).sum())
    limit = {"below_rms": of.epsilon * of.rms.numpy(), "below_optimal": of.optimal, "below_fixed": of.fixed}[name]
    return float((size < limit).mean())


@settings(max_examples=examples(20), deadline=None)
@given(units=st.integers(2, 12), seed=st.integers(0, 999), power=st.integers(-6, 6), zeros=st.floats(0, 0.7))
def test_every_measure_is_its_formula(units: int, seed: int, power: int, zeros: float) -> None:
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(3, 2, units, generator=random, dtype=torch.float64) * 10.0**power
    a[torch.rand(a.shape, generator=random) < zeros] = 0.0
    a[..., 0] += 10.0**power  # no token without any activation
    for name, measure in MEASURES.items():
        found = measure(a, scale(a))
        assert found.shape == (3, 2)
        expected = [[by_formula(name, row.numpy(), scale(a)) for row in prompt] for prompt in a]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        assert bool(((found >= -1e-12) & (found <= 1 + 1e-12)).all())
        if name in SCALE_FREE:
            torch.testing.assert_close(measure(a * 1000, scale(a * 1000)), found)


def test_one_unit_is_sparsest_and_equal_units_are_even() -> None:
    one, even = torch.zeros(1, 1, 50, dtype=torch.float64), torch.full((1, 1, 50), -2.0, dtype=torch.float64)
    one[..., 7] = 3.0
    for name in ("gini", "hoyer", "entropy", "participation"):
        sparse, flat = (float(MEASURES[name](a, scale(a))) for a in (one, even))
        sparsest = {"gini": 0.98, "hoyer": 1.0, "entropy": 0.0, "participation": 0.02}[name]
        assert sparse == pytest.approx(sparsest)
        assert flat == pytest.approx(1.0 if name in FALLING else 0.0, abs=1e-12)
        nothing = torch.zeros(1, 1, 50, dtype=torch.float64)
        assert float(MEASURES[name](nothing, scale(nothing))) == pytest.approx(flat, abs=1e-12)


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2, tiny_llama])
def test_the_numbers_are_those_of_the_sites(build: Any) -> None:
    model, (discovery, evaluation) = build(3), loaders()
    results = SparsityAnalyzer(model, dataclasses.replace(SMALL, layers="1")).run_analysis(discovery, evaluation)
    fixed = 0.01 if model.config.family == "mamba" else 1e-5
    assert results["fixed_threshold"] == fixed
    for entry in results["cells"]:
        name = f"layers.{entry['layer']}.{entry['site']}"
        ours, theirs = (
            torch.cat([mechint.run(model, batch.tokens, [name])[name].flatten(2).double() for batch in loader])
            for loader in (evaluation, discovery)
        )
        of = Scale(theirs.square().mean((0, 1)).sqrt(), entry["optimal_threshold"], fixed, SMALL.epsilon)
        assert entry["units"] == ours.shape[-1]
        for measure, number in entry["measures"].items():
            assert number["value"] == pytest.approx(float(MEASURES[measure](ours, of).mean()), rel=1e-9)
            assert number["low"] <= number["value"] <= number["high"] and number["n"] == 12
        variance = ours.var((0, 1), correction=0).numpy()
        for p, number in entry["percentiles"].items():
            assert number["value"] == pytest.approx(np.percentile(variance, int(p[1:])) / variance.mean(), rel=1e-6)


def test_the_optimal_threshold_reaches_its_target_on_other_prompts() -> None:
    model, (discovery, evaluation) = tiny_mamba(1), loaders(64)
    for target in (0.2, 0.8):
        config = dataclasses.replace(SMALL, target=target, sites="gated")
        results = SparsityAnalyzer(model, config).run_analysis(discovery, evaluation)
        for entry in results["cells"]:
            assert entry["measures"]["below_optimal"]["value"] == pytest.approx(target, abs=0.05)


def test_disagreements_are_counted_both_ways_and_need_intervals_apart() -> None:
    number = lambda value, half=0.01: {"value": value, "low": value - half, "high": value + half}
    cell = lambda layer, values: {"layer": layer, "site": "s", "measures": dict(zip(MEASURES, values, strict=True))}
    same = [number(0.5)] * 5
    cells = [cell(0, [number(0.9), number(0.1), *same]), cell(1, [number(0.1), number(0.9), *same])]
    [found] = disagreements(cells)
    assert found["measures"] == ["gini", "hoyer"] and (found["pairs"], found["of"]) == (1, 1)
    assert found["sparser_by_first"]["layer"] == 0 and found["by_second"]["layer"] == 1
    more = [*cells, cell(2, [number(0.5)] * 7)]
    [among] = [row for row in disagreements(more) if row["measures"] == ["gini", "hoyer"]]
    assert (among["pairs"], among["of"]) == (3, 3)
    wide = [cell(0, [number(0.9), number(0.1, 1), *same]), cell(1, [number(0.1), number(0.9, 1), *same])]
    assert disagreements(wide) == []
    # entropy falls where activations are sparser
    falls = [cell(k, [number(v), same[0], number(1 - v), *same[:4]]) for k, v in enumerate((0.9, 0.1))]
    assert disagreements(falls) == []


def test_a_site_without_variance_has_no_profile() -> None:
    flat = np.ones((4, 3))
    assert profile(ClusterBootstrap([0, 1, 2, 3], 100, 0), flat, flat) == {}


@pytest.mark.parametrize(
    ("said", "problem"),
    [("0,,1", "a word is missing beside a comma"), ("0,one", "'one' is not a layer"), ("", "'' is not a layer"),
     ("-1", "'-1' is not a layer"),
     ("0,2", "no layer 2; this model has 2")],
)  # fmt: skip
def test_layer_lists_with_holes_or_words_are_refused(said: str, problem: str) -> None:
    with pytest.raises(MechintError, match=problem):
        SparsityAnalyzer(tiny_mamba(), dataclasses.replace(SMALL, layers=said)).run_analysis(*loaders())


def test_sites_the_family_lacks_are_refused() -> None:
    for said, problem in (("gates", "did you mean gate"), ("state", "with one number for each unit"), ("", "no site")):
        with pytest.raises(MechintError, match=problem):
            SparsityAnalyzer(tiny_mamba(), dataclasses.replace(SMALL, sites=said)).run_analysis(*loaders())
    assert layer_list(" 1, 0,1", 3, "x") == [0, 1] and layer_list("all", 2, "x") == [0, 1]
