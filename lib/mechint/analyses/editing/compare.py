"""Edits of several models side by side: where each can be edited, and whether its tracing says so."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...report.along_training import MOST, Track, write_along
from ...report.compose import write_page
from ...report.content import Bullets, Content, Section, between, figure, table_section
from ...report.finished import FinishedRun, read_finished, run_names, valid
from ...report.members import gathered, member_section
from ...report.words import chance
from ...utils.errors import MechintError
from ...utils.files import write_json
from .figures import OVER, draw_profiles, draw_within, names_of, whole
from .report import findings
from .results import best_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST = ("model", "family", "map", "best layer", "efficacy", "paraphrase", "neighbourhood", "rewrite score")
CORRELATED = ("model", "family", "map", "traced site", "over", "correlation", "p (of that run)")


def write_edit_comparison(run_dirs: Sequence[str | Path], output_dir: str | Path) -> list[Path]:
    """Writes comparison.json, comparison_tracing.png, comparison.md and comparison.html.

    Beyond a dozen runs, one comparison.png of their main numbers along the training step instead.

    Args:
        run_dirs: At least two directories of finished runs.
        output_dir: Directory of the comparison.

    Raises:
        MechintError: fewer than two runs, or one that can't be read.
    """
    runs = [read_finished(run_dir, "edit") for run_dir in run_dirs]
    if len(runs) < 2:
        raise MechintError(f"a comparison needs at least two finished runs; got {len(runs)}")
    output, names = Path(output_dir), run_names([run.directory for run in runs])
    for run in runs:
        with valid(run.directory / "results.json"):
            findings(run.raw)
    warned = gathered(
        names, ([*(text for good, text in findings(run.raw) if not good), *run.raw["notes"]] for run in runs)
    )
    if len(runs) > MOST:
        every = list(dict.fromkeys(name for run in runs for name in run.metrics if name.startswith("best_")))
        tracks = [Track(name, name.replace("_", " "), [run.metrics.get(name) for run in runs]) for name in every]
        raws, places = [run.raw for run in runs], [run.directory for run in runs]
        return write_along(output, runs[0].raw["title"], raws, places, names, tracks, warned)
    rows = correlation_rows(runs, names)
    told = [
        {"name": name, "directory": Path(os.path.relpath(run.directory, output)).as_posix(),
         "checkpoint": run.raw["checkpoint"], "correlations": run.raw["correlations"]}
        for name, run in zip(names, runs, strict=True)
    ]  # fmt: skip
    written = [write_json(output / "comparison.json", {"schema": 1, "runs": told, "warnings": warned})]
    plots = [
        figure(
            "comparison_tracing.png",
            "A row for each model and map. Left: the rewrite score of edits and the effects of tracing at the "
            "subject's last token. Right: their rank correlation over the facts of each layer. Intervals (95 %) are "
            "over facts.",
            (9.6, 1.2 + 2.4 * sum(len(names_of(run.raw["edits"])) for run in runs)),
            draw,
            runs,
            names,
        )
    ]
    sections = [
        Section("Does tracing say where to edit?", [Bullets(list(map(sentence, runs, names)))]),
        Section("Figures", plots),
        table_section(
            "Best layer of each map", "By the score on the same facts.", BEST, best_rows(runs, names), range(3, 8)
        ),
        table_section(
            "Correlations", "Of the effects of tracing with the rewrite score, by rank (Spearman), with 95 % intervals "
            "over facts.", CORRELATED, rows, (5, 6),
        ),
        member_section(warned, len(runs)),
    ]  # fmt: skip
    content = Content(f"{runs[0].raw['title']}: comparison of {len(runs)} models", sections)
    return [*written, *write_page(output, content, "comparison.md", page_name="comparison.html")]


def title_of(run: FinishedRun, name: str) -> str:
    return f"{run.raw['model'].get('family', '')} ({name})"


def sentence(run: FinishedRun, name: str) -> str:
    """The correlation of a run's first map in words."""
    own = {entry["name"]: entry["site"] for entry in run.raw["edits"]}
    said = [
        f"{entry['name']} {OVER[entry['over']]} {between(entry['correlation'])}"
        for entry in run.raw["correlations"]
        if entry["measure"] == "rewrite" and entry["site"] == own[entry["name"]] and entry["over"] != "all"
    ]
    return f"{title_of(run, name)}: " + ("; ".join(said) if said else "nothing to correlate") + "."


def best_rows(runs: Sequence[FinishedRun], names: Sequence[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for run, name in zip(runs, names, strict=True):
        for what in names_of(run.raw["edits"]):
            best = best_cell([entry for entry in run.raw["edits"] if entry["name"] == what])
            cell = lambda measure, best=best: between(best[measure]) if measure in best else "–"
            rows.append(
                (name, str(run.raw["model"].get("family", "")), what, str(best["layer"]),
                 *(cell(measure) for measure in ("efficacy", "paraphrase", "neighbourhood", "rewrite")))
            )  # fmt: skip
    return rows


def correlation_rows(runs: Sequence[FinishedRun], names: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        (name, str(run.raw["model"].get("family", "")), entry["name"], entry["site"], OVER[entry["over"]],
         between(entry["correlation"]), chance(entry["correlation"]["p"]))
        for name, run in zip(names, runs, strict=True)
        for entry in run.raw["correlations"]
        if entry["measure"] == "rewrite"
    ]  # fmt: skip


def draw(figure: Figure, runs: Sequence[FinishedRun], names: Sequence[str]) -> None:
    """A row for each run and map: profiles, and correlations within layers."""
    every: list[tuple[Mapping[str, Any], str, str]] = [
        (run.raw, title_of(run, name), what)
        for run, name in zip(runs, names, strict=True)
        for what in names_of(run.raw["edits"])
    ]
    grid = figure.subplots(len(every), 2, squeeze=False)
    for row, (raw, title, what) in zip(grid, every, strict=True):
        own = [entry for entry in raw["edits"] if entry["name"] == what]
        draw_profiles(row[0], own, raw["traced"], what)
        draw_within(row[1], [entry for entry in raw["within_layers"] if entry["name"] == what], what)
        whole(row[1], [int(entry["layer"]) for entry in own])
        row[0].set_title(f"{title}, {what}")
        row[1].set_title("rank correlation over facts")
    figure.suptitle("Editing beside causal tracing")
