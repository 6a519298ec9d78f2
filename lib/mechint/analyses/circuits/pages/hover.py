"""The faithfulness curve as inline SVG whose values show under the pointer; without scripts it is a plain figure."""

from __future__ import annotations

from html import escape
from math import log

from ....report.content import Widget
from ....report.figure_style import nice_log_ticks, share_label
from ....report.values import Value
from ....report.words import percent, percents
from ..figures import FLOOR, target_faithfulness
from ..results import Results
from .words import MASKS, curve_name, units_name

WIDTH, HEIGHT = 900, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 16, 46
LOOKS = {
    "learned": ("--blue", ""),
    "attribution": ("--orange", ""),
    "random": ("--grey", "6 4"),
}


class _Plot:
    """The mapping from (units kept, faithfulness) to pixels."""

    def __init__(self, results: Results) -> None:
        self.at = [i for i, size in enumerate(results.sizes) if size > 0]
        self.sizes = [results.sizes[i] for i in self.at]
        every = [*self.sizes, max(results.kept, 1)]
        points = [curve[i] for curve in results.curves.values() for i in self.at] + [results.metrics["faithfulness"]]
        self.small, self.large = min(every), max(max(every), min(every) + 1)
        self.floor = max(min(0.0, *(p.low for p in points)), FLOOR) - 0.04
        self.ceiling = min(max(1.0, *(p.high for p in points)), 1.5) + 0.04

    def x(self, size: float) -> float:
        share = log(size / self.small) / log(self.large / self.small)
        return round(LEFT + 8 + share * (WIDTH - LEFT - RIGHT - 16), 2)

    def y(self, value: float) -> float:
        inside = min(max(value, self.floor), self.ceiling)
        return round(TOP + (self.ceiling - inside) / (self.ceiling - self.floor) * (HEIGHT - TOP - BOTTOM), 2)


def hover_curve(results: Results) -> Widget:
    """A <div> with legend and SVG, and its script. Everything a pointer shows is also in results.json."""
    plot = _Plot(results)
    parts = [*_frame(plot, results)]
    for name, points in results.curves.items():
        parts += _curve(plot, [points[i] for i in plot.at], *LOOKS[name])
    parts += _marks(plot, results)
    parts.append(f'<line id="hover-guide" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>')
    rows = []
    for place, i in enumerate(plot.at):
        size = results.sizes[i]
        lines = [f"{size:,} {units_name(results)} ({percent(size / results.total)})"]
        for name, curve in results.curves.items():
            share = " ".join(percents(curve[i].value, curve[i].low, curve[i].high))
            lines.append(f"{curve_name(results, name)}: {share}")
        rows.append({"x": plot.x(plot.sizes[place]), "lines": lines})
    label = f"Faithfulness over the number of {units_name(results)} kept"
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"'
    svg = f'<svg id="hover-curve" {frame}>{"".join(parts)}</svg>'
    box = '<div id="hover-box" hidden></div>'
    return Widget(f'<div class="hover">{_legend(results)}{svg}{box}</div>', _STYLE, _SCRIPT, rows)


def _frame(plot: _Plot, results: Results) -> list[str]:
    parts, bottom, right = [], HEIGHT - BOTTOM, WIDTH - RIGHT
    levels = [step / 5 for step in range(-5, 8) if plot.floor <= step / 5 <= plot.ceiling]
    for level in levels:
        y = plot.y(level)
        strong = ' class="axis"' if level in (0.0, 1.0) else ""
        parts.append(f'<line{strong} x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{share_label(level)}</text>')
    for size in nice_log_ticks(plot.small, plot.large):
        x = plot.x(size)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{size:,.0f}</text>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(units_name(results))} kept'
        " (log scale)</text>"
    )
    parts.append(
        f'<text transform="translate(14 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">faithfulness</text>'
    )
    return parts


def _curve(plot: _Plot, points: list[Value], colour: str, dashes: str) -> list[str]:
    x = [plot.x(size) for size in plot.sizes]
    upper = [f"{a},{plot.y(p.high)}" for a, p in zip(x, points, strict=True)]
    lower = [f"{a},{plot.y(p.low)}" for a, p in zip(x, points, strict=True)]
    line = " ".join(f"{a},{plot.y(p.value)}" for a, p in zip(x, points, strict=True))
    dots = (
        []
        if dashes
        else [
            f'<circle cx="{a}" cy="{plot.y(p.value)}" r="3" fill="var({colour})"/>'
            for a, p in zip(x, points, strict=True)
        ]
    )
    return [
        f'<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="var({colour})" opacity="0.16"/>',
        f'<polyline points="{line}" fill="none" stroke="var({colour})" stroke-width="2" stroke-dasharray="{dashes}"/>',
        *dots,
    ]


def _marks(plot: _Plot, results: Results) -> list[str]:
    parts, x = [], plot.x(max(results.kept, 1))
    target = target_faithfulness(results)
    if target is not None:
        y = plot.y(target)
        parts.append(f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    for name, colour, sign in (
        *((name, "--purple", control.sign) for name, control in MASKS.items()),
        ("faithfulness", "--red", "◆"),
    ):
        point = results.metrics.get(name)
        if point is not None:
            y = plot.y(point.value)
            lower = f"L{x + 8} {y + 8}L{x - 8} {y + 8}Z" if sign == "△" else f"L{x + 8} {y}L{x} {y + 8}L{x - 8} {y}Z"
            fill = f"var({colour})" if sign == "◆" else "var(--paper)"
            ends = f'x1="{x}" x2="{x}" y1="{plot.y(point.high)}" y2="{plot.y(point.low)}"'
            bar = f'<line {ends} style="stroke:var({colour});stroke-width:2"/>'
            shape = f'<path d="M{x} {y - 8}{lower}" fill="{fill}" stroke="var({colour})" stroke-width="2"/>'
            parts.append(bar + shape)
    return parts


def _legend(results: Results) -> str:
    items = [(curve_name(results, name), LOOKS[name][0]) for name in results.curves]
    circuit = results.metrics["faithfulness"]
    items.append((f"◆ the circuit: {results.kept:,} units, {percent(circuit.value)}", "--red"))
    for name, control in MASKS.items():
        if name in results.metrics:
            items.append((f"{control.sign} {control.label}: {percent(results.metrics[name].value)}", "--purple"))
    target = target_faithfulness(results)
    if target is not None:
        items.append((f"target {percent(target)}", "--green"))
    spans = (f'<span><i style="background:var({colour})"></i>{escape(text)}</span>' for text, colour in items)
    return f'<div class="legend">{"".join(spans)}</div>'


_STYLE = """
.hover { position: relative; } .hover svg { width: 100%; height: auto; touch-action: pan-y; }
.hover svg text { fill: var(--soft); font-size: 12px; font-family: inherit; }
.hover svg line { stroke: var(--line); stroke-width: 1; }
.hover svg line.axis, .hover svg #hover-guide { stroke: var(--soft); }
.hover svg line.target { stroke: var(--green); stroke-dasharray: 8 3 2 3; stroke-width: 1.5; }
#hover-box { position: absolute; top: 42%; pointer-events: none; background: var(--card);
  border: 1px solid var(--line);
  border-radius: 6px; padding: .4rem .6rem; font-size: .82rem; white-space: pre; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; margin: .3rem 0 .4rem; }
.legend i { display: inline-block; width: .9rem; height: .22rem; margin-right: .4rem; vertical-align: middle;
  border-radius: 2px; }
"""

_SCRIPT = """
(function (rows) {
  var svg = document.getElementById("hover-curve"), box = document.getElementById("hover-box");
  var guide = document.getElementById("hover-guide");
  function leave() { box.hidden = true; guide.setAttribute("visibility", "hidden"); }
  function move(event) {
    var frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
    var x = (event.clientX - frame.left) / scale, best = rows[0];
    rows.forEach(function (row) { if (Math.abs(row.x - x) < Math.abs(best.x - x)) { best = row; } });
    guide.setAttribute("x1", best.x); guide.setAttribute("x2", best.x); guide.setAttribute("visibility", "visible");
    box.textContent = best.lines.join("\\n"); box.hidden = false;
    var left = best.x * scale + 12;
    box.style.left = (left + box.offsetWidth > frame.width ? best.x * scale - box.offsetWidth - 12 : left) + "px";
  }
  if (rows.length) { svg.addEventListener("pointermove", move); svg.addEventListener("pointerleave", leave); }
})(@DATA@);
"""
