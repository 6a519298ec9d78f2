"""A finished causal trace: read and checked, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from ...report.finished import FinishedRun, read_finished, valid
from ...report.maps import broken, dots, grid, heat, layer_axis
from ...report.results import Address
from ...report.words import metric_label
from ...utils.errors import MechintError
from ...utils.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA = 0.05
TITLES = {
    "denoise": "clean value restored in the corrupted run",
    "noise": "corrupted value put into the clean run",
}


@dataclass(frozen=True)
class Trace(FinishedRun):
    """A finished causal trace."""

    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def roles(self) -> list[str]:
        return list(self.raw["trace"]["roles"])

    @property
    def directions(self) -> list[str]:
        return list(self.raw["trace"]["directions"])

    @property
    def unit(self) -> str:
        scale = str(self.raw["trace"]["unit"])
        return scale if scale != "metric" else metric_label(str(self.raw["metric"]))

    def panels(self, direction: str) -> list[dict[str, Any]]:
        return list(self.raw["trace"]["directions"][direction]["panels"])


def load_trace(run_dir: str | Path) -> Trace:
    """Reads a finished trace.

    Raises:
        MechintError: a file is missing, is not valid, or has another schema.
    """
    found = read_finished(run_dir, "trace")
    with valid(found.directory / "results.json"):
        roles = len(found.raw["trace"]["roles"])
        for direction, entry in found.raw["trace"]["directions"].items():
            for panel in entry["panels"]:
                shapes = {grid(panel, name).shape for name in ("value", "low", "high", "p", "n")}
                if len(shapes) > 1 or next(iter(shapes))[1] != roles:
                    raise ValueError(f"{direction} {panel['name']}")
    try:
        examples = read_json(found.directory / "examples.json")
    except (FileNotFoundError, ValueError) as error:
        raise MechintError(
            f"{found.directory / 'examples.json'} can't be read ({error}); run the analysis again"
        ) from None
    return Trace(**vars(found), examples=examples)


def cell(raw: Mapping[str, Any], address: Address, index: tuple[int, ...]) -> dict[str, Any]:
    """Columns of a cell of a map: kind of site, layer, and the direction with the token's role."""
    if not index:
        return {}
    trace, (layer, role) = raw["trace"], index
    direction = str(address[2])
    site = trace["directions"][direction]["panels"][address[4]]["name"]
    name = f"{direction}: {trace['roles'][role]}"
    return {"metric": "effect", "site": site, "layer": layer, "name": name, "interval": trace["interval"]}


def draw_roles(trace: Trace, direction: str, path: Path) -> Path:
    """Heatmaps of the mean effect: one panel for each kind of site, token roles down, layers across."""
    kinds = trace.panels(direction)
    layers, columns = len(kinds[0]["value"]), min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    width = min(14.0, 2.4 + columns * max(1.5, 0.16 * layers))
    size = (width, 1.2 + rows * (0.75 + 0.22 * len(trace.roles)))
    return style.save_figure(path, size, partial(roles_figure, trace=trace, direction=direction, columns=columns))


def roles_figure(figure: Figure, trace: Trace, direction: str, columns: int) -> None:
    kinds = trace.panels(direction)
    rows = -(-len(kinds) // columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    limit = max(float(np.nanmax(np.abs(grid(panel, "value")))) for panel in kinds) or 1.0
    image: Any = None
    for k, panel in enumerate(kinds):
        place = axes[k // columns][k % columns]
        image = heat(place, grid(panel, "value").T, limit)
        dots(place, (grid(panel, "p").T <= ALPHA) & (grid(panel, "n").T > 0))
        place.set_title(broken(panel["name"]))
        if k % columns == 0:
            place.set_yticks(range(len(trace.roles)), trace.roles)
        if k + columns >= len(kinds):
            layer_axis(place, len(panel["value"]))
    for k in range(len(kinds), rows * columns):
        axes[k // columns][k % columns].set_visible(False)
    figure.suptitle(f"Causal trace, {TITLES[direction]}")
    tested = "no p-values" if trace.metrics["total_effect"].alone else f"dots: p ≤ {ALPHA:g}, adjusted for all cells"
    label = f"effect ({trace.unit}); {tested}"
    figure.colorbar(image, ax=axes.ravel().tolist(), location="bottom", shrink=0.6, aspect=40, label=label)


def draw_layers(trace: Trace, direction: str, path: Path) -> Path:
    """Lines of the mean effect by layer, with intervals: a panel for each kind of site, a line for each role."""
    kinds = trace.panels(direction)
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    return style.save_figure(
        path, (2.0 + 2.3 * columns, 1.3 + 1.9 * rows), partial(layers_figure, trace=trace, direction=direction)
    )


def layers_figure(figure: Figure, trace: Trace, direction: str) -> None:
    kinds = trace.panels(direction)
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colours = (*style.CYCLE, style.PURPLE)
    for k, panel in enumerate(kinds):
        place = axes[k // columns][k % columns]
        values, low, high, count = (grid(panel, name) for name in ("value", "low", "high", "n"))
        place.axhline(0, color=style.GREY, linewidth=0.8)
        for r, role in enumerate(trace.roles):
            if not count[:, r].any():
                continue
            at, colour = np.arange(len(values)), colours[r % len(colours)]
            place.fill_between(at, low[:, r], high[:, r], color=colour, alpha=0.18, linewidth=0)
            place.plot(at, values[:, r], color=colour, marker="o", markersize=2.5, linewidth=1.2, label=role)
        place.set_title(broken(panel["name"]))
        if k % columns == 0:
            place.set_ylabel("effect")
        if k + columns >= len(kinds):
            layer_axis(place, len(values))
    for k in range(len(kinds), rows * columns):
        axes[k // columns][k % columns].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    total = trace.metrics["total_effect"]
    title = f"Effect by layer ({trace.unit}), {TITLES[direction]}"
    figure.suptitle(f"{title}\n{total.interval}" if total.alone else title)


def draw_example(trace: Trace, direction: str, path: Path) -> Path:
    """The maps of the first prompt, its tokens down and layers across, as in Meng et al. 2022."""
    example = trace.examples[0]
    maps = example["maps"][direction]
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    layers = len(next(iter(maps.values())))
    width = min(14.0, 2.0 + columns * max(1.5, 0.16 * layers))
    size = (width, 1.3 + rows * (0.7 + 0.2 * len(example["tokens"])))
    return style.save_figure(path, size, partial(example_figure, example=example, direction=direction, trace=trace))


def example_figure(figure: Figure, example: dict[str, Any], direction: str, trace: Trace) -> None:
    maps = example["maps"][direction]
    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    limit = max(abs(value) for layers in maps.values() for row in layers for value in row if value is not None) or 1.0
    image: Any = None
    for k, panel in enumerate(trace.panels(direction)):
        place, values = axes[k // columns][k % columns], maps[panel["name"]]
        image = heat(place, np.array(values, dtype=np.float64).T, limit)
        place.set_title(broken(panel["name"]))
        if k % columns == 0:
            place.set_yticks(range(len(example["tokens"])), example["tokens"])
        if k + columns >= len(maps):
            layer_axis(place, len(values))
    for k in range(len(maps), rows * columns):
        axes[k // columns][k % columns].set_visible(False)
    figure.suptitle(f"One prompt, answer “{example['answer']}”: {TITLES[direction]}")
    label = f"effect on the {metric_label(trace.raw['metric'])}"
    figure.colorbar(image, ax=axes.ravel().tolist(), location="bottom", shrink=0.6, aspect=40, label=label)
