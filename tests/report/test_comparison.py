"""Comparisons of runs: their order, their overlap, and variants against the noise of seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.circuits.results import load_results
from mechint.report import figure_style as style
from mechint.report import write_comparison
from mechint.report.along_training import Change, Track, apart, axis_of, changes, dress, figure_apart, write_along
from mechint.report.finished import run_names
from mechint.report.tables.figure_data import BEHIND, as_csv
from mechint.report.values import Value
from mechint.runner.drawing import write_comparisons
from mechint.utils.checkpoint_step import training_step
from mechint.utils.errors import MechintError
from mechint.utils.files import write_bytes, write_json, write_text
from tests.helpers.report_runs import Page, build_run, edit, value


def test_a_comparison_keeps_the_order_and_measures_the_overlap(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / "out" / name, seed=seed) for seed, name in enumerate(("stepV2", "stepV10", "stepV1"))]
    written = write_comparison(list(runs), tmp_path / "out")
    assert sorted(path.suffix for path in written) == [".html", ".json", ".md", ".png"]
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [run["directory"] for run in data["runs"]] == ["stepV2", "stepV10", "stepV1"]
    sets = [load_results(run).circuit for run in runs]
    assert data["jaccard"][0][1] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1])) != 1.0
    assert [data["jaccard"][i][i] for i in range(3)] == [1.0, 1.0, 1.0]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.index("| stepV2 | 16 of 256") < text.index("| stepV10 | 16 of 256") < text.index("| stepV1 | 16 of 256")
    assert Page((tmp_path / "out" / "comparison.html").read_text()).open == []
    before = {path: path.read_bytes() for path in written}
    write_comparison(list(runs), tmp_path / "out")
    assert all(path.read_bytes() == data for path, data in before.items())


def test_models_of_different_shape_have_no_overlap_and_the_report_says_so(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / "a"), build_run(tmp_path / "b", layers=3), build_run(tmp_path / "c", text=True)]
    edit(runs[2], ablation="zero")
    write_comparison(runs, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())["jaccard"] is None
    text = (tmp_path / "comparison.md").read_text()
    assert "no units in common" in text and "differ in ablation (mean, zero)" in text and "Jaccard):" not in text


def test_runs_that_can_not_be_compared_are_refused(tmp_path: Path) -> None:
    one, two = build_run(tmp_path / "a"), build_run(tmp_path / "b")
    with pytest.raises(MechintError, match="at least two"):
        write_comparison([one], tmp_path)
    with pytest.raises(MechintError, match="named twice"):
        write_comparison([one, one], tmp_path)
    edit(two, analysis="kv")
    with pytest.raises(MechintError, match="kv, ssm"):
        write_comparison([one, two], tmp_path)
    assert run_names([Path("/x/a/ssm"), Path("/x/b/ssm")]) == ["a/ssm", "b/ssm"]


def study(tmp_path: Path, variants: list[str]) -> list[Path]:
    runs = []
    for number, variant in enumerate(variants):
        run = build_run(tmp_path / f"stepV{number}", seed=number)
        raw = json.loads((run / "results.json").read_text())
        edit(
            run,
            model={**raw["model"], "variant": variant},
            metrics__faithfulness=value(0.5 + 0.4 * ("tied" in variant)),
        )
        runs.append(run)
    return runs


@pytest.mark.usefixtures("no_figures")
def test_variants_are_named_and_held_against_training_seeds(tmp_path: Path) -> None:
    seeds = ["baseline", "seed=1", "seed=2", "seed=3"]
    runs = study(tmp_path, [*seeds, *(f"kv=tied+{s}" if "=" in s else "kv=tied" for s in seeds)])
    write_comparison(runs, tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["noise"]["kind"] == "training" and found["runs"][5]["variant"] == "kv=tied+seed=1"
    by_name = {entry["quantity"]: entry for entry in found["differences"]}
    best = by_name["faithfulness"]
    assert (best["one"], best["other"], best["counts"]) == ("baseline", "kv=tied", [4, 4])
    assert best["p"] == pytest.approx(2 / 70) and best["adjusted"] >= best["p"]
    text = (tmp_path / "out/comparison.md").read_text()
    assert "all keep the same share" in text and "smallest share" not in text.split("\n\n")[1]
    assert "stepV5 (kv=tied+seed=1)" in text and "models of a variant" in text


def test_without_training_seeds_the_noise_is_that_of_the_search(tmp_path: Path) -> None:
    write_comparison(study(tmp_path, ["baseline", "kv=tied"]), tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["noise"]["kind"] == "search" and "another training" in found["noise"]["meaning"]
    assert all(entry["least"] >= 0.1 for entry in found["differences"])
    assert "With so few seeds none could" in (tmp_path / "out/comparison.html").read_text()


def training_run(top: Path, count: int, where: str = "out/trajectory_stepV0/step{:06}.pt") -> list[Path]:
    """Circuits of one training run: accuracy jumps from 0 to 1 at its 8th checkpoint, faithfulness stays."""
    first = build_run(top / "c0")
    for k in range(count):
        run = top / f"c{k}"
        for name in ("results.json", "manifest.json") if k else ():
            write_text(run / name, (first / name).read_text())
        right = float(k >= 7)
        ends = {"low": 0.0 if right == 0 else 0.98, "high": 0.02 if right == 0 else 1.0}
        edit(run, checkpoint=where.format(100 * k), metrics__accuracy_full={"value": right, **ends, "n": 256})
    return [top / f"c{k}" for k in range(count)]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn, where only what is said is looked at."""
    monkeypatch.setattr(style, "save_figure", lambda path, size, draw: write_bytes(path, b"no figure"))


def test_beyond_eight_training_runs_every_number_has_small_multiples(tmp_path: Path, undrawn: None) -> None:
    """Eight lines share a panel; nine have a figure for each number, with a panel for each training run."""
    for count, files in ((8, ["comparison.png"]), (9, ["comparison_1.png", "comparison_2.png"])):
        raws = [
            {"analysis": "x", "title": "X", "checkpoint": f"/top/run_{run}/step{step}.pt", "model": {}}
            for run in range(count)
            for step in (0, 10)
        ]
        names = [f"r{k}" for k in range(len(raws))]
        tracks = [Track(name, name, [Value(0.5, 0.4, 0.6, 9)] * len(raws)) for name in ("one", "two")]
        out = tmp_path / str(count)
        out.mkdir()
        written = write_along(out, "X", raws, [out / name for name in names], names, tracks, [])
        assert [path.name for path in written if path.suffix == ".png"] == files


def test_small_multiples_share_axes_and_keep_the_others_in_grey() -> None:
    from matplotlib.figure import Figure

    axis = axis_of([{"checkpoint": f"/top/run_{k // 2}/step{k % 2}.pt", "model": {}} for k in range(34)])
    assert len(axis.lines) == 17
    track = Track("a", "a", [Value(float(k), k - 1.0, k + 1.0, 9) for k in range(34)])
    figure = Figure()
    figure_apart(figure, track, axis, [Change(track, axis.lines[3], 6, 7, 7, None, 0.01, 1.0)], "Title")
    panels = [place for place in figure.axes if place.get_visible()]
    assert [place.get_title(loc="center") or place.get_title(loc="left") for place in panels] == [
        f"run_{k}" for k in range(17)
    ]
    assert len({place.get_ylim() for place in panels}) == 1 and panels[16].get_ylim()[1] >= 33
    for k, place in enumerate(panels):
        assert list(place.lines[0].get_ydata()) == [2.0 * k, 2.0 * k + 1]
        assert [len(c.get_segments()) for c in place.collections if c.get_label() == BEHIND] == [16]
    assert [len(place.lines) for place in panels] == [2 if k == 3 else 1 for k in range(17)]  # dotted: the change
    rows = list(csv.DictReader(io.StringIO(as_csv(figure))))
    lines = [row for row in rows if row["mark"] == "line"]
    assert [float(row["y"]) for row in lines] == [float(k) for k in range(34)]  # each curve once
    assert {row["mark"] for row in rows} == {"line", "band", "rule"}


@pytest.mark.parametrize(("panels", "grid"), [(1, (1, 1)), (4, (1, 4)), (9, (3, 3)), (17, (4, 5)), (20, (4, 5))])
def test_the_grid_of_small_multiples(panels: int, grid: tuple[int, int]) -> None:
    assert style.grid_of(panels) == grid and style.multiples_size(panels)[0] == 11.0


def test_more_circuits_than_a_panel_shows_apart_have_their_curves_in_small_multiples(
    tmp_path: Path, undrawn: None
) -> None:
    runs = [build_run(tmp_path / f"r{k}", seed=k) for k in range(9)]
    for count, files in ((8, ["comparison.png"]), (9, ["comparison_curves.png", "comparison.png"])):
        written = write_comparison(list(runs[:count]), tmp_path / "out")
        assert [path.name for path in written if path.suffix == ".png"] == files


@pytest.mark.slow
def test_beyond_a_dozen_checkpoints_are_compared_along_the_training_step(tmp_path: Path) -> None:
    runs = training_run(tmp_path, 16)
    given = [runs[k] for k in (3, 15, 0, *(k for k in range(16) if k not in (0, 3, 15)))]
    written = write_comparison(given, tmp_path / "out")
    assert sorted(path.suffix for path in written) == [".html", ".json", ".md", ".png"]
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    changes = {entry["number"]: entry for entry in data["changes"]}
    accuracy = changes["accuracy_full"]
    assert [accuracy[end] for end in ("first", "since", "until", "last")] == ["c0", "c7", "c6", "c15"]
    assert changes["faithfulness"]["since"] is None and "p_adjusted" in changes["faithfulness"]
    assert data["tests"] == 4 * (15 + 14)  # four metrics with intervals, against the first and the last of the run
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "16 checkpoints of one training run, steps 0 to 1,500: 1 of 4 numbers certainly change" in text
    assert "accuracy: 0.0 % [0.0, 2.0] at step 0, 100.0 % [98.0, 100.0] at step 1,500" in text
    assert "the earliest that differs from the first is step 700" in text
    assert "differs from the last is step 600" in text
    assert "exceeds the noise" not in text and len(text.splitlines()) < 60


def test_what_is_written_of_many_checkpoints_does_not_grow_with_their_pairs(tmp_path: Path, undrawn: None) -> None:
    sizes = []
    for count in (13, 39):
        write_comparison(training_run(tmp_path / str(count), count), tmp_path / str(count) / "out")
        out = tmp_path / str(count) / "out"
        sizes.append([(out / f"comparison.{kind}").stat().st_size for kind in ("md", "json", "html")])
    assert sizes[1][0] < 1.2 * sizes[0][0] and sizes[1][1] < 3.2 * sizes[0][1] and sizes[1][2] < 1.2 * sizes[0][2]


def test_checkpoints_of_unknown_steps_are_compared_in_the_order_given(tmp_path: Path, undrawn: None) -> None:
    runs = training_run(tmp_path, 14)
    edit(runs[5], checkpoint="out/other.pt")
    write_comparison(runs, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.html").read_text()
    assert "The training step of 1 of the 14 checkpoints is not known: they are compared in the order given." in text
    assert "the earliest that differs from the first is checkpoint 8" in text
    assert "the first and the last checkpoint of the order given" in text and "training run" not in text
    same = training_run(tmp_path / "same", 14, "out/final_model_stepV{}.pt")
    for run in same:
        raw = json.loads((run / "results.json").read_text())
        edit(run, model={**raw["model"], "step": 1800})
    write_comparison(same, tmp_path / "same" / "out")
    assert "have the same training step" in (tmp_path / "same" / "out" / "comparison.md").read_text()


def test_places_in_an_order_are_whole_numbers_and_two_of_them_have_no_rank_correlation(tmp_path: Path) -> None:
    """Two numbers are always in perfect order, up or down."""
    track = Track("loss", "loss", [Value(2.0 - k, 1.9 - k, 2.1 - k, 9, "") for k in range(3)])
    raws: list[Any] = [{"model": {}, "checkpoint": name} for name in ("one", "other", "third")]
    for count, trend in ((2, None), (3, -1.0)):
        axis = axis_of(raws[:count])
        [change], _ = changes([dataclasses.replace(track, values=track.values[:count])], axis)
        assert change.trend == trend and axis.label == "place in the order given"
    canvas = pytest.importorskip("matplotlib.figure").Figure(figsize=(4, 3))
    axis = axis_of(raws[:2])
    panel = canvas.subplots()
    panel.plot([1, 2], [1, 2])
    dress(axis, track, [1, 2], panel)
    assert all(float(tick).is_integer() for tick in panel.get_xticks())


def test_models_of_several_sizes_are_laid_along_their_size(tmp_path: Path, undrawn: None) -> None:
    runs = training_run(tmp_path, 14, "out/final_model_stepV{}.pt")
    for k, run in enumerate(runs):
        model = json.loads((run / "results.json").read_text())["model"]
        edit(run, model={**model, "step": 1800, "parameters": 1000 * 2 ** (13 - k), "family": "mamba"})
    write_comparison(runs, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert data["along"] == "parameters" and "of one family, 1,000 to 8,192,000 parameters" in data["findings"][0]
    [own] = [entry for entry in data["changes"] if entry["number"] == "accuracy_full"]
    assert (own["first"], own["last"]) == ("c13", "c0") and own["trend"] == pytest.approx(-1.0, abs=0.2)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "at 1,000 parameters" in text and "of its family" in text and "training run" not in text
    same = json.loads((runs[3] / "results.json").read_text())["model"]
    edit(runs[3], model={**same, "parameters": 1000})  # two models of one size: seeds, which sizes do not tell apart
    write_comparison(runs, tmp_path / "out")
    assert "compared in the order given" in (tmp_path / "out" / "comparison.md").read_text()


def test_several_training_runs_are_a_line_each(tmp_path: Path, undrawn: None) -> None:
    runs = [run for s in (0, 1) for run in training_run(tmp_path / f"{s}", 8, f"out/seed{s}/checkpoint-{{}}")]
    write_comparison(runs, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert "of 2 training runs, steps 0 to 700" in data["findings"][0]
    own = [entry for entry in data["changes"] if entry["number"] == "accuracy_full"]
    assert [(entry["training_run"], entry["since"]) for entry in own] == [("out/seed0", "0/c7"), ("out/seed1", "1/c7")]


def test_many_variants_with_seeds_are_held_against_the_noise_of_seeds(tmp_path: Path, undrawn: None) -> None:
    seeds = ["baseline", *(f"seed={s}" for s in range(1, 7))]
    runs = study(tmp_path, [*seeds, *(f"kv=tied+{s}" if "=" in s else "kv=tied" for s in seeds)])
    write_comparison(runs, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "models of a variant" in text and "| baseline / kv=tied | 50.0 % / 90.0 % |" in text
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["tests"] == 0


def test_two_intervals_are_told_apart_as_their_difference_would_be() -> None:
    """Standard errors of 3 and 4 give a difference one of 5; the longer side of an interval counts."""
    of = lambda middle, error: Value(middle, middle - 1.959964 * error, middle + 1.959964 * error, 9)
    for gap, p in ((0.0, 1.0), (5.0, 0.317311), (9.79982, 0.05), (-12.879146, 0.01)):
        assert apart(of(0.0, 3.0), of(gap, 4.0)) == pytest.approx(p, abs=1e-6)
    skewed = Value(0.0, -1.0, 30.0, 9)
    assert apart(skewed, of(10.0, 1.0)) == pytest.approx(0.515, abs=0.01) and apart(skewed, of(-10.0, 1.0)) < 1e-10
    assert apart(Value(0.0, math.nan, math.nan, 9), of(1.0, 1.0)) is None


@pytest.mark.parametrize("count", [2, 14])
def test_a_comparison_shows_what_its_members_warn_of(
    tmp_path: Path, count: int, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Page, Markdown and terminal; the warnings of several runs are one, with the runs named."""
    runs = training_run(tmp_path, count)
    for k in (0, 1):
        edit(runs[k], metrics__mask_on_random_weights=value(0.95 + 0.01 * k), notes=["Few clusters."])
    if count > 2:
        for run in runs[2:]:
            edit(run, notes=[])
    write_comparisons(runs, tmp_path / "out")
    said = capsys.readouterr().out
    for text in (said, *((tmp_path / "out" / f"comparison.{kind}").read_text() for kind in ("md", "html"))):
        assert "NO evidence of a circuit here" in text and "Few clusters." in text
    assert ("all 2: Few clusters." if count == 2 else "c0, c1: Few clusters.") in said
    assert "numbers of the first" in said


def test_a_comparison_without_warnings_says_so(tmp_path: Path, undrawn: None) -> None:
    runs = training_run(tmp_path, 2)
    for run in runs:
        edit(run, notes=[])
    write_comparison(runs, tmp_path / "out")
    assert "No run's own report has a warning." in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("metadata", "name", "step"),
    [
        ({"iter_num": 1800}, "out/final_model_stepV0.pt", 1800), ({"global_step": 7}, "out/last.ckpt", 7),
        ({}, "out/trajectory_stepV0/step000600.pt", 600), ({}, "out/checkpoint-500", 500), ({}, "out/step-3.pt", 3),
        ({}, "out/final_model_stepV3.pt", None), ({"step": True}, "state-spaces/mamba-130m-hf", None),
        ({"iter_num": -1}, "m2.pt", None),
    ],
)  # fmt: skip
def test_the_training_step_is_what_the_checkpoint_says_or_is_named(metadata: Any, name: str, step: int | None) -> None:
    assert training_step(metadata, name) == step


def test_a_trainers_directory_says_its_step(tmp_path: Path) -> None:
    write_json(tmp_path / "trainer_state.json", {"global_step": 250})
    assert training_step({}, str(tmp_path)) == 250
    (tmp_path / "trainer_state.json").write_text("{")
    assert training_step({}, str(tmp_path)) is None
