"""What lies beside a figure: its data as CSV, and the figure for a paper; the figure itself does not change by it."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechint.analyses.options import RunConfig
from mechint.report import figure_style as style
from mechint.report import write_report
from mechint.report.tables.figure_data import error_bars
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.tasks.config import TaskConfig
from mechint.utils.errors import MechintError
from tests.helpers.paths import ROOT
from tests.helpers.report_runs import build_run

ALL = ("svg", "pdf")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def saved(folder: Path, draw: Callable[[Any], None], size: tuple[float, float] = (4.0, 3.0)) -> list[dict[str, str]]:
    """The data beside a figure that has been saved."""
    return rows(style.save_figure(folder / "a.png", size, draw).with_suffix(".csv"))


def some(figure: Any) -> None:
    figure.suptitle("A title that the caption says")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1, 2], [0.5, float("nan"), 2.5], label="kept")
    left.set(xlabel="step", ylabel="loss", title="one")
    right.plot([1, 2], [3, 4])
    right.set_title("two", loc="left")


def test_points_of_a_line_are_as_they_were_given(tmp_path: Path) -> None:
    found = saved(tmp_path, some)
    assert [(r["panel"], r["title"], r["series"], r["x"], r["y"]) for r in found] == [
        ("1", "one", "kept", "0", "0.5"), ("1", "one", "kept", "2", "2.5"),
        ("2", "two", "1", "1", "3"), ("2", "two", "1", "2", "4"),
    ]  # fmt: skip
    assert (found[0]["x_axis"], found[0]["y_axis"], found[2]["x_axis"]) == ("step", "loss", "")


def test_numbers_in_the_data_are_the_very_numbers(tmp_path: Path) -> None:
    given = np.random.default_rng(0).normal(size=20) * 10.0 ** np.arange(-10, 10)
    found = saved(tmp_path, lambda figure: figure.subplots().plot(range(20), given))
    assert [float(r["y"]) for r in found] == given.tolist()


def test_intervals_of_bars_and_bands(tmp_path: Path) -> None:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.errorbar([1, 2], [5.0, 6.0], yerr=[[1, 2], [0.5, 0.25]], label="up", capsize=3)
        axes.errorbar([3], [7.0], xerr=[[0.5], [1.5]], label="along", linestyle="none")
        axes.fill_between([2, 4, 8], [0.0, 1.0, 2.0], [10.0, 11.0, 12.0], label="shade")

    found = saved(tmp_path, draw)
    assert {r["mark"] for r in found} == {"errorbar", "band"}  # caps and lines of an error bar are parts of it
    told = [(r["series"], *(float(r[k]) if r[k] else None for k in ("x", "y", "low", "high"))) for r in found]
    assert told == [
        ("up", 1, 5, 4, 5.5), ("up", 2, 6, 4, 6.25), ("along", 3, 7, 2.5, 4.5),
        ("shade", 2, None, 0, 10), ("shade", 4, None, 1, 11), ("shade", 8, None, 2, 12),
    ]  # fmt: skip


@pytest.mark.parametrize("origin", ["upper", "lower"])
def test_cells_of_a_map_stand_where_they_are_seen(tmp_path: Path, origin: Any) -> None:
    values = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 6.0]])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        image = axes.imshow(np.ma.masked_invalid(values), origin=origin)
        axes.set_xticks(range(3), ["a", "b", "50 %"])
        axes.set_yticks([0, 1], ["0", "1"])
        figure.colorbar(image)

    found = saved(tmp_path, draw)
    assert len(found) == 6 and {r["panel"] for r in found} == {"1"}  # the colour bar is no panel
    for row in found:
        cell = values[int(row["y"]), int(row["x"])]
        assert row["value"] == ("" if np.isnan(cell) else str(int(cell)))
        assert row["x_name"] == ["a", "b", "50 %"][int(row["x"])] and row["y_name"] == ""  # 0 and 1 are the places


def test_every_other_mark_has_its_rows(tmp_path: Path) -> None:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axhline(0.25)
        axes.axvline(3)
        axes.bar([1, 2], [4, 5], label="upright")
        axes.barh([1], [-2.0], label="lying")
        axes.scatter([1], [2], c=[0.5])
        axes.stairs([7, 8], [0, 1, 3])
        axes.vlines([6], 1, 2)
        axes.annotate("no data", (0, 0))

    found = [
        (r["mark"], {k: float(r[k]) for k in ("x", "y", "low", "high", "value") if r[k]}) for r in saved(tmp_path, draw)
    ]
    assert found == [
        ("bar", {"x": 1, "y": 4, "value": 4}), ("bar", {"x": 2, "y": 5, "value": 5}),
        ("bar", {"x": -2, "y": 1, "value": -2}), ("rule", {"y": 0.25}), ("rule", {"x": 3}),
        ("points", {"x": 1, "y": 2, "value": 0.5}), ("segment", {"x": 6, "y": 1}), ("segment", {"x": 6, "y": 2}),
        ("steps", {"x": 0.5, "y": 7, "low": 0, "high": 1}), ("steps", {"x": 2, "y": 8, "low": 1, "high": 3}),
    ]  # fmt: skip


def test_a_name_belongs_to_the_marks_of_its_category_alone(tmp_path: Path) -> None:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([-0.12, 0.12, 7.9, 4.0], [0, 0, 0, 0])
        axes.set_xticks([0, 8], ["layer 0", "layer 8"])

    assert [r["x_name"] for r in saved(tmp_path, draw)] == ["layer 0", "layer 0", "layer 8", ""]


@pytest.mark.slow
def test_the_png_is_the_same_whatever_lies_beside_it(tmp_path: Path) -> None:
    alone = style.save_figure(tmp_path / "a.png", (6.0, 3.0), some).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.png"]
    data = (tmp_path / "a.csv").read_bytes()
    with style.in_formats(ALL):
        assert style.save_figure(tmp_path / "a.png", (6.0, 3.0), some).read_bytes() == alone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.pdf", "a.png", "a.svg"]
    assert (tmp_path / "a.csv").read_bytes() == data


WRITE = """
import sys
from pathlib import Path
from mechint.report import figure_style as style
from tests.report.test_figure_files import ALL, some
with style.in_formats(ALL):
    style.save_figure(Path(sys.argv[1]) / "a.png", (6.0, 3.0), some)
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_without_a_date(tmp_path: Path) -> None:
    with style.in_formats(ALL):
        style.save_figure(tmp_path / "here" / "a.png", (6.0, 3.0), some)
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": f"{ROOT / 'lib'}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / "there")], env=environment, cwd=tmp_path, check=True)
    for name in ("a.csv", "a.svg", "a.pdf", "a.png"):
        first, second = ((tmp_path / place / name).read_bytes() for place in ("here", "there"))
        assert first == second, name
        assert not re.search(rb"<dc:date>|CreationDate|/Producer|Matplotlib v", first), name


def test_a_figure_for_a_paper_is_a_column_or_a_page_wide_without_its_title(tmp_path: Path) -> None:
    seen: list[Any] = []

    def watched(draw: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda figure: (seen.append(figure), draw(figure))[1]

    def one(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1])
        axes.set_title("What the caption says", loc="left")
        axes.annotate("large", (0, 0), fontsize=14)

    with style.in_formats(["svg"]):
        for draw, size in ((some, (11.0, 3.0)), (one, (7.2, 4.7))):
            style.save_figure(tmp_path / "a.png", size, watched(draw))
    from matplotlib.text import Text

    wide, paper_wide, narrow, paper_narrow = seen
    assert (wide.get_suptitle(), paper_wide.get_suptitle()) == ("A title that the caption says", "")
    assert [axes.get_title(loc="left") for axes in paper_wide.axes][1] == "two"  # panels keep theirs
    assert (narrow.axes[0].get_title(loc="left"), paper_narrow.axes[0].get_title(loc="left")) == (
        "What the caption says",
        "",
    )
    assert [paper.get_size_inches()[0] for paper in (paper_wide, paper_narrow)] == [6.9, 3.35]
    for paper in (paper_wide, paper_narrow):
        assert max(text.get_fontsize() for text in paper.findobj(Text)) <= 8.0
    assert max(text.get_fontsize() for text in narrow.findobj(Text)) == 14


@pytest.mark.parametrize(
    ("said", "means"), [("png", ()), ("", ()), ("svg", ("svg",)), ("pdf,png svg", ("svg", "pdf")), ("pdf", ("pdf",))]
)
def test_formats_that_an_option_names(said: str, means: tuple[str, ...]) -> None:
    assert style.formats_of(said, "x") == means


@pytest.mark.parametrize("said", ["eps", "png;svg", "SVG", "svg,,pdf", "svg/../x"])
def test_what_is_no_format_is_refused(said: str) -> None:
    with pytest.raises(MechintError, match="KNLP_MECHINT_FIGURE_FORMATS"):
        style.formats_of(said, "KNLP_MECHINT_FIGURE_FORMATS")


def test_a_report_is_drawn_in_the_formats_that_it_is_asked_for(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", channels=16, kept=4)
    written = write_report(run, heatmaps=False, curves=False, formats="png svg")
    assert all(path.is_file() for path in written) and written[-1].name == "report.html"
    assert {path.name for path in run.glob("faithfulness*")} == {
        f"faithfulness_curve.{end}" for end in ("png", "csv", "svg")
    }
    curve = [row for row in rows(run / "faithfulness_curve.csv") if row["mark"] == "line" and row["panel"] == "1"]
    assert curve and all(row["x"] and row["y"] for row in curve)
    with pytest.raises(MechintError, match=r"formats: no figures are written as .jpg"):
        write_report(run, formats="jpg")


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_format_that_is_none_is_refused_before_any_work(tmp_path: Path, dry_run: bool) -> None:
    run = RunConfig(mode="from_runs", run_dir=str(tmp_path), figure_formats="png,tiff")
    with pytest.raises(MechintError, match=r"figure_formats: no figures are written as .tiff"):
        run_experiment(Experiment(run, TaskConfig(), {}), dry_run)


def test_an_error_bar_without_ends_leaves_the_others_theirs() -> None:
    """A value that is missing, and one that has no interval, before one that has."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    nan = float("nan")
    axes.errorbar([0, 1, 2, 3], [1.0, nan, 3.0, 4.0], yerr=[[0.5, nan, nan, 0.25], [0.5, nan, nan, 1.0]], fmt="o")
    [container] = axes.containers
    rows = list(error_bars(container.lines[0], container.lines[2], False))
    assert [(row["x"], row["y"], row["low"], row["high"]) for row in rows] == [
        (0.0, 1.0, 0.5, 1.5), (2.0, 3.0, None, None), (3.0, 4.0, 3.75, 5.0)
    ]  # fmt: skip
