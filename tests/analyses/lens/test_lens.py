"""The analysis: its numbers against the readings of single prompts, options that cannot be done, its page and files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses.base import analyses
from mechint.analyses.lens import tuned_files
from mechint.analyses.lens.analyzer import ANALYSIS, MOST_TOKENS, LensAnalyzer, rounded
from mechint.analyses.lens.contributions import contributions
from mechint.analyses.lens.figures import clipped, drawn_parts, row_name
from mechint.analyses.lens.options import LensConfig, refuse
from mechint.analyses.lens.reading import MEASURES, LogitLens, read_answers, stream_sites
from mechint.analyses.lens.results import decided, decision, metrics_of, quantities
from mechint.analyses.loader import PromptLoader
from mechint.analyses.options import RunConfig
from mechint.runner.experiment import analyse
from mechint.runner.preparation import Prepared
from mechint.runner.request import Experiment
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.rundir import weights_digest
from mechint.utils.statistics import ClusterBootstrap
from tests.helpers.builders import tiny_gpt2, tiny_mamba

TASK = TaskConfig(name="recall", pairs=3, keys=8, values=8)
SMALL = LensConfig(prompts=12, eval_prompts=12, bootstrap=100, controls=0, examples=2, top=3)


def loaders(count: int = 12, task: TaskConfig = TASK) -> tuple[PromptLoader, PromptLoader]:
    made = make_task(task)
    return PromptLoader(made, "discovery", 12, 5, 0), PromptLoader(made, "evaluation", count, 5, 0)


def test_means_are_those_of_the_prompts_and_the_controls_are_compared() -> None:
    model, (discovery, evaluation) = tiny_gpt2(3), loaders()
    config = dataclasses.replace(SMALL, controls=2, steps=3)
    results = LensAnalyzer(model, config).run_analysis(discovery, evaluation)
    sites = stream_sites(model)
    rows = [read_answers(model, batch, sites, {"logit": LogitLens()})["logit"] for batch in evaluation]
    values = torch.cat(rows).numpy()
    logit = [entry for entry in results["readings"] if entry["name"] == "logit lens"]
    assert [(e["layer"], e["site"]) for e in logit] == [
        (int(site.split(".")[1]), site.rpartition(".")[2]) for site in sites
    ]
    for k, entry in enumerate(logit):
        assert entry["probability"]["value"] == pytest.approx(values[:, k, 0].mean())
        assert entry["logprob"]["value"] == pytest.approx(values[:, k, 1].mean())
        assert entry["rank"]["value"] == pytest.approx(np.exp(values[:, k, 2].mean()))
        assert entry["right"]["value"] == pytest.approx(values[:, k, 3].mean())
        assert entry["kl"]["value"] == pytest.approx(values[:, k, 4].mean(), abs=1e-9)
        assert entry["rank"]["low"] >= 1 and entry["probability"]["high"] <= 1
    assert results["metric"] == "logit difference"
    parts = torch.cat([contributions(model, batch, True).values for batch in evaluation]).mean(0)
    assert [e["contribution"]["value"] for e in results["contributions"]] == pytest.approx(parts.tolist())
    assert results["metrics"]["target"]["value"] == pytest.approx(float(parts.sum()), abs=1e-4)
    assert [row["layer"] for row in results["tuned"]] == [0, 0]
    assert results["control"]["models"] == 2 and len(results["control"]["quantities"]) == len(quantities(results))
    compared = [(row["quantity"], row["layer"], row["site"]) for row in quantities(results)]
    read = [(entry["layer"], entry["site"]) for entry in logit]
    assert compared[: 3 * len(read) - 1] == [
        (measure, *place)
        for measure in ("logprob", "rank", "kl")
        for place in read
        if measure != "kl" or place != read[-1]  # where the divergence from the model is 0 by definition
    ]


def test_the_decision_is_the_depth_from_which_the_answer_stays() -> None:
    right = np.array([[0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0], [0, 0.5, 1, 1]], dtype=np.float64)
    found = decided(right, [0.0, 0.5, 1.0, 2.0])
    assert found[:3].tolist() == [0.5, 2.0, 0.0] and np.isnan(found[3]) and found[4] == 1.0
    number = decision(ClusterBootstrap(range(5), 100, 0), found, 4.0)
    assert number is not None and number["value"] == pytest.approx(3.5 / 4) and number["n"] == 4
    assert decision(ClusterBootstrap(range(5), 100, 0), np.full(5, np.nan), 4.0) is None
    few = decision(ClusterBootstrap(range(5), 100, 0), np.array([4.0, 4.0, 4.0, 4.0, 0.0]), 4.0)
    assert few is not None and few["high"] == 4.0  # without the bound 5.4


def test_the_main_numbers_are_those_of_the_last_site() -> None:
    logit = np.zeros((4, 3, len(MEASURES)))
    logit[:, :, MEASURES.index("right")] = [[0, 1, 1], [0, 1, 0], [0, 1, 0], [1, 0, 1]]
    logit[:, :, MEASURES.index("logprob")] = [[-9, -8, -1], [-9, -8, -2], [-9, -8, -3], [-9, -8, -4]]
    sites = ["layers.0.resid_pre", "layers.0.resid_mid", "layers.0.resid_post"]
    found = metrics_of(ClusterBootstrap(range(4), 100, 0), logit, sites, np.arange(4.0))
    value = {name: number["value"] for name, number in found.items()}
    assert value == {
        "prompts_used": 4, "accuracy": 0.5, "logprob": -2.5, "target": 1.5, "decided_at": pytest.approx((0.5 + 1) / 2)
    }  # fmt: skip


def test_a_tuned_lens_of_a_directory_is_read_and_another_models_is_refused(tmp_path: Path) -> None:
    model = tiny_mamba(1)
    first = LensAnalyzer(model, dataclasses.replace(SMALL, steps=4), run_dir=tmp_path / "run")
    trained = first.run_analysis(*loaders())
    first.save_results()
    config = dataclasses.replace(SMALL, tuned=str(tmp_path / "run" / "tuned_lens"))
    again = LensAnalyzer(model, config).run_analysis(*loaders())
    assert again["readings"] == trained["readings"] and again["tuned"] == trained["tuned"]
    assert ANALYSIS.inputs(config, tmp_path).keys() == {"tuned lens config.json", "tuned lens params.pt"}
    with pytest.raises(MechintError, match="is of another model"):
        LensAnalyzer(tiny_mamba(2), config)
    untuned = LensAnalyzer(model, SMALL, run_dir=tmp_path / "run")
    assert untuned.run_analysis(*loaders())["tuned"] is None
    untuned.save_results()
    assert not (tmp_path / "run" / "tuned_lens").exists()


def test_what_cannot_be_done_is_refused_before_work() -> None:
    assert "leave one of them out" in str(refuse(LensConfig(steps=3, tuned="x"), TASK))
    assert "on one prompt" in str(refuse(LensConfig(steps=3), TaskConfig(name="prompt")))
    assert "plain text" in str(refuse(LensConfig(target="logit_diff"), TaskConfig(name="text")))
    assert "one prompt has no wrong answer" in str(refuse(LensConfig(target="logit_diff"), TaskConfig(name="prompt")))
    assert refuse(LensConfig(steps=3), TASK) is None
    discovery, evaluation = loaders()
    for batch in evaluation.batches:
        object.__setattr__(batch, "wrong", None)
    analyzer = LensAnalyzer(tiny_mamba(), dataclasses.replace(SMALL, target="logit_diff"))
    with pytest.raises(MechintError, match="no wrong answer"):
        analyzer.check(discovery, evaluation)
    plain = LensAnalyzer(tiny_mamba(), SMALL).run_analysis(discovery, evaluation)
    assert plain["metric"] == "logit of the answer"
    one = loaders()[0]
    for group in one.groups:
        group.template.fill_(1)
    with pytest.raises(MechintError, match="1 templates"):
        LensAnalyzer(tiny_mamba(), dataclasses.replace(SMALL, steps=3)).check(one, evaluation)


def finished(directory: Path, count: int, drawn: bool = False, **options: Any) -> Path:
    """A whole analysis of a random model, as the runner makes it."""
    task = make_task(TASK)
    model = tiny_gpt2(3)
    config = dataclasses.replace(SMALL, eval_prompts=count, **options)
    run = RunConfig(checkpoint="a.pt", visualize_heatmaps=drawn, visualize_curves=drawn)
    asked = Experiment(run, TASK, {"lens": config})
    analyse(
        asked, "a.pt", {("a.pt", "lens"): directory}, Prepared(model, {"lens": task}, weights_digest(model)), only=True
    )
    return directory


def test_the_page_has_the_map_the_curves_and_the_contributions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path / "out", 12, steps=3, controls=1)
    page, text, said = (run / "report.html").read_text(), (run / "lens_report.md").read_text(), capsys.readouterr().out
    assert not list(run.glob("*.png"))
    assert 'id="lens-map"' in page and "Tuned lens beside logit lens" in text and "layers.1.mlp_out" in text
    assert "adds" in said and "tuned lens" in said and "nan" not in page.lower().replace("nanog", "").split()
    found = mechint.results(run)
    rows = found.rows()
    assert "contributes most to the logit difference" in found.headline
    [row] = [r for r in rows if r["metric"] == "kl" and r["name"] == "tuned lens" and r["layer"] == 0
             and r["site"] == "resid_pre"]  # fmt: skip
    assert row["low"] is not None
    assert {r["name"] for r in rows if r["metric"] == "contribution"} >= {"embed", "layers.0.attn_out", "norm bias"}
    examples = json.loads((run / "examples.json").read_text())
    assert rounded([[0.123456, 2.0], 1e-9]) == [[0.1235, 2.0], 1e-9]
    assert len(examples) == 2 and len(examples[0]["lenses"]["logit"]["top"][0][0]) == 3
    tuned_files.load(run / "tuned_lens", tiny_gpt2(3))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "options"), [(1, {}), (12, {"steps": 3, "controls": 1})])
def test_figures_are_drawn_with_intervals_and_without(count: int, options: dict[str, Any], tmp_path: Path) -> None:
    run = finished(tmp_path / "out", count, True, **options)
    for name in ("lens_curves.png", "lens_contributions.png", "lens_map.png"):
        assert (run / name).stat().st_size > 10_000


def test_one_prompt_has_a_page_without_intervals(tmp_path: Path) -> None:
    run = finished(tmp_path / "out", 1, controls=2, examples=1)
    raw = json.loads((run / "results.json").read_text())
    assert raw["control"] is None and any("shuffled" in note for note in raw["notes"])
    assert all(entry["logprob"]["low"] is None for entry in raw["readings"])
    assert "no interval" in (run / "report.html").read_text()


def test_names_of_rows_and_the_parts_that_are_drawn() -> None:
    places = (("resid_pre", 0), ("resid_mid", 1), ("resid_mid_2", 1), ("resid_post", 2))
    assert [row_name(*place) for place in places] == ["embeddings", "layer 1 mid", "layer 1 mid 2", "layer 2"]
    parts = [{"name": str(k), "contribution": {"value": float((-1) ** k * k)}} for k in range(70)]
    assert [part["name"] for part in drawn_parts(parts)] == [str(k) for k in range(10, 70)]
    assert "lens" in analyses()


def test_long_prompts_are_shown_at_their_last_tokens_and_all_answers_count() -> None:
    """Plain text: every position has an answer, and prompts are longer than the map."""
    task = TaskConfig(name="text", tokenizer="bytes", length=80)
    model = tiny_mamba(1, vocab_size=256)
    analyzer = LensAnalyzer(model, dataclasses.replace(SMALL, examples=1, steps=2))
    results = analyzer.run_analysis(*loaders(4, task))
    [example] = analyzer.examples
    assert len(example["tokens"]) == MOST_TOKENS == len(example["lenses"]["tuned"]["kl"][0])
    assert results["metric"] == "logit of the answer" and results["remainder"] < 1e-3


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" Paris", " Paris"), (" ", "␣"), ("  ", "␣␣"), ("\n", "⏎"), ("a\tb", "a·b"), (" constant", " constant")],
)  # fmt: skip
def test_a_token_of_spaces_alone_does_not_look_like_an_empty_cell(token: str, shown: str) -> None:
    assert clipped(token) == shown
