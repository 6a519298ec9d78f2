"""Causal traces of several checkpoints side by side: their averaged maps, and differences paired over the prompts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import content as blocks
from ...report import figure_style as style
from ...report.along_training import MOST, Track, axis_of, write_along
from ...report.compose import write_page
from ...report.content import Bullets, Content, Section, figure, table_section
from ...report.finished import run_names, valid
from ...report.maps import Grid, grid, heat, layer_axis
from ...report.members import Warned, gathered, member_section
from ...report.values import Value
from ...report.words import value_cells
from ...utils.errors import MechintError
from ...utils.files import read_torch, write_json
from ..map_comparison import EffectMap, MapPair, Measured, RunPair, compared, figures
from ..map_comparison import findings as findings_of
from ..map_comparison import sections as map_sections
from .figures import TITLES, Trace, load_trace
from .report import findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRONGEST = ("run", "direction", "site", "layer", "token", "effect", "interval", "n")


def write_trace_comparison(run_dirs: Sequence[str | Path], output_dir: str | Path) -> list[Path]:
    """Writes comparison.json, comparison_maps_*.png, comparison_layers_*.png, comparison_map_cells*.png, comparison.md
    and comparison.html.

    Beyond a dozen traces, one comparison.png along their training step instead of the maps.

    Args:
        run_dirs: At least two directories of finished traces.
        output_dir: Directory of the comparison.

    Raises:
        MechintError: fewer than two traces, or one that can't be read.
    """
    traces = [load_trace(run_dir) for run_dir in run_dirs]
    if len(traces) < 2:
        raise MechintError(f"a comparison needs at least two finished traces; got {len(traces)}")
    output, names = Path(output_dir), run_names([trace.directory for trace in traces])
    warned = gathered(names, (warnings(trace) for trace in traces))
    if len(traces) > MOST:
        return along(traces, names, output, warned)
    found: list[dict[str, Any]] = []
    notes, pairs = [], list[RunPair]()
    for trace, name in zip(traces[1:], names[1:], strict=True):
        reason = incomparable(traces[0], trace)
        if reason:
            notes.append(f"{name} and {names[0]}: {reason}.")
            continue
        pair = RunPair(name, names[0], compared(measured(traces[0]), measured(trace)))
        pairs.append(pair)
        found += [{"run": name, "less": names[0], **entry} for entry in differences(traces[0], pair.maps)]
    runs = [
        {"name": name, "directory": Path(os.path.relpath(trace.directory, output)).as_posix(),
         "checkpoint": trace.raw["checkpoint"], "strongest": trace.raw["trace"]["strongest"]}
        for name, trace in zip(names, traces, strict=True)
    ]  # fmt: skip
    written = [
        write_json(
            output / "comparison.json",
            {"schema": 1, "runs": runs, "findings": findings_of(pairs), "differences": found,
             "maps": [pair.entries() for pair in pairs], "notes": notes, "warnings": warned},
        )
    ]  # fmt: skip
    plots = []
    for direction in [d for d in traces[0].directions if all(d in trace.directions for trace in traces)]:
        widest = max(len(trace.panels(direction)) for trace in traces)
        size = (min(16.0, 2.6 + 1.9 * widest), 1.6 + 1.7 * len(traces))
        maps_file = f"comparison_maps_{direction}.png"
        plots.append(figure(maps_file, CAPTIONS["maps"], size, maps_figure, traces, names, direction))
        plots += layers_plots(traces, names, direction, widest)
    plots += figures(pairs, traces[0].unit)
    content = page_of(traces, strongest_rows(traces, names), pairs, notes, plots, warned)
    return [*written, *write_page(output, content, "comparison.md", page_name="comparison.html")]


def warnings(trace: Trace) -> list[str]:
    """The warnings of a trace's own report: findings that speak against it, and the analysis' notes."""
    return [*(text for good, text in findings(trace) if not good), *map(str, trace.raw["notes"])]


def along(traces: list[Trace], names: list[str], output: Path, warned: Warned) -> list[Path]:
    """The comparison of more traces than are compared map by map."""
    raws = [trace.raw for trace in traces]
    last = traces[axis_of(raws).lines[0].runs[-1]]
    notes = [
        "The comparison follows, in every map, the cell that is strongest at the last checkpoint; it is chosen by its "
        "size there."
    ]
    if len({trace.unit for trace in traces}) > 1:
        notes.append(
            f"Only effects given as {last.unit} are followed; in the other traces the corruption may not lower the "
            f"metric."
        )
    reasons = {reason for trace in traces if (reason := incomparable(last, trace)) and trace.unit == last.unit}
    notes += [f"Not all traces are of one request: {reason.partition(', so')[0]}." for reason in sorted(reasons)]
    directories = [trace.directory for trace in traces]
    return write_along(output, last.raw["title"], raws, directories, names, trace_tracks(traces, last), warned, notes)


def trace_tracks(traces: list[Trace], last: Trace) -> list[Track]:
    """Accuracy, the ends of the effect, and of every map the cell that is strongest in the trace ``last``."""
    named = {"accuracy_full": "accuracy", "total_effect": "total effect", "clean": "metric, clean run"}
    tracks = [
        Track(name, label, [trace.metrics.get(name) for trace in traces], share=name == "accuracy_full")
        for name, label in named.items()
    ]
    for best in last.raw["trace"]["strongest"]:
        where = f"{best['panel']}, layer {best['layer']}, {best['role']}"
        label = f"{where} ({best['direction']})" if len(last.directions) > 1 else where
        values = [cell(trace, best) if trace.unit == last.unit else None for trace in traces]
        tracks.append(Track(f"{best['direction']}: {where}", label, values, share="share" in last.unit))
    return tracks


def cell(trace: Trace, at: dict[str, Any]) -> Value | None:
    """One cell's effect in a trace; None where no prompt has it."""
    found = [panel for panel in trace.panels(at["direction"]) if panel["name"] == at["panel"]] if (
        at["direction"] in trace.directions) else []  # fmt: skip
    if not found or at["role"] not in trace.roles or at["layer"] >= len(found[0]["value"]):
        return None
    column = trace.roles.index(at["role"])
    value, low, high, n = (grid(found[0], name)[at["layer"], column] for name in ("value", "low", "high", "n"))
    return None if np.isnan(value) else Value(float(value), float(low), float(high), int(n))


def incomparable(one: Trace, other: Trace) -> str:
    """Why the maps of two traces can't be subtracted; '' when they can."""
    shape = lambda trace: [
        [(panel["name"], len(panel["value"])) for panel in trace.panels(direction)] for direction in trace.directions
    ]
    for what, of in (
        ("other prompts", lambda trace: trace.manifest.get("prompts")),
        ("another metric, corruption or window", lambda trace: [
            trace.raw["config"].get(key) for key in ("metric", "corruption", "window", "noise_scale")]),
        ("another unit of effects", lambda trace: trace.unit),
        ("other directions, kinds of site, layers or roles", lambda trace: (trace.directions, shape(trace),
                                                                            trace.roles)),
    ):  # fmt: skip
        if of(one) != of(other):
            return f"{what}, so no differences are given"
    return ""


def read_effects(trace: Trace) -> dict[str, Any]:
    path = trace.directory / "effects.pt"
    found = read_torch(path, "effects", "run the analysis again")
    with valid(path):
        return {
            name: found[name].numpy()
            for name in ("answered", "templates", "total", *map("means.{}".format, trace.directions))
        }


def measured(trace: Trace) -> Measured:
    """The effects of every prompt in every cell of every map."""
    found = read_effects(trace)
    maps = []
    for direction in trace.directions:
        every = np.moveaxis(found[f"means.{direction}"].astype(np.float64), 1, 0)  # [map, prompt, layer, role]
        for effects, panel in zip(every, trace.panels(direction), strict=True):
            cells = [(layer, role) for layer in range(effects.shape[1]) for role in trace.roles]
            maps.append(EffectMap(map_name(direction, panel["name"]), cells, effects.reshape(len(effects), -1)))
    total = found["total"].astype(np.float64) if "share" in trace.unit else None
    return Measured(found["answered"].astype(bool), found["templates"], total, maps)


def map_name(direction: str, panel: str) -> str:
    return f"{panel}, {direction}"


def differences(one: Trace, pairs: Sequence[MapPair]) -> list[dict[str, Any]]:
    """The largest differences, the other less ``one``, of every map of every direction."""
    by_name = {pair.name: pair for pair in pairs}
    plain = lambda x: None if math.isnan(x) else x
    return [
        {
            "direction": direction, "panel": panel["name"], "layer": cell.layer, "role": cell.name,
            "value": cell.value, "low": plain(cell.low), "high": plain(cell.high), "p": plain(cell.p), "n": cell.n,
        }
        for direction in one.directions
        for panel in one.panels(direction)
        if (pair := by_name.get(map_name(direction, panel["name"]))) is not None
        for cell in pair.largest()
    ]  # fmt: skip


def cells(entry: dict[str, Any]) -> tuple[str, ...]:
    where = (entry["direction"], entry["panel"], str(entry["layer"]), entry["role"])
    return (
        *where,
        *value_cells(entry["value"], entry["low"], entry["high"]),
        str(entry["n"]),
    )


def strongest_rows(traces: list[Trace], names: list[str]) -> list[tuple[str, ...]]:
    return [
        (name, *cells(best))
        for name, trace in zip(names, traces, strict=True)
        for best in trace.raw["trace"]["strongest"]
    ]


CAPTIONS = {
    "maps": "Mean effect by token role and layer; a row for each checkpoint, a column for each kind of site.",
    "layers": "Mean effect by layer at the role where any checkpoint's effect is largest, with 95 % intervals.",
}


def page_of(
    traces: list[Trace], strongest: Any, pairs: list[RunPair], notes: list[str], plots: list[blocks.Figure],
    warned: Warned,
) -> Content:  # fmt: skip
    """The page of the comparison."""
    sections = [
        Section("What differs", [Bullets([*findings_of(pairs), *notes])]),
        member_section(warned, len(traces)),
        table_section("Strongest cell of every map", "", STRONGEST, strongest, (3, 5, 6, 7)),
        *map_sections(pairs, traces[0].unit),
        Section("Figures", plots),
    ]
    return Content(f"{traces[0].raw['title']}: comparison of {len(traces)} checkpoints", sections)


# ---- figures ----------------------------------------------------------------------------------------------------


def kinds_of(traces: list[Trace], direction: str) -> list[str]:
    """Names of the maps of any trace, each once."""
    return list(dict.fromkeys(panel["name"] for trace in traces for panel in trace.panels(direction)))


def maps_figure(figure: Figure, traces: list[Trace], names: list[str], direction: str) -> None:
    kinds = kinds_of(traces, direction)
    axes = figure.subplots(len(traces), len(kinds), squeeze=False)
    every = [grid(panel, "value") for trace in traces for panel in trace.panels(direction)]
    limit = max(float(np.nanmax(np.abs(values))) for values in every) or 1.0
    image: Any = None
    for row, trace, name in zip(axes, traces, names, strict=True):
        panels = {panel["name"]: panel for panel in trace.panels(direction)}
        for column, (place, kind) in enumerate(zip(row, kinds, strict=True)):
            if kind not in panels:
                place.set_visible(False)
                continue
            image = heat(place, grid(panels[kind], "value").T, limit)
            layer_axis(place, len(panels[kind]["value"]))
            place.set_yticks(range(len(trace.roles)), trace.roles if column == 0 else [])
            place.set_title(kind, fontsize=8)
        row[0].set_ylabel(name, fontweight="bold")
    figure.suptitle(f"Causal traces, {TITLES[direction]}")
    label = f"effect ({traces[0].unit})"
    figure.colorbar(image, ax=axes.ravel().tolist(), location="bottom", shrink=0.6, aspect=40, label=label)


def layers_plots(traces: list[Trace], names: list[str], direction: str, widest: int) -> list[blocks.Figure]:
    """Effects by layer: one figure of all kinds, or of more traces than a panel can show apart, one for each kind."""
    if len(traces) <= style.MANY:
        size = (2.0 + 2.3 * min(4, widest), 1.5 + 1.9 * -(-widest // 4))
        file = f"comparison_layers_{direction}.png"
        return [figure(file, CAPTIONS["layers"], size, layers_figure, traces, names, direction)]
    size, plots = style.multiples_size(len(traces)), []
    for kind in kinds_of(traces, direction):
        slug = re.sub(r"\W+", "_", kind).strip("_")
        file = f"comparison_layers_{direction}_{slug}.png"
        caption = f"{kind}: {CAPTIONS['layers']} A panel for each checkpoint, the others in grey."
        plots.append(figure(file, caption, size, layers_apart, traces, names, direction, kind))
    return plots


def layers_apart(figure: Figure, traces: list[Trace], names: list[str], direction: str, kind: str) -> None:
    """One kind of site, a panel for each trace."""
    role, lines = by_layer(traces, direction, kind)
    curves = [
        style.Curve(name, range(len(line)), line) for name, line in zip(names, lines, strict=True) if line is not None
    ]

    def dress(place: Any) -> None:
        place.axhline(0, color=style.GREY, linewidth=0.8)
        layer_axis(place, max(len(curve.points) for curve in curves))
        place.set_xlabel("layer")
        place.set_ylabel("effect")

    style.small_multiples(figure, curves, f"{kind} at {role} ({traces[0].unit}), {TITLES[direction]}", dress)


def by_layer(traces: list[Trace], direction: str, kind: str) -> tuple[str, list[list[Value] | None]]:
    """The role where any trace's effect is largest, and every trace's effects there by layer; None of a trace without
    the map or the role."""
    best, role = -math.inf, ""
    found: list[dict[str, Grid] | None] = []
    for trace in traces:
        panel = next((panel for panel in trace.panels(direction) if panel["name"] == kind), None)
        grids = None if panel is None else {name: grid(panel, name) for name in ("value", "low", "high")}
        found.append(grids)
        if grids is not None:
            # the last residual at the last token is the whole effect by definition, whatever the model
            sizes = np.nan_to_num(np.abs(grids["value"][:-1] if kind == "resid_post" else grids["value"]))
            if sizes.size and sizes.max() > best:
                best, role = float(sizes.max()), trace.roles[int(sizes.max(0).argmax())]
    lines: list[list[Value] | None] = []
    for trace, grids in zip(traces, found, strict=True):
        if grids is None or role not in trace.roles:
            lines.append(None)
            continue
        k = trace.roles.index(role)
        columns = (grids[name][:, k].tolist() for name in ("value", "low", "high"))
        lines.append([Value(value, low, high, 1) for value, low, high in zip(*columns, strict=True)])
    return role, lines


def layers_figure(figure: Figure, traces: list[Trace], names: list[str], direction: str) -> None:
    kinds = kinds_of(traces, direction)
    columns = min(4, len(kinds))
    axes = figure.subplots(-(-len(kinds) // columns), columns, squeeze=False, sharey=True).ravel()
    colours = [style.of_many(k, len(traces)) for k in range(len(traces))]
    for place in axes[len(kinds) :]:
        place.set_visible(False)
    for place, kind in zip(axes, kinds, strict=False):
        role, lines = by_layer(traces, direction, kind)
        for k, (name, line) in enumerate(zip(names, lines, strict=True)):
            if line is None:
                continue
            at, colour = np.arange(len(line)), colours[k]
            low, high = ([getattr(value, end) for value in line] for end in ("low", "high"))
            place.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            place.plot(at, [v.value for v in line], color=colour, marker="o", markersize=2.5, linewidth=1.2, label=name)
            layer_axis(place, len(line))
        place.axhline(0, color=style.GREY, linewidth=0.8)
        place.set_title(f"{kind}\nat {role}", fontsize=8)
    axes[0].set_ylabel("effect")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    figure.suptitle(f"Effect by layer ({traces[0].unit}), {TITLES[direction]}")
