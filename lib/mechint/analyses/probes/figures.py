"""The figure of probes: accuracy by layer, beside control labels, the most frequent class and shuffled weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...report import figure_style as style
from ...report.values import Value, read_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 6
"""Labels that have a panel, the first ones; tables have all."""


def point(entry: Mapping[str, Any]) -> Value:
    return read_value(entry, Path("results.json"), "a number")


def drawn_labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in rows))[:MOST_LABELS]


def size(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    count = len(drawn_labels(rows))
    return (8.6 if count > 1 else 5.4), 1.0 + 2.7 * -(-count // 2)


def profile(figure: Figure, rows: Sequence[dict[str, Any]], control: Mapping[str, Any] | None) -> None:
    """A panel for each label: a line for each kind of site, dashed its control labels."""
    labels = drawn_labels(rows)
    columns = min(2, len(labels))
    places = figure.subplots(-(-len(labels) // columns), columns, squeeze=False).flatten()
    kinds = list(dict.fromkeys(row["site"] for row in rows))
    for axes, label in zip(places, labels, strict=False):
        for k, kind in enumerate(kinds):
            own = [row for row in rows if row["label"] == label and row["site"] == kind]
            colour, at = style.CYCLE[k % len(style.CYCLE)], [row["layer"] for row in own]
            style.band(axes, at, [point(row["accuracy"]) for row in own], colour, kind)
            controls = [row["control_labels"]["value"] for row in own]
            axes.plot(at, controls, "--", color=colour, marker="s", markersize=3, label=f"{kind}, control labels")
            random = {
                row["layer"]: row["shuffled"]["value"]
                for row in (control["quantities"] if control else ())
                if row["shuffled"] and row["site"] == kind and row["quantity"] == f"accuracy of {label}"
            }
            if random:
                axes.plot(
                    [*random], [*random.values()], ":", color=style.PURPLE, marker="x+"[k % 2], markersize=4,
                    label=f"{kind}, shuffled weights",
                )  # fmt: skip
        frequent = next(row["most_frequent"] for row in rows if row["label"] == label)
        axes.axhline(frequent, color=style.GREY, linewidth=0.9, label="most frequent class")
        style.percent_axis(axes)
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(label)
        axes.set_xlabel("layer")
        every = sorted({row["layer"] for row in rows})
        axes.set_xticks(every[:: max(1, -(-len(every) // 8))])
    for axes in places[len(labels) :]:
        axes.set_visible(False)
    handles, names = places[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
    figure.suptitle("Held-out accuracy of probes")
