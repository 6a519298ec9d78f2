"""Two identical runs of every registered analysis leave the same bytes: a new analysis has to be in the table."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.base import analyses, entries_of_analyses
from mechint.analyses.options import RunConfig
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.report.tables.schema import schema
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.tasks import TaskConfig
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.json_schema import fits

TASK = TaskConfig(name="recall", pairs=2, keys=12, values=4)
SMALL: dict[str, Any] = {
    "prompts": 16, "eval_prompts": 64, "ablation": "zero", "bootstrap": 100, "steps": 6, "seeds": 2, "random": 2,
    "random_circuits": 2, "controls": 1, "min_accuracy": 0.0, "measure": False, "lengths": "4,8", "examples": 2,
    "draws": 2, "search": "budget", "budget": 6, "target_sparsity": 0.9, "removed_units": 4, "layers": "0",
}  # fmt: skip
"""Given to each analysis that has such an option."""
OWN: dict[str, dict[str, Any]] = {
    "trace": {"sites": "resid_post"},
    "kv": {"search": "sparsity"},
    "hybrid": {"kinds": "head,mlp"},  # of a transformer, which has no heads of a recurrence
    "sae": {"tokens": 1000, "sites": "mlp_out", "layers": "0", "sparsity": "2", "ratio": "2", "seeds": 1, "batch": 64},
}
CHAINS = {**{name: (name,) for name in analyses()}, "feature": ("sae", "feature")}
"""The analyses that are run for one: itself, after those whose results it takes."""
DATED = {
    "manifest.json",
    "report.html",
    "index.html",
    "index.md",
    "index.json",
}  # a date or a duration, and pages that show it
ELSEWHERE = {"study": "tests/analyses/study/test_study.py: a study that was killed thrice equals a whole one"}
QUICK = ("sparsity",)


def configured(name: str) -> Any:
    made = analyses()[name].config
    fields = {field.name for field in dataclasses.fields(made)}
    values = {key: value for key, value in SMALL.items() if key in fields}
    return made(**(values | {key: value for key, value in OWN.get(name, {}).items() if key in fields}))


def left(name: str, checkpoint: Path, output: Path) -> dict[str, bytes]:
    """The files of a run, but for those that hold a date; the manifest without what may differ."""
    run = RunConfig(checkpoint=str(checkpoint), output_dir=str(output), batch_size=16)
    run_experiment(Experiment(run, TASK, {one: configured(one) for one in CHAINS[name]}))
    for path in output.rglob("results.json"):
        assert fits(json.loads(path.read_text()), schema(entries_of_analyses())) == []
    files = sorted(path for path in output.rglob("*") if path.is_file() and path.name not in DATED)
    found = {os.path.relpath(path, output): path.read_bytes() for path in files}
    for path in output.rglob("manifest.json"):
        raw = json.loads(path.read_text())
        for key in ("date", "seconds", "peak_memory_mib"):
            del raw[key]
        found[os.path.relpath(path, output)] = json.dumps(raw, sort_keys=True).encode()
    return found


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.exhaustive) for n in analyses() if n not in ELSEWHERE],
)
def test_two_runs_leave_the_same_bytes(name: str, tmp_path: Path) -> None:
    model = tiny_mamba() if name == "ssm" else tiny_gpt2(3)  # which answers a quarter of the prompts right
    torch.save({"model": to_hf_state_dict(model), "config": hf_config(model)}, tmp_path / "a.pt")
    found = []
    for again in ("one", "two"):
        torch.manual_seed(len(found))  # nothing may hang on what was drawn before
        random.seed(len(found))
        found.append(left(name, tmp_path / "a.pt", tmp_path / again))
    assert found[0].keys() == found[1].keys()
    assert any(path.endswith("results.json") for path in found[0])
    assert [path for path in found[0] if found[0][path] != found[1][path]] == []
