"""The control on random weights: what is compared, when two differ, and what a failure of the control says."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from mechint.analyses import random_weights as shuffled
from mechint.analyses.neurons.analyzer import NeuronAnalyzer
from mechint.analyses.neurons.results import quantities
from mechint.analyses.random_weights import compared, quantity, shuffled_models, shuffled_numbers, shuffled_weights
from mechint.analyses.sparsity.analyzer import SparsityAnalyzer
from mechint.report.content import Table
from mechint.report.control import control_findings, control_sections
from mechint.tasks.base import mix
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.circuits import known_circuit
from tests.helpers.neurons import SMALL
from tests.helpers.sparsity import SMALL as SPARSE
from tests.helpers.sparsity import loaders as sparse_loaders
from tests.helpers.tracing import loaders


def number(low: float, high: float) -> dict[str, Any]:
    return {"value": (low + high) / 2, "low": low, "high": high, "n": 4, "interval": "95 %"}


def test_two_differ_when_the_interval_is_apart_from_every_shuffled_one() -> None:
    trained = [quantity("a", number(1, 2)), quantity("b", number(1, 2), "gated", 0), quantity("c", number(1, 2), "u")]
    others = [
        [quantity("a", number(3, 4)), quantity("b", number(3, 4), "gated", 0)],
        [quantity("a", number(2.5, 3)), quantity("b", number(0, 1.5), "gated", 0)],
        "why",
    ]
    found = compared(trained, others)
    a, b, c = found["quantities"]
    assert (a["shuffled"]["low"], a["shuffled"]["high"], a["shuffled"]["n"], a["differs"]) == (2.5, 4, 2, True)
    assert a["shuffled"]["value"] == pytest.approx((3.5 + 2.75) / 2)
    assert (b["shuffled"]["low"], b["shuffled"]["high"], b["differs"]) == (0, 4, False)
    assert c["shuffled"] is None and c["differs"] is None
    assert (found["models"], found["failed"]) == (3, ["why"])
    said = control_findings(found)
    assert said[0][1].startswith("1 of 2 quantities differ") and "b (gated, layer 0)" in said[1][1]
    assert said[2] == (False, "A shuffled model could not be measured: why")
    [section] = control_sections(found)
    assert "in 3 models with the entries" in str(section)
    assert "in a model with the entries" in str(control_sections({**found, "models": 1}))
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    assert [row[-1] for row in table.rows] == ["yes", "no", "–"] and table.rows[2][3] == "–"


def test_no_controls_are_said_to_be_none() -> None:
    results = SparsityAnalyzer(tiny_mamba(), SPARSE).run_analysis(*sparse_loaders())
    assert results["control"] is None and control_sections(None) == []
    [(good, said)] = control_findings(None)
    assert not good and "Nothing was measured on shuffled weights" in said


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2])
def test_each_control_is_the_same_study_of_a_shuffled_model(build: Any) -> None:
    model, both = build(4), sparse_loaders()
    found = SparsityAnalyzer(model, dataclasses.replace(SPARSE, controls=2), seed=5).run_analysis(*both)["control"]
    seeds = [mix(5, "shuffled weights", k) for k in range(2)]
    by_hand = [
        SparsityAnalyzer(shuffled_weights(model, seed), SPARSE, seed=5).run_analysis(*both)["cells"] for seed in seeds
    ]
    assert len(found["quantities"]) == 7 * len(by_hand[0])
    for row in found["quantities"]:
        cells = [c for cells in by_hand for c in cells if (c["site"], c["layer"]) == (row["site"], row["layer"])]
        values = [c["measures"][row["quantity"]] for c in cells]
        assert row["shuffled"]["value"] == pytest.approx(sum(v["value"] for v in values) / 2)
        assert row["shuffled"]["low"] == min(v["low"] for v in values)


@pytest.mark.slow
def test_a_known_circuit_differs_from_its_shuffled_weights_and_they_from_each_other_do_not() -> None:
    model, both = known_circuit(), loaders(known_circuit(), 8, 16)
    config = dataclasses.replace(SMALL, sites="gated", controls=2, cross_layer=False)
    results = NeuronAnalyzer(model, config).run_analysis(*both)
    rows = {(row["quantity"], row["site"], row["layer"]): row for row in results["control"]["quantities"]}
    assert rows["gini of effects, necessary", "gated", None]["differs"]
    assert rows["gini of effects, necessary", "gated", None]["trained"]["value"] > 0.6
    # a model that is itself shuffled is like the others in most of what is measured
    other = NeuronAnalyzer(shuffled_weights(model, 99), config).run_analysis(*both)["control"]["quantities"]
    differing = [row["differs"] for row in other if row["differs"] is not None]
    assert sum(differing) < len(differing) / 2


def test_a_control_that_fails_is_reported_and_the_study_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, seed: int) -> Any:
        other = shuffled_weights(model, seed)
        with torch.no_grad():
            other.layers[0].D.fill_(torch.inf)
        return other

    monkeypatch.setattr(shuffled, "shuffled_weights", broken)
    config = dataclasses.replace(SMALL, sites="gated", controls=1, attention=False, cross_layer=False)
    results = NeuronAnalyzer(tiny_mamba(), config).run_analysis(*loaders(tiny_mamba(), 8, 8))
    [reason] = results["control"]["failed"]
    assert "NaN or infinite" in reason and quantities(results)
    assert all(row["shuffled"] is None for row in results["control"]["quantities"])


def test_mistakes_of_the_request_are_no_failures_of_the_control() -> None:
    with pytest.raises(MechintError, match="controls is -1"):
        NeuronAnalyzer(tiny_mamba(), dataclasses.replace(SMALL, controls=-1))


def test_numbers_of_shuffled_models_are_joined_by_layer() -> None:
    """The mean of the values between the least lower and greatest upper edge; what is not finite does not count."""
    model = tiny_mamba().requires_grad_(False)
    values = iter([1.0, 3.0, math.nan])
    seen: list[Any] = []

    def measure(other: Any) -> dict[int, Any]:
        seen.append(other)
        value = next(values)
        return {0: number(value - 1, value + 1), 1: None}

    found = shuffled_numbers(model, 7, 3, [0, 1], measure)
    assert found[1] is None and found[0] is not None
    assert [found[0][name] for name in ("value", "low", "high", "n")] == [2.0, 0.0, 4.0, 2]
    for k, (other, again) in enumerate(zip(seen, shuffled_models(model, 7, 3), strict=True)):
        weights = [dict(some.named_parameters())["embedding.weight"] for some in (other, again, model)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2]), k
        assert torch.equal(weights[0].flatten().sort().values, weights[2].flatten().sort().values)
    assert shuffled_numbers(model, 7, 0, [0], measure) == {0: None}
