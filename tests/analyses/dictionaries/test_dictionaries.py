"""The analysis of dictionaries from end to end, on a model of random weights: results, resume, and bad requests."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint import sae
from mechint.analyses.dictionaries.analyzer import ANALYSIS, SAEAnalysisConfig, SAEAnalyzer, refuse
from mechint.analyses.dictionaries.report import to_log
from mechint.analyses.loader import PromptLoader
from mechint.runner.wandb import log_numbers
from mechint.tasks import TaskConfig, make_task
from mechint.utils import files, wandb_run
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_mamba

TASK = TaskConfig()
CONFIG = SAEAnalysisConfig(
    layers="1", architectures="topk,relu", sparsity="3", penalty="4", ratio="2,4", tokens=6000, batch=500, buffer=2000,
    lr=0.005, dead_after=2000, prompts=16, eval_prompts=16, bootstrap=100, causal=0, read=0,
)  # fmt: skip


def analyse(directory: Path | None, config: SAEAnalysisConfig = CONFIG, **others: Any) -> SAEAnalyzer:
    task = make_task(TASK)
    model = tiny_mamba(vocab_size=task.vocab_size)
    loaders = [PromptLoader(task, split, 16, 8, 0) for split in ("discovery", "evaluation")]
    analyzer = SAEAnalyzer(model, config, run_dir=directory, **others)
    analyzer.run_analysis(*loaders)
    return analyzer


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SAEAnalyzer:
    return analyse(tmp_path_factory.mktemp("run"))


def test_the_grid_is_every_sparsity_at_every_width_with_its_control(done: SAEAnalyzer) -> None:
    site = "layers.1.resid_post"
    expected = {
        f"{site}-{kind}-x{ratio}-{end}"
        for kind in ("topk-k3", "relu-l4")
        for ratio in (2, 4)
        for end in ("s0", "frozen-decoder", "frozen-encoder")
    }
    members = done.results["sae"]["members"]
    assert {member["name"] for member in members} == expected
    for member in members:
        assert member["d_sae"] == member["d_in"] * (4 if "-x4-" in member["name"] else 2)
        assert (member["baseline"] or "s0").replace("_", "-") == member["name"].partition("-x")[2].partition("-")[2]
        for number in member["metrics"].values():
            assert {"value", "low", "high", "n", "interval"} <= set(number)
    json.dumps(done.results, allow_nan=False)
    assert ANALYSIS.summary(done.results)[0].split()[0] == "dictionary"


def test_dictionaries_are_saved_with_what_they_were_trained_on(done: SAEAnalyzer) -> None:
    done.save_results()
    made = sae.load(done.directory / "dictionaries" / "layers.1.resid_post-topk-k3-x2-s0")
    c = made.config
    assert (c.architecture, c.k, c.site, c.layer, c.tokens, c.model_family) == (
        "topk", 3, "layers.1.resid_post", 1, 6000, "mamba",
    )  # fmt: skip
    assert c.scale != 1.0 and c.dataset and c.context_size == make_task(TASK).length
    points = [json.loads(line) for line in (done.directory / "history.jsonl").read_text().splitlines()]
    assert {point["member"] for point in points} == set(done.members)


def test_they_are_evaluated_again_from_their_directory(done: SAEAnalyzer, tmp_path: Path) -> None:
    again = analyse(tmp_path, replace(CONFIG, dictionaries=str(done.directory)))
    named = {member["name"]: member["metrics"] for member in done.results["sae"]["members"]}
    for member in again.results["sae"]["members"]:
        assert member["metrics"] == named[member["name"]]


def test_a_dictionary_of_another_library_is_attached_and_one_that_does_not_fit_is_said(tmp_path: Path) -> None:
    width = tiny_mamba().config.d_model
    strange = sae.make(sae.SAEConfig("topk", width, 3 * width, k=2, site="backbone.layers.1"))
    with torch.no_grad():
        for parameter in strange.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    sae.save(strange.requires_grad_(False), tmp_path / "theirs")
    again = analyse(tmp_path / "run", replace(CONFIG, dictionaries=str(tmp_path / "theirs")))
    [member] = again.results["sae"]["members"]
    assert member["site"] == "layers.1.resid_post"
    assert any(note.startswith("Dictionary theirs may not fit: it explains -") for note in again.results["notes"])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_dictionaries(done: SAEAnalyzer, tmp_path: Path) -> None:
    import mechint.sae.training as training

    steps, real = 0, training.one_step

    def killed(*arguments: Any) -> str:
        nonlocal steps
        steps += 1
        if steps == 40:
            raise KeyboardInterrupt
        return real(*arguments)

    training.one_step = killed
    try:
        with pytest.raises(KeyboardInterrupt):
            task = make_task(TASK)
            model = tiny_mamba(vocab_size=task.vocab_size)
            analyzer = SAEAnalyzer(model, CONFIG, run_dir=tmp_path)
            analyzer.stages.every = 0.0
            analyzer.run_analysis(*[PromptLoader(task, split, 16, 8, 0) for split in ("discovery", "evaluation")])
    finally:
        training.one_step = real
    assert (tmp_path / ".stages" / "training.part.pt").exists()
    analyse(tmp_path)
    for name, made in done.trained.items():
        again = sae.load(tmp_path / "dictionaries" / name)
        assert torch.equal(again.W_dec, made.W_dec) and torch.equal(again.W_enc, made.W_enc), name


def test_cached_activations_give_the_same_dictionaries(done: SAEAnalyzer, tmp_path: Path) -> None:
    cached = analyse(None, replace(CONFIG, cache=str(tmp_path / "cache")))
    assert (tmp_path / "cache" / "manifest.json").is_file()
    for name, made in done.trained.items():
        assert torch.equal(cached.trained[name].W_dec, made.W_dec), name


def test_the_documented_defaults_are_accepted_and_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Latents 0.3 of the width, L1 weight 0.001, 5 % of the latents active, several epochs."""
    config = replace(
        CONFIG, ratio="0.3", penalty="0.001", sparsity="0.05", epochs=2, tokens=1000, controls=False, batch=500
    )
    results = analyse(None, config).results
    assert {member["d_sae"] for member in results["sae"]["members"]} == {3}
    told = capsys.readouterr().err
    assert "Fewer latents than dimensions" in told and "hardly makes anything sparse" in told
    assert len([note for note in results["notes"] if "latents" in note or "penalty" in note]) >= 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sites": "resid_pots"}, "no site 'layers.1.resid_pots'.*did you mean"),
        ({"layers": "7"}, "no layer 7; this model has 2"),
        ({"layers": "two"}, "give all, or numbers"),
        ({"sparsity": "500"}, "k is 500, more than the 20 latents"),
        ({"sparsity": "3,-1"}, "positive numbers"),
        ({"exclude": "pad"}, "no kind of token 'pad'.*did you mean padding"),
        ({"dictionaries": "/nowhere"}, "no such file or directory"),
    ],
)
def test_bad_requests_are_one_line_before_any_work(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(MechintError, match=message):
        SAEAnalyzer(tiny_mamba(), replace(CONFIG, **changed))


def test_what_can_be_refused_without_a_model_is() -> None:
    assert "no dictionary architecture 'vae'" in str(refuse(replace(CONFIG, architectures="vae"), TASK))
    assert "raise tokens" in str(refuse(replace(CONFIG, batch=10**6), TASK))
    assert "too little text" in str(refuse(CONFIG, TaskConfig(name="prompt")))
    assert refuse(CONFIG, TASK) is None


class Run:
    """The summary that W&B is given."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, float] = {}

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    class Table:
        def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
            self.columns, self.data = columns, data


def test_curves_and_the_table_go_to_wandb(done: SAEAnalyzer) -> None:
    done.save_results()
    facts = {"schema": 1, "status": "complete", "analysis": "sae", "title": "x", "checkpoint": "x", "config": {}}
    model = {"family": "mamba", "parameters": 1, "n_layer": 2, "d_model": 10}
    task = {"name": "recall", "description": "x"}
    files.write_json(done.directory / "results.json", {**done.results, **facts, "model": model, "task": task})
    files.write_json(done.directory / "manifest.json", {})
    run = Run()
    with wandb_run.Logged(lambda: contextlib.nullcontext(run)) as logged:
        log_numbers(Run, logged, to_log(done.directory))
    name = "layers.1.resid_post-topk-k3-x2-s0"
    curve = [row[f"mechint/training/variance_explained/{name}"] for row in run.rows[:-1] if name in str(row)]
    assert curve == [point["variance_explained"] for point in done.history[name]]
    assert len(run.rows[-1]["mechint/tables/dictionaries"].data) == 12
    assert 0 < run.summary[f"mechint/variance_explained/{name}"] <= 1
