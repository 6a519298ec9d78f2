"""Results of 4 or 5 templates have intervals and no p-value: every analysis still prints and draws what there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.base import analyses
from mechint.analyses.options import RunConfig
from mechint.ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS
from mechint.runner.experiment import analyse
from mechint.runner.preparation import Prepared
from mechint.runner.request import Experiment
from mechint.tasks import TaskConfig
from mechint.utils.rundir import weights_digest

SMALL: dict[str, Any] = {
    "prompts": 16, "eval_prompts": 4, "bootstrap": 100, "steps": 6, "seeds": 2, "random_circuits": 2, "controls": 1,
    "min_accuracy": 0.0, "measure": False, "lengths": "4,8", "examples": 2, "draws": 20, "tokens": False, "random": 2,
    "search": "budget", "budget": 6, "target_sparsity": 0.9, "removed_units": 4, "ablation": "zero",
}  # fmt: skip
"""Given to each analysis that has such an option."""
OWN: dict[str, dict[str, Any]] = {"trace": {"draws": 1, "sites": "resid_post,out"}, "kv": {"search": "sparsity"},
                                  "hybrid": {"kinds": "channel,mode"}}  # fmt: skip
ELSEWHERE = {
    "study": "refuses so few prompts before it starts",
    "feature": "takes dictionaries; its pages are those of a circuit",
    "probe": "refuses labels that so few templates cannot tell from chance",
    "sae": "its intervals are over documents",
}


def configured(name: str) -> Any:
    made = analyses()[name].config
    fields = {field.name for field in dataclasses.fields(made)}
    return made(**({key: value for key, value in SMALL.items() if key in fields} | OWN.get(name, {})))


@pytest.mark.slow_except("sparsity")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "neuron"))
        for name in analyses()
        if name not in ELSEWHERE
    ],
)
def test_no_p_value_is_no_traceback(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mamba = "k" not in analyses()[name].needs
    compiled = {**BLUEPRINTS, **GPT2_BLUEPRINTS}["most_recent" if mamba else "gpt2_most_recent"]().compile(seed=0)
    compiled.model.metadata = {}
    asked = Experiment(RunConfig(checkpoint="a.pt"), TaskConfig(), {name: configured(name)})
    directory = tmp_path / "out"
    prepared = Prepared(compiled.model, {name: compiled.task}, weights_digest(compiled.model))
    analyse(asked, "a.pt", {("a.pt", name): directory}, prepared, only=True)
    page, said = (directory / "report.html").read_text(), capsys.readouterr().out
    assert "no p-value" in said and "no p-value" in page
    assert "nan" not in said.lower().split() and ">nan" not in page.lower()
