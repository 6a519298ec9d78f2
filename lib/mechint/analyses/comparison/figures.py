"""The figures of profiles and of their comparison, on common axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...report import figure_style as style
from ...report.finished import run_names
from ...report.values import Value
from .differences import ALPHA, CURVES, ROLES, Group
from .results import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Timed = list[list[list[dict[str, Any]]]]
"""Measured times of every length, of every run, of every group."""


class Plot(NamedTuple):
    """A figure to be drawn: its file, its size in inches, what draws it, and its caption."""

    name: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]
    caption: str


def depth(layers: int) -> list[float]:
    """Layers from 0 (the first) to 1 (the last), so that models of other depth share an axis."""
    return [i / max(1, layers - 1) for i in range(layers)]


def profile_figure(target: Figure, profile: Profile) -> None:
    axes = target.subplots(2, 4).flatten()
    for place, (name, text) in zip(axes, CURVES.items(), strict=False):
        entries = {i: entry for i, entry in enumerate(profile.curves[name]) if entry is not None}
        points = [Value(*(entry[key] for key in ("value", "low", "high", "n"))) for entry in entries.values()]
        style.band(place, list(entries), points, style.BLUE, name)
        layer_axis(place, profile.layers)
        place.set_title(text, fontsize=8)
    place = axes[-1]
    for colour, site in zip(style.CYCLE, dict.fromkeys(cell.site for cell in profile.sparsity), strict=False):
        cells = [cell for cell in profile.sparsity if cell.site == site]
        points = [Value(*(c.measures["gini"][key] for key in ("value", "low", "high", "n"))) for c in cells]
        style.band(place, [c.layer for c in cells], points, colour, site)
    layer_axis(place, len(profile.cka))
    place.set_title("Gini of activations", fontsize=9)
    place.legend(fontsize=7)
    target.suptitle(f"Profile: {profile.label}")


def layer_axis(place: Axes, layers: int) -> None:
    place.set_xticks(range(0, layers, -(-layers // 12)))
    place.set_xlim(-0.3, layers - 0.7)
    place.set_xlabel("layer")


def cka_grid(groups: int) -> tuple[int, int]:
    """Rows and columns of the maps of so many groups."""
    columns = min(4, groups)
    return -(-groups // columns), columns


def cka_figure(target: Figure, found: list[Group]) -> None:
    rows, columns = cka_grid(len(found))
    axes = target.subplots(rows, columns, squeeze=False).ravel()
    for place in axes[len(found) :]:
        place.set_visible(False)
    for place, group in zip(axes, found, strict=False):
        every = [[[cell["value"] for cell in row] for row in profile.cka] for profile in group.profiles]
        image = place.imshow(np.mean(every, 0), cmap="viridis", vmin=0, vmax=1)
        layers = len(every[0])
        for axis in (place.xaxis, place.yaxis):
            axis.set_ticks(range(0, layers, -(-layers // 12)))
            axis.set_label_text("layer")
        place.grid(False)
        place.set_title(group.label, fontsize=8)
    target.colorbar(image, ax=list(axes), label="linear CKA")


def comparison_plots(found: list[Group], timed: Timed) -> list[Plot]:
    """The figures of the groups: one of all numbers, or of more curves than a panel can show apart, one for each."""
    if sum(len(group.studies) for group in found) <= style.MANY:
        caption = (
            "Every model on common axes, one line for each seed; layers are placed by their depth. Memory is the "
            "memory of a prompt's state, or of its keys and values."
        )
        return [Plot("comparison.png", (11.0, 9.2), partial(comparison_figure, found=found, timed=timed), caption)]
    names = panels(found)
    size, rows = style.multiples_size(len(set(names.values()))), sum(len(group.studies) for group in found)
    alone = "A panel for each " + ("group, a line for each seed" if len(found) > 1 else "run") + ", the others in grey."
    height = 1.2 + 0.22 * rows
    text = "Loss in bits per byte of text, with intervals over prompts; a dot for each run."
    plots = [Plot("comparison.png", (7.0, height), partial(loss_figure, found=found), text)]
    wanted: list[tuple[str, str, Callable[[Profile], list[float]]]] = [
        (name, text, partial(curve, name=name)) for name, text in CURVES.items()
    ]
    wanted += [(f"gini_{role}", f"Gini, {ROLES[role]}", partial(by_role, role=role)) for role in ("read", "added")]
    for name, text, read in wanted:
        draw = partial(depth_figure, found=found, names=names, title=text, read=read, log=name == "stream_norm")
        caption = f"{text[0].upper()}{text[1:]}; layers are placed by their depth. {alone}"
        plots.append(Plot(f"comparison_{name}.png", size, draw, caption))
    costs = partial(costs_figure, found=found, names=names)
    memory = {
        study: [(m.length, m.bytes) for m in profile.memory if m.bytes is not None]
        for group in found
        for study, profile in zip(map(id, group.studies), group.profiles, strict=True)
    }
    seconds = {
        id(study): [(entry["length"], entry["seconds"][0] * 1e3) for entry in run]
        for group, runs in zip(found, timed, strict=True)
        for study, run in zip(group.studies, runs, strict=True)
    }
    for name, title, unit, points in (
        ("memory", "memory of a prompt", "bytes", memory), ("time", "measured forward", "ms", seconds)
    ):  # fmt: skip
        if any(points.values()):
            draw = partial(costs, points=points, title=title, unit=unit)
            plots.append(Plot(f"comparison_{name}.png", size, draw, f"{title[0].upper()}{title[1:]}. {alone}"))
    return plots


def panels(found: list[Group]) -> dict[int, str]:
    """The title of the panel of each run: its group's, or where there is one group, the run's own name."""
    if len(found) > 1:
        return {id(study): group.label for group in found for study in group.studies}
    studies = found[0].studies
    names = [f"seed {seed}" for seed in found[0].seeds]
    if None in found[0].seeds or len(set(names)) < len(names):
        names = run_names([study.directory for study in studies])
    return dict(zip(map(id, studies), names, strict=True))


def depth_figure(
    target: Figure, found: list[Group], names: dict[int, str], title: str, read: Callable[[Profile], list[float]],
    log: bool,
) -> None:  # fmt: skip
    """One number by depth, in small multiples."""
    curves = []
    for k, group in enumerate(found):
        for study, profile in zip(group.studies, group.profiles, strict=True):
            values = read(profile)
            points = [Value(value, math.nan, math.nan, 1) for value in values]
            curves.append(style.Curve(names[id(study)], depth(len(values)), points, style.CYCLE[k % len(style.CYCLE)]))

    def dress(place: Axes) -> None:
        if log:
            place.set_yscale("log")
        place.set_xlim(-0.08, 1.08)
        place.set_xticks([0, 0.5, 1], ["first", "depth", "last"])

    style.small_multiples(target, curves, title[0].upper() + title[1:], dress)


def costs_figure(
    target: Figure, found: list[Group], names: dict[int, str], points: dict[int, list[tuple[int, float]]], title: str,
    unit: str,
) -> None:  # fmt: skip
    """One cost by the length of the prompt, in small multiples."""
    curves = [
        style.Curve(names[id(study)], [x for x, _ in points[id(study)]],
                    [Value(y, math.nan, math.nan, 1) for _, y in points[id(study)]], style.CYCLE[k % len(style.CYCLE)])
        for k, group in enumerate(found)
        for study in group.studies
    ]  # fmt: skip

    def dress(place: Axes) -> None:
        place.set_xscale("log")
        place.set_yscale("log")
        place.set(xlabel="tokens", ylabel=unit)

    style.small_multiples(target, curves, title[0].upper() + title[1:], dress)


def loss_figure(target: Figure, found: list[Group]) -> None:
    """The loss of every run, a row for each, under the name of its group."""
    place = target.subplots()
    row, ticks = 0, {}
    for k, group in enumerate(found):
        ticks[row + (len(group.studies) - 1) / 2] = group.label
        for profile in group.profiles:
            entry = profile.metrics["bits_per_byte"]
            value, low, high = (math.nan if entry[key] is None else entry[key] for key in ("value", "low", "high"))
            ends = [[0.0], [0.0]] if math.isnan(low) else [[max(value - low, 0.0)], [max(high - value, 0.0)]]
            colour = style.CYCLE[k % len(style.CYCLE)]
            place.errorbar([value], [row], xerr=ends, fmt="o", color=colour, markersize=4, capsize=2, elinewidth=1.2)
            row += 1
        row += 1
    place.set_yticks(list(ticks), list(ticks.values()))
    place.set_ylim(row - 1.5, -0.5)
    place.set_xlabel("bits per byte")
    target.suptitle("Loss")


def comparison_figure(target: Figure, found: list[Group], timed: Timed) -> None:
    """Loss, memory, time; seven curves by depth; Gini at the matched sites."""
    axes = target.subplots(4, 3).flatten()
    colours = dict(zip((group.label for group in found), style.CYCLE * 9, strict=False))
    loss_panel(axes[0], found, colours)
    for group in found:
        memory = [m for m in group.profiles[0].memory if m.bytes is not None]
        axes[1].plot([m.length for m in memory], [m.bytes for m in memory], color=colours[group.label], marker=".")
    log_log(axes[1], "tokens", "bytes", "memory of a prompt")
    for group, runs in zip(found, timed, strict=True):
        for run in (run for run in runs if run):
            x = [entry["length"] for entry in run]
            axes[2].plot(x, [e["seconds"][0] * 1e3 for e in run], color=colours[group.label], marker=".", alpha=0.7)
    log_log(axes[2], "tokens", "ms", "measured forward")
    if not any(run for runs in timed for run in runs):
        axes[2].text(0.5, 0.5, "not measured", transform=axes[2].transAxes, ha="center", color=style.GREY)
    for place, (name, text) in zip(axes[3:], CURVES.items(), strict=False):
        lines(place, found, colours, partial(curve, name=name))
        place.set_title(text, fontsize=9)
        if name == "stream_norm":
            place.set_yscale("log")
    for place, role in zip(axes[10:], ("read", "added"), strict=True):
        lines(place, found, colours, partial(by_role, role=role))
        place.set_title(f"Gini, {ROLES[role]}", fontsize=9)
    handles = [axes[1].lines[k] for k in range(len(found))]
    target.legend(handles, [group.label for group in found], loc="outside lower center", ncols=min(3, len(found)))
    target.suptitle("Models side by side: a line for each seed")


def curve(profile: Profile, name: str) -> list[float]:
    """A curve by layer; NaN for layers that it leaves out."""
    return [math.nan if entry is None else float(entry["value"]) for entry in profile.curves[name]]


def by_role(profile: Profile, role: str) -> list[float]:
    """Gini by layer, the mean over the sites of a role."""
    cells = profile.of_role(role)
    of = lambda layer: [c.measures["gini"]["value"] for c in cells if c.layer == layer]
    return [float(np.mean(of(i))) if of(i) else math.nan for i in range(profile.layers)]


def loss_panel(place: Axes, found: list[Group], colours: dict[str, str]) -> None:
    for k, group in enumerate(found):
        for j, profile in enumerate(group.profiles):
            entry = profile.metrics["bits_per_byte"]
            x = k + 0.14 * (j - (len(group.studies) - 1) / 2)
            style.dot(
                place,
                x,
                Value(*(entry[key] for key in ("value", "low", "high", "n"))),
                colours[group.label],
                "",
                "o",
                4,
            )
    place.set_xticks(range(len(found)), [group.label.split(",")[0] for group in found])
    place.set_xlim(-0.6, len(found) - 0.4)
    place.set_title("loss (bits per byte)", fontsize=9)


def log_log(place: Axes, x: str, y: str, title: str) -> None:
    place.set_xscale("log")
    place.set_yscale("log")
    place.set_xlabel(x)
    place.set_ylabel(y)
    place.set_title(title, fontsize=9)


def lines(place: Axes, found: list[Group], colours: dict[str, str], read: Callable[[Profile], list[float]]) -> None:
    for group in found:
        for profile in group.profiles:
            values = read(profile)
            place.plot(depth(len(values)), values, color=colours[group.label], marker=".", alpha=0.75, linewidth=1.2)
    place.set_xlim(-0.08, 1.08)
    place.set_xticks([0, 0.5, 1], ["first", "depth", "last"])


def differences_figure(target: Figure, pair: dict[str, Any]) -> None:
    """Every difference as a share of the larger mean, with its interval."""
    place = target.subplots()
    rows = pair["rows"]
    place.axvline(0, color=style.GREY, linewidth=0.8)
    for k, row in enumerate(rows):
        scale = max(abs(row[pair["one"]]), abs(row[pair["other"]])) or 1.0
        value, low, high = (row["difference"][key] / scale for key in ("value", "low", "high"))
        colour = style.BLUE if row.get("p_adjusted", 1.0) <= ALPHA else style.GREY
        place.errorbar(value, k, xerr=[[value - low], [high - value]], color=colour, marker="o", markersize=4,
                       elinewidth=1.2, linestyle="none")  # fmt: skip
    place.set_yticks(range(len(rows)), [row["meaning"] for row in rows])
    place.set_ylim(len(rows) - 0.5, -0.5)
    place.set_xlim(-1.6, 1.6)
    place.set_xlabel("difference, as a share of the larger mean (intervals beyond the frame are cut)")
    target.suptitle(f"{pair['one']}  less  {pair['other']}", fontsize=10)
