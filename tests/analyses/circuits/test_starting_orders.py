"""The scores that a search starts from: where attributions rank the units, and where they mislead."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mechint.analyses.circuits.bench import METRICS, attribute, cost, removed
from mechint.analyses.circuits.methods import single_units
from mechint.analyses.circuits.methods import starting_orders as starts
from mechint.analyses.circuits.methods.starting_orders import (
    NOTES,
    further_orders,
    misleads,
    removal_effects,
    starting_scores,
)
from mechint.analyses.circuits.search.learning import NotFinite, Search, SearchOptions, start_logits
from mechint.analyses.circuits.ssm import SSMCircuitAnalyzer
from mechint.ground_truth import MODELS, score_units
from mechint.scorecard.methods import Budget, bench_of, learned
from tests.helpers.builders import tiny_mamba
from tests.helpers.circuits import SMALL, bench, known_circuit, loaders, truth


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
    scores, how = starting_scores(test, "kl")
    assert how == "attribution" and torch.equal(scores, attribute(test, "kl"))


def test_no_circuit_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both orders have the same circuit, or another size asks for the empty one again."""
    test, measured = bench(known_circuit()), []
    monkeypatch.setattr(starts, "cost", lambda bench, metric, mask: (measured.append(mask), 1.0)[1])
    scores = torch.arange(1.0, test.units.total + 1)  # sizes are in the same order
    assert misleads(test, "kl", scores)
    rows = [tuple(mask.tolist()) for mask in measured]
    assert len(rows) == len(set(rows)) == 1 + test.units.total.bit_length() - 1
    measured[:] = []
    assert misleads(test, "kl", scores * (-1) ** torch.arange(len(scores)))
    assert len({tuple(mask.tolist()) for mask in measured}) == len(measured) > len(rows)


def test_where_attribution_misleads_units_are_removed_unless_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test = bench(known_circuit())
    scores, how = starting_scores(test, "kl", 1 - truth())
    assert how == "removal" and torch.equal(scores > 1e-6, truth() > 0)
    monkeypatch.setattr(starts, "EXACT_UNITS", 27)
    scores, how = starting_scores(test, "kl", 1 - truth())
    assert how == "misled" and torch.equal(scores, 1 - truth())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["removal", "misled"])
def test_a_report_says_that_attribution_misled(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechint.analyses.circuits.methods.starting_orders.attribute", lambda *_: 1 - truth())
    monkeypatch.setattr(starts, "EXACT_UNITS", 4096 if how == "removal" else 1)
    config = dataclasses.replace(SMALL, search="budget", budget=8, seeds=1, steps=10)
    results: dict[str, Any] = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert NOTES[how] in results["notes"] and f"On random weights: {NOTES[how]}" in results["notes"]


@pytest.mark.slow
def test_a_control_whose_search_is_not_finite_is_none_and_the_rest_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SSMCircuitAnalyzer.search

    def search(self: Any, *arguments: Any, weights: str = "trained", **more: Any) -> Any:
        if weights == "random":
            raise NotFinite("the search's loss or its gradient is not finite at step 1")
        return whole(self, *arguments, weights=weights, **more)

    monkeypatch.setattr(SSMCircuitAnalyzer, "search", search)
    config = dataclasses.replace(SMALL, search="budget", budget=8, seeds=1, steps=10)
    results: dict[str, Any] = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert "mask_on_random_weights" not in results["metrics"] and "faithfulness" in results["metrics"]
    assert any(
        note.startswith("The control on random weights was not measured: the search's loss")
        for note in results["notes"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 101])
def test_a_circuit_whose_parts_do_harm_is_found(seed: int) -> None:
    """With mean ablation, any part of this circuit is further from the model than none, and all gradients mislead."""
    compiled = MODELS["gpt2_selective_copy"]().compile(seed=seed)
    mask = compiled.truth.mask(compiled.model, compiled.unit, "mean")
    budget = Budget(int(mask.sum()), 32, 16, 20, compiled.unit)
    test = bench_of(compiled.model, compiled.task, "mean", compiled.unit, 32)
    attributed = attribute(test, "kl")
    assert score_units(mask, attributed, "attribution").auroc < 0.5
    assert starting_scores(test, "kl", attributed)[1] == "removal"
    found = learned(compiled.model, compiled.task, budget, name="search", ablation="mean")
    assert score_units(mask, found, "mask search").auroc == 1.0


class TestUnitsThatAttributionMisses:
    """A known circuit, one of whose units has no attribution, as where it acts through a flat step."""

    def scores(self) -> tuple[Any, torch.Tensor, int]:
        """The bench, scores in which the most needed unit of the circuit is below two idle ones, and its number."""
        test, mask = bench(known_circuit()), truth()
        units = [unit for unit in range(28) if mask[unit]]
        effects = removal_effects(test, "kl")
        missed = max(units, key=lambda unit: float(effects[unit]))
        scores = mask.clone()
        scores[missed] = 0.0
        idle = [unit for unit in range(28) if not mask[unit]]
        scores[idle[:2]] = 0.5
        scores[idle[2:]] = -1e-6
        return test, scores, missed

    def test_they_come_first_by_what_their_removal_costs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        test, scores, missed = self.scores()
        monkeypatch.setattr(starts, "half_way", lambda *a: a[2] if a[3] > 8 else None)
        tried: list[list[int]] = []
        monkeypatch.setattr(single_units, "removed", lambda *a: tried.append(a[2]) or removed(*a))
        [ranks] = further_orders(test, "kl", scores, 8)
        assert torch.equal(test.units.top(ranks, 8), truth())
        assert len(tried) == 1 and len(tried[0]) == 16 and missed in tried[0]  # of 16 units, once, not of all 28
        assert torch.equal(ranks.sort().values, torch.arange(28.0))
        search = Search(test, "kl", scores, SearchOptions(steps=10), 0, 8, others=[ranks])
        assert search.began_elsewhere and torch.equal(search.mask(), truth())
        monkeypatch.setattr(starts, "EXACT_UNITS", 15)
        assert further_orders(test, "kl", scores, 8) == []

    def test_effects_within_a_circuit_are_those_of_a_plain_loop(self) -> None:
        test = bench(tiny_mamba().requires_grad_(False), ablation="counterfactual")
        inside = torch.arange(3, 24, 4)
        circuit = torch.zeros(test.units.total).index_fill(0, inside, 1.0)
        effects = removal_effects(test, "kl", inside)
        for unit in inside.tolist():
            without = circuit.clone()
            without[unit] = 0
            assert float(effects[unit]) == pytest.approx(cost(test, "kl", without), abs=1e-6)
        assert not effects[circuit == 0].any()

    def test_the_attributions_own_start_is_kept_where_it_is_as_good(self) -> None:
        test, mask = bench(known_circuit()), truth()
        search = Search(test, "kl", mask, SearchOptions(steps=10), 0, 8, others=[mask.flip(0), mask.clone()])
        assert not search.began_elsewhere and torch.equal(search.start, start_logits(mask))


@pytest.mark.slow_except("102-resample")
@pytest.mark.parametrize(("seed", "ablation"), [(103, "mean"), (102, "resample")])
def test_a_unit_behind_a_flat_step_is_found(seed: int, ablation: str) -> None:
    """The key that saturated attention looks for has next to no attribution, and all depends on it."""
    compiled = MODELS["gpt2_count"]().compile(seed=seed)
    mask = compiled.truth.mask(compiled.model, compiled.unit, ablation)
    budget = Budget(int(mask.sum()), 64, 16, 60, compiled.unit)
    test = bench_of(compiled.model, compiled.task, ablation, compiled.unit, 64)
    attributed = attribute(test, "kl")
    assert score_units(mask, attributed.abs(), "attribution").auroc < 1.0
    assert starting_scores(test, "kl", attributed)[1] == "attribution"  # a larger circuit has it
    found = learned(compiled.model, compiled.task, budget, name="search", ablation=ablation)
    assert score_units(mask, found, "mask search").auroc == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("search", ["budget", "smallest"])
def test_no_unit_is_removed_for_a_start_where_attribution_will_do(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where the search for the smallest tries sizes at which no circuit does, nor for the controls."""
    monkeypatch.setattr("mechint.analyses.circuits.methods.starting_orders.misleads", lambda *_: False)
    monkeypatch.setattr(
        "mechint.analyses.circuits.methods.starting_orders.removal_effects",
        lambda *_: pytest.fail("units were removed"),
    )
    config = dataclasses.replace(SMALL, search=search, budget=8, seeds=2, steps=20)
    results = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert NOTES["needed"] not in results["notes"]


@pytest.mark.slow
def test_a_report_says_that_attribution_missed_units_and_they_are_removed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def further(test: Any, metric: str, scores: torch.Tensor, size: int) -> list[torch.Tensor]:
        calls.append(size)
        return [truth()]

    monkeypatch.setattr("mechint.analyses.circuits.methods.starting_orders.attribute", lambda *_: 1 - truth())
    monkeypatch.setattr("mechint.analyses.circuits.methods.starting_orders.misleads", lambda *_: False)
    for module in ("analyzer", "controls"):
        monkeypatch.setattr(f"mechint.analyses.circuits.{module}.further_orders", further)
    settle = Search.settle
    monkeypatch.setattr(Search, "settle", lambda self: settle(self) or True)  # as if none had found better
    config = dataclasses.replace(SMALL, search="budget", budget=8, seeds=3, steps=10)
    results: dict[str, Any] = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert calls == [8, 8, 8]  # of the circuit, and of the two controls
    assert NOTES["needed"] in results["notes"]
    assert results["metrics"]["faithfulness"]["value"] == pytest.approx(1.0, abs=0.01)
    assert results["curve"]["attribution_order"] == "signed"
    assert any("than the order they begin with" in note for note in results["notes"])
    assert not any("order of attribution" in note for note in results["notes"])
