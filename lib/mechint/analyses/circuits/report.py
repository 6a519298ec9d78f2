"""circuit_analysis_report.md: the result, the evidence, how to read it, and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence

from ...report.markdown import ending, evidence, table
from ...report.words import number, percent
from .pages.features import FEATURES, FEATURES_MEANING, feature_rows
from .pages.removed import HEADER, TITLE, removed_rows, removed_sentence
from .pages.words import caveats, findings, headline, kept_units, metric_rows, search_name, seed_overlap, units_name
from .results import Results

LISTED = 40  # kept units of a layer written out; results.json has them all


def markdown(results: Results, figures: Sequence[str]) -> str:
    """The whole report; ``figures`` are the names of the PNG files beside it."""
    raw = results.raw
    parts = [
        f"# {raw['title']}: {raw['checkpoint']}",
        headline(results),
        _subject(results),
        "## Result",
        table(
            ("quantity", "value", "interval", "n", "meaning"),
            [
                (f"{label} (`{name}`)", shown, between, n, text)
                for name, label, shown, between, n, text in metric_rows(results)
            ],
        ),
        "## Controls, and how to read them",
        evidence((finding.good, finding.text) for finding in findings(results)) or "No control was measured.",
        *_searches(results),
        "## What was kept",
        table(
            (
                "site" if any(layer.site for layer in results.layers) else "layer",
                "kept",
                "of",
                "share",
                units_name(results),
            ),
            [
                (
                    layer.label,
                    f"{layer.kept:,}",
                    f"{layer.total:,}",
                    percent(layer.kept / layer.total),
                    kept_units(layer, raw["unit"], LISTED),
                )
                for layer in results.layers
            ],
        ),
        *_features(results),
        *_removed(results),
        *(["## Figures", "\n\n".join(f"![{name}]({name})" for name in figures)] if figures else []),
        *ending(results, caveats(results)),
    ]
    return "\n\n".join(parts) + "\n"


def _subject(results: Results) -> str:
    raw, model, task = results.raw, results.raw["model"], results.raw["task"]
    size = f"{number(model['parameters'])} parameters, " if "parameters" in model else ""
    shape = f"{model.get('n_layer', '?')} layers of width {model.get('d_model', '?')}"
    searched, measured = task.get("discovery_prompts", "?"), task.get("evaluation_prompts", "?")
    facts = [
        f"**Model:** {model.get('family', '?')}, {size}{shape} (SHA-256 `{str(model.get('sha256', ''))[:16]}…`).",
        f"**Task:** {task.get('name', '?')}: {task.get('description', '')}. Searched on {searched} prompts, measured on"
        f" {measured} others.",
        f"**Units:** {raw.get('unit_meaning') or units_name(results)}. **Metric:** `{raw['metric']}`."
        f" **Ablation:** `{raw['ablation']}`.",
    ]
    return "  \n".join(facts)


def _features(results: Results) -> list[str]:
    rows = feature_rows(results)
    return ["## What its features are", FEATURES_MEANING, table(FEATURES, rows)] if rows else []


def _searches(results: Results) -> list[str]:
    if not results.searches:
        return []
    rows = [(search_name(s), s.weights, f"{s.budget:,}", percent(s.faithfulness)) for s in results.searches]
    names, matrix = seed_overlap(results)
    parts = ["### Searches", table(("search", "weights", "budget", "faithfulness on the discovery prompts"), rows)]
    if len(names) > 1:
        overlaps = [(name, *(percent(cell) for cell in row)) for name, row in zip(names, matrix, strict=True)]
        parts += ["Overlap of the circuits (Jaccard):", table(("", *names), overlaps)]
    return parts


def _removed(results: Results) -> list[str]:
    if not results.removed:
        return []
    return [f"## {TITLE}", removed_sentence(results), table(HEADER, removed_rows(results))]
