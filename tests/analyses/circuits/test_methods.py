"""Ways of ranking units: each one's circuit end to end on models whose circuit is known, and beside the scorecard."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.circuits.analyzer import CircuitAnalyzer
from mechint.analyses.circuits.kv import KVCircuitAnalyzer, KVCircuitConfig
from mechint.analyses.circuits.kv import refuse as refuse_kv
from mechint.analyses.circuits.methods.all_methods import METHODS, SEARCH, methods_of, scores_of
from mechint.analyses.circuits.methods.evaluator import Evaluator
from mechint.analyses.circuits.ssm import SSMCircuitAnalyzer, SSMCircuitConfig, refuse
from mechint.analyses.loader import PromptLoader
from mechint.analyses.options import RunConfig
from mechint.ground_truth import MODELS, Compiled
from mechint.interventions.unit_kinds import KV_UNITS, SSM_UNITS
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.scorecard import METHODS as ROWS
from mechint.scorecard.methods import Budget
from mechint.tasks import TaskConfig
from mechint.utils import files
from mechint.utils.errors import MechintError
from tests.helpers.circuits import TASK
from tests.helpers.experiments import checkpoint

pytestmark = pytest.mark.usefixtures("without_controls")

SEED = 100
PROMPTS = 16
SMALL: dict[str, Any] = {
    "prompts": PROMPTS, "eval_prompts": PROMPTS, "random_circuits": 2, "removed_units": 0, "bootstrap": 100,
    "min_accuracy": 0.0, "steps": 10,
}  # fmt: skip
FIND = ("patching_noise", "removal")
"""Methods that find the circuits of these models to the unit, with twins' values in place of dropped ones."""


@functools.cache
def known(name: str) -> Compiled:
    compiled = MODELS[name]().compile(seed=SEED)
    compiled.model.requires_grad_(False)
    return compiled


def circuit(compiled: Compiled, method: str, **changes: Any) -> CircuitAnalyzer:
    """The analysis by a method, with as many units as the circuit has, run to its end."""
    truth = compiled.truth.mask(compiled.model, compiled.unit, "counterfactual")
    size, total = int(truth.sum()), len(truth)
    options = {**SMALL, "ablation": "counterfactual", "method": method, **changes}
    if compiled.unit == "channel":
        config = SSMCircuitConfig(**{"search": "budget", "budget": size, **options})
        analyzer: CircuitAnalyzer = SSMCircuitAnalyzer(compiled.model, config)
    else:
        kv = KVCircuitConfig(**{"search": "sparsity", "target_sparsity": 1 - size / total, **options})
        analyzer = KVCircuitAnalyzer(compiled.model, kv)
    analyzer.run_analysis(
        PromptLoader(compiled.task, "discovery", PROMPTS, PROMPTS, 0),
        PromptLoader(compiled.task, "evaluation", PROMPTS, PROMPTS, 0),
    )
    return analyzer


@functools.cache
def ranked(name: str, method: str) -> CircuitAnalyzer:
    """The circuit of a ranking that two tests look at."""
    return circuit(known(name), method)


def column(analyzer: CircuitAnalyzer, name: str) -> torch.Tensor:
    return torch.cat([entry[name].flatten() for entry in analyzer.masks.values()])


RANKINGS = [
    (model, method)
    for model, kinds in (("latch", {"channel": SSM_UNITS["channel"]}), ("gpt2_most_recent", {"kv": KV_UNITS["kv"]}))
    for method in methods_of(kinds)
    if method != SEARCH
]


FEW = (
    "latch-(attribution|removal|patching_noise|causal_necessary|weight_magnitude|random|delta_gradient|rollout)"
    "|gpt2_most_recent-(attribution_size|patching_noise|gradient_x_activation)"
)
"""A method of each kind; the scores of all of them on other models are in tests/scorecard/test_golden.py."""


def some(chosen: list[tuple[str, str]]) -> list[Any]:
    """The pairs of a model and a method, exhaustive but for :data:`FEW`."""
    few = lambda pair: re.fullmatch(FEW, "-".join(pair)) is not None
    return [pytest.param(*pair, marks=[pytest.mark.exhaustive] * (not few(pair))) for pair in chosen]


@pytest.mark.parametrize(("name", "method"), some(RANKINGS))
def test_the_circuit_of_a_ranking_is_the_top_of_its_order_and_is_judged_as_any_other(name: str, method: str) -> None:
    compiled = known(name)
    analyzer = ranked(name, method)
    metrics, scores, mask = analyzer.results["metrics"], column(analyzer, "logits"), column(analyzer, "mask")
    size = int(compiled.truth.mask(compiled.model, compiled.unit, "counterfactual").sum())
    assert metrics["units_kept"]["value"] == int(mask.sum()) == size
    assert float(scores[mask > 0].min()) >= float(scores[mask == 0].max())
    assert {"faithfulness", "completeness", "faithfulness_random", "cpr"} <= set(metrics)
    assert analyzer.results["ranking"]["method"] == method and not analyzer.results["searches"]
    assert any(METHODS[method].meaning in note for note in analyzer.results["notes"])
    if method in FIND:
        truth = compiled.truth.mask(compiled.model, compiled.unit, "counterfactual")
        assert torch.equal(mask, truth.flatten().to(mask))
        assert metrics["faithfulness"]["value"] > 0.95


SAME = {
    "patching_noise": "patching_noise", "patching_denoise": "patching_denoise", "weight_magnitude": "weight_magnitude",
    "delta_gradient": "delta_gradient", "rollout": "rollout", "attribution": "attribution_counterfactual_signed",
    "attribution_size": "attribution_counterfactual_size",
}  # fmt: skip
"""Methods of circuits, and the rows of the scorecard that ask them with the same ablation or with none."""


@pytest.mark.parametrize(
    ("name", "method"), some([(n, m) for n, m in RANKINGS if m in SAME and ROWS[SAME[m]].fits(known(n).model)])
)
def test_scores_are_those_of_the_scorecard(name: str, method: str) -> None:
    compiled = known(name)
    scored = ROWS[SAME[method]].scores(
        compiled.model, compiled.task, Budget(1, PROMPTS, PROMPTS, 10, compiled.unit)
    )  # fmt: skip
    assert torch.equal(column(ranked(name, method), "logits"), scored.flatten())


BASELINES = {"reach", "gradient_size"}
"""Rows that only show what a ranking without any run, or with one gradient, would find."""


def test_every_row_of_the_scorecard_asks_a_method_that_a_circuit_can_choose() -> None:
    asked = {row.scores.keywords["name"] for row in ROWS.values()}  # type: ignore[attr-defined]
    chosen = {
        choice
        for config in (SSMCircuitConfig, KVCircuitConfig)
        for field in dataclasses.fields(config)
        if field.name == "method"
        for choice in field.metadata["option"].choices
    }
    assert asked - BASELINES <= chosen == set(METHODS)
    assert set(ROWS) >= BASELINES


def test_the_smallest_circuit_of_a_ranking_reaches_the_target_and_one_unit_fewer_does_not() -> None:
    compiled = known("latch")
    analyzer = circuit(compiled, "removal", search="smallest", target_faithfulness=0.9)
    ranking = analyzer.results["ranking"]
    assert ranking["faithfulness_discovery"] >= 0.9
    fewer = circuit(compiled, "removal", budget=ranking["units"] - 1)
    assert fewer.results["ranking"]["faithfulness_discovery"] < 0.9


def test_a_method_that_cannot_rank_is_refused_before_the_work() -> None:
    recall, text = TaskConfig(name="recall"), TaskConfig(name="text")
    refused = refuse(SSMCircuitConfig(method="rollout", unit="path"), recall)
    assert refused is not None and "rollout" in refused and "paths" in refused
    assert "twins" in str(refuse(SSMCircuitConfig(method="patching_noise"), text))
    assert "penalty" in str(refuse_kv(KVCircuitConfig(method="removal", search="penalty"), recall))
    assert refuse(SSMCircuitConfig(method="removal"), recall) is None
    with pytest.raises(MechintError, match="weight_magnitude"):
        circuit(known("latch"), "weight_magnitude", unit="mode")


@pytest.mark.slow_except(
    "latch-(removal|causal_necessary|random)|gpt2_most_recent-(patching_noise|gradient_x_activation)"
)
@pytest.mark.parametrize(("model", "method"), RANKINGS)
def test_a_ranking_says_by_which_metric_it_scores(model: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that asks for a metric of the answers declares it; the report says where that is not the circuit's."""
    asked = []

    class Asked(Evaluator):
        @property
        def answer_metric(self) -> str:
            asked.append(method)
            return super().answer_metric

    def recorded(name: str, evaluator: Evaluator) -> torch.Tensor:
        fields = {field.name: getattr(evaluator, field.name) for field in dataclasses.fields(Evaluator)}
        return scores_of(name, Asked(**fields))

    monkeypatch.setattr("mechint.analyses.circuits.analyzer.scores_of", recorded)
    results = circuit(known(model), method).results
    shared = method.startswith("delta_") or method in ("attention_weighted", "rollout")  # computed with others that ask
    assert bool(asked) == (METHODS[method].metric == "answers") or shared
    scored_by = results["ranking"]["metric"]
    assert scored_by == {"preserved": "kl", "answers": "logit_diff"}.get(
        METHODS[method].metric, METHODS[method].metric or None
    )
    said = any(f"Its scores measure {scored_by}, not kl" in note for note in results["notes"])
    assert said == (scored_by not in (None, "kl"))


def test_a_ranking_is_run_reported_and_drawn_again(tmp_path: Path) -> None:
    config = SSMCircuitConfig(
        **{**SMALL, "prompts": 32, "eval_prompts": 32}, search="budget", budget=5, method="removal"
    )
    run = RunConfig(checkpoint=str(checkpoint(tmp_path / "model.pt")), output_dir=str(tmp_path / "out"), device="cpu")
    run_experiment(Experiment(run, TASK, {"ssm": config}))
    results = files.read_json(tmp_path / "out" / "results.json")
    assert results["config"]["method"] == "removal" and results["ranking"]["units"] == 5
    assert "removal" in (tmp_path / "out" / "circuit_analysis_report.md").read_text()
    assert not (tmp_path / "out" / "sparsity_curves.png").exists()
