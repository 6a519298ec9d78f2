"""The scorecard as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.figure_style import BLUE, CYCLE, GREY, INK, RED, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALE = "viridis"
"""Perceptually even (Smith & van der Walt 2015), readable in grey and with any colour vision."""
AXES = {"noise": "noise on all weights", "width": "directions of the residual stream"}
"""Axes of curves of recovery, and their names."""


def draw(results: dict[str, Any], path: Path) -> Path:
    """AUROC of units by method and model beside random weights; below that of edges, beside dictionaries."""
    edges = asked_edges(results)
    heights, columns = (len(results["methods"]), len(edges) or 1), len(results["models"])
    size = (4.6 + 0.92 * columns, 3.0 + 0.34 * sum(heights))

    def paint(figure: Figure) -> None:
        rows = 2 if edges or results["dictionaries"] else 1
        panels = figure.subplots(
            rows, 2, width_ratios=(0.92 * columns, 2.4), height_ratios=heights[:rows], squeeze=False
        )
        methods, models = titles_of(results, "methods"), [model for group in results["groups"] for model in group]
        cells = {place: (row["auroc"]["value"], mark(row)) for place, row in by_place(results).items()}
        heat_map(figure, panels[0, 0], cells, methods, models)
        seeds = results["config"]["seeds"]
        panels[0, 0].set_title("Units: AUROC, " + (f"mean of {seeds} seeds" if seeds > 1 else "one seed"))
        chance(panels[0, 1], results)
        if rows == 2:
            found = {(r["method"], r["model"]): (r["auroc"]["value"], whole(r)) for r in results["edges"]}
            heat_map(figure, panels[1, 0], found, edges, models)
            panels[1, 0].set_title("Edges: AUROC")
            panels[1, 0].set_xlabel("● all found, nothing else, on every seed;  k/n on k of n;  –: not asked")
            recovered(panels[1, 1], results)

    return save_figure(path, size, paint)


def asked_edges(results: dict[str, Any]) -> dict[str, str]:
    """Titles of the ways of scoring edges that any model was asked by."""
    asked = {row["method"] for row in results["edges"]}
    return {key: title for key, title in titles_of(results, "edge_methods").items() if key in asked}


def whole(row: dict[str, Any]) -> str:
    return "●" if row["exact"]["low"] == 1.0 else ""


def draw_recovery(results: dict[str, Any], path: Path) -> Path:
    """AUROC over noise and over width: a panel for each model and axis, a line for each method."""
    rows = [row for row in results["recovery"] if row["method"]]
    panels = list(dict.fromkeys((row["axis"], row["model"]) for row in rows))
    across = min(3, len(panels))
    down = -(-len(panels) // across)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(down, across, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (axis, model) in zip(grid.flat, panels, strict=False):
            panel(axes, [row for row in rows if (row["axis"], row["model"]) == (axis, model)], results["methods"])
            axes.set_title(model)
            axes.set_xlabel(AXES[axis])
        grid[0, 0].set_ylabel("AUROC")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    return save_figure(path, (max(6.8, 3.4 * across), 2.9 * down + 0.5), paint)


def panel(axes: Axes, rows: list[dict[str, Any]], titles: dict[str, str]) -> None:
    """The lines of one model and axis, with intervals over seeds, no higher than 1."""
    values = sorted({row["value"] for row in rows})
    for k, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["value"])
        aside = 0.012 * len(values) * (k - 2)  # where lines lie on each other
        x = [values.index(row["value"]) + aside for row in own]
        y = [row["auroc"]["value"] for row in own]
        edge = lambda row, end: row["auroc"]["value"] if row["auroc"][end] is None else row["auroc"][end]
        spread = [
            [max(0.0, row["auroc"]["value"] - edge(row, "low")) for row in own],
            [max(0.0, min(1.0, edge(row, "high")) - row["auroc"]["value"]) for row in own],
        ]
        axes.errorbar(
            x, y, yerr=spread, marker="o", markersize=3.5, capsize=2, elinewidth=0.9, color=CYCLE[k % len(CYCLE)],
            linestyle="-" if k < len(CYCLE) else "--", label=titles[method],
        )  # fmt: skip
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(min(0.45, *(row["auroc"]["value"] - 0.05 for row in rows)), 1.03)


def heat_map(
    figure: Figure,
    axes: Axes,
    cells: dict[tuple[str, str], tuple[float, str]],
    methods: dict[str, str],
    models: list[str],
) -> None:
    """A square for each method and model: its number and its mark."""
    values = [[cells.get((key, model), (float("nan"), ""))[0] for model in models] for key in methods]
    image = axes.imshow(values, cmap=SCALE, vmin=0.5, vmax=1.0, aspect="auto")
    for i, key in enumerate(methods):
        for j, model in enumerate(models):
            if (key, model) not in cells:
                axes.text(j, i, "–", ha="center", va="center", fontsize=7.5, color=GREY)
                continue
            value, sign = cells[key, model]
            label = f"{value:.3f} {sign}".replace("(", "").replace(")", "").replace(" of ", "/").strip()
            colour = INK if value > 0.78 else "white"
            axes.text(j, i, label, ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(models)), [model.replace("_", "\n") for model in models])
    axes.set_yticks(range(len(methods)), list(methods.values()))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="right", extend="min", fraction=0.03, pad=0.01, aspect=30)
    bar.set_ticks([0.5, 0.75, 1.0])
    bar.outline.set_visible(False)


def recovered(axes: Axes, results: dict[str, Any]) -> None:
    """Mean best cosine of planted features for each dictionary and site, beside that of another model's features."""
    rows = results["dictionaries"]
    if not rows:
        axes.set_axis_off()
        return
    for i, row in enumerate(rows):
        for name, colour in (("stranger_cosine", GREY), ("mean_cosine", BLUE)):
            value, low, high = (row[name][key] for key in ("value", "low", "high"))
            axes.errorbar(
                [value], [i], xerr=[[value - low], [high - value]], fmt="o", color=colour, markersize=3.5, capsize=2,
                elinewidth=1.0, label={"mean_cosine": "planted", "stranger_cosine": "another model's"}[name] if i == 0
                else None,
            )  # fmt: skip
    labels = [f"{row['method']}, {row['site'].removeprefix('layers.0.')}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=6.5)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks([0.0, 0.5, 1.0])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Dictionaries")
    axes.set_xlabel("cosine with planted features")
    axes.legend(fontsize=6.5, loc="lower right", borderpad=0.2, handletextpad=0.2)


def chance(axes: Axes, results: dict[str, Any]) -> None:
    """AUROC on random weights with its interval; red where that misses one half."""
    if not results["random"]:
        axes.set_axis_off()
        return
    order = list(titles_of(results, "methods"))
    for row in (row for row in results["random"] if row["method"] in order):
        i = order.index(row["method"])
        value, low, high = (row["auroc"][name] for name in ("value", "low", "high"))
        colour = BLUE if low <= 0.5 <= high else RED
        spread = [[value - low], [high - value]] if row["auroc"]["n"] > 1 else None  # one seed has no interval
        axes.errorbar(
            [value], [i], xerr=spread, fmt="o", color=colour, markersize=4, capsize=2,
            elinewidth=1.2,
        )  # fmt: skip
    axes.set_yticks(range(len(order)), [])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.axvline(0.5, color=GREY, linewidth=0.9, linestyle="--", zorder=0)
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks([0.0, 0.5, 1.0])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Random weights")
    axes.set_xlabel("AUROC within layers" + (", 95 %" if results["config"]["seeds"] > 1 else ""))


def by_place(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["method"], row["model"]): row for row in results["card"]}


def titles_of(results: dict[str, Any], kind: str) -> dict[str, str]:
    """Titles of ``methods`` or ``edge_methods`` in the order they stand in, which sorted keys of a file have not."""
    return {key: results[kind][key] for key in results["order"] if key in results[kind]}


def mark(row: dict[str, Any]) -> str:
    """Exact recovery: a full circle for all seeds, the number of them for some, nothing for none."""
    n = row["exact"]["n"]
    hits = round(row["exact"]["value"] * n)
    return "●" if hits == n else f"({hits} of {n})" if hits else ""
