"""A finished path patching: read and checked, and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALPHA = 0.05
DRAWN = 12
"""Strongest paths of the drawing."""
MATRIX = 80
"""Receivers whose names stand at the matrix in the figure; of more, each so many-th."""
WAYS = {
    "necessary": "what the clean run loses when the receiver reads the sender's part of the twin's run",
    "sufficient": "what comes back in the twin's run when the receiver reads the sender's clean part",
}
FIRST, LAST = "embeddings", "logits"
UNITS = ("head", "channel", "neuron")
"""Axes whose names say what one unit is."""


@dataclass(frozen=True)
class Paths(FinishedRun):
    """A finished path patching."""

    @property
    def unit(self) -> str:
        scale = str(self.raw["scale"])
        return scale if scale != "metric" else metric_label(str(self.raw["metric"]))

    @property
    def matrices(self) -> dict[str, dict[str, Any]]:
        return dict(self.raw["paths"])

    @property
    def senders(self) -> list[dict[str, Any]]:
        return list(self.raw["senders"])

    @property
    def receivers(self) -> list[dict[str, Any]]:
        return list(self.raw["receivers"])

    def strongest(self, direction: str) -> list[dict[str, Any]]:
        return [entry for entry in self.raw["strongest"] if entry["direction"] == direction]

    def node(self, side: str, name: str) -> dict[str, Any]:
        """A sender or receiver by its name."""
        return {node["node"]: dict(node) for node in self.raw[side]}[name]

    @property
    def limit(self) -> float:
        """The largest effect of a direct path, which all maps share as the end of their scale."""
        every = [np.nanmax(np.abs(grid(matrix, "value")), initial=0.0) for matrix in self.matrices.values()]
        return float(max(every)) or 1.0


def load_paths(run_dir: str | Path) -> Paths:
    """Reads a finished path patching.

    Raises:
        MechintError: a file is missing, is not valid, or has another schema.
    """
    found = Paths(**vars(read_finished(run_dir, "path")))
    with valid(found.directory / "results.json"):
        check_paths(found)
    return found


def check_paths(found: Paths) -> None:
    """Raises an error of a file that is not valid unless all tables have the sizes of the senders and receivers."""
    size = (len(found.senders), len(found.receivers))
    for direction, matrix in found.matrices.items():
        if {grid(matrix, name).shape for name in ("value", "low", "high", "p", "n")} != {size}:
            raise ValueError(f"paths, {direction}")
        if {len(found.raw["totals"][direction][name]) for name in ("value", "low", "high", "p", "n")} != {size[0]}:
            raise ValueError(f"totals, {direction}")
    for entry in found.raw["strongest"]:
        float(entry["value"])
        found.node("senders", entry["sender"]), found.node("receivers", entry["receiver"])


def cell(raw: Mapping[str, Any], address: Address, index: tuple[int, ...]) -> dict[str, Any]:
    """Columns of a cell: one path from a sender to a receiver, or all paths out of a sender."""
    if not index or address[0] not in ("paths", "totals"):
        return {}
    sender = raw["senders"][index[0]]
    to = "every path" if address[0] == "totals" else raw["receivers"][index[1]]["node"]
    return {"metric": str(address[1]), "name": f"{sender['node']} → {to}", "site": sender["kind"],
            "layer": sender["layer"], "unit": sender["head"],
            "interval": raw["metrics"]["clean"]["interval"]}  # fmt: skip


def short(node: Mapping[str, Any]) -> str:
    """A node in few letters: ``0 head_out 2``, ``embed``."""
    said = str(node["node"])
    site, _, rest = said.removeprefix("layers.").partition("@")
    layer, _, kind = site.partition(".") if said.startswith("layers.") else ("", "", site)
    words = [layer, *kind.replace("]", "").split("[")]
    return " ".join(word for word in words if word) + (f" @{rest}" if rest else "")


def draw_matrix(paths: Paths, direction: str, path: Path) -> Path:
    """Effects of all direct paths of one direction: senders down, receivers across."""
    size = (2.2 + 0.21 * min(len(paths.receivers), MATRIX), 2.4 + 0.21 * min(len(paths.senders), MATRIX))
    size = (max(6.4, size[0]), max(3.2, size[1]))
    return style.save_figure(path, size, partial(matrix_figure, paths=paths, direction=direction))


def matrix_figure(figure: Figure, paths: Paths, direction: str) -> None:
    axes = figure.subplots()
    matrix = paths.matrices[direction]
    image = heat(axes, grid(matrix, "value"), paths.limit)
    dots(axes, grid(matrix, "p") <= ALPHA)
    for nodes, set_ticks in ((paths.senders, axes.set_yticks), (paths.receivers, axes.set_xticks)):
        step = -(-len(nodes) // MATRIX)
        set_ticks(range(0, len(nodes), step), [short(node) for node in nodes[::step]])
    axes.tick_params(axis="x", rotation=90)
    axes.set_ylabel("sender")
    axes.set_xlabel("receiver")
    figure.suptitle(f"Direct paths, {direction}", fontsize=10)
    label = f"{paths.unit}\ndots: p ≤ {ALPHA:g}, adjusted for all pairs"
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=40, label=label)


# ---- the drawing of the strongest paths --------------------------------------------------------------------------

Spot = tuple[int, int, str, str, int]
"""(layer, step, part, what a unit is, unit): one box of the drawing; no word and -1 for a whole part.

The inputs and the output of one head are one box, as are those of one channel."""


def spot(node: Mapping[str, Any]) -> Spot:
    place = int(node["layer"]), int(node["step"]), str(node["part"])
    if node["head"] is None:
        return *place, "", -1
    axis = str(node.get("axis", "head"))
    return *place, axis if axis in UNITS else "unit", int(node["head"])


def boxes(paths: Paths, entries: list[dict[str, Any]]) -> dict[Spot, tuple[float, float]]:
    """Places the parts of some paths: the forward goes up, parts of one step are beside each other."""
    ends = [paths.node(side, entry[side[:-1]]) for entry in entries for side in ("senders", "receivers")]
    rows: dict[tuple[int, int], list[Spot]] = {}
    for one in sorted({spot(node) for node in ends}):
        rows.setdefault(one[:2], []).append(one)
    # each row is shifted a little, so that a straight arrow over a row in between does not run through its boxes
    place = lambda k, count, y: k - (count - 1) / 2 + (0.28 if y % 2 else -0.28) * (0 < y < len(rows) - 1)
    return {one: (place(k, len(row), y), float(y)) for y, row in enumerate(rows.values()) for k, one in enumerate(row)}


def box_label(paths: Paths, one: Spot) -> str:
    layer, _, part, axis, unit = one
    if layer < 0:
        return FIRST
    if not part:
        return LAST
    name = {"attn_out": "attention", "mlp_out": "feed-forward"}.get(part, "mixer" if part.endswith("out") else part)
    return f"layer {layer}\n{axis} {unit}" if axis else f"layer {layer}\n{name}"


def drawn(paths: Paths, direction: str) -> list[dict[str, Any]]:
    """The paths of the drawing: the strongest that are significant, or the strongest where none is."""
    found = paths.strongest(direction)
    sure = [entry for entry in found if entry["p"] is not None and entry["p"] <= ALPHA]
    return sorted(sure or found, key=lambda entry: -abs(entry["value"]))[:DRAWN]


def draw_strongest(paths: Paths, direction: str, path: Path) -> Path:
    """The strongest paths as arrows between parts, the embeddings below and the logits above."""
    entries = drawn(paths, direction)
    spots = boxes(paths, entries)
    wide = 1 + max((abs(x) for x, _ in spots.values()), default=0.0) * 2
    high = 1 + max((y for _, y in spots.values()), default=0.0)
    size = (max(5.6, 1.2 + 1.25 * wide), max(3.0, 1.0 + 1.15 * high))
    return style.save_figure(path, size, partial(strongest_figure, paths=paths, direction=direction))


def strongest_figure(figure: Figure, paths: Paths, direction: str) -> None:
    axes = figure.subplots()
    entries = drawn(paths, direction)
    spots = boxes(paths, entries)
    between: dict[tuple[Spot, Spot], list[dict[str, Any]]] = {}
    for entry in entries:
        ends = spot(paths.node("senders", entry["sender"])), spot(paths.node("receivers", entry["receiver"]))
        between.setdefault(ends, []).append(entry)
    limit = max((abs(entry["value"]) for entry in entries), default=1.0) or 1.0
    labels: list[Point] = []
    for ends, some in between.items():
        for k, entry in enumerate(some):  # several inputs of one part: arrows beside each other
            others = [place for one, place in spots.items() if one not in ends]
            bend = around(spots[ends[0]], spots[ends[1]], 0.3 * (k - (len(some) - 1) / 2), others)
            labels.append(free(spots[ends[0]], spots[ends[1]], bend, [*labels, *spots.values()]))
            gaps = reaches([box_label(paths, one) for one in ends], spots[ends[0]], spots[ends[1]], bend)
            said = label(paths, entry, entries)
            arrow(axes, spots[ends[0]], spots[ends[1]], entry, bend, gaps, limit, said, labels[-1])
    for one, (x, y) in spots.items():
        axes.text(
            x, y, box_label(paths, one), ha="center", va="center", fontsize=8, zorder=4,
            bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#555555", "linewidth": 0.8},
        )  # fmt: skip
    xs, ys = zip(*spots.values(), strict=True) if spots else ((0.0,), (0.0,))
    axes.set_xlim(min(xs) - 0.8, max(xs) + 0.8)
    axes.set_ylim(-0.4, max(ys) + 0.4)
    axes.set_aspect("equal")  # else arrows bend by other amounts than are reckoned with
    axes.set_axis_off()
    figure.suptitle(f"Strongest direct paths, {direction}", fontsize=10)
    figure.supxlabel(f"width: {paths.unit}; red: positive, blue: negative", fontsize=8)


Point = tuple[float, float]


def on_the_way(start: Point, end: Point, bend: float, along: float) -> Point:
    """The point of an arrow at a share of its way: a curve whose control point lies bend times its length aside."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    aside = 2 * along * (1 - along) * bend
    return start[0] + along * dx + aside * dy, start[1] + along * dy - aside * dx


def reaches(names: Sequence[str], start: Point, end: Point, bend: float) -> tuple[float, float]:
    """Points from the middles of the two boxes of an arrow to where it leaves the one and meets the other."""
    (x, y), middle = on_the_way(start, end, 2 * bend, 0.5), (start, end)  # the control point of the curve
    return reach(names[0], x - middle[0][0], y - middle[0][1]), reach(names[1], x - middle[1][0], y - middle[1][1])


def reach(name: str, dx: float, dy: float) -> float:
    """Points from the middle of a box to a little outside its edge, in a direction."""
    lines = name.split("\n")
    half = 1.95 * max(map(len, lines)) + 3.2, 4.9 * len(lines) + 0.8  # of its letters of 8 points, and their frame
    away = math.hypot(dx, dy)
    return 2.0 + min(side * away / abs(step) for side, step in zip(half, (dx, dy), strict=True) if step)


def around(start: Point, end: Point, bend: float, others: list[Point]) -> float:
    """The bend nearest to the wished one with which an arrow meets none of the other boxes; the best where all do."""

    def room(bend: float) -> float:
        way = [on_the_way(start, end, bend, k / 20) for k in range(2, 19)]
        return min((max(abs(x - a) / 0.5, abs(y - b) / 0.3) for x, y in way for a, b in others), default=1.0)

    tried = sorted((bend + 0.06 * k for k in range(-8, 9)), key=lambda each: (abs(each - bend), each))
    return next((each for each in tried if room(each) >= 1.0), max(tried, key=room))


def free(start: Point, end: Point, bend: float, taken: list[Point]) -> Point:
    """The place on an arrow for its label where there is most room beside boxes and other labels, near the middle."""

    def room(at: Point) -> float:
        return min((max(abs(at[0] - x) / 0.45, abs(at[1] - y) / 0.2) for x, y in taken), default=1.0)

    tried = [on_the_way(start, end, bend, share) for share in (0.55, 0.62, 0.48, 0.7, 0.4, 0.78, 0.32, 0.25)]
    return next((at for at in tried if room(at) >= 1.0), max(tried, key=room))


def arrow(
    axes: Axes,
    start: Point,
    end: Point,
    entry: dict[str, Any],
    bend: float,
    gaps: tuple[float, float],
    limit: float,
    text: str,
    at: Point,
) -> None:
    share = abs(entry["value"]) / limit
    hue = "#B2182B" if entry["value"] > 0 else "#2166AC"
    axes.annotate(
        "", end, start,
        arrowprops={"arrowstyle": "-|>", "color": hue, "linewidth": 0.6 + 3.4 * share, "shrinkA": gaps[0],
                    "shrinkB": gaps[1], "alpha": 0.35 + 0.6 * share, "connectionstyle": f"arc3,rad={bend:.3f}"},
    )  # fmt: skip
    axes.text(
        *at, text, fontsize=7, color=hue, ha="center", va="center",
        zorder=3, bbox={"boxstyle": "round,pad=0.08", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )  # fmt: skip


def label(paths: Paths, entry: dict[str, Any], entries: Sequence[dict[str, Any]] = ()) -> str:
    """The effect of a path; before it what it ends at, and what it begins at, where boxes stand for several sites.

    Args:
        entries: All paths that are drawn.
    """
    sender, kind = paths.node("senders", entry["sender"]), paths.node("receivers", entry["receiver"])["kind"]
    others = (paths.node("senders", one["sender"]) for one in entries)
    several = {one["kind"] for one in others if spot(one) == spot(sender)} - {sender["kind"]}
    if several:
        return f"{sender['kind']} → {kind} {entry['value']:.2f}"
    return f"{entry['value']:.2f}" if kind.endswith("out") or kind == "logits" else f"{kind} {entry['value']:.2f}"


def rows_of(paths: Paths, direction: str) -> dict[str, Grid]:
    """The numbers of a direction, each [sender, receiver] with NaN for what has none."""
    return {name: grid(paths.matrices[direction], name) for name in ("value", "low", "high", "p", "n")}
