"""All figures have titles that fit, and panels that show what their names promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from mechint.analyses.circuits.figures import search_figure
from mechint.analyses.circuits.results import load_history, load_results
from mechint.report import figure_style as style
from mechint.report.maps import dots, heat

LONG = (
    "batch_topk dictionaries at layers.11.mixer_output_before_the_gate: how often latents are active on held-out text"
)


@pytest.mark.parametrize(("columns", "width"), [(1, 3.6), (1, 7.2), (2, 7.2), (3, 10.0)])
def test_a_title_that_is_wider_than_its_room_is_broken_into_lines(tmp_path: Path, columns: int, width: float) -> None:
    seen: list[Any] = []

    def draw(figure: Any) -> None:
        seen.append(figure)
        figure.suptitle(LONG)
        for axes in figure.subplots(1, columns, squeeze=False).flat:
            axes.set_title(LONG[:60], loc="left")

    style.save_figure(tmp_path / "a.png", (width, 3), draw)
    [figure] = seen
    edge = figure.bbox
    panels = [axes.get_window_extent() for axes in figure.axes]
    title = figure.suptitle(figure.get_suptitle())
    assert "".join(title.get_text().split()) == "".join(LONG.split())  # nothing is lost
    assert title.get_window_extent().x0 >= edge.x0 and title.get_window_extent().x1 <= edge.x1
    for k, axes in enumerate(figure.axes):
        text = axes.set_title(axes.get_title(loc="left"), loc="left")
        right = panels[k + 1].x0 if k + 1 < columns else edge.x1
        assert text.get_window_extent().x1 <= right + 1 and "".join(text.get_text().split()) == "".join(
            LONG[:60].split()
        )


def test_a_title_that_fits_stays_as_it_is(tmp_path: Path) -> None:
    seen: list[Any] = []

    def draw(figure: Any) -> None:
        figure.subplots()
        figure.suptitle("Short")
        seen.append(figure)

    style.save_figure(tmp_path / "a.png", (7, 3), draw)
    assert seen[0].get_suptitle() == "Short"


@pytest.mark.filterwarnings("error")
def test_characters_that_the_font_lacks_are_code_points_in_a_figure_and_themselves_in_its_data(tmp_path: Path) -> None:
    seen: list[Any] = []

    def draw(figure: Any) -> None:
        seen.append(figure)
        left, right = figure.subplots(1, 2)
        left.imshow([[1, 2], [3, 4]])
        left.set_xticks([0, 1], ["法国", "Zoë"])
        left.set_title("首都 of Paris", loc="left")
        right.plot([1, 2], [3, 4], label="日本")
        right.legend()
        right.annotate("巴黎x", (1, 3))

    data = style.save_figure(tmp_path / "a.png", (7, 3), draw).with_suffix(".csv").read_text("utf-8")
    assert "首都 of Paris" in data and "法国" in data and "日本" in data and "U+" not in data
    [figure] = seen

    def words() -> list[str]:
        axes, other = figure.axes
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        return [axes.get_title(loc="left"), *ticks, other.get_legend().texts[0].get_text(), other.texts[0].get_text()]

    before = ["首都 of Paris", "法国", "Zoë", "日本", "巴黎x"]
    with style.plain_settings():
        assert words() == before
        unspell = style.spell(figure)
        assert words() == ["U+9996 U+90FD of Paris", "U+6CD5 U+56FD", "Zoë", "U+65E5 U+672C", "U+5DF4 U+9ECE x"]
        unspell()
        assert words() == before


@pytest.mark.parametrize(("text", "said"), [
    ("plain U+1", "plain U+1"), ("a法国b1 法.", "a U+6CD5 U+56FD b1 U+6CD5."), ("法", "U+6CD5"), ("", ""),
])  # fmt: skip
def test_unknown_characters_stand_apart_from_letters(text: str, said: str) -> None:
    assert style.with_code_points(text, str.isascii) == said


@pytest.mark.slow
def test_the_curves_of_a_search_show_sparsity_and_temperature(copy: Path) -> None:
    from matplotlib.figure import Figure

    history = copy / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    history.write_text("".join(json.dumps({**row, "temperature": 1 / (1 + row["step"])}) + "\n" for row in rows))
    results = load_results(copy)
    with style.plain_settings():
        figure = Figure()
        search_figure(figure, results, load_history(results))
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert "sparsity" in labels and "temperature" in labels
    right = figure.axes[labels.index("sparsity")]
    shown = dict(zip((text.get_text() for text in right.get_yticklabels()), right.get_yticks(), strict=True))
    assert shown["50 %"] == results.total / 2 and shown["0 %"] == results.total
    lines = figure.axes[labels.index("temperature")].lines
    first = load_history(results)[0]
    assert list(lines[0].get_ydata()) == [1 / (1 + step) for step in first.column("step")]


def test_the_dots_of_a_map_stand_in_the_marked_cells_and_are_seen_in_dark_ones(tmp_path: Path) -> None:
    found: list[Any] = []

    def draw(target: Any) -> None:
        axes = target.subplots()
        heat(axes, np.array([[1.0, 0.0], [0.0, -1.0]]), 1.0)
        dots(axes, np.array([[True, False], [True, False]]))
        found.extend(axes.lines)

    style.save_figure(tmp_path / "map.png", (3.0, 3.0), draw)
    [line] = found
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0, 0], [0, 1])
    assert line.get_markeredgecolor() == "white" and line.get_markerfacecolor() == style.INK


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.4, 1.2), (0.9997, 1.0001), (0.98, 1.03), (0, 0.002), (0.5, 0.50001)]
)
def test_neighbouring_ticks_of_shares_have_names_of_their_own(low: float, high: float) -> None:
    """What a tick says is where it stands, to a tenth of the step between ticks."""
    axes = Figure().subplots()
    axes.set_ylim(low, high)
    style.percent_axis(axes)
    places = axes.get_yticks()
    axes.figure.canvas.draw()
    said = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(said)) == len(said) == len(places)
    read = [float(text.removesuffix(" %").replace("\N{MINUS SIGN}", "-")) / 100 for text in said]
    assert read == pytest.approx(places.tolist(), abs=0.1 * (places[1] - places[0]), rel=0)
    if (low, high) == (0, 1):
        assert said[1] == "20 %"
