"""Curves: the search step by step, and faithfulness over the size of the circuit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from ...report.values import Value
from ...report.words import number, percent
from .pages.words import MASKS, curve_name, metric_name, units_name
from .results import Results, Trace, load_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR = -0.5  # faithfulness has no lower bound; below this the exact depth of a failure says nothing
LONG = 24
"""Characters of a name that no longer fits beside a small panel."""


def draw_search(results: Results, path: Path) -> Path:
    """Writes sparsity_curves.png: size and sparsity against the budget, the metric, the loss, and the temperature."""
    traces = load_history(results)
    panels = 2 + _loss_differs(traces) + _annealed(traces)
    return style.save_figure(path, (7.2, 2.6 * panels), partial(search_figure, results=results, traces=traces))


def _loss_differs(traces: list[Trace]) -> bool:
    """For some metrics the loss is the metric itself; one panel then shows both."""
    return any(trace.column("loss") != trace.column("metric") for trace in traces)


def _annealed(traces: list[Trace]) -> bool:
    """True if the gates have a temperature, which then has a panel."""
    return any("temperature" in step for trace in traces for step in trace.steps)


def search_figure(figure: Figure, results: Results, traces: list[Trace]) -> None:
    """Panels over the optimiser's steps: the size and the sparsity, what is preserved and, where there are such, the
    loss and the temperature of the gates.

    One line per seed; purple are the searches of the controls; thin grey lines are the searches for the size.
    """
    separate = _loss_differs(traces)
    annealed = [trace for trace in traces if _annealed([trace])]
    panels = list(figure.subplots(2 + separate + bool(annealed), 1, sharex=True))
    figure.suptitle(f"{results.raw['title']}: the search, step by step")
    fields = ["kept", "metric", *(["loss"] if separate else [])]
    for trace, look in _looks(traces):
        for axes, field in zip(panels, fields, strict=False):
            axes.plot(trace.column("step"), trace.column(field), **look)
    budgets = {tuple(zip(t.column("step"), t.column("budget"), strict=True)): None for t in traces if t.final}
    for budget in budgets:  # the same schedule of several seeds once
        panels[0].plot(*zip(*budget, strict=True), color=style.INK, linestyle=":", linewidth=1.4, zorder=5)
    panels[0].plot([], [], color=style.INK, linestyle=":", linewidth=1.4, label="budget of the seeds")
    name, unit = metric_name(results)
    smallest = min(value for trace in traces for value in trace.column("budget"))
    _log_if_wide(panels[0], [value for trace in traces for value in trace.column("kept")], smallest / 2)
    if results.raw["metric"] == "kl":  # never negative, and searches end orders of magnitude apart
        _log_if_wide(panels[1], [value for trace in traces for value in trace.column("metric")])
    what = units_name(results)
    panels[0].set(title="Size and sparsity", ylabel=f"gates open\n({what if len(what) < LONG else 'units'})")
    _sparsity_axis(panels[0], results.total)
    panels[1].set(title=f"Preserved metric{'' if separate else ', and the loss'}: {name}", ylabel=f"{name}\n({unit})")
    if separate:
        panels[2].set(title="Minimised loss", ylabel="loss")
    for trace, look in _looks(annealed):
        panels[-1].plot(trace.column("step"), trace.column("temperature"), **{**look, "label": "_"})
    if annealed:
        panels[-1].set(title="Temperature of the gates", ylabel="temperature")
    panels[-1].set_xlabel("optimiser step")
    for axes, letter in zip(panels, "abcd", strict=False):
        style.panel_letter(axes, letter)
    entries = sorted(zip(*panels[0].get_legend_handles_labels(), strict=True), key=lambda entry: -entry[0].get_zorder())
    seeds_first = [entry for entry in entries if entry[0].get_zorder() == 3] + [
        e for e in entries if e[0].get_zorder() != 3
    ]
    figure.legend(*zip(*seeds_first, strict=True), loc="outside lower center", ncols=4)


def _sparsity_axis(axes: Axes, total: int) -> None:
    """A second axis at the right of a size: the share of the units that is dropped."""
    right = axes.twinx()
    right.set_yscale(axes.get_yscale())
    low, high = axes.get_ylim()
    right.set_ylim(low, high)
    shares = [0.999, 0.99, 0.95, 0.9, 0.8, 0.5, 0.0] if axes.get_yscale() == "log" else [1.0, 0.75, 0.5, 0.25, 0.0]
    places = [(total * (1 - share), share) for share in shares if low <= total * (1 - share) <= high]
    right.set_yticks([place for place, _ in places], [style.share_label(share) for _, share in places])
    right.yaxis.set_minor_locator(style.no_ticks())
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    right.set_ylabel("sparsity")


def _looks(traces: list[Trace]) -> list[tuple[Trace, dict[str, Any]]]:
    """The look of each search; searches for the size share one legend entry, and so do very many seeds."""
    finals = [trace for trace in traces if trace.final and trace.weights == "trained"]
    many, looks, named = len(finals) > len(style.CYCLE), [], set()
    for trace in traces:
        if trace.weights != "trained":
            line = "-." if trace.weights == "exchanged" else "--"
            look = {"color": style.PURPLE, "linestyle": line, "label": trace.name, "linewidth": 1.5, "zorder": 4}
        elif not trace.final:
            look = {"color": "#A6A6A6", "linewidth": 0.7, "alpha": 0.8, "label": "searches for the size"}
        elif many:
            look = {"color": style.BLUE, "linewidth": 1.2, "alpha": 0.45, "label": f"{len(finals)} seeds", "zorder": 3}
        else:
            colour = style.CYCLE[finals.index(trace)]
            look = {"color": colour, "linewidth": 1.4, "alpha": 0.9, "label": trace.name, "zorder": 3}
        if look["label"] in named:
            look["label"] = "_"  # matplotlib leaves labels with an underscore out of legends
        named.add(look["label"])
        looks.append((trace, look))
    return looks


def _log_if_wide(axes: Axes, values: list[float], floor: float = 0.0) -> None:
    """A log scale when the values above ``floor`` span more than a factor of 20; lines leave the panel below it."""
    values = [value for value in values if value > floor]
    if values and max(values) / min(values) > 20:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axes.set_yscale("log", nonpositive="clip" if floor else "mask")
        axes.set_yticks(style.nice_log_ticks(min(values), max(values), most=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        if floor:
            axes.set_ylim(max(min(values) / 1.3, floor), max(values) * 1.3)


def draw_faithfulness(results: Results, path: Path) -> Path:
    """Writes faithfulness_curve.png."""
    return style.save_figure(path, (7.2, 4.7), partial(faithfulness_figure, results=results))


CURVE_LOOKS = {
    "learned": (style.BLUE, "o", "-"),
    "attribution": (style.ORANGE, "s", "-"),
    "random": (style.GREY, "", "--"),
}


def faithfulness_figure(figure: Figure, results: Results) -> None:
    """Faithfulness over units kept on a log axis: curves with their bands, the circuit, the controls and the target."""
    axes = figure.subplots()
    figure.suptitle(f"{results.raw['title']}: faithfulness over circuit size")
    at = [i for i, size in enumerate(results.sizes) if size > 0]  # a log axis has no room for the empty circuit
    sizes = [results.sizes[i] for i in at]
    for name, points in results.curves.items():
        colour, marker, line = CURVE_LOOKS[name]
        label = curve_name(results, name) + areas(results, name)
        style.band(axes, sizes, [points[i] for i in at], colour, label, marker, line)
    shown = [points[i] for points in results.curves.values() for i in at]
    shown += _controls(axes, results)
    target = target_faithfulness(results)
    if target is not None:
        axes.axhline(target, color=style.GREEN, linestyle="-.", linewidth=1.1, label=f"target {percent(target)}")
    for level in (0.0, 1.0):
        axes.axhline(level, color="#555555", linewidth=0.8, zorder=1)
    _faithfulness_axes(axes, results, shown)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), alignment="left")


def _controls(axes: Axes, results: Results) -> list[Value]:
    """Marks the circuit and the masks of the controls at the circuit's size; returns what has to be in view."""
    circuit, kept = results.metrics["faithfulness"], max(results.kept, 1)
    masks = []
    for name, control in MASKS.items():
        mask = results.metrics.get(name)
        if mask is not None:
            label = f"{control.label}:\n{percent(mask.value)}"
            style.dot(axes, kept, mask, style.PURPLE, label, control.marker, size=6, hollow=True)
            masks += [mask] if mask.value >= 0 else []  # one below 0 does not widen the axis
    label = f"circuit: {results.kept:,} of {results.total:,}\n{percent(circuit.value)} faithful"
    style.dot(axes, kept, circuit, style.RED, label, "*", size=12)
    return [circuit, *masks]


def _faithfulness_axes(axes: Axes, results: Results, shown: list[Value]) -> None:
    sizes = [*(size for size in results.sizes if size > 0), max(results.kept, 1)]
    low, high = min(point.low for point in shown), max(point.high for point in shown)
    bottom = max(min(low, 0.0), FLOOR)
    axes.set_ylim(bottom - 0.06, min(max(high, 1.0), 1.5) + 0.06)
    if low < FLOOR:
        axes.text(
            0.005,
            0.012,
            f"values below {percent(FLOOR)} are not shown",
            transform=axes.transAxes,
            fontsize=7,
            color=style.GREY,
        )
    style.log_count_axis(axes, min(sizes), max(sizes))
    style.percent_axis(axes)
    axes.set(
        xlabel=f"{units_name(results)} kept (log scale)", ylabel="faithfulness (0 %: all dropped, 100 %: full model)"
    )
    scale = results.total / 100
    share = axes.secondary_xaxis(
        "top", functions=(lambda size: np.divide(size, scale), lambda x: np.multiply(x, scale))
    )
    ticks = style.nice_log_ticks(min(sizes) * 100 / results.total, max(sizes) * 100 / results.total, most=9)
    share.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    share.tick_params(axis="x", which="minor", top=False)
    share.grid(visible=False)
    share.set_xlabel("share of all units")


def areas(results: Results, curve: str) -> str:
    """CPR and CMD belong to the learned curve and stand in its legend."""
    known = [
        f"{name.upper()} {number(results.metrics[name].value, 3)}" for name in ("cpr", "cmd") if name in results.metrics
    ]
    return "\n" + ", ".join(known) if curve == "learned" and known else ""


def target_faithfulness(results: Results) -> float | None:
    """The faithfulness the search aimed at; None when it was given a budget instead."""
    config = results.raw["config"]
    wanted = config.get("target_faithfulness")
    return float(wanted) if wanted is not None and config.get("search", "smallest") == "smallest" else None
