"""The page of any results: every number of results.json is on it, and nothing is claimed of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechint.report.finished import Drawn
from mechint.report.results import Row
from mechint.report.tables import generic, plots
from mechint.utils.errors import MechintError


def number(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - 0.25, "high": value + 0.5, "n": 12, "interval": "95 % interval", **more}


def finished(folder: Path, **found: Any) -> Path:
    raw = {
        "schema": 1, "status": "complete", "analysis": "thing", "title": "A thing", "checkpoint": "m.pt",
        "report": "thing", "model": {"family": "mamba"}, "task": {"name": "recall"}, "config": {}, "notes": ["A note."],
        "metrics": {}, **found,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(raw))
    (folder / "manifest.json").write_text("{}")
    return folder


def test_numbers_are_tables_cells_are_maps_and_curves_are_lines(tmp_path: Path, no_figures: None) -> None:
    run = finished(
        tmp_path,
        metrics={"how_far": number(2.5), "alone": {"value": 7.0, "low": None, "high": None, "n": 3}},
        cells=[
            {"layer": layer, "site": site, "name": name, "drop": number(layer + 0.125, p=0.03)}
            for layer in range(3) for site in ("out", "resid_post") for name in ("last", "first")
        ],
        units=[{"layer": 1, "site": "u", "unit": 17, "effect": number(0.75)}],
        curve=[{"layer": layer, "kept": number(1.0 - layer)} for layer in range(3)],
        extra={"loss": number(9.125)},
    )  # fmt: skip
    written = [path.name for path in generic.write_results(run)]
    assert written == [
        "thing_metrics.png", "thing_map_out_drop.png", "thing_map_resid_post_drop.png", "thing_curve.png",
        "thing_report.md", "report.html",
    ]  # fmt: skip
    text = (tmp_path / "thing_report.md").read_text()
    for said in ("how far", "2.50 [2.25, 3.00]", "0.03", "resid_post", "9.12", "| 17 ", "A note."):
        assert said in text, said
    assert generic.headline(run) == "A thing: alone 7; how far 2.50 [2.25, 3.00]."


def test_a_map_shows_its_cells(tmp_path: Path) -> None:
    cells = [{"layer": layer, "site": "out", "name": name, "drop": number(layer + 0.125)}
             for layer in range(3) for name in ("last", "first")]  # fmt: skip
    generic.write_results(finished(tmp_path, cells=cells))
    data = (tmp_path / "thing_map_out_drop.csv").read_text()
    assert data.count("2.125") == 2 and "layer" in data and "first" in data


def test_only_what_is_asked_for_is_drawn(tmp_path: Path) -> None:
    run = finished(tmp_path, cells=[{"layer": 0, "drop": number(1.0)}], curve=[{"layer": 0, "kept": number(1.0)}])
    written = generic.write_results(run, Drawn(heatmaps=False, curves=False))
    assert [path.name for path in written] == ["thing_report.md", "report.html"]
    assert "no main numbers" in generic.headline(run)


def test_no_evidence_is_made_up(tmp_path: Path) -> None:
    generic.write_results(finished(tmp_path, metrics={"how_far": number(2.5)}), Drawn(False, False, False))
    assert "Evidence" not in (tmp_path / "thing_report.md").read_text()


def test_a_control_is_told_as_in_every_report(tmp_path: Path) -> None:
    row = {"quantity": "how far", "site": None, "layer": 3, "trained": number(2.5), "shuffled": number(2.25),
           "differs": False}  # fmt: skip
    control = {"weights": "shuffled", "models": 2, "failed": [], "quantities": [row]}
    run = finished(tmp_path, metrics={"how_far": number(2.5)}, control=control)
    generic.write_results(run, Drawn(False, False, False))
    text = (tmp_path / "thing_report.md").read_text()
    assert "Not told apart from shuffled weights: how far (layer 3)" in text
    assert "## Cells" not in text  # numbers of the control are not cells of the analysis


def test_more_maps_than_fit_are_said(tmp_path: Path, no_figures: None) -> None:
    cells = [{"layer": 0, "site": f"s{k}", "drop": number(1.0)} for k in range(generic.MAPS + 3)]
    written = generic.write_results(finished(tmp_path, cells=cells))
    assert sum("_map_" in path.name for path in written) == generic.MAPS
    assert "3 more are in the table alone" in (tmp_path / "thing_report.md").read_text()


@pytest.mark.parametrize("alone", [False, True])
def test_lines_for_the_terminal_hold_every_metric(alone: bool) -> None:
    ends = {"low": None, "high": None} if alone else {}
    results = {"metrics": {f"m_{k}": {**number(value), **ends} for k, value in enumerate((-3.5, 0.0, 1e6))}}
    lines = generic.metric_lines(results)
    assert [line.split()[:2] for line in lines] == [["m", str(k)] for k in range(3)]
    assert all(("[" in line) != alone for line in lines)


def test_layers_of_a_curve_are_whole_numbers() -> None:
    rows = [Row("a", "m", f"curve.{k}", "kept", None, k, None, None, k / 7, 0.0, 1.0, 9, "", None) for k in range(3)]
    axes = plots.curve(plots.axes_of(None), rows)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize("metric", ["drop", "a very long name of a number/with signs"])
def test_names_of_files_are_names_of_files(metric: str, tmp_path: Path, no_figures: None) -> None:
    written = generic.write_results(finished(tmp_path, cells=[{"layer": 0, "site": "b.c", metric: number(1.0)}]))
    assert all(path.parent == tmp_path for path in written)


# ---- several runs ---------------------------------------------------------------------------------------------------


def checkpoints(top: Path, values: list[float], **found: Any) -> list[Path]:
    """Finished runs of the checkpoints of one training, whose number ``how_far`` has these values."""
    return [
        finished(
            top / f"step{k}", checkpoint=f"train/step{k}.pt", metrics={"how_far": number(value), "of": number(1.0)},
            **found,
        )
        for k, value in enumerate(values)
    ]  # fmt: skip


def test_metrics_are_followed_along_the_training_step(tmp_path: Path, no_figures: None) -> None:
    runs = checkpoints(tmp_path, [0.0, 0.1, 9.0, 9.1])
    written = generic.write_comparison(runs, tmp_path / "all")
    assert [path.name for path in written] == [
        "comparison.json", "comparison.png", "comparison.md", "comparison.html",
    ]  # fmt: skip
    raw = json.loads((tmp_path / "all/comparison.json").read_text())
    assert raw["along"] == "training step" and [run["step"] for run in raw["runs"]] == [0, 1, 2, 3]
    assert [entry["name"] for entry in raw["numbers"]] == ["how_far", "of"]
    changed = {entry["number"]: entry["since"] for entry in raw["changes"]}
    assert changed == {"how_far": "step2", "of": None}  # intervals 0.75 wide, nine apart; and the same number
    assert raw["warnings"] and raw["warnings"][0][0] == "A note." and not [n for n in raw["notes"] if "differ in" in n]


def test_a_number_without_an_interval_is_shown_and_not_tested(tmp_path: Path, no_figures: None) -> None:
    runs = checkpoints(tmp_path, [0.0, 9.0])
    raw = json.loads((runs[1] / "results.json").read_text())
    raw["metrics"]["how_far"] |= {"low": None, "high": None}
    (runs[1] / "results.json").write_text(json.dumps(raw))
    generic.write_comparison(runs, tmp_path / "all")
    numbers = json.loads((tmp_path / "all/comparison.json").read_text())["numbers"]
    assert [(entry["name"], entry["tested"]) for entry in numbers] == [("how_far", False), ("of", True)]


def test_other_tasks_and_options_are_said(tmp_path: Path, no_figures: None) -> None:
    runs = [*checkpoints(tmp_path, [0.0]), finished(
        tmp_path / "other", metrics={"how_far": number(1.0)}, task={"name": "facts"}, config={"prompts": 3},
    )]  # fmt: skip
    generic.write_comparison(runs, tmp_path / "all")
    raw = json.loads((tmp_path / "all/comparison.json").read_text())
    assert [entry["name"] for entry in raw["numbers"]] == ["how_far"]  # the metrics that both have
    said = " ".join(raw["notes"])
    assert "differ in their tasks or prompts" in said and "differ in their options" in said


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    [run] = checkpoints(tmp_path, [0.0])
    with pytest.raises(MechintError, match="at least two finished runs; got 1"):
        generic.write_comparison([run], tmp_path)
    other = finished(tmp_path / "other", metrics={"else": number(1.0)})
    with pytest.raises(MechintError, match="no main number in common"):
        generic.write_comparison([run, other], tmp_path)
