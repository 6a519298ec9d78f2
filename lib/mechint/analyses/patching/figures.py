"""A finished activation patching: read and checked, and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from ...report.finished import FinishedRun, read_finished, valid
from ...report.maps import Grid, dots, grid, heat
from ...report.results import Address
from ...report.words import metric_label
from ..paths import figures as direct
from ..paths.figures import Paths, check_paths
from ..tracing.figures import ALPHA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIRECTIONS = ("necessary", "sufficient")
WAYS = {
    "out": "the whole mixer, scan and convolution",
    "state": "the scan alone",
    "conv": "the convolution alone",
    "scores": "attention, shared among the other tokens",
    "pattern": "attention, the other tokens keep theirs",
}
COLUMNS = 6  # maps of layers beside each other
RANKED = 15  # units of one kind in the ranking's figure
NAMED = 3  # units of a panel that are named in it


@dataclass(frozen=True)
class Patching(FinishedRun):
    """A finished activation patching."""

    @property
    def unit(self) -> str:
        scale = str(self.raw["scale"])
        return scale if scale != "metric" else metric_label(str(self.raw["metric"]))

    @property
    def paths(self) -> list[dict[str, Any]]:
        return list(self.raw["flow"]["paths"]) if self.raw["flow"] else []

    @property
    def roles(self) -> list[str]:
        return list(self.raw["flow"]["roles"])

    @property
    def kinds(self) -> list[dict[str, Any]]:
        return list(self.raw["units"] or [])

    @property
    def between(self) -> Paths | None:
        """The direct paths between the strongest units, as a finished path patching; None where none were measured."""
        found = self.raw.get("direct_paths")
        return None if found is None else Paths(**{**vars(self), "raw": {**self.raw, **found}})


def units_of(kind: dict[str, Any], layer: int | None = None) -> int:
    """The units of a kind, in all layers or in one."""
    each = kind["per_layer"]
    if layer is not None:
        return int(each[str(layer)] if isinstance(each, dict) else each)
    return sum(each.values()) if isinstance(each, dict) else kind["layers"] * each


def load_patching(run_dir: str | Path) -> Patching:
    """Reads a finished patching.

    Raises:
        MechintError: a file is missing, is not valid, or has another schema.
    """
    found = Patching(**vars(read_finished(run_dir, "patch")))
    with valid(found.directory / "results.json"):
        for entry in found.paths:
            shapes = {grid(entry, name).shape for name in ("value", "low", "high", "p", "n")}
            if len(shapes) > 1 or next(iter(shapes))[1] != len(found.raw["flow"]["pairs"]):
                raise ValueError(f"flow at {entry['name']}")
        for entry in found.kinds:
            lists = [entry[name][key] for name in DIRECTIONS for key in ("value", "low", "high", "p", "n", "estimate")]
            if {len(values) for values in (*lists, entry["layer"])} != {len(entry["unit"])}:
                raise ValueError(f"units of {entry['name']}")
        for row in (*found.raw["strongest"]["flow"], *found.raw["strongest"]["units"]):
            float(row["value"])
        if found.between is not None:
            check_paths(found.between)
    return found


def cell(raw: Mapping[str, Any], address: Address, index: tuple[int, ...]) -> dict[str, Any]:
    """Columns of a cell: one pair of roles of a layer, or one unit ablated or kept alone."""
    if index and address[0] == "direct_paths":
        return direct.cell({**raw, **raw["direct_paths"]}, address[1:], index)
    if not index or address[0] not in ("flow", "units"):
        return {}
    kind_of_interval = {"interval": raw["metrics"]["clean"]["interval"]}
    if address[0] == "flow":
        roles, (layer, pair) = raw["flow"]["roles"], index
        reader, source = (roles[k] for k in raw["flow"]["pairs"][pair])
        site = raw["flow"]["paths"][address[2]]["name"]
        return {"metric": "lost", "site": site, "layer": layer, "name": f"{reader} ← {source}", **kind_of_interval}
    kind, direction = raw["units"][address[1]], str(address[2])
    (k,) = index
    return {"metric": "effect", "site": kind["name"], "layer": kind["layer"][k], "unit": kind["unit"][k],
            "name": direction, **kind_of_interval}  # fmt: skip


def layer_maps(patching: Patching, entry: dict[str, Any], name: str) -> list[Grid]:
    """One number of a way to be read, for each layer [reader, source] with NaN for what no prompt has."""
    roles, pairs = len(patching.roles), patching.raw["flow"]["pairs"]
    maps = []
    for row in grid(entry, name):
        values = np.full((roles, roles), math.nan)
        for (reader, source), value in zip(pairs, row, strict=True):
            values[reader, source] = value
        maps.append(values)
    return maps


def draw_flow(patching: Patching, entry: dict[str, Any], path: Path) -> Path:
    """Losses without the flow: a map for each layer, readers down and sources across."""
    layers, roles = len(entry["value"]), len(patching.roles)
    columns = min(COLUMNS, layers)
    rows = -(-layers // columns)
    side = 0.28 * roles
    size = (max(5.6, 1.9 + columns * (side + 0.25)), 2.2 + rows * (side + 0.3))
    return style.save_figure(path, size, partial(flow_figure, patching=patching, entry=entry, columns=columns))


def flow_figure(figure: Figure, patching: Patching, entry: dict[str, Any], columns: int) -> None:
    values, sure = layer_maps(patching, entry, "value"), layer_maps(patching, entry, "p")
    rows = -(-len(values) // columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    largest = [np.abs(one[~np.isnan(one)]).max(initial=0.0) for path in patching.paths
               for one in layer_maps(patching, path, "value")]  # fmt: skip
    limit = max(largest) or 1.0
    image: Any = None
    for k, one in enumerate(values):
        place = axes[k // columns][k % columns]
        image = heat(place, one, limit)
        dots(place, sure[k] <= ALPHA)
        place.set_title(f"layer {k}")
        place.set_yticks(range(len(patching.roles)), patching.roles)
        place.set_xticks(range(len(patching.roles)), patching.roles, rotation=45, ha="right", rotation_mode="anchor")
        place.tick_params(labelbottom=k + columns >= len(values))
        if k % columns == 0:
            place.set_ylabel("reader")
        if k + columns >= len(values):
            place.set_xlabel("read token")
    for k in range(len(values), rows * columns):
        axes[k // columns][k % columns].set_visible(False)
    figure.suptitle(f"Flow cut at {entry['name']}: {WAYS[entry['name']]}", fontsize=10)
    label = f"lost ({patching.unit})\ndots: p ≤ {ALPHA:g}, adjusted for all cells"
    figure.colorbar(image, ax=axes.ravel().tolist(), location="bottom", shrink=0.7, aspect=40, label=label)


def draw_units(patching: Patching, path: Path) -> Path:
    """Effects of single units by layer: a row for each kind, a column for each direction."""
    width = min(14.0, 6.4 + 0.12 * max(kind["layers"] for kind in patching.kinds))
    size = (width, 1.2 + 2.2 * len(patching.kinds))
    return style.save_figure(path, size, partial(units_figure, patching=patching))


def units_figure(figure: Figure, patching: Patching) -> None:
    axes = figure.subplots(len(patching.kinds), 2, squeeze=False, sharey="row")
    for row, kind in zip(axes, patching.kinds, strict=True):
        for place, direction in zip(row, DIRECTIONS, strict=True):
            strip(place, kind, direction)
        row[0].set_ylabel(f"{kind['name']}\neffect of one {kind['axis']}")
    for place in axes[-1]:
        place.set_xlabel("layer (units side by side)")
    figure.suptitle(f"Effect of single units ({patching.unit})")
    figure.supxlabel(f"blue: p ≤ {ALPHA:g}, adjusted for all units; the {NAMED} largest are numbered", fontsize=8)


def strip(place: Axes, kind: dict[str, Any], direction: str) -> None:
    """One dot for each measured unit; within its layer in the order of the unit's number."""
    layer, unit = np.array(kind["layer"]), np.array(kind["unit"])
    x = layer + 0.8 * ((unit + 0.5) / np.array([units_of(kind, at) for at in kind["layer"]]) - 0.5)
    values, p = np.array(kind[direction]["value"]), np.array(kind[direction]["p"], dtype=np.float64)  # NaN: no p-value
    place.axhline(0, color=style.GREY, linewidth=0.8)
    for chosen, colour, order in ((~(p <= ALPHA), style.GREY, 2), (p <= ALPHA, style.BLUE, 3)):
        place.plot(
            x[chosen], values[chosen], linestyle="none", marker=".", markersize=4, color=colour, alpha=0.8, zorder=order
        )
    apart = 0.05 * np.array([kind["layers"], np.ptp(values)])
    named: list[int] = []
    for k in np.argsort(-np.abs(values), kind="stable")[:NAMED].tolist():
        # a number on top of another one could not be read
        free = all(abs(x[k] - x[j]) > apart[0] or abs(values[k] - values[j]) > apart[1] for j in named)
        if values[k] and free:
            named.append(k)
            # towards the middle of the panel, so that no number leaves it
            left = x[k] > (kind["layers"] - 1) / 2
            place.annotate(
                str(unit[k]), (x[k], values[k]), xytext=(-4 if left else 4, 0), textcoords="offset points",
                fontsize=7, ha="right" if left else "left", va="center",
            )  # fmt: skip
    place.set_xlim(-0.6, kind["layers"] - 0.4)
    step = -(-kind["layers"] // 12)
    place.set_xticks(range(0, kind["layers"], step))
    place.set_title(direction)


def draw_ranking(patching: Patching, path: Path) -> Path:
    """The largest units of each kind with their intervals, both directions."""
    shown = max(len(ranked(kind, RANKED)) for kind in patching.kinds)
    size = (1.2 + 3.4 * len(patching.kinds), 1.5 + 0.25 * shown)
    return style.save_figure(path, size, partial(ranking_figure, patching=patching))


def ranked(kind: dict[str, Any], most: int) -> list[int]:
    """The units of a kind with the largest effect in either direction."""
    size = np.maximum(*(np.abs(np.array(kind[name]["value"])) for name in DIRECTIONS))
    return [int(k) for k in np.argsort(-size, kind="stable")[:most]]


def ranking_figure(figure: Figure, patching: Patching) -> None:
    axes = figure.subplots(1, len(patching.kinds), squeeze=False)[0]
    for place, kind in zip(axes, patching.kinds, strict=True):
        order = ranked(kind, RANKED)
        at = np.arange(len(order))
        place.axvline(0, color=style.GREY, linewidth=0.8)
        looks = zip(DIRECTIONS, (style.BLUE, style.ORANGE), ("o", "D"), (-0.14, 0.14), strict=True)
        for name, colour, marker, shift in looks:
            value, low, high = (np.array(kind[name][key], dtype=np.float64)[order] for key in ("value", "low", "high"))
            place.errorbar(
                value, at + shift, xerr=[value - low, high - value], color=colour, marker=marker, markersize=4,
                linestyle="none", elinewidth=1.1, label=name,
            )  # fmt: skip
        place.set_yticks(at, [f"layer {kind['layer'][k]}, {kind['unit'][k]}" for k in order])
        place.set_ylim(len(order) - 0.5, -0.5)
        place.set_title(f"{kind['name']}: one {kind['axis']}")
        place.set_xlabel("effect")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.suptitle(f"Largest units ({patching.unit})")
