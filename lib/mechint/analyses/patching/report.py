"""The report of an activation patching: patch_report.md and report.html, whose maps show a value for every cell."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path

from ...report.compose import write_page
from ...report.content import Checks, Content, Figure, Section, Widget, of_run, table_section
from ...report.finished import ALL_FIGURES, Drawn
from ...report.maps import MAP_STYLE, colour
from ...report.to_log import ToLog, metric_values, records
from ...report.words import chance, metric_label, number, value_cells
from ...utils.statistics import UNADJUSTED
from ..paths import report as direct
from ..tracing.report import lowered, with_interval
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
    units_of,
)

LISTED = 25  # units of a kind in the tables; results.json has all that were measured
FLOWS = ("cut at", "layer", "reader", "read token", "lost", "interval", "n", "p (all cells)")
UNITS = ("kind", "layer", "unit", "necessary", "interval", "p", "sufficient", "interval", "p", "n")
SCREENS = ("kind", "units", "measured", "estimate and exact, necessary (r)", "sufficient (r)")


def write_patching(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes the figures, patch_report.md and report.html of a finished patching into its directory."""
    patching = load_patching(run_dir)
    return write_page(patching.directory, content(patching), "patch_report.md", drawn)


def content(patching: Patching) -> Content:
    """The page: flow between tokens with a map of every cell, units, direct paths between them, and the figures."""
    sections = [Section("Evidence", [Checks(findings(patching))])]
    unit = patching.unit
    if patching.paths:
        title = f"Flow between tokens: the largest losses ({unit})"
        sections += [
            table_section(title, "", FLOWS, flow_rows(patching), (1, 4, 5, 6, 7)),
            Section("Every cell of the flow", [Widget("\n".join(maps(patching)), MAP_STYLE)]),
        ]
    if patching.kinds:
        exact = "Attribution patching against the exact effects"
        sections += [
            table_section(f"Units ({unit})", "", UNITS, unit_rows(patching), range(1, 10)),
            table_section(exact, "", SCREENS, screen_rows(patching), (1, 2, 3, 4)),
        ]
    if patching.between is not None:
        sections += direct.tables(patching.between)
    sections.append(Section("Figures", figures(patching)))
    cards, said = list(top_cards(patching)), caveats(patching)
    return of_run(patching, sections, said, lead=headline_of(patching), cards=cards, facts=facts(patching))


def figures(patching: Patching) -> list[Figure]:
    found = [
        Figure(
            f"patch_flow_{entry['name']}.png",
            f"Loss of the metric when, in one layer, tokens of one role cannot read tokens of another role at "
            f"{entry['name']} "
            f"({WAYS[entry['name']]}). Grey: no prompt has such a pair.",
            partial(draw_flow, patching, entry),
            kind="heatmaps",
        )
        for entry in patching.paths
    ]
    if patching.kinds:
        ranking = "The units with the largest effect in either direction, with 95 % intervals over templates."
        every = "Effect of every measured unit."
        found.append(Figure("patch_units.png", every, partial(draw_units, patching), kind="curves"))
        found.append(Figure("patch_ranking.png", ranking, partial(draw_ranking, patching), kind="curves"))
    if patching.between is not None:
        found += direct.figures(patching.between)
    return found


def flow_rows(patching: Patching) -> list[tuple[str, ...]]:
    return [
        (
            best["path"], str(best["layer"]), best["reader"], best["source"],
            *value_cells(best["value"], best["low"], best["high"]), str(best["n"]), chance(best["p"]),
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
                cells += [*value_cells(value, low, high), chance(p)]
            count = str(kind[DIRECTIONS[0]]["n"][k])
            rows.append((kind["name"], str(kind["layer"][k]), str(kind["unit"][k]), *cells, count))
    return rows


def screen_rows(patching: Patching) -> list[tuple[str, ...]]:
    """The correlation of attribution patching with exact effects, on the units that were measured exactly."""
    return [
        (
            f"{kind['name']} ({kind['axis']})", str(units_of(kind)), str(len(kind["unit"])),
            *("–" if (r := kind["correlation"][name]) is None else f"{r:.2f}" for name in DIRECTIONS),
        )
        for kind in patching.kinds
    ]  # fmt: skip


def facts(patching: Patching) -> list[tuple[str, str]]:
    raw, metrics = patching.raw, patching.metrics
    names = ("clean", "corrupted", "total_effect", "accuracy_full")
    return [
        ("task", f"{raw['task']['name']}: {raw['task'].get('description', '')}"),
        ("metric", metric_label(raw["metric"])),
        *((name.replace("_", " "), with_interval(metrics[name])) for name in names if name in metrics),
        *(
            (
                f"clean less the run with all of {kind['name']} at their means",
                with_interval(metrics[f"all_{kind['name']}"]),
            )
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
        found.append((hurts, lowered("The counterfactual prompt", total, str(patching.raw["metric"]), hurts)))
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
    if patching.between is not None:
        found += direct.tested(patching.between)
    return found


def caveats(patching: Patching) -> list[str]:
    texts = list(patching.raw["notes"])
    if patching.paths:
        texts.append(
            "A cut removes a token and puts nothing in its place. A model that no longer knows the answer gives both "
            "answers about the same logit, so a complete loss is about half of the total effect in logit difference."
        )
        texts.append(
            "One layer is cut at a time (or with the window around it): information that another layer also moves is "
            "not lost. In a Mamba the convolution mixes the three tokens before a token into it, so a cut of the scan "
            "from one token leaves what the next three tokens have taken from it."
        )
    if any(units_of(kind) > len(kind["unit"]) for kind in patching.kinds):
        texts.append(
            "Units that gradients on the discovery prompts ranked low were not measured; the correlation covers only "
            "the measured units, whose effects differ most."
        )
    if patching.between is not None:
        texts += direct.LIMITS
    texts.append(
        "The largest cells and units are chosen by their size, so their own intervals are too narrow for that choice;"
        " the p-values account for it. Backup paths can make each of two parts look unneeded."
    )
    return texts


def top_cards(patching: Patching) -> Iterator[tuple[str, str, str]]:
    metrics, best = patching.metrics, patching.raw["strongest"]
    failed = f"{metrics['prompts_failed'].value:.0f} not answered, left out"
    yield ("Prompts patched", f"{metrics['prompts_used'].value:.0f}", failed)
    if total := metrics.get("total_effect"):
        yield ("Total effect", number(total.value), f"{with_interval(total)}, {metric_label(patching.raw['metric'])}")
    if best["flow"]:
        cell = max(best["flow"], key=lambda entry: abs(entry["value"]))
        where = f"cut at {cell['path']}, layer {cell['layer']}: {cell['reader']} ← {cell['source']}"
        yield ("Largest loss of flow", number(cell["value"], 3), f"{patching.unit}: {where}")
    if best["units"]:
        unit = max(best["units"], key=lambda entry: abs(entry["value"]))
        yield (
            "Largest unit",
            number(unit["value"], 3),
            f"{patching.unit}: {unit['kind']} {unit['unit']}, layer {unit['layer']}, {unit['direction']}",
        )


def maps(patching: Patching) -> Iterator[str]:
    """A map for each way to be read and layer; every cell says its value, without scripts as its title."""
    yield (
        f'<p class="soft">Readers down, read tokens across; {escape(patching.unit)}; red is a loss, blue a gain, one '
        "scale for all maps.</p>"
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


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    return headline_of(load_patching(run_dir))


def headline_of(patching: Patching) -> str:
    best = patching.raw["strongest"]
    said = []
    if best["flow"]:
        cell = max(best["flow"], key=lambda entry: abs(entry["value"]))
        said.append(
            f"the largest loss of flow is {number(cell['value'], 3)} (cut at {cell['path']} of layer "
            f"{cell['layer']}: {cell['reader']} ← {cell['source']})"
        )
    if best["units"]:
        unit = max(best["units"], key=lambda entry: abs(entry["value"]))
        said.append(
            f"the largest unit is {unit['kind']} {unit['unit']} of layer {unit['layer']} "
            f"({number(unit['value'], 3)}, {unit['direction']})"
        )
    text = f"{'; '.join(said)}, {patching.unit}" if said else "nothing was patched"
    return f"{text[0].upper()}{text[1:]}."


def to_log(run_dir: str | Path) -> ToLog:
    """The metrics, and the largest losses and units."""
    patching = load_patching(run_dir)
    tables = [records(f"strongest_{name}", best) for name, best in patching.raw["strongest"].items()]
    return ToLog(metric_values(patching.metrics), {title: table for found in tables for title, table in found.items()})
