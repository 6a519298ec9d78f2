"""The reading stage of a grid: which dictionaries, what is written, and labels of a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.dictionaries.evaluation import Windows
from mechint.analyses.dictionaries.reading import best_at, labels_of, read_dictionary, to_read
from mechint.analyses.loader import PromptLoader
from mechint.tasks import Prompts
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.dictionaries import dictionary


class Task:
    name = "recall"

    def decode(self, token: int) -> str:
        return f"<{token}>"


def test_the_best_are_those_that_lose_the_model_least() -> None:
    entry = lambda name, rise, site="a", baseline=None: {
        "name": name, "site": site, "baseline": baseline, "metrics": {"ce_increase": {"value": rise}}
    }  # fmt: skip
    members = [entry("x", 0.3), entry("y", 0.1), entry("frozen", 0.0, baseline="frozen_decoder"), entry("z", 0.1, "b")]
    assert (
        best_at(members, "a", 2) == ["y", "x"] and best_at(members, "b", 9) == ["z"] and best_at(members, "a", 0) == []
    )


def test_the_dictionary_to_read_is_the_sparsest_that_is_nearly_as_good() -> None:
    def entry(
        name: str, l0: float, recovered: float | None, neurons: float = 0.1, baseline: str = ""
    ) -> dict[str, Any]:
        metrics = {"ce_increase": {"value": 1 - (recovered or 0.0)}, "l0": {"value": l0}}
        if recovered is not None:
            metrics["ce_recovered_mean"] = {"value": recovered}
        rival = {"neurons": {"metrics": {"ce_recovered_mean": {"value": neurons}}}}
        return {"name": name, "site": "a", "baseline": baseline, "metrics": metrics, "baselines": rival}

    grid = [entry("k2", 2, 0.5), entry("k8", 8, 0.92), entry("k16", 16, 0.95), entry("k64", 64, 0.99)]
    assert to_read(grid, "a", 1) == ["k8"]  # 0.92 of 0.99; k2 recovers half
    assert to_read(grid, "a", 9) == ["k8", "k16", "k64", "k2"] and to_read(grid, "a", 0) == []
    grid[1] = entry("k8", 8, 0.92, neurons=0.93)  # no better than as many neurons
    assert to_read(grid, "a", 1) == ["k16"]
    grid.append(entry("frozen", 1, 1.0, baseline="frozen_decoder"))
    assert to_read(grid, "a", 1) == ["k16"]
    assert to_read([entry("x", 3, None), entry("y", 2, None)], "a", 1) == best_at([entry("x", 3, None)], "a", 1)


def test_everything_is_written_and_the_same_twice(tmp_path: Path) -> None:
    model, made = tiny_mamba(), dictionary(10, 24)
    text = [Windows(tokens(3, 8, seed)) for seed in (1, 2)]
    density = torch.full((24,), 0.1)
    density[:20] = 1e-4  # too rare to be checked
    told = [
        read_dictionary(made, model, "layers.0.out", "one", text, text, Task(), density=density, checked=3, controls=4,
                        draws=100, directory=tmp_path / str(k))
        for k in range(2)
    ]  # fmt: skip
    assert told[0] == told[1] and told[0]["name"] == "one" and len(told[0]["features"]) == 3
    assert all(feature["id"] >= 20 for feature in told[0]["features"])
    for file in ("one.json", "one.causal.json"):
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "1" / file).read_bytes()
    assert len(json.loads((tmp_path / "0" / "one.json").read_text())["features"]) == 24
    none = read_dictionary(made, model, "layers.0.out", "one", text, text, Task(), density=density * 0, checked=3)
    assert none["features"] == [] and none["mode"] == "ablate"


def test_labels_are_read_where_the_answers_are() -> None:
    model, made = tiny_mamba(), dictionary(10, 24, k=24)
    task: Any = Task()

    def prompts(seed: int) -> Prompts:
        text = tokens(60, 6, seed)
        text[:, 3] = torch.arange(60) % 2 * 7 + 2  # the token at the answer's position decides the answer
        positions = torch.full((60, 1), 3)
        return Prompts(text, positions, text[:, 3:4] + 1, None, None, torch.arange(60))

    found = labels_of(made, model, "layers.0.resid_pre", [prompts(1)], [prompts(2)], task)
    assert found is not None and [entry["name"] for entry in found["classes"]] == ["<3>", "<10>"]
    assert all(entry["features"][0]["auroc"]["value"] in (0, 1) for entry in found["classes"])
    few = [prompts(1)[:4]]
    assert labels_of(made, model, "layers.0.resid_pre", few, few, task) == {
        "classes": [], "note": "no class has 5 prompts and 5 others in both halves; use more prompts"
    }  # fmt: skip
    task.name = "text"
    assert labels_of(made, model, "layers.0.resid_pre", few, few, task) is None


@pytest.mark.usefixtures("no_figures")
@pytest.mark.slow_except("True")
@pytest.mark.parametrize("given", [False, True])
def test_the_analysis_reads_and_reports(tmp_path: Path, given: bool) -> None:
    """The whole analysis on a tiny model, then again on the dictionaries that it left."""
    from mechint.analyses.dictionaries.analyzer import SAEAnalysisConfig, SAEAnalyzer
    from mechint.tasks import make_task
    from mechint.tasks.config import TaskConfig

    task = make_task(TaskConfig(name="recall", pairs=2, keys=10, values=6))
    model = tiny_mamba(vocab_size=task.vocab_size)
    loaders = [PromptLoader(task, split, 24, 12, 0) for split in ("discovery", "evaluation")]
    config = SAEAnalysisConfig(sites="out", layers="0", architectures="topk", sparsity="3", ratio="2", tokens=4096,
                               batch=256, buffer=1024, bootstrap=100, causal=2)  # fmt: skip
    run = tmp_path / "first"
    results = SAEAnalyzer(model, config, run_dir=run, seed=0).run_analysis(*loaders)
    if given:
        import dataclasses

        again = dataclasses.replace(config, dictionaries=str(run))
        results = SAEAnalyzer(model, again, run_dir=tmp_path / "second", seed=0).run_analysis(*loaders)
        run = tmp_path / "second"
    [read] = results["sae"]["read"]
    assert read["name"] == "layers.0.out-topk-k3-x2-s0" and len(read["features"]) <= 2
    assert (run / "features" / f"{read['name']}.json").is_file()
    assert "classes" in read["labels"]
