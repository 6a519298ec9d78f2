"""The page of any finished run: its numbers as tables, its cells as maps, its curves as lines.

An analysis that names no report of its own has this one, and one that names no comparison has the one here. The page
shows what results.json holds, and claims nothing about it but what the control on random weights says, where there is
one; the comparison follows the metrics along the training step and tests how they changed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.errors import MechintError
from ..along_training import Added, Track, write_along
from ..compose import write_page
from ..content import Figure, Section, figure, study, table_section
from ..control import control_figure, control_findings, control_sections
from ..finished import ALL_FIGURES, Drawn, FinishedRun, read_finished, run_names
from ..members import gathered
from ..results import Row, number_rows
from ..values import Value
from ..words import chance, value_cells, with_interval
from . import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

TITLES = {"metrics": "Main numbers", "cells": "Cells", "units": "Units", "curve": "Curves", "": "Other numbers"}
"""The sections of a page, by the table that their numbers belong to."""
CARDS, NAMED, MAPS, SHOWN = 4, 3, 8, 12
"""Most metrics at the head of the page, in the headline; most maps; most rows of a table that is shown unfolded."""


def write_results(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes the figures, NAME_report.md and report.html of a finished run of the analysis NAME."""
    run = read_finished(run_dir)
    name = str(run.raw["analysis"])
    rows, control = rows_of(run), run.raw.get("control")
    compared = isinstance(control, dict)
    figures = [*figures_of(name, rows), *(control_figure(f"{name}_control.png", control) if compared else [])]
    sections = [section for table, title in TITLES.items() for section in tables_of(title, table, rows)]
    content = study(
        run,
        [(words(metric), said(value), f"n = {value.n:,}") for metric, value in list(run.metrics.items())[:CARDS]],
        control_findings(control) if compared else [],
        [*sections, *(control_sections(control) if compared else [])],
        figures,
    )
    return write_page(run.directory, content, f"{name}_report.md", drawn)


def headline(run_dir: str | Path) -> str:
    """The first metrics with their intervals, in one sentence."""
    run = read_finished(run_dir)
    found = [f"{words(metric)} {said(value)}" for metric, value in list(run.metrics.items())[:NAMED]]
    return f"{run.raw['title']}: {'; '.join(found) or 'no main numbers'}."


def metric_lines(results: Mapping[str, Any]) -> list[str]:
    """A line for the terminal for each metric of the results."""
    return [
        f"  {words(name):<15} {with_interval(entry['value'], entry['low'], entry['high'])}"
        for name, entry in results["metrics"].items()
    ]


More = Callable[[Sequence[FinishedRun], Sequence[str]], Added]
"""Gives what an analysis adds to the comparison of its runs, from these and their names."""


def nothing_more(runs: Sequence[FinishedRun], names: Sequence[str]) -> Added:
    return Added()


def write_comparison(run_dirs: Sequence[str | Path], output_dir: str | Path, more: More = nothing_more) -> list[Path]:
    """Writes comparison.json, .png, .md and .html of the metrics of several runs, along the step of their training.

    The notes of the runs are kept, and so is any difference between their tasks or options; ``more`` adds to it.

    Raises:
        MechintError: fewer than two runs, a run that can't be read, or runs without a common metric.
    """
    runs = [read_finished(run_dir) for run_dir in run_dirs]
    if len(runs) < 2:
        raise MechintError(f"a comparison needs at least two finished runs; got {len(runs)}")
    names = run_names([run.directory for run in runs])
    metrics = [metric for metric in runs[0].metrics if all(metric in run.metrics for run in runs)]
    if not metrics:
        raise MechintError(f"{names[0]} and the other runs have no main number in common; there is nothing to compare")
    tracks = [track(metric, [run.metrics[metric] for run in runs]) for metric in metrics]
    apart = [key for key in ("task", "config") if len({json.dumps(run.raw[key], sort_keys=True) for run in runs}) > 1]
    notes = [f"The runs differ in their {SAID[key]}: their numbers may differ for that reason." for key in apart]
    warned = gathered(names, (map(str, run.raw["notes"]) for run in runs))
    title, directories = str(runs[0].raw["title"]), [run.directory for run in runs]
    raws, added = [run.raw for run in runs], more(runs, names)
    return write_along(Path(output_dir), title, raws, directories, names, tracks, warned, notes, added=added)


SAID = {"task": "tasks or prompts", "config": "options"}


def track(metric: str, values: Sequence[Value]) -> Track:
    """A metric over the runs; tested where every run has its 95 % interval."""
    tested = all(not value.alone and "95 %" in value.interval for value in values)
    return Track(metric, words(metric), list(values), tested=tested)


def rows_of(run: FinishedRun) -> list[Row]:
    """Every number of the run but those of its control, which have a section of their own."""
    rows = number_rows(run.raw, run.directory / "results.json")
    return [row for row in rows if not row.entry.startswith("control.")]


def words(name: str) -> str:
    return name.replace("_", " ")


def said(value: Value) -> str:
    return with_interval(value.value, *ends(value))


def ends(value: Value | Row) -> tuple[float | None, float | None]:
    """The ends of an interval; None where there is none."""
    low, high = (None if math.isnan(end) else end for end in (value.low, value.high))
    return low, high


def tables_of(title: str, table: str, rows: Sequence[Row]) -> list[Section]:
    """A section of the numbers of one table, with the columns that say something; none where there are no numbers."""
    chosen = [row for row in rows if row.table == table]
    if not chosen:
        return []
    places = [
        column
        for column in ("site", "layer", "unit", "name")
        if any(getattr(row, column) is not None for row in chosen)
    ]
    tested = any(row.p is not None for row in chosen)
    header = [*places, "number", "value", "95 % interval", "n", *(["p"] if tested else [])]
    lines = [
        (
            *("–" if getattr(row, column) is None else str(getattr(row, column)) for column in places),
            words(row.metric),
            *value_cells(row.value, *ends(row)),
            f"{row.n:,}",
            *([chance(row.p)] if tested else []),
        )
        for row in chosen
    ]
    numeric = [k for k, name in enumerate(header) if name in ("layer", "value", "95 % interval", "n", "p")]
    return [table_section(title, "", header, lines, numeric, folded=len(lines) > SHOWN)]


def figures_of(name: str, rows: Sequence[Row]) -> list[Figure]:
    """A figure of the metrics, a map for each site and number of the cells, and one figure of all curves."""
    found = []
    metrics = [row for row in rows if row.table == "metrics"]
    if metrics:
        size = (6.0, 1.2 + 0.5 * len(metrics))
        found.append(figure(f"{name}_metrics.png", "Main numbers, with their intervals.", size, draw_metrics, metrics))
    cells = [row for row in rows if row.table == "cells" and row.layer is not None]
    groups = list(dict.fromkeys((row.site, row.metric) for row in cells))
    for site, metric in groups[:MAPS]:
        group = [row for row in cells if (row.site, row.metric) == (site, metric)]
        lines = len({row.name for row in group})
        where = f" at {site}" if site else ""
        caption = f"{words(metric).capitalize()}{where} by layer: red is above zero, blue below."
        if len(groups) > MAPS and (site, metric) == groups[MAPS - 1]:
            caption += f" {len(groups) - MAPS} more are in the table alone."
        slug = re.sub(r"\W+", "_", "_".join(part for part in (site, metric) if part)).strip("_").lower()
        size = (6.5, 1.6 + 0.35 * lines)
        found.append(figure(f"{name}_map_{slug}.png", caption, size, draw_map, group, metric))
    curves = [row for row in rows if row.table == "curve"]
    if curves:
        found.append(figure(f"{name}_curve.png", "Curves, with their 95 % intervals.", (6.0, 3.6), draw_curves, curves))
    return found


def draw_metrics(target: Canvas, rows: Sequence[Row]) -> None:
    plots.metrics(target.subplots(), rows)


def draw_map(target: Canvas, rows: Sequence[Row], metric: str) -> None:
    axes = plots.cells(target.subplots(), rows)
    axes.grid(False)
    target.colorbar(axes.images[0], ax=axes, label=words(metric))


def draw_curves(target: Canvas, rows: Sequence[Row]) -> None:
    axes = plots.curve(target.subplots(), rows)
    names = list(dict.fromkeys(row.metric for row in rows))
    axes.set_ylabel(words(names[0]) if len(names) == 1 else "value")
