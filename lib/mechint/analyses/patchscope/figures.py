"""The figures of patchscopes: curves by layer beside their controls, and maps of layer × layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from ...report.values import Value, read_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "right": "precision@1",
    "surprisal": "surprisal (nats)",
}
STYLES = (("others_{}", "--", "s", "other prompt"), ("lens_{}", "-.", "d", "logit lens"))
"""Entries beside a reading, with their line, marker and name."""


def point(entry: Mapping[str, Any]) -> Value:
    return read_value(entry, Path("results.json"), "a number")


def kinds_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["site"] for row in rows))


def into_layers(rows: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({row["into"] for row in rows})


def same_layer(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The readings of each site in its own layer; all, where they are put into one layer."""
    own = [row for row in rows if row["into"] == row["layer"]]
    return list(rows) if len(into_layers(rows)) == 1 else own


def curves_size(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    return 8.6, 0.9 + 2.9 * len(kinds_of(rows))


def curves(
    figure: Figure, rows: Sequence[dict[str, Any]], control: Mapping[str, Any] | None, unpatched: Mapping[str, Any]
) -> None:
    """A row of panels for each kind of site: the reading with its interval, and its controls."""
    shown = same_layer(rows)
    kinds = kinds_of(shown)
    places = figure.subplots(len(kinds), 2, squeeze=False)
    handles: dict[str, Any] = {}
    for line, kind in zip(places, kinds, strict=True):
        own = [row for row in shown if row["site"] == kind]
        at = [row["layer"] for row in own]
        for axes, (measure, title) in zip(line, PANELS.items(), strict=True):
            style.band(axes, at, [point(row[measure]) for row in own], style.BLUE, "patchscope")
            colours = (style.ORANGE, style.GREY)
            for (entry, dashes, marker, name), colour in zip(STYLES, colours, strict=True):
                there = [row for row in own if row[entry.format(measure)] is not None]
                if there:
                    values = [row[entry.format(measure)]["value"] for row in there]
                    axes.plot([row["layer"] for row in there], values, dashes, color=colour, marker=marker,
                              markersize=3, label=name)  # fmt: skip
            names = {measure, *(f"{measure} in layer {row['into']}" for row in own if row["into"] != row["layer"])}
            random = [
                row for row in (control["quantities"] if control else ())
                if row["shuffled"] and row["site"] == kind and row["quantity"] in names
                and row["layer"] in at
            ]  # fmt: skip
            if random:
                axes.plot([row["layer"] for row in random], [row["shuffled"]["value"] for row in random], ":",
                          color=style.PURPLE, marker="x", markersize=4, label="shuffled weights")  # fmt: skip
            axes.axhline(unpatched[measure], color=style.INK, linewidth=0.8, linestyle=(0, (1, 3)),
                         label="target as it is")  # fmt: skip
            axes.set_title(f"{kind}: {title}")
            axes.set_xlabel("layer of the source")
            axes.set_xticks(at[:: max(1, -(-len(at) // 8))])
            if measure == "right":
                style.percent_axis(axes)
                axes.set_ylim(-0.03, 1.03)
            else:
                axes.set_ylim(bottom=0)
            handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)))
    figure.suptitle("A representation of the source prompt, read in the target prompt")


def map_size(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    kinds = len(kinds_of(rows))
    return 1.2 + 3.6 * kinds, 3.6


def layer_map(figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
    """The share of prompts whose token is the likeliest one, by the layer of the source and of the target."""
    kinds, targets = kinds_of(rows), into_layers(rows)
    places = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(places, kinds, strict=True):
        layers = sorted({row["layer"] for row in rows if row["site"] == kind})
        values = np.full((len(targets), len(layers)), np.nan)
        for row in rows:
            if row["site"] == kind:
                values[targets.index(row["into"]), layers.index(row["layer"])] = row["right"]["value"]
        axes.set_facecolor("#D0D0D0")
        axes.grid(False)
        image = axes.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
        for direction, names in (("x", layers), ("y", targets)):
            step = max(1, -(-len(names) // 8))
            getattr(axes, f"set_{direction}ticks")(range(0, len(names), step), list(map(str, names[::step])))
        axes.set_xlabel("layer of the source")
        axes.set_ylabel("layer of the target")
        axes.set_title(kind)
    figure.colorbar(image, ax=list(places), label="share of prompts")
    figure.suptitle("The token is the likeliest one, by layer taken from and put into")
