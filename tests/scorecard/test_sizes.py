"""Sizes that methods choose: against the declared circuit, and by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mechint.ground_truth import MODELS, Compiled
from mechint.scorecard import METHODS
from mechint.scorecard.hard.sizes import Sizes, declared_size
from mechint.scorecard.methods import Method
from mechint.scorecard.summary import stops
from tests.helpers.scorecards import SEED, compiled

TWIN = Method("given", lambda model, task, budget: None, "counterfactual")


def test_the_declared_size_is_of_the_smallest_set_that_the_ablation_changes() -> None:
    latch = compiled("latch")
    for ablation in ("zero", "mean", "counterfactual"):
        assert declared_size(latch, ablation) == int(latch.truth.mask(latch.model, "channel", ablation).sum()) > 0
    backup: Compiled = MODELS["backup"]().compile(seed=SEED)
    questions = backup.truth.questions
    assert questions is not None
    assert declared_size(backup, "zero") == min(map(len, questions.sufficient)) < len(questions.together)
    superposed: Compiled = MODELS["superposed_latch"]().compile(seed=SEED)
    assert declared_size(superposed, "zero") == 0  # many sets suffice


def test_an_unsure_unit_leaves_no_declared_size() -> None:
    latch = compiled("latch")
    first, *others = [part for part in latch.truth.parts if part.kind == "channel"]
    parts = (dataclasses.replace(first, unsure=("mean",)), *others)
    unsure = dataclasses.replace(latch, truth=dataclasses.replace(latch.truth, parts=parts))
    assert declared_size(unsure, "mean") == 0 < declared_size(unsure, "counterfactual")


def test_a_ranking_stops_at_the_circuit_where_it_is_on_top_and_late_where_it_is_below() -> None:
    latch = compiled("latch")
    sizes, truth = Sizes(latch, 32, 10), latch.truth.mask(latch.model, "channel", "counterfactual")
    true = int(truth.sum())
    right = sizes.of(TWIN, truth)["stops"]
    assert right["true"] == true and right["size"] <= true and right["faithfulness"] >= 0.95
    assert sizes.of(TWIN, -truth)["stops"]["size"] > len(truth) - true
    assert sizes.of(METHODS["reach"], truth) == {}  # replaces no unit
    step = Method("by the step", lambda model, task, budget: None, "step_mean")
    assert sizes.of(step, truth) == {}


@pytest.mark.slow
def test_a_mask_search_stops_at_the_circuit() -> None:
    latch = compiled("latch")
    found = Sizes(latch, 64, 60).of(METHODS["search_mean"], torch.zeros(0))["stops"]
    assert found["size"] == found["true"] and found["faithfulness"] >= 0.95


def test_ratios_are_summed_up_over_seeds() -> None:
    found = stops([{"size": 8, "true": 8, "faithfulness": 0.96}, {"size": 6, "true": 8, "faithfulness": 0.95}])["stops"]
    assert (found["ratio"]["value"], found["ratio"]["low"], found["ratio"]["high"]) == (0.875, 0.75, 1.0)
    assert (found["right"]["value"], found["right"]["n"]) == (0.5, 2)
    assert stops([]) == {}
