"""The report of a circuit: circuit_analysis_report.md and report.html, with its evidence and its controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import Checks, Content, Figure, Links, Section, Table, Text, of_run, table_section
from ...report.finished import ALL_FIGURES, Drawn
from ...report.to_log import ToLog, metric_values
from ...report.words import Long, flat, percent
from .figures import draw_faithfulness, draw_search
from .pages.features import FEATURES, FEATURES_MEANING, feature_rows, page_paths, write_feature_pages
from .pages.hover import hover_curve
from .pages.importance import draw_importance
from .pages.removed import HEADER, TITLE, removed_rows, removed_sentence
from .pages.words import (
    MASKS,
    MEANINGS,
    amount,
    caveats,
    findings,
    headline,
    interval,
    kept_units,
    metric_rows,
    search_name,
    seed_overlap,
    units_name,
)
from .results import SEARCH, Results, load_history, load_masks, load_results

LISTED = 40
"""Kept units of a layer that are written out; HTML opens the rest, and results.json has them all."""
CARDS = ("faithfulness", "faithfulness_random", *MASKS, "completeness", "jaccard")
CAPTIONS = {
    "importance": "Attribution score of every unit, layer by layer, on one scale centred on zero: red units help, blue"
    " units harm. Marks show the units that the circuit keeps; the bars count them.",
    "search": "The searches, step by step: gates open at each step against the budget, then what must survive."
    " Purple: the searches of the controls, on random weights (dashed) and for exchanged answers. Thin: searches that"
    " looked for the size.",
    "faithfulness": "Faithfulness on held-out prompts over the number of units kept. Bands are 95 % intervals; for"
    " random circuits, the middle 95 % of the draws. Point at the curve to read its values.",
}


def write_circuit(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes the figures, circuit_analysis_report.md and report.html of a circuit, and the pages of its features.

    Args:
        drawn: Figures to draw: the heat maps need final_masks.pt, the curves history.jsonl.
    """
    results = load_results(run_dir)
    pages = write_feature_pages(results)
    written = write_page(results.directory, content(results), "circuit_analysis_report.md", drawn)
    return [*written[:-2], *pages, *written[-2:]]


def content(results: Results) -> Content:
    """The page: controls, figures, every number, the kept units, what each one's removal costs, and the searches."""
    sections = [
        Section("Controls, and how to read them", [Checks([(f.good, f.text) for f in findings(results)] or UNCHECKED)]),
        Section("Figures", figures(results)),
        table_section(
            "Every number",
            "",
            ("quantity", "name", "value", "interval", "n", "meaning"),
            [(label, name, *cells) for name, label, *cells in metric_rows(results)],
            (2, 3, 4),
        ),
        Section("Units kept", [layers(results)]),
        *features(results),
        *removed(results),
        *searches(results),
    ]
    said, first = caveats(results), list(cards(results))
    return of_run(results, sections, said, lead=headline(results), cards=first, facts=facts(results))


UNCHECKED = [(False, "No control was measured.")]


def cards(results: Results) -> Iterator[tuple[str, str, str]]:
    share = percent(results.kept / results.total)
    yield "Units kept", f"{results.kept:,}", f"of {results.total:,} {units_name(results)}, {share}"
    for name in CARDS:
        if name in results.metrics:
            value = results.metrics[name]
            yield MEANINGS[name].label, amount(name, value, results), interval(name, value, results)


def facts(results: Results) -> list[tuple[str, str]]:
    """The task, the prompts, the units, the metric and the ablation of a search."""
    raw, task = results.raw, results.raw["task"]
    searched, measured = task.get("discovery_prompts", "?"), task.get("evaluation_prompts", "?")
    return [
        ("weights", f"SHA-256 {str(raw['model'].get('sha256', ''))[:16]}…"),
        ("task", f"{task.get('name', '?')}: {task.get('description', '')}"),
        ("prompts", f"searched on {searched}, measured on {measured} others"),
        ("units", str(raw.get("unit_meaning") or units_name(results))),
        ("metric", str(raw["metric"])),
        ("ablation", str(raw["ablation"])),
    ]


def figures(results: Results) -> list[Figure]:
    """The figures of the report; a ranking has no search whose steps could be drawn."""
    steps = Figure("sparsity_curves.png", CAPTIONS["search"], partial(draw_search, results), kind="curves")
    place = f"{results.raw['analysis']}_channel_importance.png"
    return [
        Figure(
            "faithfulness_curve.png",
            CAPTIONS["faithfulness"],
            partial(draw_faithfulness, results),
            kind="faithfulness",
            widget=hover_curve(results),
        ),
        Figure(place, CAPTIONS["importance"], partial(draw_importance, results), kind="heatmaps"),
        *([steps] if results.method == SEARCH else []),
    ]


def layers(results: Results) -> Table:
    """The kept units of every layer or site."""
    kind = results.raw["unit"]
    rows = []
    for layer in results.layers:
        units = Long(kept_units(layer, kind, LISTED), kept_units(layer, kind))
        rows.append((layer.label, f"{layer.kept:,}", f"{layer.total:,}", percent(layer.kept / layer.total), units))
    first = "site" if any(layer.site for layer in results.layers) else "layer"
    return Table((first, "kept", "of", "share", f"{units_name(results)} kept"), rows, (1, 2, 3))


def features(results: Results) -> list[Section]:
    """The latents of a circuit of features, and links to their pages."""
    if not (rows := feature_rows(results)):
        return []
    links = Links([(path.stem, f"features/{path.name}") for path in page_paths(results)])
    shown = Table(FEATURES, rows, (2, 3))
    return [Section("Features of the circuit", [Text(FEATURES_MEANING, soft=True), shown, links])]


def removed(results: Results) -> list[Section]:
    """The loss of the circuit without each of its units."""
    if not results.removed:
        return []
    shown = Table(HEADER, removed_rows(results), (0, 2, 3, 4))
    return [Section(TITLE, [Text(removed_sentence(results)), shown])]


def searches(results: Results) -> list[Section]:
    """Every search, and how much their circuits share."""
    if not results.searches:
        return []
    rows = [(search_name(s), s.weights, f"{s.budget:,}", percent(s.faithfulness)) for s in results.searches]
    header = ("search", "weights", "budget (units)", "faithfulness on the discovery prompts")
    found = [Section("Searches", [Table(header, rows, (2, 3))])]
    names, matrix = seed_overlap(results)
    if len(names) > 1:
        overlaps = [(name, *(percent(cell) for cell in row)) for name, row in zip(names, matrix, strict=True)]
        shown = Table(("", *names), overlaps, range(1, len(names) + 1))
        found.append(Section("Overlap of the circuits (Jaccard)", [shown], level=3))
    return found


def headline_of(run_dir: str | Path) -> str:
    """The result in one sentence."""
    return headline(load_results(run_dir))


def to_log(run_dir: str | Path) -> ToLog:
    """Curves of the searches; metrics, layers, the faithfulness curve and the manifest as tables."""
    results = load_results(run_dir)
    importance = load_masks(results) if (results.directory / "final_masks.pt").exists() else {}
    mean = lambda scores: None if scores is None else float(scores.abs().mean())
    layers = [
        (layer.label, layer.total, layer.kept, 1 - layer.kept / layer.total, mean(importance.get(layer.layer)))
        for layer in results.layers
    ]
    curve = [
        (name, results.sizes[i], results.sizes[i] / results.total, point.value, point.low, point.high, point.n)
        for name, points in results.curves.items()
        for i, point in enumerate(points)
    ]
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {
        "metrics": (
            ["metric", "value", "low", "high", "n"],
            [(name, v.value, v.low, v.high, v.n) for name, v in results.metrics.items()],
        ),
        "layers": (["layer", "units", "kept", "sparsity", "mean |importance|"], layers),
        "faithfulness": (["circuit", "units kept", "share", "faithfulness", "low", "high", "n"], curve),
        "manifest": (["entry", "value"], list(flat(results.manifest))),
    }
    searches = load_history(results) if results.method == SEARCH else []
    points = [(search.name, {**step, "units": results.total}) for search in searches for step in search.steps]
    return ToLog(summary(results), tables, points, "masks")


def summary(results: Results) -> dict[str, float]:
    """Every metric, the share of units dropped, and the circuit's own loss on held-out prompts."""
    found = {"mechint/sparsity": 1 - results.kept / results.total, **metric_values(results.metrics)}
    own = next((name for name in ("metric_circuit", results.raw["metric"]) if name in results.metrics), None)
    return found if own is None else found | {"mechint/loss": results.metrics[own].value}
