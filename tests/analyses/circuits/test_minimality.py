"""Removing the units of a circuit one at a time, on a model whose circuit is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mechint import Edit, MechintError
from mechint.analyses.circuits.bench import removed
from mechint.analyses.circuits.evidence import Evidence, largest, share_needed
from mechint.analyses.circuits.ssm import SSMCircuitAnalyzer
from mechint.interventions.sweep import sweep
from mechint.interventions.unit_kinds import SSM_UNITS
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.circuits import KEPT, SMALL, bench, known_circuit, loaders, truth

pytestmark = pytest.mark.usefixtures("without_controls")


@pytest.mark.slow_except("(kl|logit_diff)-channel|loss-path|kl-layer|accuracy-mode")
@pytest.mark.parametrize("unit", ["channel", "path", "layer", "mode"])
@pytest.mark.parametrize("metric", ["kl", "loss", "accuracy", "logit_diff"])
def test_a_sweep_over_the_circuit_equals_one_measurement_for_each_unit(unit: str, metric: str) -> None:
    test = bench(tiny_mamba(dtype=torch.float64).requires_grad_(False), unit, "counterfactual")
    mask = (torch.rand(test.units.total, generator=torch.Generator().manual_seed(3)) < 0.7).double()
    units = mask.nonzero().flatten().tolist()[:7]
    got = removed(test, mask, units, metric)
    for k, number in enumerate(units):
        without = mask.clone()
        without[number] = 0
        torch.testing.assert_close(got[:, k], test.measure(without)[metric], rtol=0, atol=1e-6)  # metrics are float32


def test_it_tells_passengers_from_units_that_are_needed() -> None:
    needed = {(layer, channel) for layer, kept in enumerate(KEPT) for channel in kept}
    config = dataclasses.replace(
        SMALL, search="budget", budget=12, steps=10, seeds=1, bootstrap=1000, random_circuits=1
    )
    results = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    tried, number = results["leave_one_out"], results["metrics"]["minimality"]
    assert len(tried) == 12 and number["interval"] == "every unit was tried"
    assert {(entry["layer"], entry["unit"]) for entry in tried[:8]} == needed  # the worst losses come first
    idle = [entry for entry in tried if (entry["layer"], entry["unit"]) not in needed]
    assert len(idle) == 4 and all(entry["drop"]["value"] == 0 and entry["p"] == 1 for entry in idle)
    assert all(entry["p"] <= 0.05 for entry in tried[:8]) and number["value"] == 8 / 12
    together = results["metrics"]["removable_together"]
    assert 4 <= together["value"] < 8 and together["interval"] == "of 12 units, the circuit"


@pytest.mark.parametrize("most", [0, 1, 2, 7, 8, 9, 100])
def test_the_largest_count_that_may_be_is_found_in_few_tries(most: int) -> None:
    def tried(limit: int) -> list[int]:
        asked: list[int] = []

        def may(count: int) -> bool:
            asked.append(count)
            return count <= limit

        assert largest(most, may) == limit
        return asked

    for asked in map(tried, range(most + 1)):
        assert len(set(asked)) == len(asked) <= 14 and all(1 <= count <= most for count in asked)


def test_idle_units_can_go_together_and_no_needed_one_with_them() -> None:
    evidence = Evidence(bench(known_circuit()), loaders()[0], dataclasses.replace(SMALL, bootstrap=100), seed=0)
    needed = [k for k in range(28) if float(truth()[k])]
    idle = [k for k in range(28) if k not in needed]
    number = evidence.removable_together(torch.ones(28), [*idle, *needed])
    assert number["value"] == len(idle) and number["n"] == 28


def test_the_share_that_is_needed_by_hand() -> None:
    """Significant losses alone: not gains, and not losses that may be chance."""
    entries = [{"p": p, "drop": {"value": drop}} for p, drop in ((0.01, 0.2), (0.05, 0.1), (0.06, 0.3), (0.01, -0.2))]
    every = share_needed(entries, 4, 100, 0)
    assert (every["value"], every["low"], every["high"], every["interval"]) == (0.5, 0.5, 0.5, "every unit was tried")
    some = share_needed(entries, 9, 100, 0)
    assert some["value"] == 0.5 and 0 < some["low"] < 0.5 < some["high"] < 1


@pytest.mark.slow_except("3-3")
@pytest.mark.parametrize(("asked", "tried"), [(0, 0), (3, 3)])
def test_as_many_units_are_tried_as_are_asked_for(asked: int, tried: int) -> None:
    config = dataclasses.replace(SMALL, search="budget", budget=9, steps=5, seeds=1, removed_units=asked)
    results = SSMCircuitAnalyzer(known_circuit(), config).run_analysis(*loaders())
    assert len(results["leave_one_out"]) == tried
    assert ("minimality" in results["metrics"]) == bool(tried)
    if tried:
        assert "tried units" in results["metrics"]["minimality"]["interval"]


@pytest.mark.parametrize("unit", list(SSM_UNITS))
def test_the_edits_of_one_dropped_unit_are_those_of_its_mask(unit: str) -> None:
    test = bench(tiny_mamba().requires_grad_(False), unit)
    number = test.units.total - 1
    mask = torch.ones(test.units.total)
    mask[number] = 0
    dropping = test.units.dropping(number, test.fills[0])
    every = test.units.edits(mask, test.fills[0])
    assert 0 < len(dropping) < len(every)
    assert {edit.site for edit in dropping} <= {edit.site for edit in every}


def test_a_sweep_by_the_head_makes_no_logits() -> None:
    """The same numbers as one of logits, and an edit of what is never made is refused."""
    model, ids = tiny_mamba(dtype=torch.float64).requires_grad_(False), tokens(2, 5)
    cells = [[Edit("layers.0.u", "scale", 0.0)], [Edit("final_norm", "scale", 0.5, positions=[3])], []]
    at = torch.tensor([[3, 4], [0, 3]])
    logits, reads = (sweep(model, ids, cells, logits_at=at, by_head=by_head) for by_head in (False, True))
    assert reads.shape[-1] == model.config.d_model
    torch.testing.assert_close(reads @ model.ending[1].T, logits, rtol=0, atol=1e-10)
    with pytest.raises(MechintError, match="an edit of logits in a sweep that makes none"):
        sweep(model, ids, [[Edit("logits", "scale", 2.0)]], by_head=True)
