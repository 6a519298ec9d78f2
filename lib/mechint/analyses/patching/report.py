"""The report of an activation patching: patch_report.md and report.html, whose maps show a value for every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path

from ...report.html import ending, heading
from ...report.markdown import ending as markdown_ending
from ...report.markdown import evidence
from ...report.markdown import table as markdown_table
from ...report.page import card, cards, checks, page, picture, table
from ...report.words import between, chance, number
from ...utils.files import write_text
from ...utils.progress import Progress
from ...utils.statistics import UNADJUSTED
from ..tracing.report import with_interval
from .figures import (
    ALPHA,
    DIRECTIONS,
    WAYS,
    Patching,
    draw_flow,
    draw_ranking,
    draw_units,
    layer_maps,
    load_patching,
    ranked,
)

LISTED = 25  # units of a kind in the tables; results.json has all that were measured
FLOWS = ("cut at", "layer", "reader", "read token", "lost", "interval", "n", "p (all cells)")
UNITS = ("kind", "layer", "unit", "necessary", "interval", "p", "sufficient", "interval", "p", "n")
SCREENS = ("kind", "units", "measured", "estimate and exact, necessary (r)", "sufficient (r)")


def write_patching(run_dir: str | Path, *, heatmaps: bool = True, curves: bool = True) -> list[Path]:
    """Writes the figures, patch_report.md and report.html of a finished patching into its directory.

    Args:
        run_dir: Holds results.json and manifest.json.
        heatmaps: Draw patch_flow_{site}.png.
        curves: Draw patch_units.png and patch_ranking.png.
    """
    patching = load_patching(run_dir)
    plan: list[tuple[str, str, Callable[[Path], Path]]] = []
    if heatmaps:
        for entry in patching.paths:
            caption = (
                f"What is lost when, in one layer, no token of a role reads one of another at {entry['name']} "
                f"({WAYS[entry['name']]}). Grey: no prompt has such a pair."
            )
            plan.append((f"patch_flow_{entry['name']}.png", caption, partial(draw_flow, patching, entry)))
    if curves and patching.kinds:
        plan.append(("patch_units.png", "Effect of every measured unit.", partial(draw_units, patching)))
        text = "The units with the largest effect in either direction, with 95 % intervals over templates."
        plan.append(("patch_ranking.png", text, partial(draw_ranking, patching)))
    figures: dict[Path, str] = {}
    with Progress("report", 2 + len(plan)) as progress:
        for name, caption, draw in plan:
            figures[draw(patching.directory / name)] = caption
            progress.step(name)
        text_file = write_text(patching.directory / "patch_report.md", markdown(patching, list(figures)))
        progress.step(text_file.name)
        report = write_text(patching.directory / "report.html", html(patching, figures))
        progress.step(report.name)
    return [*figures, text_file, report]


def flow_rows(patching: Patching) -> list[tuple[str, ...]]:
    return [
        (
            best["path"], str(best["layer"]), best["reader"], best["source"], number(best["value"]),
            between(best["low"], best["high"]), str(best["n"]), chance(best["p"]),
        )
        for best in patching.raw["strongest"]["flow"]
    ]  # fmt: skip


def unit_rows(patching: Patching) -> list[tuple[str, ...]]:
    rows = []
    for kind in patching.kinds:
        for k in ranked(kind, LISTED):
            cells: list[str] = []
            for name in DIRECTIONS:
                value, low, high, p = (kind[name][key][k] for key in ("value", "low", "high", "p"))
                cells += [number(value), between(low, high), chance(p)]
            count = str(kind[DIRECTIONS[0]]["n"][k])
            rows.append((kind["name"], str(kind["layer"][k]), str(kind["unit"][k]), *cells, count))
    return rows


def screen_rows(patching: Patching) -> list[tuple[str, ...]]:
    """How well attribution patching agrees, on the units that were measured exactly."""
    return [
        (
            f"{kind['name']} ({kind['axis']})", str(kind["layers"] * kind["per_layer"]), str(len(kind["unit"])),
            *("–" if (r := kind["correlation"][name]) is None else f"{r:.2f}" for name in DIRECTIONS),
        )
        for kind in patching.kinds
    ]  # fmt: skip


def facts(patching: Patching) -> list[tuple[str, str]]:
    raw, metrics = patching.raw, patching.metrics
    names = ("clean", "corrupted", "total_effect", "accuracy_full")
    return [
        ("task", f"{raw['task']['name']}: {raw['task'].get('description', '')}"),
        ("metric", raw["metric"]),
        *((name.replace("_", " "), with_interval(metrics[name])) for name in names if name in metrics),
        *(
            (f"clean less all of {kind['name']} at their means", with_interval(metrics[f"all_{kind['name']}"]))
            for kind in patching.kinds
            if f"all_{kind['name']}" in metrics
        ),
        ("intervals", f"{metrics['clean'].interval}{UNADJUSTED}"),
        ("prompts patched", f"{metrics['prompts_used'].value:.0f}"),
        ("prompts left out (not answered)", f"{metrics['prompts_failed'].value:.0f}"),
    ]


def findings(patching: Patching) -> list[tuple[bool, str]]:
    found = []
    if total := patching.metrics.get("total_effect"):
        hurts = (total.value if total.alone else total.low) > 0
        said = f"{with_interval(total)} {patching.raw['metric']}"
        found.append((hurts, f"The twin {'takes away' if hurts else 'does not certainly take away'} {said}."))
    if patching.metrics["clean"].alone:
        return [*found, (False, f"{patching.metrics['clean'].interval}, so nothing below can be tested.".capitalize())]
    test = "step-down bootstrap of whole templates, adjusted for all of them"
    if patching.paths:
        p = [value for path in patching.paths for row in path["p"] for value in row if value is not None]
        n = sum(count > 0 for path in patching.paths for row in path["n"] for count in row)
        sure = sum(value <= ALPHA for value in p)
        found.append((sure > 0, f"Flow: {sure} of {n} cells matter (p ≤ {ALPHA:g}, {test})."))
    for kind in patching.kinds:
        for name in DIRECTIONS:
            sure = sum(p is not None and p <= ALPHA for p in kind[name]["p"])
            many = len(kind["unit"])
            text = f"{kind['name']}: {sure} of {many} units are {name} on their own (p ≤ {ALPHA:g}, {test})."
            found.append((sure > 0, text))
    return found


def caveats(patching: Patching) -> list[str]:
    texts = list(patching.raw["notes"])
    if patching.paths:
        texts.append(
            "A cut takes a token away and puts nothing in its place. A model that knows no answer any more gives both"
            " answers alike, so a complete loss is about half of a total effect that the logit difference measures."
        )
        texts.append(
            "A layer is cut alone (or with the window around it): what another layer brings over as well is not lost."
            " Within a Mamba a token's convolution takes what comes before it along, so a cut of the scan from one"
            " token leaves what the next three have taken of it."
        )
    if any(kind["layers"] * kind["per_layer"] > len(kind["unit"]) for kind in patching.kinds):
        texts.append(
            "Units that gradients on the discovery prompts ranked low were not measured; the correlation is that of"
            " the measured ones, which differ most."
        )
    texts.append(
        "The largest cells and units are chosen by their size, so their own intervals are too narrow for that choice;"
        " the p-values account for it. Backup paths can make each of two parts look unneeded."
    )
    return texts


def markdown(patching: Patching, figures: list[Path]) -> str:
    raw = patching.raw
    parts = [
        f"# {raw['title']}: {raw['checkpoint']}",
        markdown_table(("", ""), facts(patching)),
        "## Evidence",
        evidence(findings(patching)),
    ]
    if patching.paths:
        parts += [f"## Flow between tokens: the largest losses ({patching.unit})"]
        parts += [markdown_table(FLOWS, flow_rows(patching))]
    if patching.kinds:
        parts += [
            f"## Units ({patching.unit})",
            markdown_table(UNITS, unit_rows(patching)),
            "## Attribution patching against the exact effects",
            markdown_table(SCREENS, screen_rows(patching)),
        ]
    parts += [
        "## Figures",
        "\n\n".join(f"![{path.name}]({path.name})" for path in figures) or "None were drawn.",
        *markdown_ending(patching, caveats(patching)),
    ]
    return "\n\n".join(parts) + "\n"


def html(patching: Patching, figures: dict[Path, str]) -> str:
    raw = patching.raw
    body = [
        *heading(raw),
        cards(list(top_cards(patching))),
        "<h2>Evidence</h2>",
        checks(findings(patching)),
    ]
    if patching.paths:
        body += [
            f"<h2>Flow between tokens: the largest losses ({escape(patching.unit)})</h2>",
            table(FLOWS, flow_rows(patching), numeric=(1, 4, 5, 6, 7)),
            "<h2>Every cell of the flow</h2>",
            *maps(patching),
        ]
    if patching.kinds:
        body += [
            f"<h2>Units ({escape(patching.unit)})</h2>",
            table(UNITS, unit_rows(patching), numeric=range(1, 10)),
            "<h2>Attribution patching against the exact effects</h2>",
            table(SCREENS, screen_rows(patching), numeric=(1, 2, 3, 4)),
        ]
    body += [
        "<h2>Figures</h2>" if figures else "",
        *(picture(path, caption) for path, caption in figures.items()),
        *ending(patching, caveats(patching)),
    ]
    return page(f"{raw['title']}: {raw['checkpoint']}", body)


def top_cards(patching: Patching) -> Iterator[str]:
    metrics, best = patching.metrics, patching.raw["strongest"]
    failed = f"{metrics['prompts_failed'].value:.0f} not answered, left out"
    yield card("Prompts patched", f"{metrics['prompts_used'].value:.0f}", failed)
    if total := metrics.get("total_effect"):
        yield card("Total effect", number(total.value), f"{with_interval(total)} {patching.raw['metric']}")
    if best["flow"]:
        cell = max(best["flow"], key=lambda entry: abs(entry["value"]))
        where = f"cut at {cell['path']}, layer {cell['layer']}: {cell['reader']} ← {cell['source']}"
        yield card("Largest loss of flow", number(cell["value"]), where)
    if best["units"]:
        unit = max(best["units"], key=lambda entry: abs(entry["value"]))
        yield card(
            "Largest unit", number(unit["value"]), f"{unit['kind']} {unit['unit']}, layer {unit['layer']}, "
            f"{unit['direction']}",
        )  # fmt: skip


def maps(patching: Patching) -> Iterator[str]:
    """A map for each way to be read and layer; every cell says its value under the pointer, without scripts."""
    yield f"<style>{_STYLE}</style>"
    yield (
        f'<p class="soft">Readers down, read tokens across; {escape(patching.unit)}; red is a loss, blue a gain, one '
        "scale for all maps. Point at a cell for its value.</p>"
    )
    every = [value for path in patching.paths for row in path["value"] for value in row if value is not None]
    limit = max(map(abs, every), default=0.0) or 1.0
    roles = patching.roles
    for path in patching.paths:
        yield f"<h3>Cut at {escape(path['name'])}: {escape(WAYS[path['name']])}</h3>"
        grids = {name: layer_maps(patching, path, name) for name in ("value", "low", "high", "p", "n")}
        blocks = []
        for layer, values in enumerate(grids["value"]):
            cells = []
            for i, reader in enumerate(roles):
                row = [f'<th scope="row">{escape(reader)}</th>']
                for j, source in enumerate(roles):
                    value = values[i, j]
                    where = f"layer {layer}, {reader} ← {source}: "
                    if value != value:
                        row.append(f'<td class="none" title="{escape(where)}no prompt has such a pair"></td>')
                        continue
                    low, high, p, n = (grids[name][layer][i, j] for name in ("low", "high", "p", "n"))
                    said = f"{where}{value:.3g} " + (
                        f"n {n:.0f}, no interval" if low != low else f"[{low:.3g}, {high:.3g}], n {n:.0f}, p {p:.2g}"
                    )
                    row.append(f'<td style="background:{colour(value / limit)}" title="{escape(said)}"></td>')
                cells.append(f"<tr>{''.join(row)}</tr>")
            head = "".join(f"<th><span>{escape(role)}</span></th>" for role in roles)
            blocks.append(
                f'<table class="flow"><caption>layer {layer}</caption><thead><tr><th></th>{head}</tr></thead>'
                f"<tbody>{''.join(cells)}</tbody></table>"
            )
        yield f'<div class="flows">{"".join(blocks)}</div>'


def colour(share: float) -> str:
    """A colour of the diverging scale for -1 … 1."""
    size, ends = min(1.0, abs(share)), (178, 24, 43) if share > 0 else (33, 102, 172)
    return f"rgb({','.join(str(round(247 + (end - 247) * size)) for end in ends)})"


_STYLE = """
.flows { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; }
table.flow { width: auto; font-size: .75rem; border-spacing: 1px; border-collapse: separate; }
table.flow caption { text-align: left; font-weight: 650; } table.flow th { border: 0; padding: 0 .4rem 0 0;
  font-weight: 400; text-align: right; white-space: nowrap; color: var(--ink); }
table.flow thead th { vertical-align: bottom; padding: 0; } table.flow thead span { writing-mode: vertical-rl;
  transform: rotate(180deg); }
table.flow td { width: 1.5rem; height: 1.1rem; padding: 0; border: 0; } table.flow td.none { background: #999; }
table.flow td:hover { outline: 2px solid var(--ink); }
"""
