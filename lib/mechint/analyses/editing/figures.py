"""The figures of editing: scores by layer, and edits beside causal tracing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...report import figure_style as style
from ...report.values import Value, read_value
from .edits import CONTROLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = {
    "efficacy": ("efficacy", style.BLUE), "paraphrase": ("paraphrase", style.ORANGE),
    "neighbourhood": ("neighbourhood", style.GREEN),
}  # fmt: skip
WORDS = {
    "rewrite": "rewrite score", "paraphrase_rewrite": "paraphrases' rewrite score",
    "neighbourhood_magnitude": "neighbourhood magnitude",
}  # fmt: skip
OVER = {"layers": "over layers", "facts": "over facts, in each layer", "all": "over facts and layers"}
COLUMNS = 3
MARKS = ("o", "s", "^", "D", "v", "P", "X")


def point(entry: Mapping[str, Any]) -> Value:
    return read_value(entry, Path("results.json"), "a number")


def names_of(edits: Sequence[Mapping[str, Any]]) -> list[str]:
    """The maps that were edited."""
    return list(dict.fromkeys(str(entry["name"]) for entry in edits))


def layers_size(edits: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    count = len(names_of(edits))
    return 2.6 + 2.7 * min(COLUMNS, count), 1.3 + 2.4 * -(-count // COLUMNS)


def by_layer(figure: Figure, edits: Sequence[Mapping[str, Any]]) -> None:
    """A panel for each map: efficacy, paraphrase and neighbourhood score by layer; a random direction's dotted."""
    names = names_of(edits)
    grid = figure.subplots(-(-len(names) // COLUMNS), min(COLUMNS, len(names)), squeeze=False, sharey=True).flatten()
    for place, name in zip(grid, names, strict=False):
        own = [entry for entry in edits if entry["name"] == name]
        layers = [int(entry["layer"]) for entry in own]
        for measure, (label, colour) in SHOWN.items():
            if all(measure in entry for entry in own):
                style.band(place, layers, [point(entry[measure]) for entry in own], colour, label)
        random = [[c["efficacy"]["value"] for c in entry["controls"] if c["control"] == CONTROLS[0]] for entry in own]
        if all(random):
            place.plot(
                layers, [one[0] for one in random], ":", color=style.PURPLE, marker="x", markersize=3.5,
                label="efficacy, random direction",
            )  # fmt: skip
        style.percent_axis(place)
        place.set_ylim(-0.03, 1.03)
        place.set_title(name)
        whole(place, layers)
    for place in grid[len(names) :]:
        place.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle("Edits by layer")


def whole(axes: Axes, layers: Sequence[int]) -> None:
    step = -(-len(layers) // 8)
    axes.set_xticks(list(layers)[::step])
    axes.set_xlim(min(layers) - 0.4, max(layers) + 0.4)
    axes.set_xlabel("layer")


def tracing_size(raw: Mapping[str, Any]) -> tuple[float, float]:
    return 9.6, 1.2 + 2.5 * len(names_of(raw["edits"]))


def beside_tracing(figure: Figure, raw: Mapping[str, Any]) -> None:
    """For each map its rewrite score beside the effects of tracing, by layer, and their correlation in each layer."""
    names = names_of(raw["edits"])
    grid = figure.subplots(len(names), 2, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        own = [entry for entry in raw["edits"] if entry["name"] == name]
        draw_profiles(row[0], own, raw["traced"], name)
        draw_within(row[1], [entry for entry in raw["within_layers"] if entry["name"] == name], name)
        whole(row[1], [int(entry["layer"]) for entry in own])
    figure.suptitle("Editing beside causal tracing, at the subject's last token")


def draw_profiles(axes: Axes, own: Sequence[Mapping[str, Any]], traced: Sequence[Mapping[str, Any]], name: str) -> None:
    """The rewrite score and, on an axis of its own, the effects of tracing."""
    layers = [int(entry["layer"]) for entry in own]
    style.band(axes, layers, [point(entry["rewrite"]) for entry in own], style.BLUE, "rewrite score of the edit")
    style.percent_axis(axes)
    axes.set_ylim(-0.05, 1.05)
    beside = axes.twinx()
    beside.grid(False)
    beside.spines["right"].set_visible(True)
    sites = dict.fromkeys((str(own[0]["site"]), "resid_post"))
    for site, colour in zip(sites, (style.RED, style.ORANGE), strict=False):
        found = [entry for entry in traced if entry["site"] == site]
        at = [int(entry["layer"]) for entry in found]
        style.band(beside, at, [point(entry["effect"]) for entry in found], colour, f"tracing, {site}", "s", "--")
    beside.set_ylabel("effect of tracing")
    axes.set_title(f"{name}: scores and effects")
    whole(axes, layers)
    handles, labels = (first + second for first, second in zip(
        axes.get_legend_handles_labels(), beside.get_legend_handles_labels(), strict=True))  # fmt: skip
    axes.legend(handles, labels, loc="upper right", fontsize=7)


def draw_within(axes: Axes, found: Sequence[Mapping[str, Any]], name: str) -> None:
    """Spearman's correlation of effect and rewrite score over the facts, in each layer."""
    sites = list(dict.fromkeys(entry["site"] for entry in found))
    for k, (site, colour) in enumerate(zip(sites, (style.RED, style.ORANGE), strict=False)):
        for entry in found:
            if entry["site"] == site and entry["measure"] == "rewrite":
                shift = 0.12 * (k - (len(sites) - 1) / 2)
                first = not any(text == site for text in axes.get_legend_handles_labels()[1])
                style.dot(axes, entry["layer"] + shift, point(entry["correlation"]), colour, site if first else "",
                          MARKS[k], 4.5)  # fmt: skip
    axes.axhline(0, color=style.GREY, linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_title(f"{name}: rank correlation over facts")
    if sites:
        axes.legend(loc="lower right", fontsize=7)
