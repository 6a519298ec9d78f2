"""The figures of steering: effects by layer and strength beside other directions, and how long one push lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...report import figure_style as style
from ...report.values import Value, read_value
from ...report.words import metric_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
MOST_LAYERS = 6
"""Layers of the figure of one push; of more those with the largest differences are drawn."""
NAMES = {"state": "state, once", "resid_post": "residual stream, once"}


def point(entry: Mapping[str, Any]) -> Value:
    return read_value(entry, Path("results.json"), "a number")


def profile_strength(strengths: Sequence[float]) -> float:
    """The strength that profiles by layer show: 1, or else the nearest to it."""
    return min(strengths, key=lambda strength: (abs(strength - 1), strength))


def labelled(others: str) -> str:
    return "random directions" if others == "random" else "directions of shuffled contrasts"


def others_band(axes: Axes, x: Sequence[float], rows: Sequence[Row], key: str, label: str) -> None:
    """The central 95 % of other directions, where there are any."""
    there = [(at, row[key]) for at, row in zip(x, rows, strict=True) if row.get(key)]
    if there:
        low, high = ([one[end] for _, one in there] for end in ("low", "high"))
        axes.fill_between([at for at, _ in there], low, high, color=style.GREY, alpha=0.3, linewidth=0, label=label)
        axes.plot([at for at, _ in there], [one["value"] for _, one in there], color=style.GREY, linewidth=0.8)


def by_layer(axes: Axes, rows: Sequence[Row], label: str) -> None:
    """A line with intervals for each kind of site, over the layers."""
    kinds = list(dict.fromkeys(row["site"] for row in rows))
    for kind, colour in zip(kinds, cycle(len(kinds)), strict=True):
        own = [row for row in rows if row["site"] == kind]
        layers = [-1 if row["layer"] is None else row["layer"] for row in own]
        others_band(axes, layers, own, "others", label if kind == kinds[0] else "")
        style.band(axes, layers, [point(row["effect"]) for row in own], colour, kind)
    axes.axhline(0, color=style.INK, linewidth=0.7)
    axes.set_xlabel("layer")
    every = sorted({row["layer"] for row in rows if row["layer"] is not None})
    step = max(1, -(-len(every) // 8))
    axes.set_xticks(every[::step])


def cycle(count: int) -> list[str]:
    return [style.CYCLE[k % len(style.CYCLE)] for k in range(count)]


def steering(figure: Figure, raw: Mapping[str, Any]) -> None:
    """Effects by layer, over strength at the best site, the side effects there, and the projection by layer."""
    places = figure.subplots(2, 2).flatten()
    metric, best, beside = metric_label(raw["metric"]), raw["best"], labelled(raw["others"])
    strength = profile_strength([row["strength"] for row in raw["curves"]])
    by_layer(places[0], [row for row in raw["curves"] if row["strength"] == strength], beside)
    places[0].set_title(f"strength {strength:g}, by layer")
    own = [row for row in raw["curves"] if row["name"] == best["name"]]
    colour = cycle(8)[list(dict.fromkeys(row["site"] for row in raw["curves"])).index(best["site"]) % 5]
    at = [row["strength"] for row in own]
    panels: list[tuple[Axes, str, str, Callable[[Row], bool]]] = [
        (places[1], "effect", "others", lambda row: True),
        (places[2], "kl", "others_kl", lambda row: "kl" in row),
    ]
    for axes, key, others, there in panels:
        rows = [row for row in own if there(row)]
        if rows:
            others_band(axes, at, rows, others, beside)
            style.band(axes, at, [point(row[key]) for row in rows], colour, best["name"])
        axes.set_xlabel("strength")
    places[1].axhline(0, color=style.INK, linewidth=0.7)
    places[1].set_title(f"at {best['name']}")
    places[2].set_title("side effect there: KL on unrelated text")
    places[2].set_ylabel("nats a token")
    by_layer(places[3], raw["projections"], beside)
    places[3].set_title("projected out, by layer")
    for axes in (places[0], places[1], places[3]):
        axes.set_ylabel(f"change of the {metric}")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)))
    figure.suptitle(f"Steering towards {raw['property']}")


def drawn_layers(raw: Mapping[str, Any]) -> list[Row]:
    """The layers of the figure of one push."""
    there = [row for row in raw["once"] if row["pushes"]]
    largest = sorted(there, key=lambda row: -abs(row["difference"]["value"]))[:MOST_LAYERS]
    return [row for row in there if row in largest]


def once_size(raw: Mapping[str, Any]) -> tuple[float, float]:
    rows = -(-len(drawn_layers(raw)) // 2)
    return (8.6 if len(drawn_layers(raw)) > 1 else 5.4), 0.9 + 2.5 * rows


def once(figure: Figure, raw: Mapping[str, Any]) -> None:
    """A panel for each layer: the effect of one push of the state and of the residual stream, by tokens since."""
    layers = drawn_layers(raw)
    columns = min(2, len(layers))
    places = figure.subplots(-(-len(layers) // columns), columns, squeeze=False).flatten()
    for axes, row in zip(places, layers, strict=False):
        for site, colour in zip(("state", "resid_post"), (style.BLUE, style.ORANGE), strict=True):
            own = [push for push in row["pushes"] if push["site"] == site]
            style.band(axes, [p["after"] for p in own], [point(p["effect"]) for p in own], colour, NAMES[site])
        axes.axhline(0, color=style.INK, linewidth=0.7)
        axes.set_title(f"layer {row['layer']}")
        axes.set_xlabel("tokens between push and answer")
        axes.set_ylabel(f"change of the {metric_label(raw['metric'])}")
        axes.set_xticks(sorted({push["after"] for push in row["pushes"]}))
    for axes in places[len(layers) :]:
        axes.set_visible(False)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle("How long one push lasts")
