"""Several finished runs side by side: a table, a plot on common axes, and how much their circuits share."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....report import content as blocks
from ....report import figure_style as style
from ....report.along_training import MOST, Track, axis_of, write_along
from ....report.compose import write_page
from ....report.content import Bullets, Content, Section, Table, figure, table_section
from ....report.finished import run_names
from ....report.members import Warned, gathered, member_section
from ....report.values import Value
from ....report.words import percent
from ....utils.errors import MechintError
from ....utils.files import write_json
from ..results import Results, load_results, overlap
from .variants import NOISE, Difference, differences, sentence, variant_of
from .variants import rows as difference_rows
from .words import MASKS, MEANINGS, amount, findings, interval, units_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = {
    "units_kept_k": "K kept",
    "units_kept_v": "V kept",
    "faithfulness": "faithfulness",
    "completeness": "completeness",
    "faithfulness_random": "random circuits",
    **{name: mask.label for name, mask in MASKS.items()},
    "jaccard": "stability over seeds",
    "accuracy_full": "accuracy",
    "accuracy_circuit": "accuracy of the circuit",
}


def write_comparison(run_dirs: Sequence[str | Path], output_dir: str | Path) -> list[Path]:
    """Writes comparison.json, .png, .md and .html of finished runs: beyond a dozen, along their training step.

    Args:
        run_dirs: At least two run directories of the same analysis, in the order in which they are to be shown.
        output_dir: Directory of the comparison; it may hold the run directories.

    Raises:
        MechintError: fewer than two runs, runs of different analyses, or a run that can't be read.
    """
    runs = [load_results(run_dir) for run_dir in run_dirs]
    if len(runs) < 2:
        raise MechintError(f"a comparison needs at least two finished runs; got {len(runs)}")
    kinds = sorted({run.raw["analysis"] for run in runs})
    if len(kinds) > 1:
        raise MechintError(
            f"runs of different analyses ({', '.join(kinds)}) can't be compared; compare each kind by itself"
        )
    output, names = Path(output_dir), run_names([run.directory for run in runs])
    names = [
        f"{name} ({said})" if (said := run.raw["model"].get("variant")) else name
        for name, run in zip(names, runs, strict=True)
    ]
    warned = gathered(names, (warnings(run) for run in runs))
    if len(runs) > MOST:
        return _along(runs, names, output, warned)
    matrix, reason = circuit_overlap(runs)
    tests = differences(runs, names)
    written = [write_json(output / "comparison.json", _data(runs, names, output, matrix, reason, tests, warned))]
    plots = plots_of(runs, names, matrix)
    said = [*_paragraphs(runs, names), sentence(*tests), _notes(runs, reason)]
    content = page_of(runs, names, matrix, said, plots, tests, warned)
    return [*written, *write_page(output, content, "comparison.md", page_name="comparison.html")]


def warnings(run: Results) -> list[str]:
    """The warnings of a run's own report: controls that speak against the circuit, and the analysis' notes."""
    return [*(finding.text for finding in findings(run) if not finding.good), *map(str, run.raw["notes"])]


TESTED = ("faithfulness", "completeness", "metric_full", "accuracy_full", "accuracy_circuit")
"""Metrics whose intervals are over prompts."""


def _along(runs: list[Results], names: list[str], output: Path, warned: Warned) -> list[Path]:
    """The comparison of more runs than are compared pair by pair."""
    shapes = {shape(run) for run in runs}
    axis = axis_of([run.raw for run in runs])
    tests: Tests = ("", [])
    if not axis.steps and 1 < len({variant_of(run) or name for run, name in zip(runs, names, strict=True)}) <= MOST:
        tests = differences(runs, names)  # of variants with several seeds, whose order says nothing
    notes = [
        text
        for text in (sentence(*tests) if tests[1] else "", _notes(runs, ELSEWHERE if len(shapes) > 1 else ""))
        if text
    ]
    extra = [("Differences and the noise of seeds", *difference_rows(tests[1]))] if tests[1] else []
    tracks = circuit_tracks(runs, axis.lines[0].runs[-1] if len(shapes) == 1 else None)
    raws, directories = [run.raw for run in runs], [run.directory for run in runs]
    return write_along(
        output, runs[0].raw["title"], raws, directories, names, tracks, warned, notes, not tests[1], extra
    )  # fmt: skip


def circuit_tracks(runs: list[Results], last: int | None) -> list[Track]:
    """The share of units kept, the metrics that were measured, and the overlap with the circuit of the run ``last``."""
    counted = lambda x: Value(x, math.nan, math.nan, 1)
    tracks = [Track("share_kept", "share of units kept", [counted(run.kept / run.total) for run in runs], False, True)]
    first = {name: COLUMNS[name] for name in ("accuracy_full", "accuracy_circuit", "faithfulness")}
    for name, label in {"metric_full": "metric, full model", **first, **COLUMNS}.items():
        values = [run.metrics.get(name) for run in runs]
        if any(value is not None for value in values) and (
            name != "metric_full" or len({v.value for v in values if v}) > 1
        ):
            kind = MEANINGS[name].kind
            tracks.append(Track(name, label, values, name in TESTED, kind == "share"))
    if last is not None:
        values = [counted(overlap(run.circuit, runs[last].circuit)) for run in runs]
        tracks.append(Track("overlap_last", "overlap with the last circuit (Jaccard)", values, False, True))
    return tracks


def circuit_overlap(runs: Sequence[Results]) -> tuple[list[list[float]] | None, str]:
    """The matrix of Jaccard indices of the circuits; None and the reason when their units are not the same things."""
    if len({shape(run) for run in runs}) > 1:
        return None, ELSEWHERE
    return [[overlap(a.circuit, b.circuit) for b in runs] for a in runs], ""


ELSEWHERE = "The models have different layers or units, so their circuits have no units in common to compare."


def shape(run: Results) -> tuple[Any, ...]:
    """A key that two circuits share if their units are the same things."""
    return (run.raw["unit"], tuple((layer.label, layer.total) for layer in run.layers), *dictionaries(run))


def dictionaries(run: Results) -> list[str]:
    """Hashes of the dictionaries whose latents the units are."""
    return [str(entry["sha256"]) for entry in run.raw.get("dictionaries", ())]


Tests = tuple[str, list[Difference]]


def _data(
    runs: list[Results], names: list[str], output: Path, matrix: Any, reason: str, tests: Tests, warned: Warned
) -> dict[str, Any]:
    return {
        "schema": 1,
        "analysis": runs[0].raw["analysis"],
        "runs": [
            {
                "name": name,
                "directory": Path(os.path.relpath(run.directory, output)).as_posix(),
                "checkpoint": run.raw["checkpoint"],
                "variant": run.raw["model"].get("variant", ""),
                **{key: run.raw[key] for key in ("unit", "ablation", "metric", "metrics", "curve")},
            }
            for name, run in zip(names, runs, strict=True)
        ],
        "jaccard": matrix,
        "jaccard_note": reason,
        "noise": {"kind": tests[0], "meaning": NOISE[tests[0]]},
        "differences": [dataclasses.asdict(difference) for difference in tests[1]],
        "findings": [sentence(*tests)],
        "warnings": warned,
    }


# ---- text -------------------------------------------------------------------------------------------------------


def _rows(runs: list[Results], names: list[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table; a dash is a number that was not measured."""
    shown = [name for name in COLUMNS if any(name in run.metrics for run in runs)]
    header = ["run", "units kept", "share", *(COLUMNS[name] for name in shown)]
    rows = []
    for name, run in zip(names, runs, strict=True):
        cells = [name, f"{run.kept:,} of {run.total:,}", percent(run.kept / run.total)]
        for metric in shown:
            value = run.metrics.get(metric)
            shown_as = "–" if value is None else f"{amount(metric, value, run)} {interval(metric, value, run)}"
            cells.append(shown_as.removesuffix(" –"))  # a count has no interval
        rows.append(cells)
    return header, rows


def _overlap_rows(names: list[str], matrix: list[list[float]]) -> tuple[list[str], list[list[str]]]:
    return ["", *names], [[name, *map(percent, row)] for name, row in zip(names, matrix, strict=True)]


def _paragraphs(runs: list[Results], names: list[str]) -> Iterator[str]:
    shares = [run.kept / run.total for run in runs]
    first = f"{len(runs)} checkpoints, the {runs[0].raw['title']} of each. "
    if max(shares) - min(shares) < max(1 / run.total for run in runs):
        yield (
            f"{first}To within one unit, all keep the same share of their {units_name(runs[0])}: {percent(shares[0])}."
        )
        return
    least = shares.index(min(shares))
    yield (
        f"{first}The smallest share of units is kept in {names[least]}: {percent(shares[least])} of its"
        f" {units_name(runs[least])}."
    )


def _notes(runs: list[Results], reason: str) -> str:
    notes = [reason] if reason else []
    for key in ("ablation", "metric", "unit"):
        values = list(dict.fromkeys(str(run.raw[key]) for run in runs))
        if len(values) > 1:
            notes.append(
                f"The runs differ in {key} ({', '.join(values)}): their sizes and faithfulness are NOT comparable."
            )
    return " ".join(notes)


def page_of(
    runs: list[Results], names: list[str], matrix: Any, said: list[str], plots: list[blocks.Figure], tests: Tests,
    warned: Warned,
) -> Content:  # fmt: skip
    """The page of the comparison."""
    header, rows = _rows(runs, names)
    checkpoints = [(name, str(run.raw["checkpoint"])) for name, run in zip(names, runs, strict=True)]
    sections = [
        Section("Runs", [Bullets([text for text in said[1:] if text]), Table(header, rows, range(1, len(header)))]),
        member_section(warned, len(runs)),
        Section("Figures", plots),
    ]
    if tests[1]:
        sections.append(
            table_section("Differences and the noise of seeds", "", *difference_rows(tests[1]), range(3, 7))
        )
    if matrix is not None:
        shown = _overlap_rows(names, matrix)
        sections.append(table_section("Overlap of the circuits (Jaccard)", "", *shown, range(1, len(shown[0]))))
    sections.append(table_section("Checkpoints", "", ("run", "checkpoint"), checkpoints))
    return Content(f"{runs[0].raw['title']}: comparison", sections, lead=said[0])


# ---- the figure -------------------------------------------------------------------------------------------------


def plots_of(runs: list[Results], names: list[str], matrix: list[list[float]] | None) -> list[blocks.Figure]:
    """One figure; of more runs than a panel can show apart, the curves are small multiples in a figure of their own."""
    apart = len(runs) > style.MANY
    curves = "Faithfulness over the share of units kept, with intervals"
    rest = "the circuit of each run, its controls and its size; the overlap of the circuits, where their units are the"
    caption = f"{rest[0].upper()}{rest[1:]} same." if apart else f"{curves}; {rest} same."
    size = (10.0, max(6.4, 2.6 + 0.5 * len(runs)))
    plots = [figure("comparison.png", caption, size, comparison_figure, runs, names, matrix)]
    if apart:
        text = f"{curves}: a panel for each run, the others in grey. Dotted: the size of the run's circuit."
        size = style.multiples_size(len(runs))
        plots.insert(0, figure("comparison_curves.png", text, size, curves_apart, runs, names))
    return plots


def comparison_figure(figure: Figure, runs: list[Results], names: list[str], matrix: list[list[float]] | None) -> None:
    """a, learned curves on one axis, unless they are too many for it; b, each circuit and its controls; c, its size;
    d, the overlap of the circuits."""
    shown = "bc" if len(runs) > style.MANY else "abc"
    layout: Any = [list("bc")] if shown == "bc" else [["a", "b"], ["a", "c"]]
    if matrix is not None:
        layout = [["b", "c"], ["d", "d"]] if shown == "bc" else [["a", "b"], ["c", "d"]]
    panels: dict[str, Axes] = figure.subplot_mosaic(layout, width_ratios=(1.25, 1))
    figure.suptitle(f"{runs[0].raw['title']}: comparison of {len(runs)} checkpoints")
    colours = [style.of_many(i, len(runs)) for i in range(len(runs))]
    if "a" in panels:
        _curves(panels["a"], runs, names, colours)
    _controls(panels["b"], runs, names)
    _sizes(panels["c"], runs, names, colours)
    if matrix is not None:
        _overlap(panels["d"], matrix, names)
    for letter, place in zip("abcd", [panels[name] for name in "abcd" if name in panels], strict=False):
        style.panel_letter(place, letter)


def learned(run: Results) -> tuple[list[float], list[Value]]:
    """The learned curve: shares of units kept above zero, and the faithfulness at each."""
    at = [i for i, size in enumerate(run.sizes) if size > 0] if "learned" in run.curves else []
    return [run.sizes[i] / run.total for i in at], [run.curves["learned"][i] for i in at]


def curves_apart(figure: Figure, runs: list[Results], names: list[str]) -> None:
    """The learned curves, a panel for each run."""
    curves = [
        style.Curve(name, *learned(run), mark=max(run.kept, 1) / run.total)
        for run, name in zip(runs, names, strict=True)
    ]
    shares = [share for curve in curves for share in curve.x]

    def dress(axes: Axes) -> None:
        axes.set_xscale("log")
        if shares:
            axes.set_xticks(style.nice_log_ticks(min(shares), max(shares), most=4))
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        style.percent_axis(axes, "x")
        style.percent_axis(axes, "y")
        axes.set_ylim(max(axes.get_ylim()[0], -0.5), 1.08)
        axes.set(xlabel="units kept", ylabel="faithfulness")

    style.small_multiples(figure, curves, f"{runs[0].raw['title']}: faithfulness over size", dress)


def _curves(axes: Axes, runs: list[Results], names: list[str], colours: list[Any]) -> None:
    low = high = None
    for run, name, colour in zip(runs, names, colours, strict=True):
        shares, points = learned(run)
        if shares:
            style.band(axes, shares, points, colour, name)
            low, high = min(low or 1.0, *shares), max(high or 0.0, *shares)
        style.dot(axes, max(run.kept, 1) / run.total, run.metrics["faithfulness"], colour, "_", "*", size=11)
    axes.set_xscale("log")
    if low is not None and high is not None:
        axes.set_xticks(style.nice_log_ticks(low, high, most=6))
        axes.tick_params(axis="x", which="minor", labelbottom=False)
    style.percent_axis(axes, "x")
    style.percent_axis(axes, "y")
    axes.set_ylim(max(axes.get_ylim()[0], -0.5), 1.08)
    axes.set(
        title="Faithfulness over size",
        xlabel="share of units kept (log scale); star: the circuit",
        ylabel="faithfulness",
    )
    axes.legend(loc="lower right", fontsize=7)


def _rows_of(axes: Axes, names: Sequence[str]) -> None:
    """One row for each run, the first on top."""
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)


def _controls(axes: Axes, runs: list[Results], names: list[str]) -> None:
    looks = (
        ("faithfulness", "circuit", style.RED, "o", 0.0),
        ("faithfulness_random", "random circuits", style.GREY, "s", 0.16),
        *(
            (name, mask.label, style.PURPLE, mask.marker, -0.16 * (1 + k))
            for k, (name, mask) in enumerate(MASKS.items())
        ),
    )
    for metric, label, colour, marker, shift in looks:
        points = [(row + shift, run.metrics[metric]) for row, run in enumerate(runs) if metric in run.metrics]
        if points:
            ends = [[max(p.value - p.low, 0.0) for _, p in points], [max(p.high - p.value, 0.0) for _, p in points]]
            values, rows = [p.value for _, p in points], [row for row, _ in points]
            axes.errorbar(
                values,
                rows,
                xerr=ends,
                fmt=marker,
                color=colour,
                markersize=4.5,
                capsize=2.5,
                elinewidth=1.2,
                label=label,
            )
    _rows_of(axes, names)
    style.percent_axis(axes, "x")
    axes.set_xlim(max(axes.get_xlim()[0], -0.5), None)
    axes.set_title("Circuit and controls")
    axes.set_xlabel("faithfulness")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3, fontsize=7, columnspacing=1.0)


def _sizes(axes: Axes, runs: list[Results], names: list[str], colours: list[Any]) -> None:
    shares = [run.kept / run.total for run in runs]
    axes.barh(range(len(runs)), shares, color=colours, height=0.6)
    for row, run in enumerate(runs):
        axes.text(shares[row], row, f" {run.kept:,} / {run.total:,}", va="center", fontsize=7)
    _rows_of(axes, names)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, (max(shares) or 1.0) * 1.5)
    axes.locator_params(axis="x", nbins=5)
    style.percent_axis(axes, "x")
    axes.set(title="Units kept", xlabel="share of all units")


def _overlap(axes: Axes, matrix: list[list[float]], names: list[str]) -> None:
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 8:
        for row, line in enumerate(matrix):
            for column, share in enumerate(line):
                ink = "white" if share > 0.6 else style.INK
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title("Same units (Jaccard, %)")
