"""Whose step Δ carries the answers of the compiled models: declared, verified both ways, and found by its rankings."""

from __future__ import annotations

import dataclasses

import pytest

from mechint.ground_truth import Compiled, GroundTruth, verify
from mechint.ground_truth.truth import STEPS, margins
from mechint.ground_truth.verification import step_taken
from mechint.scorecard import METHODS, ScorecardConfig, card, summary
from mechint.scorecard.card import measure, scored
from mechint.utils.errors import MechintError
from tests.helpers.scorecards import compiled

SMALL = ScorecardConfig(patch_prompts=24)
MAMBAS = ("shift", "latch", "most_recent", "count", "modular_sum", "selective_copy", "induction", "recall")
CONSTANT = ("modular_sum", "selective_copy", "induction", "recall")
"""Models whose channels all have one step at every token."""


def with_blind(found: Compiled, at: int, blind: tuple[str, ...]) -> GroundTruth:
    parts = list(found.truth.parts)
    parts[at] = dataclasses.replace(parts[at], blind=blind)
    return dataclasses.replace(found.truth, parts=tuple(parts))


@pytest.mark.slow_except("shift|count|recall")
@pytest.mark.parametrize("name", MAMBAS)
def test_a_step_is_declared_to_carry_something_where_it_does_and_nowhere_else(name: str) -> None:
    found = compiled(name)
    prompts = found.task.sample(48, "train", 0)
    _, reference = margins(found.model, prompts)
    for part in found.truth.parts:
        for step in STEPS if part.kind == "channel" else ():
            _, logits = margins(found.model, prompts, [step_taken(found.model, part, step, prompts)])
            change = float((logits - reference).abs().max())
            assert change <= found.truth.tolerance if step in part.blind else change > 5.0, (part.name, step)


def test_a_step_that_is_wrongly_declared_to_carry_nothing_is_refused() -> None:
    found = compiled("latch")
    at = next(k for k, part in enumerate(found.truth.parts) if part.meaning == "keeps and says symbol 0")
    for step in STEPS:
        with pytest.raises(MechintError, match=f"declared the same under {step}, which changes a logit"):
            verify(found.model, with_blind(found, at, (step,)), found.task, 200)


@pytest.mark.slow_except("(latch|recall)")
@pytest.mark.parametrize("name", [name for name in MAMBAS if name != "shift"])
def test_the_gradient_of_the_step_finds_exactly_the_channels_that_it_carries(name: str) -> None:
    found = scored(compiled(name), "delta_gradient", METHODS["delta_gradient"], SMALL)
    documented = scored(compiled(name), "delta_output_variance", METHODS["delta_output_variance"], SMALL)
    # the slope at a step that is shut may be large, though the step itself carries nothing: modular_sum has one such
    assert found["exact"] is (name != "modular_sum") and not documented["exact"]
    assert documented["auroc"] < 0.99 < found["auroc"]


@pytest.mark.parametrize("name", ["latch", "most_recent"])
def test_holding_the_step_finds_the_channels_whose_step_selects(name: str) -> None:
    assert scored(compiled(name), "delta_do_mean", METHODS["delta_do_mean"], SMALL)["exact"]


@pytest.mark.slow
def test_a_method_is_not_asked_where_nothing_is_to_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CONSTANT, "shift"):
        assert not compiled(name).truth.mask(compiled(name).model, "channel", "step_mean").any()
    monkeypatch.setattr(card, "null_trials", lambda *rest: [1.0])
    few = {name: METHODS[name] for name in ("delta_do_mean", "weight_magnitude")}
    part = measure("shift", 100, dataclasses.replace(SMALL, models="shift", trace_prompts=4), few)
    assert [cell["method"] for cell in part["compiled"]] == ["weight_magnitude"]
    assert [row["method"] for row in summary.rows([part], few)] == ["weight_magnitude"]
