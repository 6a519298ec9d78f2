"""Profiles and their comparison: formulas by hand, planted differences and none, tokenizers, budgets, the pages."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import mechint
from mechint import Edit
from mechint.analyses.comparison.analyzer import Profiler, per_byte
from mechint.analyses.comparison.differences import comparable, compare, differences, groups, quantities
from mechint.analyses.comparison.figures import comparison_plots
from mechint.analyses.comparison.options import CompareConfig, lengths
from mechint.analyses.comparison.report import write_model_comparison
from mechint.analyses.comparison.residual_stream import dynamics, jackknife, stream_numbers
from mechint.analyses.comparison.runs import at_best_rates, last_of_each
from mechint.analyses.loader import PromptLoader
from mechint.analyses.neurons.options import NeuronConfig
from mechint.analyses.options import RunConfig
from mechint.analyses.sparsity.options import SparsityConfig
from mechint.analyses.spectra import effective_rank
from mechint.report import write_report
from mechint.report.finished import FinishedRun
from mechint.runner.drawing import comparison_lines
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.tasks import TaskConfig, make_task
from mechint.training.options import MambaArchitecture, TrainConfig
from mechint.training.variants import train_steps
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json
from mechint.utils.statistics import number
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba
from tests.helpers.profiles import of_run, profile, with_control

TASK = TaskConfig(name="recall", pairs=3, keys=8, values=8)
SMALL = CompareConfig(prompts=8, eval_prompts=10, bootstrap=100, lengths="4,8", measure=False, controls=0)


def loaders(count: int = 10) -> tuple[PromptLoader, PromptLoader]:
    task = make_task(TASK)
    return PromptLoader(task, "discovery", 8, 8, 0), PromptLoader(task, "evaluation", count, 4, 0)


def test_streams_against_plain_numpy() -> None:
    model, (_, evaluation) = tiny_mamba(2, torch.float64, n_layer=3).requires_grad_(False), loaders()
    found = dynamics(model, evaluation)
    every = [mechint.run(model, batch.tokens, ["layers.*"]) for batch in evaluation]
    x = [np.concatenate([run[f"layers.{i}.resid_post"].flatten(0, 1) for run in every]) for i in range(3)]
    centred = [stream - stream.mean(0) for stream in x]
    cka, rank = stream_numbers(found)
    _, template = np.unique(evaluation.templates(), return_inverse=True)
    row = np.repeat(template % 8, evaluation.task.length)

    def effective(stream: np.ndarray) -> float:
        p = np.linalg.svd(stream - stream.mean(0), compute_uv=False) ** 2
        p = p[p > 1e-15 * p.sum()] / p.sum()
        return float(np.exp(-(p * np.log(p)).sum()) / 10)

    for i in range(3):
        for j in range(3):
            cross = np.linalg.norm(centred[i].T @ centred[j]) ** 2
            own = np.linalg.norm(centred[i].T @ centred[i]) * np.linalg.norm(centred[j].T @ centred[j])
            assert cka[i][j]["value"] == pytest.approx(cross / own, rel=1e-9)
        p = np.linalg.svd(centred[i], compute_uv=False) ** 2
        p = p / p.sum()
        assert rank[i]["value"] == pytest.approx(np.exp(-(p[p > 1e-15] * np.log(p[p > 1e-15])).sum()) / 10, rel=1e-6)
        assert rank[i]["low"] <= rank[i]["value"] <= rank[i]["high"] and rank[i]["n"] == 8
        without = [effective(x[i][row != g]) for g in range(8)]  # the intervals leave out one group of templates each
        error = math.sqrt(7 / 8 * sum((value - np.mean(without)) ** 2 for value in without))
        assert rank[i]["high"] - rank[i]["value"] == pytest.approx(2.364624 * error, rel=1e-5)
        norms = np.concatenate([run[f"layers.{i}.resid_post"].square().mean(-1).sqrt().mean(-1) for run in every])
        np.testing.assert_allclose(found.norms[:, i], norms)
        update = [
            (run[f"layers.{i}.out"].norm(dim=-1) / run[f"layers.{i}.resid_post"].norm(dim=-1)).mean(-1) for run in every
        ]
        np.testing.assert_allclose(found.updates[:, i], np.concatenate(update))


def test_effective_rank_and_jackknife_by_hand() -> None:
    assert effective_rank(torch.eye(5, dtype=torch.float64)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([3.0, 0, 0, 0], dtype=torch.float64))) == pytest.approx(1 / 4)
    assert effective_rank(torch.zeros(3, 3, dtype=torch.float64)) == 0
    values = np.array([1.0, 4.0, 2.0, 7.0])  # of a mean, the jackknife's error is the usual one
    without = [float(np.delete(values, k).mean()) for k in range(4)]
    found = jackknife(values.mean(), without)
    assert found["high"] - found["value"] == pytest.approx(3.182446 * values.std(ddof=1) / 2, rel=1e-5)
    assert jackknife(1.0, [1.0])["interval"] == "one group of templates: no interval"


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2, tiny_llama])
def test_a_profile_holds_what_runs_by_hand_say(build: Any) -> None:
    model, (discovery, evaluation) = build(3).requires_grad_(False), loaders()
    results = Profiler(model, SMALL).run_analysis(discovery, evaluation)
    loss, effect = [], []
    for batch in evaluation:
        chosen = lambda edits, batch=batch: (
            mechint.run(model, batch.tokens, edits=edits, logits_at=batch.positions)
            .logits.log_softmax(-1)
            .gather(-1, batch.answers.unsqueeze(-1))
            .squeeze(-1)
            .mean(-1)
            .double()
        )
        gone = [Edit(f"layers.1.{site}", "replace", 0.0) for site in model.mixers]
        loss.append(-chosen([]))
        effect.append(chosen([]) - chosen(gone))
    assert results["metrics"]["loss"]["value"] == pytest.approx(float(torch.cat(loss).mean()), rel=1e-5)
    assert results["metrics"]["bits_per_byte"]["value"] == pytest.approx(
        float(torch.cat(loss).mean()) / math.log(2), rel=1e-5
    )
    assert results["curves"]["layer_effect"][1]["value"] == pytest.approx(float(torch.cat(effect).mean()), abs=1e-5)
    assert results["metrics"]["parameters"]["value"] == sum(p.numel() for p in model.parameters())
    for name in ("attention_distance", "attention_entropy", "unit_effect_gini"):
        assert all(0 <= entry["value"] <= 1 for entry in results["curves"][name])
    most = getattr(model.config, "n_ctx", 9)
    assert [(entry["length"], entry["bytes"] is None) for entry in results["memory"]] == [
        (length, length > most) for length in (4, 8)
    ]
    gain = results["metrics"]["gain_per_mflop"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["value"] == pytest.approx(
        (math.log(24) - results["metrics"]["loss"]["value"]) / results["metrics"]["flops_per_token"]["value"] * 1e6
    )


def test_a_transformer_that_reads_only_itself_has_no_distance_and_no_entropy() -> None:
    model, (discovery, evaluation) = tiny_gpt2(1, n_layer=1, n_ctx=16).requires_grad_(False), loaders()
    with torch.no_grad():
        model.layers[0].attn.c_attn.weight[:24] = 0  # queries and keys: even attention
        model.layers[0].attn.c_attn.bias[:24] = 0
    curves = Profiler(model, SMALL).run_analysis(discovery, evaluation)["curves"]
    length = evaluation.task.length
    even = [sum(i - j for j in range(i + 1)) / (i + 1) / length for i in range(1, length)]
    assert curves["attention_distance"][0]["value"] == pytest.approx(np.mean(even), rel=1e-5)
    assert curves["attention_entropy"][0]["value"] == pytest.approx(1.0, rel=1e-5)


def test_bytes_of_tokens_are_counted_in_the_text(tmp_path: Path) -> None:
    class Pairs:
        """Each token is two letters and one accent: four bytes."""

        def decode(self, ids: list[int]) -> str:
            return "abé" * len(ids)

    task = make_task(TASK)
    task.tokenizer = Pairs()  # type: ignore[attr-defined]
    bits, size = per_byte(task, loaders()[1], number(2.0, 1.0, 3.0, 5, "x"))
    assert size == 4 and bits["value"] == pytest.approx(2 / 4 / math.log(2)) and bits["low"] < bits["high"]


def test_a_planted_difference_is_found_and_no_other() -> None:
    studies = [profile(seed, family, 0.3 * (family == "mamba")) for family in ("mamba", "gpt2") for seed in range(6)]
    one, other = groups(studies)
    rows, how = differences(one, other, None)
    sure = {row["quantity"] for row in rows if row["p"] is not None and row["p_adjusted"] <= 0.05}
    assert how == "paired by seed" and sure == {"gini read"}
    [row] = [row for row in rows if row["quantity"] == "gini read"]
    assert row["difference"]["low"] < 0.3 < row["difference"]["high"] and row["difference"]["n"] == 6


def test_without_a_difference_few_of_many_comparisons_find_one() -> None:
    found = 0
    for trial in range(25):
        studies = [profile(10 * trial + seed, family) for family in ("mamba", "gpt2") for seed in range(3)]
        rows, _ = differences(*groups(studies), None)
        found += any(row["p"] is not None and row["p_adjusted"] <= 0.05 for row in rows)
    assert found <= 4  # 1 is expected at most; 5 or more would come once in a hundred


def test_groups_of_other_seeds_or_budgets_are_not_paired() -> None:
    studies = [profile(0, "mamba"), profile(1, "mamba"), profile(0, "gpt2"), profile(2, "gpt2")]
    assert "Welch" in differences(*groups(studies), None)[1]
    other = [
        profile(s, f, training={"seed": s, "steps": 10 + len(f), "budget": "b"})
        for f in ("mamba", "gpt2")
        for s in (0, 1)
    ]
    assert "Welch" in differences(*groups(other), None)[1]
    alone = differences(*groups([profile(0, "mamba"), profile(0, "gpt2")]), None)
    assert alone[1] == "one seed: no interval" and all(row["p"] is None for row in alone[0])
    welch, p = compare([1.0, 2.0, 3.0], [1.5, 2.5], False)
    error = math.sqrt(1 / 3 + 0.5 / 2)
    assert welch["high"] - welch["value"] == pytest.approx(12.7062 * error, rel=1e-4) and p is not None


@pytest.mark.usefixtures("no_figures")
def test_other_tokenizers_are_compared_per_byte_alone(tmp_path: Path) -> None:
    studies = [profile(s, f, tokenizer=f) for f in ("mamba", "gpt2") for s in (0, 1)]
    names, notes = comparable(studies)
    assert names is not None and "bits_per_byte" in names and "loss" not in names
    assert "per byte" in notes[0] and len(quantities(studies[0], names)) == len(names)
    with pytest.raises(MechintError, match="different tasks"):
        comparable([studies[0], profile(0, "gpt2", task={"name": "recall"})])
    dirs = []
    for study in studies:
        dirs.append(tmp_path / f"{study.raw['label'][:4]}{study.raw['training']['seed']}")
        write_json(dirs[-1] / "results.json", study.raw)
        write_json(dirs[-1] / "manifest.json", {})
    written = write_model_comparison(dirs, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert written[-1].name == "comparison.html" and "different tokenizers" in page and "nats per token" not in page
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert len(data["runs"]) == 4 and len(data["pairs"]) == 1
    with pytest.raises(MechintError, match="at least two"):
        write_model_comparison(dirs[:1], tmp_path / "out")


@pytest.mark.parametrize(
    ("said", "problem"), [("", "no length is named"), ("8,x", "'x' is none"), ("0", "'0' is none")]
)
def test_bad_lengths_are_refused(said: str, problem: str) -> None:
    with pytest.raises(MechintError, match=problem):
        lengths(said)
    assert lengths("9, 3,3") == [3, 9]


def trained(tmp_path: Path, variants: str) -> RunConfig:
    """Tiny models, three steps each, and the options of a run on all of them that draws little."""
    config = TrainConfig(steps=3, batch_size=4, warmup=1, eval_prompts=4, output_dir=str(tmp_path), variants=variants)
    train_steps(TASK, config, MambaArchitecture(d_model=16, d_state=4))
    return RunConfig(
        checkpoint=str(tmp_path / "final_model_step*.pt"), output_dir=str(tmp_path / "out"), device="cpu", batch_size=8,
        visualize_heatmaps=False, visualize_curves=False,
    )  # fmt: skip


@pytest.mark.slow
def test_twins_are_trained_analysed_and_compared(tmp_path: Path) -> None:
    """The whole way of `make mechint`."""
    run = trained(tmp_path, "baseline,seed=1,family=gpt2+n_embd=16,family=gpt2+n_embd=16+seed=1")
    config = dataclasses.replace(SMALL, measure=True, eval_prompts=8)
    run_experiment(Experiment(run, TASK, {"compare": config}))
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "paired by seed" in page and "mamba, 2 layers of width 16" in page
    assert (tmp_path / "out" / "final_model_stepV0" / "efficiency_measured.json").exists()
    one = dataclasses.replace(
        run, checkpoint=str(tmp_path / "final_model_stepV0.pt"), output_dir=str(tmp_path / "again")
    )
    run_experiment(Experiment(one, TASK, {"compare": config}))
    again = (tmp_path / "again" / "results.json").read_bytes()
    assert again == (tmp_path / "out" / "final_model_stepV0" / "results.json").read_bytes()
    assert json.loads(again)["model"]["step"] == 3 and json.loads(again)["training"]["lr"] == TrainConfig.lr


@pytest.mark.slow
def test_neurons_and_sparsity_are_reported(tmp_path: Path) -> None:
    run = trained(tmp_path, "baseline")
    configs = {
        "neuron": NeuronConfig(prompts=4, eval_prompts=8, bootstrap=100, random=2, top_k=3, sites="gated", controls=1),
        "sparsity": SparsityConfig(prompts=4, eval_prompts=8, bootstrap=100, controls=1),
    }
    run_experiment(Experiment(run, TASK, configs))
    for kind, figures in (("neuron", 9), ("sparsity", 2)):
        directory = tmp_path / "out" / "final_model_stepV0" / kind
        page = (directory / "report.html").read_bytes()
        assert write_report(directory, heatmaps=False, curves=False)[-1].read_bytes() == page
        written = write_report(directory)
        assert len(written) == figures + 2 and all(path.stat().st_size > 1000 for path in written)
        assert not [path for path in directory.glob("*.png") if f"({path.name})" not in written[-2].read_text()]
    raw = json.loads((tmp_path / "out" / "final_model_stepV0" / "neuron" / "results.json").read_text())
    assert raw["metrics"]["units_measured"]["value"] == 64


def write_profiles(top: Path, studies: list[FinishedRun]) -> list[Path]:
    """Run directories of made-up profiles."""
    for k, study in enumerate(studies):
        write_json(top / f"run{k}" / "results.json", study.raw)
        write_json(top / f"run{k}" / "manifest.json", {})
    return [top / f"run{k}" for k in range(len(studies))]


@pytest.mark.usefixtures("no_figures")
def test_steps_of_one_training_run_are_no_seeds(tmp_path: Path) -> None:
    steps = [of_run(0, family, step) for family in ("mamba", "gpt2") for step in (100, 200, 300)]
    kept, notes = last_of_each(steps)
    assert [study.raw["training"]["steps"] for study in kept] == [300, 300] and "independent seeds" in notes[0]
    write_model_comparison(write_profiles(tmp_path, steps), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["pairs"][0]["how"] == "one seed: no interval" and len(found["runs"]) == 6
    assert last_of_each([profile(s, "mamba") for s in range(3)]) == ([profile(s, "mamba") for s in range(3)], [])


@pytest.mark.usefixtures("no_figures")
def test_families_compare_at_the_best_of_the_rates_that_each_was_trained_at(tmp_path: Path) -> None:
    """The rate 0.01 suits one family, 0.001 the other: at one of them the worse family looks better."""
    losses = {("mamba", 0.01): 2.0, ("mamba", 0.001): 2.4, ("gpt2", 0.01): 2.6, ("gpt2", 0.001): 1.9}
    studies = [
        of_run(seed, family, 100, loss + 0.001 * seed, lr) for (family, lr), loss in losses.items() for seed in range(3)
    ]
    kept, notes = at_best_rates(studies)
    rates = {study.raw["label"][:4]: study.raw["training"]["lr"] for study in kept}
    assert rates == {"mamb": 0.01, "gpt2": 0.001} and len(kept) == 6
    assert "compared at the learning rate 0.01, the best of 2" in notes[0] and "try rates beyond" in notes[1]
    write_model_comparison(write_profiles(tmp_path, studies), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    [row] = [row for row in found["pairs"][0]["rows"] if row["quantity"] == "bits_per_byte"]
    assert row["difference"]["value"] == pytest.approx(0.1) and found["findings"][0].startswith("loss (bits per byte)")


@pytest.mark.usefixtures("no_figures")
def test_one_rate_for_both_families_is_said(tmp_path: Path) -> None:
    runs = write_profiles(tmp_path, [of_run(s, f, 100) for f in ("mamba", "gpt2") for s in range(3)])
    write_model_comparison(runs, tmp_path / "out")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "one learning rate, 0.01" in page and "active" not in page.partition(">Costs</h2>")[0].partition("<body>")[2]
    assert any("one learning rate, 0.01" in line for line in comparison_lines(tmp_path / "out"))


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("of_mamba", "learned"), [(0.5, True), (0.8, False)])
def test_what_shuffled_weights_show_as_well_is_no_finding_about_training(
    tmp_path: Path, of_mamba: float, learned: bool
) -> None:
    studies = [
        with_control(profile(s, f, 0.3 * (f == "mamba")), of_mamba + 0.001 * s if f == "mamba" else 0.5)
        for f in ("mamba", "gpt2")
        for s in range(6)
    ]
    write_model_comparison(write_profiles(tmp_path, studies), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    [row] = [row for row in found["pairs"][0]["rows"] if row["quantity"] == "gini read"]
    assert row["shuffled"] == pytest.approx(of_mamba - 0.5, abs=0.01) and row["p_adjusted"] <= 0.05
    assert any(text.startswith("gini: read by output projections:") for text in found["findings"]) is learned
    assert any(text.startswith("Not told apart") and "gini: read" in text for text in found["findings"]) is not learned


def test_a_profile_has_a_control_and_the_documented_p50() -> None:
    model, (discovery, evaluation) = tiny_mamba(3).requires_grad_(False), loaders()
    results = Profiler(model, dataclasses.replace(SMALL, controls=1)).run_analysis(discovery, evaluation)
    rows = results["control"]["quantities"]
    assert results["control"]["models"] == 1 and {"layer_effect", "gini", "p50"} <= {row["quantity"] for row in rows}
    [cell] = [cell for cell in results["sparsity"] if (cell["site"], cell["layer"]) == ("gated", 0)]
    runs = [mechint.run(model, batch.tokens, ["layers.0.gated"])["layers.0.gated"].double() for batch in evaluation]
    variance = torch.cat(runs).flatten(0, 1).var(0, correction=0)
    assert cell["percentiles"]["p50"]["value"] == pytest.approx(
        float(variance.quantile(0.5) / variance.mean()), rel=1e-5
    )


@pytest.mark.slow
def test_many_checkpoints_of_two_families_are_followed_along_their_training(tmp_path: Path) -> None:
    steps = [of_run(0, f, 10 * k, 6.0 - 0.4 * min(k, 10)) for f in ("mamba", "gpt2") for k in range(12)]
    written = write_model_comparison(write_profiles(tmp_path, steps), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["along"] == "training step" and "of 2 training runs, steps 0 to 110" in found["findings"][0]
    changes = {entry["training_run"]: entry for entry in found["changes"] if entry["number"] == "bits_per_byte"}
    assert set(changes) == {"gpt20", "mamba0"} and changes["mamba0"]["since"] == "run1"
    assert changes["mamba0"]["until"] == "run9"  # the last two are as good
    assert len(written) == 4


def test_more_profiles_than_a_panel_shows_apart_are_small_multiples() -> None:
    """Groups have a panel each; the runs of a lone group have their own."""
    few = groups([profile(seed, "mamba") for seed in range(8)])
    assert [plot.name for plot in comparison_plots(few, [[[]] * 8])] == ["comparison.png"]
    several = groups([profile(seed, family) for family in ("mamba", "llama") for seed in range(5)])
    plots = {plot.name: plot for plot in comparison_plots(several, [[[]] * 5] * 2)}
    assert {"comparison.png", "comparison_update.png", "comparison_gini_read.png", "comparison_memory.png"} <= set(
        plots
    )
    assert "comparison_time.png" not in plots  # nothing was timed
    alone = {plot.name: plot for plot in comparison_plots(groups([profile(s, "mamba") for s in range(9)]), [[[]] * 9])}
    for drawn, titles in ((plots, [g.label for g in several]), (alone, [f"seed {seed}" for seed in range(9)])):
        figure = Figure()
        drawn["comparison_update.png"].draw(figure)
        panels = [place for place in figure.axes if place.get_visible()]
        assert [place.get_title(loc="center") or place.get_title(loc="left") for place in panels] == titles
        assert [len(place.lines) for place in panels] == [10 // len(titles) or 1] * len(titles)
