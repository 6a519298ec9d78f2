"""report.html of a circuit: the whole analysis in one file that opens from disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from ....report.html import ending, heading
from ....report.page import card, cards, checks, folded, page, picture, table
from ....report.words import percent
from ..results import Results
from .features import FEATURES, FEATURES_MEANING, feature_rows, page_paths
from .hover import hover_curve
from .removed import HEADER, TITLE, removed_rows, removed_sentence
from .words import (
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

CARDS = ("faithfulness", "faithfulness_random", "faithfulness_random_weights", "completeness", "jaccard")


CAPTIONS = {
    "importance": "Attribution score of every unit, layer by layer, on one scale centred on zero: red units help, blue"
    " units harm. Marks show the units that the circuit keeps; the bars count them.",
    "search": "The searches, step by step: gates open at each step against the budget, then what must survive."
    " Dashed: the same search on random weights. Thin: searches that looked for the size.",
    "faithfulness": "Faithfulness on held-out prompts over the number of units kept. Bands are 95 % intervals; for"
    " random circuits, the middle 95 % of the draws. Point at the curve to read its values.",
}


def report_page(results: Results, figures: Mapping[str, Path]) -> str:
    """``figures`` names the PNG of ``importance``, ``search`` and ``faithfulness``, where drawn."""
    raw = results.raw
    body = [
        *heading(raw),
        f'<p class="lead">{escape(headline(results))}</p>',
        cards(_cards(results)),
        "<h2>Controls</h2>",
        checks((finding.good, finding.text) for finding in findings(results)),
        *_figures(results, figures),
        "<h2>Every number</h2>",
        table(
            ("quantity", "value", "interval", "n", "meaning"),
            [(label, shown, between, n, text) for _, label, shown, between, n, text in metric_rows(results)],
            numeric=(1, 2, 3),
        ),
        "<h2>What was kept</h2>",
        _layers(results),
        *_features(results),
        *_removed(results),
        *_searches(results),
        *ending(results, caveats(results)),
    ]
    return page(f"{raw['title']}: {raw['checkpoint']}", body)


def _cards(results: Results) -> Iterator[str]:
    yield card(
        "Units kept",
        f"{results.kept:,}",
        f"of {results.total:,} {units_name(results)}, {percent(results.kept / results.total)}",
    )
    for name in CARDS:
        if name in results.metrics:
            value = results.metrics[name]
            yield card(MEANINGS[name].label, amount(name, value.value, results), interval(name, value, results))


def _figures(results: Results, figures: Mapping[str, Path]) -> Iterator[str]:
    if figures:
        yield "<h2>Figures</h2>"
    if "faithfulness" in figures:
        yield f"<figure>{hover_curve(results)}<figcaption>{escape(CAPTIONS['faithfulness'])}</figcaption></figure>"
    if "importance" in figures:
        yield picture(figures["importance"], CAPTIONS["importance"])
    if "search" in figures:
        yield picture(figures["search"], CAPTIONS["search"], narrow=True)


def _layers(results: Results) -> str:
    kind, rows = results.raw["unit"], []
    for layer in results.layers:
        short, whole = kept_units(layer, kind, 24), kept_units(layer, kind)
        units = escape(whole) if short == whole else folded(short, f'<div class="units">{escape(whole)}</div>')
        cells = (escape(layer.label), f"{layer.kept:,}", f"{layer.total:,}", percent(layer.kept / layer.total))
        rows.append(
            "<tr>"
            + "".join(f"<td class=n>{cell}</td>" for cell in cells)
            + f'<td style="padding-left:1rem">{units}</td></tr>'
        )
    first = "site" if any(layer.site for layer in results.layers) else "layer"
    names = "".join(f"<th class=n>{name}</th>" for name in (first, "kept", "of", "share"))
    head = f'<tr>{names}<th style="padding-left:1rem">{escape(units_name(results))} kept</th></tr>'
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _features(results: Results) -> Iterator[str]:
    rows = feature_rows(results)
    if rows:
        yield f"<h2>What its features are</h2><p class=soft>{escape(FEATURES_MEANING)}</p>"
        yield table(FEATURES, rows, numeric=(2, 3))
        links = (
            f'<li><a href="features/{escape(path.name)}">{escape(path.stem)}</a></li>' for path in page_paths(results)
        )
        yield f"<ul>{''.join(links)}</ul>"


def _removed(results: Results) -> Iterator[str]:
    if results.removed:
        yield f"<h2>{TITLE}</h2>"
        yield f"<p>{escape(removed_sentence(results))}</p>"
        yield table(HEADER, removed_rows(results), numeric=(0, 2, 3, 4))


def _searches(results: Results) -> Iterator[str]:
    if not results.searches:
        return
    yield "<h2>Searches</h2>"
    rows = [(search_name(s), s.weights, f"{s.budget:,}", percent(s.faithfulness)) for s in results.searches]
    yield table(("search", "weights", "budget (units)", "faithfulness on the discovery prompts"), rows, numeric=(2, 3))
    names, matrix = seed_overlap(results)
    if len(names) > 1:
        yield "<h3>Overlap of the circuits (Jaccard)</h3>"
        overlaps = [(name, *(percent(cell) for cell in row)) for name, row in zip(names, matrix, strict=True)]
        yield table(("", *names), overlaps, numeric=range(1, len(names) + 1))
