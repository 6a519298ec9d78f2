"""Units, gates and circuits, on models whose circuit is known because everything else was cut out of them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.analyses.ablation import Ablation, in_words
from mechint.analyses.circuits.bench import attribute, check_effect, cost
from mechint.analyses.circuits.search.gates import GATES, budget_at, shift_to
from mechint.analyses.circuits.search.learning import Search, SearchOptions, start_logits
from mechint.analyses.circuits.ssm import SSMCircuitAnalyzer
from mechint.analyses.loader import PromptLoader
from mechint.analyses.metrics import faithfulness
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_mamba
from tests.helpers.circuits import KEPT, SMALL, bench, known_circuit, loaders, truth
from tests.helpers.examples import examples


@pytest.mark.parametrize("unit", list(SSM_UNITS))
@pytest.mark.parametrize("ablation", ["mean", "resample", "counterfactual", "zero"])
def test_all_units_kept_is_the_model_to_the_bit(unit: str, ablation: str) -> None:
    test = bench(tiny_mamba().requires_grad_(False), unit, ablation)
    ones = torch.ones(test.units.total)
    for index, batch in enumerate(test.batches):
        masked = mechint.run(test.model, batch.tokens, edits=test.units.edits(ones, test.fills[index])).logits
        assert torch.equal(masked, test.model(batch.tokens))
    assert not test.measure(ones)["kl"].any()
    assert test.measure(1 - ones)["kl"].mean() > 1e-3


def test_a_dropped_channel_is_what_editing_its_sites_by_hand_says() -> None:
    model = tiny_mamba().requires_grad_(False)
    test = bench(model, ablation="counterfactual")
    batch, mask = test.batches[0], torch.ones(28)
    mask[14 + 3] = 0
    twin = mechint.run(model, batch.twins, record=["layers.1.u", "layers.1.gated"])
    edits = [mechint.Edit(site, "replace", twin[site][..., [3]], units=[3]) for site in twin.values]
    by_hand = mechint.run(model, batch.tokens, edits=edits).logits
    assert torch.equal(mechint.run(model, batch.tokens, edits=test.units.edits(mask, test.fills[0])).logits, by_hand)


def test_the_mean_ablation_is_the_mean_over_the_discovery_prompts() -> None:
    model = tiny_mamba().requires_grad_(False)
    test, loader = bench(model), loaders()[0]
    u = mechint.run(model, loader.groups[0].tokens, record=["layers.1.u"])["layers.1.u"]
    torch.testing.assert_close(test.fills[0]["layers.1.u"], u.mean(0))


@pytest.mark.parametrize("by_position", [True, False])
def test_what_is_said_of_the_mean_ablation_is_what_was_done(by_position: bool) -> None:
    model = tiny_mamba().requires_grad_(False)
    test, loader = bench(model), loaders()[0]
    u = mechint.run(model, loader.groups[0].tokens, record=["layers.1.u"])["layers.1.u"]
    fill = Ablation(model, test.units, "mean", loader.batches, by_position).fills(loader.batches[0])["layers.1.u"]
    said = in_words("mean", by_position)
    assert ("by position" in said) == (len(fill) == u.shape[1]) == by_position
    assert ("all tokens" in said) == (len(fill) == 1) == (not by_position)
    torch.testing.assert_close(fill, u.mean(0) if by_position else u.mean((0, 1), keepdim=True)[0])


def test_the_known_circuit_is_the_circuit() -> None:
    """Dropping every other channel costs nothing, dropping any one of these costs something."""
    test, mask = bench(known_circuit()), truth()
    assert float(test.measure(mask)["kl"].abs().max()) < 1e-6
    assert test.faithful(1 - mask, "kl") < 1e-6
    for unit in mask.nonzero().flatten():
        without = mask.clone()
        without[unit] = 0
        assert float(test.measure(without)["kl"].mean()) > 0.01, int(unit)


@pytest.mark.parametrize("metric", ["kl", "logit_diff"])
def test_attribution_adds_up_to_the_effect(metric: str) -> None:
    test = bench(known_circuit())
    scores = attribute(test, metric, points=40)
    full, empty = (float(end[metric].mean()) for end in test.ends)
    sign = -1 if metric == "kl" else 1
    assert float(scores.sum()) == pytest.approx(sign * (full - empty), rel=0.02)
    idle = torch.ones(2, 14, dtype=torch.bool)
    for layer, kept in enumerate(KEPT):
        idle[layer, list(kept)] = False
    assert not scores.view(2, 14)[idle].any()


@pytest.mark.slow_except("hard_concrete-attribution")
@pytest.mark.parametrize(
    ("gate", "start"),
    [("hard_concrete", "attribution"), ("hard_concrete", "wrong"), ("straight_through", "attribution")],
)
def test_the_search_finds_the_known_circuit(gate: str, start: str) -> None:
    """Hard-concrete gates also when they start in the wrong order: from the idle channels ranked first.

    (Straight-through gates do not recover from that on most models: a gate that is shut passes on no activation, only
    a gradient. Hard-concrete gates are the default for that reason.)
    """
    test = bench(known_circuit())
    scores = attribute(test, "kl") if start == "attribution" else 1 - truth()
    search = Search(test, "kl", scores, SearchOptions(gate, 150), seed=0, target=8)
    search.run("test")
    assert torch.equal(search.mask(), truth())
    history = search.history
    assert history[0]["kept"] == 28
    assert history[0]["metric"] == 0.0  # step 0 is the model to the bit
    assert history[-1]["budget"] == pytest.approx(8)


def test_the_start_is_the_order_of_sizes_and_a_worse_end_is_given_up() -> None:
    test, mask = bench(known_circuit()), truth()
    signs = torch.ones(28)
    signs[::3] = -1
    search = Search(test, "kl", mask * signs, SearchOptions(steps=10), seed=0, target=8)
    assert torch.equal(search.mask(), mask)
    with torch.no_grad():
        search.logits.copy_(-search.start)  # as if ten steps had led astray
    search.step = search.steps
    assert torch.equal(search.run("test")[8], mask) and search.went_back
    worse = Search(test, "kl", 1 - mask, SearchOptions(steps=10), seed=0, target=8)
    with torch.no_grad():
        worse.logits.copy_(start_logits(mask))
    assert not worse.settle()
    assert torch.equal(worse.mask(), mask)
    assert cost(test, "kl", mask) == pytest.approx(float(test.measure(mask)["kl"].mean()), abs=1e-6)


def test_a_start_that_misses_a_unit_by_little_beats_one_that_has_another_last() -> None:
    """Though its own circuit is the worse one: twice as many units hold all that it needs."""
    test, mask = bench(known_circuit()), truth()
    circuit = lambda scores, count: cost(test, "kl", test.units.top(start_logits(scores), count))
    without = {
        unit: cost(test, "kl", mask.index_fill(0, torch.tensor([unit]), 0.0)) for unit in range(28) if mask[unit]
    }
    last, missed = sorted(without, key=without.__getitem__)[3:5]  # of about the same worth
    scores = mask + 0.01 * torch.arange(28)
    scores[last] = -2.0
    scores[missed], scores[0] = 0.4, 0.5  # the first channel is idle
    assert circuit(scores, 8) < circuit(scores.abs(), 8)
    way = [sum(circuit(order, count) for count in (8, 16, 28)) / 3 for order in (scores, scores.abs())]
    assert way[1] < way[0]
    search = Search(test, "kl", scores, SearchOptions(steps=10), seed=0, target=8)
    assert torch.equal(search.start, start_logits(scores.abs()))
    assert [search.way_cost(start_logits(order)) for order in (scores, scores.abs())] == pytest.approx(way, abs=1e-6)


def test_a_search_goes_on_from_its_saved_state_to_the_same_bits() -> None:
    test = bench(tiny_mamba().requires_grad_(False))
    scores = attribute(test, "kl")
    make = lambda: Search(test, "kl", scores, SearchOptions(steps=30), seed=3, target=5)
    whole = make()
    sizes = [10, 20]
    masks = whole.run("test", sizes)
    first, second = make(), make()
    states: list[dict] = []
    first.run("test", sizes, lambda: states.append(first.state()) if first.step == 17 else None)
    second.restore(states[0])
    again = second.run("test", sizes)
    assert torch.equal(whole.logits, second.logits)
    assert whole.history == second.history
    assert all(torch.equal(masks[size], again[size]) for size in [*sizes, 5])
    passing = make()
    some = passing.run("test", sizes, in_passing=True)
    assert set(some) == set(sizes) and all(torch.equal(masks[size], some[size]) for size in sizes)
    assert passing.step < passing.steps and passing.history == whole.history[: passing.step]


@given(seed=st.integers(0, 99), count=st.integers(2, 60), share=st.floats(0.02, 0.98), scale=st.floats(0.1, 30))
@settings(max_examples=examples(50), deadline=None)
def test_the_budget_is_met_exactly(seed: int, count: int, share: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, generator=generator, dtype=torch.float64) * scale
    budget = max(1.0, share * count)
    if budget >= count:
        return
    assert float(torch.sigmoid(logits + shift_to(logits, budget)).sum()) == pytest.approx(budget, rel=1e-6)
    hard = GATES["straight_through"](logits, budget, generator)
    assert sorted(set(hard.tolist())) in ([0.0, 1.0], [1.0])
    assert int(hard.sum()) == max(1, round(budget))
    noisy = GATES["hard_concrete"](logits.repeat(400), 400 * budget, generator)  # as good as 400 draws
    assert float((noisy > 0).sum()) / 400 == pytest.approx(budget, abs=0.3 + 0.1 * count**0.5)


def test_the_shift_is_differentiated_with_its_budget() -> None:
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: torch.sigmoid(x + shift_to(x, 3.3)) ** 2, [logits], eps=1e-5, atol=1e-4)
    (gradient,) = torch.autograd.grad(torch.sigmoid(logits + shift_to(logits, 3.3)).sum(), logits)
    assert float(gradient.abs().max()) < 1e-12  # no step can change the number of open gates


def test_the_budget_falls_evenly_on_a_log_scale_and_is_held() -> None:
    budgets = [budget_at(step, 100, 1000, 10) for step in range(100)]
    assert budgets[0] == pytest.approx(1000)
    ratios = {round(a / b, 9) for a, b in itertools.pairwise(budgets[:76])}
    assert len(ratios) == 1
    assert budgets[75:] == pytest.approx([10] * 25)


def test_gates_start_in_the_order_of_the_scores() -> None:
    logits = start_logits(torch.tensor([0.3, -5.0, 900.0, 0.2]))
    assert logits.argsort().tolist() == [1, 3, 0, 2]
    assert float(logits.sum()) == pytest.approx(0, abs=1e-6)


@given(count=st.integers(1, 28), seed=st.integers(0, 9))
@settings(max_examples=examples(20), deadline=None)
def test_top_and_random_keep_exactly_what_is_asked(count: int, seed: int) -> None:
    units = Units(tiny_mamba(), SSM_UNITS["channel"])
    scores = torch.randn(28, generator=torch.Generator().manual_seed(seed)).round()
    mask = units.top(scores, count)
    assert int(mask.sum()) == count
    assert scores[mask > 0].min() >= scores[mask == 0].max() if count < 28 else True
    random = units.random(units.counts(mask), torch.Generator().manual_seed(seed))
    assert units.counts(random) == units.counts(mask)


def test_names_of_units() -> None:
    model = tiny_mamba()
    modes = Units(model, SSM_UNITS["mode"])
    mask = torch.zeros(2, 14, 5)
    mask[1, 3, 4] = 1
    assert modes.total == 140
    assert modes.names(mask.view(-1)) == [[], [[3, 4]]]
    assert Units(model, SSM_UNITS["path"]).names(torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 1, 0, 0])) == [["x", "C"], ["dt"]]


@pytest.mark.slow
def test_the_whole_analysis_on_a_known_circuit() -> None:
    discovery, evaluation = loaders()
    analyzer = SSMCircuitAnalyzer(
        known_circuit(), dataclasses.replace(SMALL, target_faithfulness=0.99, steps=120, seeds=2)
    )
    results = analyzer.run_analysis(discovery, evaluation)
    metrics = results["metrics"]
    assert metrics["units_total"]["value"] == 28
    assert metrics["faithfulness"]["value"] >= 0.99
    assert metrics["faithfulness"]["low"] <= metrics["faithfulness"]["value"] <= metrics["faithfulness"]["high"]
    assert metrics["faithfulness"]["value"] > metrics["faithfulness_random"]["high"]
    found = {(layer["layer"], unit) for layer in results["layers"] for unit in layer["units"]}
    assert found == {(layer, unit) for layer, kept in enumerate(KEPT) for unit in kept}
    assert len(found) == metrics["units_kept"]["value"] == sum(int(m["mask"].sum()) for m in analyzer.masks.values())
    curve = results["curve"]
    assert curve["size"] == sorted(curve["size"])
    assert curve["learned"][-1]["value"] == curve["random"][-1]["value"] == 1.0
    assert {"cpr", "cmd", "jaccard", "completeness", "mask_on_random_weights", "accuracy_full"} <= set(metrics)


@pytest.mark.slow_except("7")
@pytest.mark.parametrize("budget", [1, 7, 28])
def test_the_circuit_has_exactly_the_size_of_the_budget(budget: int) -> None:
    config = dataclasses.replace(SMALL, search="budget", budget=budget, steps=10, seeds=1)
    results = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert results["metrics"]["units_kept"]["value"] == budget
    assert "jaccard" not in results["metrics"]
    assert any("Stability was not measured" in note for note in results["notes"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "metric"),
    [
        ("path", "answer_logprob"),
        ("layer", "loss"),
        pytest.param("path", "loss", marks=pytest.mark.exhaustive),  # no metric looks at the kind of unit
        pytest.param("layer", "answer_logprob", marks=pytest.mark.exhaustive),
    ],
)
def test_other_metrics_and_units(unit: str, metric: str) -> None:
    """With a task the model has an effect on: its own answers, so that dropping units must hurt."""
    model, (discovery, evaluation) = known_circuit(), loaders()
    for loader in (discovery, evaluation):
        for index, batch in enumerate(loader.batches):
            own = mechint.run(model, batch.tokens, logits_at=batch.positions).logits.topk(2).indices
            loader.batches[index] = dataclasses.replace(batch, answers=own[..., 0], wrong=own[..., 1])
    config = dataclasses.replace(SMALL, metric=metric, unit=unit, steps=30, seeds=2)
    results = SSMCircuitAnalyzer(model, config).run_analysis(discovery, evaluation)
    assert results["metrics"]["accuracy_full"]["value"] == 1.0
    assert results["metrics"]["faithfulness"]["value"] > 0.8
    direct = {"answer_logprob": 1, "loss": -1}[metric]
    assert direct * (results["metrics"]["metric_full"]["value"] - results["metrics"]["metric_empty"]["value"]) > 0


def test_refusals() -> None:
    model, (discovery, evaluation) = known_circuit(), loaders()
    with pytest.raises(MechintError, match="circuit of 29 units is asked for; this model has 28"):
        SSMCircuitAnalyzer(model, dataclasses.replace(SMALL, search="budget", budget=29))
    with pytest.raises(MechintError, match=r"answers \d+\.\d% of the held-out prompts of 'recall'"):
        SSMCircuitAnalyzer(model, dataclasses.replace(SMALL, min_accuracy=0.9)).run_analysis(discovery, evaluation)
    text = make_task(TaskConfig(name="text", length=16))
    plain = [PromptLoader(text, split, 8, 4, 0) for split in ("discovery", "evaluation")]
    with pytest.raises(MechintError, match="logit_diff compares with a counterfactual twin"):
        SSMCircuitAnalyzer(model, dataclasses.replace(SMALL, metric="logit_diff")).run_analysis(*plain)
    units = Units(model, SSM_UNITS["channel"])
    with pytest.raises(MechintError, match="needs prompts with counterfactual twins"):
        Ablation(model, units, "counterfactual", plain[0].batches, False)
    with pytest.raises(MechintError, match="no effect to explain"):
        check_effect(({"kl": torch.ones(1)}, {"kl": torch.ones(1)}), "kl")
    with pytest.raises(MechintError, match="without a run directory"):
        SSMCircuitAnalyzer(model, SMALL).save_results()


def test_faithfulness_is_a_share_of_the_effect() -> None:
    assert faithfulness(3.0, 5.0, 1.0) == 0.5
    assert np.allclose(faithfulness(np.array([0.0, 2.0]), 0.0, 2.0), [1.0, 0.0])
