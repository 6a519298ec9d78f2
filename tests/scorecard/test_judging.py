"""The scorecard's judgement: what a method is asked for, on random weights too, and what everything costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.circuits.methods.attention import attention_units
from mechint.analyses.circuits.methods.single_units import exchange_effects
from mechint.ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS, score_method, score_units
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from mechint.scorecard import ScorecardConfig, scorecard
from mechint.scorecard.card import within_layers
from mechint.scorecard.methods import METHODS, Budget, Method, outside_method, patched
from mechint.scorecard.traces import random_model, unrelated
from mechint.utils.errors import MechintError

SEED = 100


def test_keys_and_values_are_asked_apart_on_random_weights() -> None:
    """Values that are all scored above keys are at chance: only values are to be found, and their order is drawn."""
    known = GPT2_BLUEPRINTS["gpt2_shift"]().compile(seed=SEED)
    random = dataclasses.replace(known, model=random_model(known.model, SEED))
    c = random.model.config

    def values_first(model: Any, task: Any, budget: Budget) -> torch.Tensor:
        order = torch.rand(c.n_layer, 2, c.d_model, generator=torch.Generator().manual_seed(0))
        order[:, 1] += 1
        return order.flatten()

    truth = random.truth.mask(random.model, "kv", "counterfactual").view(c.n_layer, 2, -1)
    assert truth[:, 1].any() and not truth[:, 0].any()
    alone = [score_units(truth[layer, 1], values_first(None, None, None).view(c.n_layer, 2, -1)[layer, 1]).auroc  # type: ignore[arg-type]
             for layer in range(c.n_layer) if truth[layer, 1].any()]  # fmt: skip
    found = within_layers(random, Method("values", values_first, "counterfactual"), ScorecardConfig())
    assert found == pytest.approx(sum(alone) / len(alone))
    assert score_units(truth, values_first(None, None, None).view_as(truth)).auroc > 0.6  # type: ignore[arg-type]


def test_unrelated_twins_change_what_units_do() -> None:
    """So that the real effects whose means are taken away for false positives are there."""
    known = BLUEPRINTS["latch"]().compile(seed=SEED)
    prompts, others = (known.task.sample(8, "train", seed) for seed in (0, 1))
    found = exchange_effects(known.model, unrelated(prompts, others), Units(known.model, SSM_UNITS["channel"]))
    assert float(found.abs().max()) > 1.0


@pytest.mark.parametrize("ranking", ["attention_weighted", "gradient_guided", "rollout"])
def test_rankings_by_attention_are_those_of_the_analysis(ranking: str) -> None:
    known = BLUEPRINTS["induction"]().compile(seed=SEED)
    known.model.requires_grad_(False)
    prompts = known.task.sample(4, "discovery", 0)
    found = METHODS[ranking].scores(known.model, known.task, Budget(1, 4, 4, 1))
    one = attention_units(known.model, prompts, [1], "logit_diff", "gated")[f"layers.1.gated {ranking}"].mean(0)
    width = known.model.config.d_inner
    torch.testing.assert_close(found[width : 2 * width], one)


# ---- a method of one's own ---------------------------------------------------------------------------------------


def test_a_method_is_judged_by_what_its_ablation_can_see() -> None:
    known = GPT2_BLUEPRINTS["gpt2_shift"]().compile(seed=SEED)
    known.model.requires_grad_(False)

    def mine(model: Any, task: Any) -> torch.Tensor:
        return patched(model, task, Budget(1, 16, 16, 1, "kv"), name="patching_noise")

    assert score_method(known, mine, ablation="counterfactual").exact
    assert score_method(known, mine).auroc < 0.7  # keys of positions are the same on every prompt
    assert outside_method("mine", (mine, "counterfactual")).ablation == "counterfactual"
    assert outside_method("mine", mine).ablation == "zero"
    with pytest.raises(MechintError, match=r"mine: no ablation 'men' \(did you mean mean\?\); take mean, "):
        outside_method("mine", (mine, "men"))


def test_units_of_which_nothing_is_known_count_on_neither_side() -> None:
    known = BLUEPRINTS["latch"]().compile(seed=SEED)
    first, *rest = [part for part in known.truth.parts if part.kind == "channel"]
    others = tuple(part for part in known.truth.parts if part.kind != "channel")
    truth = dataclasses.replace(known.truth, parts=(dataclasses.replace(first, unsure=("mean",)), *rest, *others))
    mask, asked = (part(known.model, "channel", "mean") for part in (truth.mask, truth.asked))
    number = first.number(Units(known.model, SSM_UNITS["channel"]))
    assert not asked[number] and int((~asked).sum()) == 1 and not mask[number]
    assert (
        truth.mask(known.model, "channel", "mean", unsure=True)[number]
        == truth.mask(known.model, "channel")[number]
        == 1
    )
    for value in (-9.0, 9.0):  # whatever such a unit is given
        scores = mask.clone()
        scores[number] = value
        assert score_units(mask, scores, asked=asked).exact
    scores = mask.clone()
    scores[number] = 9.0
    assert not score_units(mask, scores).exact


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_a_card_costs_is_said_of_everything(tmp_path: Path) -> None:
    config = ScorecardConfig(
        models="gpt2_most_recent", seeds=1, first_seed=SEED, trace_prompts=16, null_prompts=12, null_trials=2,
        sae_tokens=0, output_dir=str(tmp_path),
    )  # fmt: skip
    results = scorecard(config)
    assert {row["what"] for row in results["costs"]} >= {"trace", "lasso", "flow_cut"}
    assert all(row["seconds"]["value"] > 0 for row in results["costs"])
    assert results["groups"] == [["gpt2_most_recent"]]
    text = (tmp_path / "scorecard.md").read_text()
    assert "| causal trace |" in text and "| – | 1 | 1 | – |" in text  # one seed has no interval
