"""Circuits of transformers: units of several sites, and a GPT-2 whose circuit is known because the rest was cut."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses import metrics as answers
from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits import bench as circuit
from mechint.analyses.circuits.analyzer import CircuitAnalyzer
from mechint.analyses.circuits.bench import METRICS, Bench, attribute
from mechint.analyses.circuits.kv import KVCircuitAnalyzer, kept, refuse
from mechint.analyses.circuits.pages.importance import strips_of
from mechint.analyses.circuits.results import Layer, Results
from mechint.analyses.circuits.search.gates import BUDGETS, Temperature, budget_at
from mechint.analyses.circuits.search.learning import Search, SearchOptions
from mechint.interventions.unit_kinds import KV_UNITS
from mechint.interventions.units import Units
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from mechint.tasks import Prompts, TaskConfig
from mechint.utils import files
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_llama
from tests.helpers.kv import KEYS, SMALL, TASK, VALUES, bench, known_circuit, loaders, truth

pytestmark = pytest.mark.usefixtures("without_controls")


@pytest.mark.slow_where("resample|zero")
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("unit", list(KV_UNITS))
@pytest.mark.parametrize("ablation", ["mean", "resample", "counterfactual", "zero"])
def test_all_units_kept_is_the_model_to_the_bit(family: Any, unit: str, ablation: str) -> None:
    test = bench(family(vocab_size=32).requires_grad_(False), unit, ablation)
    ones = torch.ones(test.units.total)
    for index, batch in enumerate(test.batches):
        masked = mechint.run(test.model, batch.tokens, edits=test.units.edits(ones, test.fills[index])).logits
        assert torch.equal(masked, test.model(batch.tokens))
    assert not test.measure(ones)["kl"].any()
    assert test.measure(1 - ones)["kl"].mean() > 1e-3


def test_numbers_of_units() -> None:
    gpt2, llama = tiny_gpt2(), tiny_llama()
    shapes = {name: Units(gpt2, kind).shape for name, kind in KV_UNITS.items()}
    assert shapes == {
        "kv": (2, 3, 4), "k": (3, 4), "v": (3, 4), "q": (3, 4), "o": (3, 4), "head": (3,), "mlp": (20,),
        "layer": (1,),
    }  # fmt: skip
    assert Units(llama, KV_UNITS["kv"]).shape == (2, 2, 6)  # the heads that have keys of their own
    units = Units(gpt2, KV_UNITS["kv"])
    mask = torch.zeros(2, 2, 3, 4)
    mask[0, 0, 2, 1] = mask[1, 1, 0, 3] = 1
    assert units.names(mask.view(-1)) == [[[0, 2, 1]], [[1, 0, 3]]]
    assert units.counts(mask.view(-1)) == [1, 0, 0, 1]  # K and V of each layer
    assert units.counts(units.random([3, 0, 12, 1], torch.Generator().manual_seed(0))) == [3, 0, 12, 1]


def test_a_dropped_unit_is_what_editing_its_site_by_hand_says() -> None:
    model = tiny_gpt2(vocab_size=32).requires_grad_(False)
    for unit, number, site, units in (
        ("kv", 24 + 7, "layers.1.k", [(1, 3)]),
        ("kv", 24 + 12 + 7, "layers.1.v", [(1, 3)]),
        ("head", 3 + 2, "layers.1.head_out", [2]),
        ("mlp", 20 + 4, "layers.1.mlp_post", [4]),
    ):
        test = bench(model, unit, "counterfactual")
        batch, mask = test.batches[0], torch.ones(test.units.total)
        mask[number] = 0
        twin = mechint.run(model, batch.twins, record=[site])[site]
        index = units[0] if isinstance(units[0], tuple) else (units[0],)
        value = twin[(..., *index)][..., None] if len(index) == 2 else twin[:, :, [index[0]]]
        by_hand = mechint.run(model, batch.tokens, edits=[mechint.Edit(site, "replace", value, units=units)]).logits
        masked = mechint.run(model, batch.tokens, edits=test.units.edits(mask, test.fills[0])).logits
        assert torch.equal(masked, by_hand), unit
        assert not torch.equal(masked, model(batch.tokens)), unit


def test_the_known_circuit_is_the_circuit() -> None:
    test, mask = bench(known_circuit()), truth()
    assert float(test.measure(mask)["kl"].abs().max()) < 1e-6
    assert test.faithful(1 - mask, "kl") < 1e-6
    for unit in mask.nonzero().flatten():
        without = mask.clone()
        without[unit] = 0
        assert float(test.measure(without)["kl"].mean()) > 1e-3, int(unit)


FALLING = "linear:1.0:0.1"
PAIRS = {("hard_concrete", "cubic", None), ("hard_concrete", "exponential", None), ("hard_concrete", "linear", FALLING),
         ("straight_through", "linear", None), ("straight_through", "exponential", FALLING),
         ("straight_through", "cubic", FALLING)}  # fmt: skip
"""Any two of a gate, a schedule and a temperature are in one of these; the other combinations are exhaustive."""


@pytest.mark.slow_except("hard_concrete-cubic-None")
@pytest.mark.parametrize(
    ("gate", "budgets", "temperature"),
    [
        pytest.param(*way, marks=[pytest.mark.exhaustive] * (way not in PAIRS))
        for way in itertools.product(["hard_concrete", "straight_through"], BUDGETS, [None, FALLING])
    ],
)
def test_the_search_finds_the_known_circuit(gate: str, budgets: str, temperature: str | None) -> None:
    test, count = bench(known_circuit()), int(truth().sum())
    schedule = Temperature.parse(temperature) if temperature else None
    search = Search(test, "kl", attribute(test, "kl"), SearchOptions(gate, 150, 0.1, budgets, schedule), 0, count)
    search.run("test")
    assert torch.equal(search.mask(), truth())
    history = search.history
    assert history[0]["kept"] == 48 and history[0]["metric"] == 0.0  # step 0 is the model to the bit
    assert history[-1]["budget"] == pytest.approx(count)
    assert ("temperature" in history[0]) == (temperature is not None)
    if temperature:
        assert (history[0]["temperature"], history[-1]["temperature"]) == (1.0, pytest.approx(0.106))


@pytest.mark.slow
def test_the_whole_analysis_on_a_known_circuit(tmp_path: Path) -> None:
    analyzer = KVCircuitAnalyzer(known_circuit(), dataclasses.replace(SMALL, steps=150), run_dir=tmp_path)
    results = analyzer.run_analysis(*loaders())
    metrics = results["metrics"]
    assert metrics["units_total"]["value"] == 48 and metrics["units_kept"]["value"] == 9
    assert (metrics["units_kept_k"]["value"], metrics["units_kept_v"]["value"]) == (4, 5)
    assert metrics["faithfulness"]["value"] == pytest.approx(1, abs=1e-4)
    assert metrics["faithfulness"]["low"] > metrics["faithfulness_random"]["high"]
    found = {(row["layer"], kind, 4 * head + d) for row in results["layers"] for kind, head, d in row["units"]}
    assert found == {(i, 0, k) for i in range(2) for k in KEYS[i]} | {(i, 1, v) for i in range(2) for v in VALUES[i]}
    assert results["sparsity"] == {"asked": 39 / 48, "achieved": 39 / 48}
    assert {path.name for path in analyzer.save_results()} == {"final_masks.pt", "history.jsonl"}
    masks = torch.load(tmp_path / "final_masks.pt", weights_only=True)
    assert masks["layers.0"]["mask"].shape == (2, 3, 4)
    assert int(sum(entry["mask"].sum() for entry in masks.values())) == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [pytest.param("sparsity", marks=pytest.mark.exhaustive), "smallest"],  # the whole analysis has a sparsity
)
def test_smallest_and_sparsity(search: str) -> None:
    config = dataclasses.replace(SMALL, search=search, target_faithfulness=0.99, steps=100, seeds=1)
    results = KVCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert results["metrics"]["faithfulness"]["value"] > 0.98
    assert (results["sparsity"]["asked"] is None) == (search == "smallest")
    assert 7 <= results["metrics"]["units_kept"]["value"] <= 11


@pytest.mark.parametrize(("sparsity", "units"), [(0.0, 48), (0.2, 38), (0.5, 24), (0.95, 2), (0.9999, 1), (1.0, 1)])
def test_the_number_of_units_that_a_sparsity_keeps(sparsity: float, units: int) -> None:
    assert kept(sparsity, 48) == units


@pytest.mark.slow
@pytest.mark.parametrize(
    "sparsity",
    [0.0, *(pytest.param(share, marks=pytest.mark.exhaustive) for share in (0.2, 0.5)), 0.95, 0.9999],
)
def test_the_achieved_sparsity_is_the_target_to_one_unit(sparsity: float) -> None:
    config = dataclasses.replace(SMALL, target_sparsity=sparsity, steps=10, seeds=1)
    results = KVCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    count = results["metrics"]["units_kept"]["value"]
    assert count == kept(sparsity, 48) == max(1, round((1 - sparsity) * 48))
    assert abs(results["sparsity"]["achieved"] - sparsity) <= 1 / 48


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "metric"),
    [
        # no metric looks at the kind of unit, and gates learn accuracy and perplexity from the loss
        pytest.param(
            unit, metric, marks=[pytest.mark.exhaustive] * (unit == "head" or metric in ("accuracy", "perplexity"))
        )
        for unit in ("kv", "head")
        for metric in ("kl_div", "loss", "accuracy", "perplexity", "logit_diff")
    ],
)
def test_every_metric(unit: str, metric: str) -> None:
    """With a task the model has an effect on: its own answers, so that dropping units must hurt."""
    model, (discovery, evaluation) = known_circuit(), loaders(128, 32)
    for loader in (discovery, evaluation):
        for index, batch in enumerate(loader.batches):
            own = mechint.run(model, batch.tokens, logits_at=batch.positions).logits
            loader.batches[index] = dataclasses.replace(batch, answers=own.argmax(-1), wrong=own.argmin(-1))
    config = dataclasses.replace(SMALL, target_metric=metric, unit=unit, seeds=1, target_sparsity=0.3, hard_masks=True)
    results = KVCircuitAnalyzer(model, config).run_analysis(discovery, evaluation)
    metrics = results["metrics"]
    assert metrics["accuracy_full"]["value"] == 1.0
    assert metrics["faithfulness"]["value"] > (0.9 if unit == "kv" else 0.0)
    if metric == "perplexity":
        full = Bench(model, Units(model, KV_UNITS[unit]), Ablation(model, Units(model, KV_UNITS[unit]), "zero",
                     discovery.batches, True), evaluation.batches).measure(None)  # fmt: skip
        assert metrics["metric_full"]["value"] == pytest.approx(math.exp(float(full["loss"].mean())))
        assert METRICS["perplexity"].read(np.zeros(2)).tolist() == [1.0, 1.0]
    if metric == "accuracy":
        assert metrics["metric_full"]["value"] == 1.0


@pytest.mark.parametrize(("unit", "tied", "said"), [("kv", True, 1), ("kv", False, 0), ("head", True, 0)])
def test_a_tied_model_says_so(unit: str, tied: bool, said: int, monkeypatch: pytest.MonkeyPatch) -> None:
    count = {"units_kept": {"value": 3}, "units_total": {"value": 12}}
    monkeypatch.setattr(CircuitAnalyzer, "run_analysis", lambda self, *loaders: {"metrics": count, "notes": []})
    model = tiny_gpt2(vocab_size=32, kv_tied=tied)
    results = KVCircuitAnalyzer(model, dataclasses.replace(SMALL, unit=unit)).run_analysis(*loaders())
    assert len(results["notes"]) == said == sum("come from one projection" in note for note in results["notes"])
    assert results["sparsity"]["achieved"] == 0.75


# --- schedules -------------------------------------------------------------------------------------------------------


def test_temperatures() -> None:
    for text, middle in (("linear:1.0:0.1", 0.55), ("cosine:1.0:0.1", 0.55), ("exponential:1.0:0.01", 0.1)):
        schedule = Temperature.parse(text)
        assert schedule.at(0, 100) == 1.0 and schedule.at(50, 100) == pytest.approx(middle)
        assert schedule.at(100, 100) == pytest.approx(float(text.split(":")[2]))
    assert {Temperature.parse("constant:0.5").at(step, 9) for step in range(9)} == {0.5}
    assert Temperature.parse(" linear : 2 : 1 ") == Temperature("linear", 2.0, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not parse"),
        ("linear", "has 0 temperatures; write FROM:TO"),
        ("linear:1.0", "has 1 temperatures"),
        ("linear:1:0.5:0.1", "has 3 temperatures"),
        ("constant:1:2", "has 2 temperatures"),
        ("linear:hot:0.1", "does not parse; write"),
        ("linaer:1.0:0.1", "did you mean linear"),
        ("linear:1.0:0", "a temperature is from 0.001 to 100"),
        ("linear:1.0:nan", "does not parse; write"),
    ],
)
def test_a_schedule_that_does_not_parse(text: str, says: str) -> None:
    config = dataclasses.replace(SMALL, temp_schedule=text)
    reason = refuse(config, TASK)
    assert reason is not None and says in reason and "\n" not in reason
    with pytest.raises(MechintError, match="temperature"):
        KVCircuitAnalyzer(known_circuit(), config)


def test_schedules_of_the_sparsity() -> None:
    for schedule in BUDGETS:
        budgets = [budget_at(step, 100, 1000, 10, schedule) for step in range(100)]
        assert budgets[0] == pytest.approx(1000) and budgets[75:] == pytest.approx([10] * 25)
        assert budgets == sorted(budgets, reverse=True)
    assert budget_at(50, 100, 1000, 10, "linear") == pytest.approx(1000 - 990 * 2 / 3)
    assert budget_at(50, 100, 1000, 10, "cubic") == pytest.approx(1000 - 990 * (2 / 3) ** 3)


def test_text_has_no_twins() -> None:
    text = TaskConfig(name="text")
    assert "needs counterfactual twins" in str(refuse(dataclasses.replace(SMALL, target_metric="logit_diff"), text))
    assert "needs counterfactual twins" in str(refuse(dataclasses.replace(SMALL, ablation="counterfactual"), text))
    assert refuse(SMALL, text) is None


# --- the report ------------------------------------------------------------------------------------------------------


def test_keys_and_values_have_a_strip_each() -> None:
    layers = [Layer(0, 24, ((0, 2, 1), (1, 0, 3))), Layer(1, 24, ((1, 2, 3),))]
    results = Results(Path(), {"unit": "kv"}, {}, {}, None, sizes=[], curves={}, layers=layers, searches=[])
    scores = torch.arange(24.0).view(2, 3, 4)
    strips = strips_of(results, {0: scores, 1: scores})
    assert strips.labels == ["0 K", "0 V", "1 K", "1 V"] and strips.heads == 3
    assert [layer.units for layer in strips.kept] == [((9,),), ((3,),), (), ((11,),)]
    assert torch.equal(strips.scores[1], scores[1].flatten()) and strips.states == 1


def test_units_of_one_index_and_of_three_have_a_strip_for_each_layer() -> None:
    for unit, scores, kept_units, row in (
        ("channel", torch.arange(4.0), ((3,),), ((3,),)),
        ("state", torch.arange(24.0).view(2, 3, 4), ((1, 2, 3),), ((1, 11),)),
    ):
        layers = [Layer(0, scores.numel(), kept_units)]
        results = Results(Path(), {"unit": unit}, {}, {}, None, sizes=[], curves={}, layers=layers, searches=[])
        strips = strips_of(results, {0: scores})
        assert [layer.units for layer in strips.kept] == [row]
        assert torch.equal(strips.scores[0], scores if unit == "channel" else scores.view(2, 12))


# --- a price in place of a budget -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_penalty_chooses_the_number_of_units() -> None:
    """Free gates keep all, dear ones next to nothing, and in between the circuit that is known."""
    found = []
    for price, steps in ((0.0, 20), (3e-3, 120), (10.0, 80)):
        config = dataclasses.replace(SMALL, search="penalty", l1_lambda=price, steps=steps, seeds=1)
        results = KVCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
        assert results["sparsity"]["asked"] is None
        found.append(results)
    kept_units = [results["metrics"]["units_kept"]["value"] for results in found]
    assert kept_units[0] == 48 and kept_units[2] <= 2
    assert kept_units[1] < 30 and found[1]["metrics"]["faithfulness"]["value"] > 0.95
    names = {(row["layer"], kind, 4 * head + d) for row in found[1]["layers"] for kind, head, d in row["units"]}
    known = {(i, 0, k) for i in range(2) for k in KEYS[i]} | {(i, 1, v) for i in range(2) for v in VALUES[i]}
    assert len(names & known) >= 8


def test_step_0_of_a_priced_search_is_the_model_to_the_bit() -> None:
    test = bench(known_circuit())
    search = Search(test, "kl", attribute(test, "kl"), SearchOptions("straight_through", 20, penalty=0.01), 0, 24)
    search.advance()
    assert search.history[0]["kept"] == 48 and search.history[0]["metric"] == 0.0 == search.history[0]["loss"]


# --- answers read in parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", ["kl", "loss", "answer_logprob", "logit_diff"])
@pytest.mark.parametrize(("kept_logits", "scale", "cap"), [(True, 1.0, 0.0), (False, 1.0, 0.0), (True, 0.5, 3.0)])
def test_answers_in_parts_are_what_autograd_makes_of_all_logits(
    learn: str, kept_logits: bool, scale: float, cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PART", 4 * 32 * 3)  # three positions at a time
    torch.manual_seed(0)
    head, full = torch.randn(32, 12), torch.randn(5, 2, 12)
    right, wrong = torch.randint(0, 32, (2, 5, 2))
    prompts = Prompts(right, right, right, right, wrong, right[:, 0])
    read = (full + 0.5 * torch.randn(5, 2, 12)).requires_grad_()
    test = answers.Answers(prompts, full, head, scale, cap)
    if kept_logits:
        test.keep_logs()
    found = test.metrics(read, learn)
    made = lambda x: cap * torch.tanh(scale * (x @ head.T) / cap) if cap else scale * (x @ head.T)
    logs, reference = (torch.log_softmax(made(x), -1) for x in (read, full))
    logits = made(read)
    pick = lambda x, of: x.gather(-1, of.unsqueeze(-1)).squeeze(-1)
    wanted = {
        "kl": (reference.exp() * (reference - logs)).sum(-1),
        "answer_logprob": pick(logs, right),
        "loss": -pick(logs, right),
        "accuracy": (logits.argmax(-1) == right).float(),
        "logit_diff": pick(logits, right) - pick(logits, wrong),
    }
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.allclose(found[name], value.mean(-1), atol=1e-5), name
    weights = torch.randn(5)
    (slope,) = torch.autograd.grad((found[learn] * weights).sum(), read)
    (oracle,) = torch.autograd.grad((wanted[learn].mean(-1) * weights).sum(), read)
    assert torch.allclose(slope, oracle, atol=1e-5)
    assert not test.metrics(full)["kl"].any() and not test.metrics(None)["kl"].any()


def test_the_gradient_of_a_mask_is_that_of_all_logits() -> None:
    test = bench(tiny_gpt2(vocab_size=32).requires_grad_(False))
    mask = torch.rand(test.units.total, generator=torch.Generator().manual_seed(0)).requires_grad_()
    batch = test.batches[0]
    edits = test.units.edits(mask, test.fills[0])
    logs = mechint.run(test.model, batch.tokens, edits=edits, logits_at=batch.positions).logits.log_softmax(-1)
    full = mechint.run(test.model, batch.tokens, logits_at=batch.positions).logits.log_softmax(-1)
    (oracle,) = torch.autograd.grad((full.exp() * (full - logs)).sum(-1).mean(), mask)
    (slope,) = torch.autograd.grad(test.values(0, mask, "kl")["kl"].mean(), mask)
    assert torch.allclose(slope, oracle, atol=1e-5) and float(oracle.abs().max()) > 1e-3


def test_bfloat16_is_refused_where_it_would_be_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "cpu_bfloat16", lambda: False)
    with pytest.raises(MechintError, match="no arithmetic for bfloat16"):
        KVCircuitAnalyzer(known_circuit(), dataclasses.replace(SMALL, precision="bfloat16"))


@pytest.mark.slow
def test_bfloat16_says_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(SMALL, precision="bfloat16", steps=10, seeds=1)
    monkeypatch.setattr(circuit, "cpu_bfloat16", lambda: True)
    metrics = KVCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())["metrics"]
    assert 0.9 < metrics["cosine_bfloat16"]["value"] < 1.0
    assert metrics["metric_full"]["value"] == 0.0  # measured in float32


def test_tied_globally_is_tied_with_every_head_alike() -> None:
    one = tiny_gpt2(vocab_size=32, kv_tied=True, kv_global=True).requires_grad_(False)
    each = tiny_gpt2(vocab_size=32, kv_tied=True).requires_grad_(False)
    state = one.state_dict()
    for name, tensor in state.items():
        if "c_attn" in name:  # 12 queries, and 4 dimensions of the head that all three share
            state[name] = torch.cat([tensor[:12], *[tensor[12:]] * 3])
    each.load_state_dict(state)
    tokens = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(one(tokens), each(tokens), atol=1e-5)
    assert Units(one, KV_UNITS["kv"]).shape == (2, 1, 4)
    again = from_state_dict(to_hf_state_dict(one), hf_config(one), "it")
    assert again.config == one.config and torch.equal(again(tokens), one(tokens))


@pytest.mark.slow
def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        analyzer = KVCircuitAnalyzer(known_circuit(), dataclasses.replace(SMALL, steps=10), run_dir=tmp_path / name)
        analyzer.run_analysis(*loaders())
        digests.add(tuple(files.sha256(path) for path in analyzer.save_results()))
    assert len(digests) == 1
