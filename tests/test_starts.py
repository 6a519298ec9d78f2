"""What searches begin with, where attributions rank the units and where they mislead."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mechint import starts
from mechint.circuit import METRICS, attribute
from mechint.scorecard.methods import Budget, bench_of, mask_search
from mechint.ssm_circuit import SSMCircuitAnalyzer
from mechint.starts import NOTES, first_scores, misleads, removal_effects
from mechint.tasks.ground_truth import MODELS, score_units
from tests.builders import tiny_mamba

from .test_circuit import SMALL, bench, known_circuit, loaders, truth


@pytest.mark.parametrize("metric", ["kl", "logit_diff", "accuracy"])
def test_removal_effects_are_those_of_a_plain_loop(metric: str) -> None:
    test = bench(tiny_mamba().requires_grad_(False), ablation="counterfactual")
    column = METRICS[metric].learn
    effects = removal_effects(test, metric)
    for unit in range(0, test.units.total, 5):
        without = torch.ones(test.units.total)
        without[unit] = 0
        change = test.measure(without)[column] - test.measure(None)[column]
        expected = change.mean() if column == "kl" else change.square().mean()
        assert float(effects[unit]) == pytest.approx(float(expected), abs=1e-6)


def test_an_order_misleads_only_if_none_of_its_circuits_comes_near_the_model() -> None:
    test = bench(known_circuit())
    assert not misleads(test, "kl", attribute(test, "kl"))
    assert not misleads(test, "kl", -truth())  # the order of sizes is right
    assert misleads(test, "kl", 1 - truth())
    scores, how = first_scores(test, "kl")
    assert how == "attribution" and torch.equal(scores, attribute(test, "kl"))


def test_where_attribution_misleads_units_are_removed_unless_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test = bench(known_circuit())
    scores, how = first_scores(test, "kl", 1 - truth())
    assert how == "removal" and torch.equal(scores > 1e-6, truth() > 0)
    monkeypatch.setattr(starts, "EXACT_UNITS", 27)
    scores, how = first_scores(test, "kl", 1 - truth())
    assert how == "misled" and torch.equal(scores, 1 - truth())


@pytest.mark.parametrize("how", ["removal", "misled"])
def test_a_report_says_that_attribution_misled(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechint.starts.attribute", lambda *_: 1 - truth())
    monkeypatch.setattr(starts, "EXACT_UNITS", 4096 if how == "removal" else 1)
    config = dataclasses.replace(SMALL, search="budget", budget=8, seeds=1)
    results: dict[str, Any] = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert NOTES[how] in results["notes"] and f"On random weights: {NOTES[how]}" in results["notes"]


@pytest.mark.parametrize("seed", [100, 101])
def test_a_circuit_whose_parts_do_harm_is_found(seed: int) -> None:
    """With mean ablation, any part of this circuit is further from the model than none, and all gradients mislead."""
    compiled = MODELS["gpt2_selective_copy"]().compile(seed=seed)
    mask = compiled.truth.mask(compiled.model, compiled.unit, "mean")
    budget = Budget(int(mask.sum()), 32, 16, 20, compiled.unit)
    test = bench_of(compiled.model, compiled.task, "mean", budget)
    attributed = attribute(test, "kl")
    assert score_units(mask, attributed, "attribution").auroc < 0.5
    assert first_scores(test, "kl", attributed)[1] == "removal"
    found = mask_search(compiled.model, compiled.task, budget, ablation="mean")
    assert score_units(mask, found, "mask search").auroc == 1.0
