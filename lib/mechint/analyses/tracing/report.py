"""The report of a causal trace: trace_report.md and report.html, whose maps show a value for every cell."""

from __future__ import annotations

from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from ...report import words
from ...report.compose import write_page
from ...report.content import Checks, Content, Figure, Section, Widget, of_run, table_section
from ...report.finished import ALL_FIGURES, Drawn
from ...report.to_log import ToLog, metric_values, records
from ...report.values import Value
from ...report.words import METRICS, chance, metric_label, number, value_cells
from ...utils.statistics import UNADJUSTED
from .figures import TITLES, Trace, draw_example, draw_layers, draw_roles, load_trace

STRONGEST = ("direction", "site", "layer", "token", "effect", "interval", "n", "p (all cells)")
CAPTIONS = {
    "roles": "Mean effect of one kind of site at one token and layer: {title}. Grey: no prompt has such a token.",
    "layers": "The same effects by layer, with 95 % intervals over templates: {title}.",
    "example": "The maps of one prompt: {title}.",
}


def write_trace(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes the figures, trace_report.md and report.html of a finished trace into its directory."""
    trace = load_trace(run_dir)
    return write_page(trace.directory, content(trace), "trace_report.md", drawn)


def content(trace: Trace) -> Content:
    """The page: the strongest cells, a map of every cell, the figures, and how well estimates agree."""
    sections = [
        Section("Evidence", [Checks(findings(trace))]),
        table_section(f"Strongest cell of every map ({trace.unit})", "", STRONGEST, strongest(trace), (2, 4, 5, 6, 7)),
        Section("Every cell", [maps(trace)]),
        Section("Figures", figures(trace)),
        table_section(
            "Attribution patching against the exact effects",
            "Pearson correlation over all cells and prompts.",
            ("direction", "site", "correlation"),
            rows,
            (2,),
            True,
        )
        if (rows := agreement(trace))
        else Section("", []),
    ]
    said = caveats(trace)
    return of_run(trace, sections, said, lead=headline_of(trace), cards=cards(trace), facts=facts(trace))


def cards(trace: Trace) -> list[tuple[str, str, str]]:
    total, best = trace.metrics["total_effect"], largest(trace)
    where = f"{best['panel']}, layer {best['layer']}, {best['role']}"
    used, failed = (trace.metrics[name].value for name in ("prompts_used", "prompts_failed"))
    return [
        ("Prompts traced", f"{used:.0f}", f"{failed:.0f} not answered, left out"),
        ("Total effect", number(total.value), f"{with_interval(total)}, {metric_label(trace.raw['metric'])}"),
        ("Strongest cell", number(best["value"], 3), f"{trace.unit}: {where}"),
    ]


def largest(trace: Trace) -> dict[str, Any]:
    """The strongest cell of all maps."""
    return dict(max(trace.raw["trace"]["strongest"], key=lambda entry: abs(entry["value"])))


def figures(trace: Trace) -> list[Figure]:
    """Three figures for each direction: means by role, by layer with intervals, and one prompt's maps."""
    plan = [("roles", draw_roles, "heatmaps"), ("layers", draw_layers, "curves")]
    plan += [("example", draw_example, "heatmaps")] if trace.examples else []
    return [
        Figure(
            f"trace_{name}_{direction}.png",
            caption(trace, name).format(title=TITLES[direction]),
            partial(draw, trace, direction),
            kind=kind,
        )
        for direction in trace.directions
        for name, draw, kind in plan
    ]


def strongest(trace: Trace) -> list[tuple[str, ...]]:
    return [
        (
            best["direction"], best["panel"], str(best["layer"]), best["role"],
            *value_cells(best["value"], best["low"], best["high"]), str(best["n"]), chance(best["p"]),
        )
        for best in trace.raw["trace"]["strongest"]
    ]  # fmt: skip


def agreement(trace: Trace) -> list[tuple[str, ...]]:
    """Attribution patching beside the exact sweep, where both were made."""
    return [
        (direction, panel["name"], f"{panel['attribution_correlation']:.2f}")
        for direction in trace.directions
        for panel in trace.panels(direction)
        if panel["attribution_correlation"] is not None
    ]


def with_interval(value: Value) -> str:
    said = words.with_interval(value.value, value.low, value.high)
    return f"{said} ({value.interval})" if value.alone else said


def facts(trace: Trace) -> list[tuple[str, str]]:
    raw, metrics = trace.raw, trace.metrics
    values = [
        (name.replace("_", " "), with_interval(metrics[name]))
        for name in ("clean", "corrupted", "total_effect", "accuracy_full")
    ]
    return [
        ("task", f"{raw['task']['name']}: {raw['task'].get('description', '')}"),
        ("corruption", raw["ablation"]),
        ("metric", metric_label(raw["metric"])),
        *values,
        ("intervals", f"{raw['trace']['interval']}{UNADJUSTED}"),
        ("prompts traced", f"{metrics['prompts_used'].value:.0f}"),
        ("prompts left out (not answered)", f"{metrics['prompts_failed'].value:.0f}"),
    ]


def lowered(what: str, total: Value, metric: str, hurts: bool) -> str:
    """A sentence on the total effect: the metric of the clean run less that of the other."""
    name = METRICS[metric][0]
    if hurts:
        return f"{what} lowers the {name} by {with_interval(total)}."
    return f"{what} does not certainly lower the {name}: the total effect is {with_interval(total)}."


def findings(trace: Trace) -> list[tuple[bool, str]]:
    total = trace.metrics["total_effect"]
    hurts = (total.value if total.alone else total.low) > 0
    said = lowered("The corruption", total, str(trace.raw["metric"]), hurts)
    if total.alone:
        return [(hurts, f"{said} No effect below can be tested.")]
    found = [(hurts, said)]
    for direction in trace.directions:
        sure = sum(p is not None and p <= 0.05 for panel in trace.panels(direction) for row in panel["p"] for p in row)
        every = sum(n > 0 for panel in trace.panels(direction) for row in panel["n"] for n in row)
        found.append(
            (
                sure > 0,
                f"{TITLES[direction].capitalize()}: {sure} of {every} cells have an effect (p ≤ 0.05, step-down "
                "bootstrap of whole templates, adjusted for all cells of the direction).",
            )
        )
    return found


def caveats(trace: Trace) -> list[str]:
    chosen = "The strongest cell of a map is chosen by its size"
    return [
        *trace.raw["notes"],
        f"{chosen}: on another prompt it may be elsewhere."
        if trace.metrics["total_effect"].alone
        else f"{chosen}, so its own interval is too narrow for that choice; the p-value accounts for it.",
        "An effect shows that a site carries information that differs between the two runs of a prompt. It does not "
        "show that no other site carries it: backup paths can make each of two sites look unneeded.",
    ]


def caption(trace: Trace, kind: str) -> str:
    """The caption of a figure; of one prompt there is neither a mean nor an interval."""
    if not trace.metrics["total_effect"].alone:
        return CAPTIONS[kind]
    return CAPTIONS[kind].replace("Mean effect", "Effect").replace("with 95 % intervals over templates", "no interval")


def maps(trace: Trace) -> Widget:
    """The mean map and those of single prompts, chosen in two lists; every cell says its value."""
    views: list[dict[str, Any]] = []
    roles = range(len(trace.roles))
    for direction in trace.directions:
        names = [panel["name"] for panel in trace.panels(direction)]
        kinds = [
            {
                "name": panel["name"],
                "values": panel["value"],
                "more": [[_more(panel, layer, role) for role in roles] for layer in range(len(panel["value"]))],
            }
            for panel in trace.panels(direction)
        ]
        mean = "by role" if trace.metrics["total_effect"].alone else "mean over all prompts"
        views.append({"prompt": mean, "direction": direction, "rows": trace.roles, "maps": kinds})
        for k, example in enumerate(trace.examples):
            title = f"{k + 1}: {' '.join(example['tokens'])} → {example['answer']}"
            kinds = [{"name": name, "values": example["maps"][direction][name]} for name in names]
            views.append({"prompt": title, "direction": direction, "rows": example["tokens"], "maps": kinds})
    unit = f"map by role: {trace.unit}; single prompts: {metric_label(trace.raw['metric'])}"
    shown = (
        '<p><label>Prompt <select id="trace-prompt"></select></label> '
        '<label>Direction <select id="trace-direction"></select></label> '
        f'<span class="soft">{escape(unit)}; red above zero, blue below, one scale for all maps shown</span></p>'
        '<div id="trace-maps"></div><p id="trace-value" class="soft" aria-live="polite">Point at a cell, tap it, or '
        "reach it by Tab and the arrow keys.</p>"
    )
    return Widget(shown, _STYLE, _SCRIPT, views)


def _more(panel: dict[str, Any], layer: int, role: int) -> str:
    if not panel["n"][layer][role]:
        return "no prompt has such a token"
    low, high = panel["low"][layer][role], panel["high"][layer][role]
    return "".join(("no interval" if low is None else f"[{low:.3g}, {high:.3g}]", f", n {panel['n'][layer][role]}")) + (
        "" if panel["p"][layer][role] is None else f", p {panel['p'][layer][role]:.2g}"
    )


_STYLE = """
#trace-maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .9rem; }
#trace-maps svg { width: 100%; height: auto; font: 9px system-ui, sans-serif; }
#trace-maps rect:focus { outline: 0; stroke: var(--ink); stroke-width: 2; }
#trace-maps text { fill: var(--ink); } #trace-maps .name { font-weight: 650; font-size: 11px; }
#trace-value { min-height: 1.5em; font-variant-numeric: tabular-nums; } select { max-width: 26rem; }
"""

_SCRIPT = """
(() => {
  const views = @DATA@, box = document.getElementById("trace-maps"), say = document.getElementById("trace-value");
  const prompt = document.getElementById("trace-prompt"), direction = document.getElementById("trace-direction");
  const fill = (list, values) => [...new Set(values)].forEach(value => {
    const entry = document.createElement("option"); entry.textContent = value; list.append(entry); });
  fill(prompt, views.map(view => view.prompt)); fill(direction, views.map(view => view.direction));
  const make = (tag, at, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const key in at) node.setAttribute(key, at[key]);
    if (text !== undefined) node.textContent = text;
    return node; };
  const colour = share => {
    const ends = share > 0 ? [178, 24, 43] : [33, 102, 172], size = Math.min(1, Math.abs(share));
    return "rgb(" + ends.map(end => Math.round(247 + (end - 247) * size)).join(",") + ")"; };
  const draw = () => {
    const view = views.find(v => v.prompt === prompt.value && v.direction === direction.value);
    const all = view.maps.flatMap(map => map.values.flat()).filter(value => value !== null).map(Math.abs);
    const limit = Math.max(...all) || 1;
    box.replaceChildren();
    for (const map of view.maps) {
      const left = 112, cell = Math.min(24, 150 / map.values.length), height = 14;
      const width = Math.max(left + cell * map.values.length + 6, 6.5 * map.name.length);
      const svg = make("svg", {viewBox: `0 0 ${width} ${height * view.rows.length + 40}`});
      svg.append(make("text", {x: 0, y: 11, class: "name"}, map.name));
      const cells = view.rows.map(() => []);
      view.rows.forEach((row, r) => {
        const name = row.length > 22 ? row.slice(0, 21) + "…" : row;
        svg.append(make("text", {x: left - 5, y: 28 + height * r, "text-anchor": "end"}, name));
        map.values.forEach((values, layer) => {
          const value = values[r], text = value === null ? "none" : value.toPrecision(3);
          const rect = make("rect", {x: left + cell * layer, y: 18 + height * r, width: cell - 0.5,
            height: height - 0.5, fill: value === null ? "#999" : colour(value / limit)});
          const more = map.more ? " " + map.more[layer][r] : "";
          rect.said = `${map.name}, layer ${layer}, ${row}: ${text}${more}`;
          cells[r].push(rect);
          svg.append(rect); }); });
      reach(cells, rect => { say.textContent = rect.said; });
      const end = 30 + height * view.rows.length;
      [0, map.values.length - 1].forEach((layer, k) => svg.append(make("text",
        {x: left + cell * (layer + 0.5), y: end, "text-anchor": "middle"}, k ? layer : "layer 0")));
      box.append(svg); } };
  prompt.addEventListener("change", draw); direction.addEventListener("change", draw); draw();
})();
"""


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    return headline_of(load_trace(run_dir))


def headline_of(trace: Trace) -> str:
    best = largest(trace)
    value, interval = value_cells(best["value"], best["low"], best["high"])
    sure = "no interval" if best["low"] is None else interval
    return (
        f"The strongest cell is {best['panel']} of layer {best['layer']} at the token “{best['role']}”: "
        f"{value} ({sure}), {trace.unit}."
    )


def to_log(run_dir: str | Path) -> ToLog:
    """The metrics, and the strongest cell of every map."""
    trace = load_trace(run_dir)
    return ToLog(metric_values(trace.metrics), records("strongest", trace.raw["trace"]["strongest"]))
