"""Orders, choices and circuits of units by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses.loader import PromptLoader
from mechint.analyses.neurons import analyzer
from mechint.analyses.neurons.analyzer import NeuronAnalyzer
from mechint.tasks import make_task
from tests.helpers.builders import tiny_mamba
from tests.helpers.circuits import TASK
from tests.helpers.neurons import SMALL

CONFIG = dataclasses.replace(
    SMALL, layers="0,2", top_k=3, random=2, ablation="zero", sites="gated", max_units=4, metric="answer_logprob"
)


@pytest.fixture(scope="module")
def study() -> NeuronAnalyzer:
    return NeuronAnalyzer(tiny_mamba(2, torch.float64, n_layer=3).requires_grad_(False), CONFIG)


def ranks(study: NeuronAnalyzer) -> dict[str, torch.Tensor]:
    """Scores [unit, prompt]: of layer 0 the estimates fall with the unit, and every other one is negative."""
    found: dict[str, torch.Tensor] = {}
    for layer in (0, 2):
        site = f"layers.{layer}.gated"
        size = torch.arange(14, 0, -1, dtype=torch.float64) / (1 + layer)
        sign = torch.tensor([1.0, -1.0] * 7)
        found[site] = torch.stack([sign * size - 0.1, sign * size + 0.1], 1)
        for k, method in enumerate([*study.methods, "gradient_x_input"]):
            found[f"{site} {method}"] = torch.stack([(torch.arange(14.0) + k) % 14 + shift for shift in (0, 2)], 1)
    return found


def test_rankings_are_from_the_highest_mean_score(study: NeuronAnalyzer) -> None:
    orders = study.orders(ranks(study))
    for layer in (0, 2):
        site = f"layers.{layer}.gated"
        assert orders[f"{site} single_ablation"].tolist() == list(range(14))  # by size, whatever the sign
        for k, method in enumerate([*study.methods, "gradient_x_input"]):
            expected = sorted(range(14), key=lambda unit, k=k: -((unit + k) % 14))
            assert orders[f"{site} {method}"].tolist() == expected
        draws = [orders[f"{site} random {k}"].tolist() for k in range(2)]
        assert sorted(draws[0]) == sorted(draws[1]) == list(range(14)) and draws[0] != draws[1]
    assert orders["layers.0.gated random 0"].tolist() != orders["layers.2.gated random 0"].tolist()
    assert len(orders) == 2 * (len(study.methods) + 2 + 2)


def test_the_largest_estimates_are_chosen_of_the_layers_that_are_looked_at(study: NeuronAnalyzer) -> None:
    assert study.top(ranks(study)) == {0: [0, 1, 2], 2: [0, 1, 2]}
    parts = study.choose("gated", ranks(study))
    assert parts.chosen == (0, 1, 2, 3) and parts.total == 42  # those of layer 2 are a third of the size
    wide = NeuronAnalyzer(study.model, dataclasses.replace(CONFIG, max_units=100))
    assert wide.choose("gated", ranks(study)).chosen == (*range(14), *range(28, 42))


def test_deviations_are_over_tokens_and_prompts(study: NeuronAnalyzer) -> None:
    task = make_task(TASK)
    batches = PromptLoader(task, "discovery", 5, 3, 0).batches
    found = study.deviations(batches)
    values = [mechint.run(study.model, batch.tokens, ["layers.2.gated"])["layers.2.gated"] for batch in batches]
    rows = torch.cat([value.flatten(0, 1) for value in values]).numpy()
    assert set(found) == {"layers.0.gated", "layers.2.gated"}
    assert found["layers.2.gated"].numpy() == pytest.approx(np.std(rows, axis=0))


def test_circuits_ablate_only_layers_that_are_looked_at(study: NeuronAnalyzer) -> None:
    task = make_task(TASK)
    discovery, evaluation = (PromptLoader(task, split, 5, 3, 0) for split in ("discovery", "evaluation"))
    found = study.circuits(discovery, evaluation, ranks(study))

    def kept(units: Any) -> list[float]:
        """The metric of every prompt with these units of layers 0 and 2 alone."""
        values = []
        gates = torch.zeros(14, dtype=torch.float64)
        gates[list(units)] = 1
        for batch in evaluation:
            edits = [mechint.Edit(f"layers.{layer}.gated", "scale", gates) for layer in (0, 2)]
            logits = mechint.run(study.model, batch.tokens, edits=edits, logits_at=batch.positions).logits
            right = logits.log_softmax(-1).gather(-1, batch.answers[..., None])[..., 0]
            other = (
                logits.log_softmax(-1).gather(-1, batch.bad())[..., 0] if CONFIG.metric == "logit_diff" else 0 * right
            )
            values += (right - other).mean(-1).tolist()
        return values

    near = {"abs": 1e-4}
    assert found["full"] == pytest.approx(kept(range(14)), **near) and found["empty"] == pytest.approx(kept([]), **near)
    assert found["top"] == pytest.approx(kept([0, 1, 2]), **near)
    assert found["without"] == pytest.approx(kept(range(3, 14)), **near)
    assert len(found["random"]) == 2 and all(len(values) == 5 for values in found["random"])
    assert found["random"][0] != found["random"][1] and found["random"][0] != found["empty"]


def test_one_layer_has_effects_on_no_later_one(study: NeuronAnalyzer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[int, list[int]]] = []
    effects = {"0 2 patched": torch.zeros(5, 3, 4)}
    monkeypatch.setattr(analyzer, "layer_effects", lambda model, batch: torch.zeros(5, 3, 3))
    monkeypatch.setattr(analyzer, "unit_effects", lambda *arguments: asked.append(arguments[3]) or effects)
    batch: Any = None
    assert set(study.across(batch, {0: [1]}, {}, {})) == {"layers"} and asked == []
    found = study.across(batch, {0: [1], 2: [3]}, {}, {})
    assert found["across 0 2 patched"].shape == (3, 4, 5) and found["layers"].shape == (3, 3, 5)
