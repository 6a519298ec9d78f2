"""The figures of a study of units that are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from ...report.maps import heat
from ...report.words import metric_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "attention_weighted": style.BLUE, "gradient_guided": style.ORANGE, "rollout": style.GREEN,
    "gradient_x_input": style.RED, "single_ablation": style.SKY, "random": style.GREY,
}  # fmt: skip


def delta_figure(target: Figure, layers: list[dict[str, Any]]) -> None:
    axes = target.subplots(len(layers), 2, squeeze=False)
    others = (("do_mean", "lost with Δ held at its mean"), ("output_variance", "variance of the output (documented)"))
    for row, entry in zip(axes, layers, strict=True):
        x = np.array(entry["rankings"]["gradient"]["value"])
        top = entry["top"]["gradient"]
        for place, (name, label) in zip(row, others, strict=True):
            y = np.array(entry["rankings"][name]["value"])
            place.plot(x, y, linestyle="none", marker=".", color=style.GREY, alpha=0.6)
            place.plot(x[top], y[top], linestyle="none", marker="o", markersize=4, color=style.BLUE)
            for e in top[:3]:
                place.annotate(str(e), (x[e], y[e]), xytext=(-4, 4), textcoords="offset points", fontsize=7, ha="right")
            place.set_xscale("log" if (x > 0).all() else "linear")
            if name == "output_variance" and (y > 0).all():
                place.set_yscale("log")
            place.set_xlabel("Σ over tokens of |∂m/∂Δ|")
            place.set_ylabel(label)
            place.set_title(f"layer {entry['layer']}")
    target.suptitle("Step size Δ: sensitivity, intervention, and the documented ranking")


def tokens_figure(target: Figure, layers: list[dict[str, Any]]) -> None:
    axes = target.subplots(len(layers), 3, squeeze=False)
    panels = (("step", "Δ"), ("gradient", "|∂m/∂Δ|"), ("do_mean", "lost with Δ at its mean"))
    for row, entry in zip(axes, layers, strict=True):
        found = entry["tokens"]
        for spot, (name, label) in zip(row, panels, strict=True):
            values = np.array(found[name]["value"])
            image = heat(spot, values, float(np.abs(values).max()) or 1.0)
            every = -(-len(found["tokens"]) // 8)
            ticks = range(len(found["tokens"]) - 1, -1, -every)  # the last token is one of them
            spot.set_xticks(list(ticks), [str(found["tokens"][t]) for t in ticks])
            some = range(0, len(values), -(-len(values) // 10))
            spot.set_yticks(list(some), [str(found["channels"][k]) for k in some])
            spot.set_xlabel("token, from the last")
            spot.set_title(f"layer {entry['layer']}: {label}")
            target.colorbar(image, ax=spot)
        row[0].set_ylabel("channel")
    target.suptitle("Step size Δ, token by token")


def shared_figure(target: Figure, found: dict[str, Any]) -> None:
    """Relevance by layer and token; beside it what each token brings into every block's output."""
    maps = [("relevance for the answer's logit", found["relevance"]["value"], list(range(len(found["bias"]))))]
    if found["blocks"]:
        rows = [block["sources"]["value"] for block in found["blocks"]]
        maps.append(("‖contribution of a token to the block‖", rows, [block["layer"] for block in found["blocks"]]))
    axes = target.subplots(1, len(maps), squeeze=False)[0]
    for spot, (title, rows, layers) in zip(axes, maps, strict=True):
        values = np.array(rows)
        image = heat(spot, values, float(np.abs(values).max()) or 1.0)
        every = -(-len(found["tokens"]) // 8)
        ticks = range(len(found["tokens"]) - 1, -1, -every)  # the last token is one of them
        spot.set_xticks(list(ticks), [str(found["tokens"][t]) for t in ticks])
        some = range(0, len(layers), -(-len(layers) // 12))
        spot.set_yticks(list(some), [str(layers[k]) for k in some])
        spot.set_xlabel("token, from the last")
        spot.set_ylabel("layer (after the last: the final stream)" if title.startswith("rel") else "layer")
        spot.set_title(title)
        target.colorbar(image, ax=spot)
    target.suptitle("Where the last answer comes from")


def curves_figure(target: Figure, entries: list[dict[str, Any]], metric: str) -> None:
    layers = list(dict.fromkeys(entry["layer"] for entry in entries))
    axes = target.subplots(len(layers), 2, squeeze=False, width_ratios=(1.5, 1))
    for (place, bars), layer in zip(axes, layers, strict=True):
        own = [entry for entry in entries if entry["layer"] == layer]
        for entry in own:
            colour = COLOURS[entry["method"]]
            for name, line in (("morf", "-"), ("lerf", "--")):
                points = [point["value"] for point in entry[name]]
                place.plot(
                    entry["shares"], points, line, color=colour, marker=".", label=None if line == "--" else said(entry)
                )
        style.percent_axis(place, "x")
        place.set_xlabel(f"share of {own[0]['site']} units ablated")
        place.set_ylabel(metric_label(metric))
        place.set_title(f"layer {layer}")
        area_bars(bars, own)
    handles, labels = axes[0][0].get_legend_handles_labels()
    target.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    target.suptitle("Rankings of units, tested by deletion")


def said(entry: dict[str, Any]) -> str:
    return str(entry["method"]).replace("_x_", " × ").replace("_", " ")


def area_bars(place: Axes, entries: list[dict[str, Any]]) -> None:
    for k, entry in enumerate(entries):
        value = entry["area"]
        low, high = value["value"] - value["low"], value["high"] - value["value"]
        place.barh(k, value["value"], xerr=[[low], [high]], color=COLOURS[entry["method"]], height=0.62,
                   error_kw={"elinewidth": 1.0})  # fmt: skip
    place.set_yticks(range(len(entries)), [said(entry) for entry in entries])
    place.invert_yaxis()
    place.set_xlabel("area between LeRF and MoRF")
    place.grid(axis="y", visible=False)


def across_figure(target: Figure, across: dict[str, Any], layers: list[int]) -> None:
    left, right = target.subplots(1, 2)
    values = np.array(across["layers"]["value"])
    values[np.tril_indices(len(values))] = np.nan
    draw_map(target, left, values, list(range(len(values))), "relative change")
    left.set_title("without the layer's update")
    grid = np.full((len(layers), len(layers)), np.nan)
    for pair in across["pairs"]:
        grid[layers.index(pair["source"]), layers.index(pair["target"])] = pair["patched"]["value"]
    draw_map(target, right, grid, layers, "standard deviations")
    right.set_title(f"top units of {across['site']}")
    target.suptitle("Effects of layers on later layers")


def draw_map(target: Figure, place: Axes, values: np.ndarray[Any, Any], layers: list[int], label: str) -> None:
    there = np.abs(values[np.isfinite(values)])
    image = heat(place, values, float(there.max()) if there.size and there.max() > 0 else 1.0)
    step = -(-len(layers) // 12)
    for axis, which in ((place.xaxis, "to layer"), (place.yaxis, "from layer")):
        axis.set_ticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        axis.set_label_text(which)
    target.colorbar(image, ax=place, label=label)


def graph_figure(target: Figure, across: dict[str, Any]) -> None:
    place = target.subplots()
    edges = across["edges"]
    nodes: dict[int, list[int]] = {}
    for edge in edges:
        for end in ("source", "target"):
            own = nodes.setdefault(edge[end], [])
            if edge[f"{end}_unit"] not in own:
                own.append(edge[f"{end}_unit"])
    where = {
        (layer, unit): (layer, 0.5 + (k - (len(own) - 1) / 2) / max(map(len, nodes.values())))
        for layer, own in nodes.items()
        for k, unit in enumerate(sorted(own))
    }
    largest = max(edge["value"] for edge in edges) or 1.0
    for edge in reversed(edges):
        (x0, y0), (x1, y1) = where[edge["source"], edge["source_unit"]], where[edge["target"], edge["target_unit"]]
        share = edge["value"] / largest
        place.plot(
            [x0, x1], [y0, y1], color=style.BLUE, alpha=0.15 + 0.75 * share, linewidth=0.5 + 3.5 * share, zorder=1
        )
    for (_, unit), (x, y) in where.items():
        place.text(x, y, str(unit), ha="center", va="center", fontsize=8, zorder=3,
                   bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": style.GREY})  # fmt: skip
    place.set_xticks(sorted(nodes), [f"layer {layer}" for layer in sorted(nodes)])
    place.set_xlim(min(nodes) - 0.3, max(nodes) + 0.3)
    place.set_yticks([])
    place.grid(False)
    place.spines["left"].set_visible(False)
    target.suptitle(f"Strongest effects between units of {across['site']} (largest: {largest:.2g} SD)")
