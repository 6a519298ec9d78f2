"""The importance of every unit, layer by layer: heat strips, the kept units marked, and counts beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ....report import figure_style as style
from ....report.words import METRICS, MINUS
from ..results import PATHS, SEARCH, Layer, Results, load_masks
from .words import HEADED, SIDE_BY_SIDE, metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 512  # more cells than this in a row are thinner than two pixels; neighbours are then drawn as one
CENTRE = 0.38  # of a strip that has a lane for marks below it
ROOMY = 160  # channels; up to here a (channel, state) cell is large enough to be framed
WRITTEN = 8  # rows with this many units or fewer have their values written into the cells
UNIT = {"kv": "K and V channel", "k": "K channel", "v": "V channel", "q": "Q channel", "o": "O channel",
        "mlp": "neuron"}  # fmt: skip


@dataclass(frozen=True)
class Strips:
    """The strips of a figure from the top, each with its label, its scores ([units] or [channel, state]), what is kept.

    They are the layers, or the keys and the values of each layer.
    """

    labels: list[str]
    scores: list[Tensor]
    kept: list[Layer]
    heads: int = 0
    """Heads that a strip is made of; 0 when it is made of none."""
    stretched: bool = False
    """True if strips are drawn equally long, because their units are of different kinds."""

    @property
    def states(self) -> int:
        return max(scores.numel() // len(scores) for scores in self.scores)

    @property
    def channels(self) -> int:
        return max(map(len, self.scores))


def strips_of(results: Results, masks: dict[int, Tensor]) -> Strips:
    """One strip for each layer; keys and values of a layer have one each."""
    kind, scores = results.raw["unit"], [masks[layer.layer] for layer in results.layers]
    if SIDE_BY_SIDE in kind:
        flat = [Layer(layer.layer, layer.total, _flat(part, layer), layer.site, layer.skip)
                for layer, part in zip(results.layers, scores, strict=True)]  # fmt: skip
        labels = [layer.site.removeprefix("layers.").replace(".", " ") for layer in results.layers]
        return Strips(labels, [part.flatten() for part in scores], flat, stretched=True)
    if kind not in HEADED:
        whole = [
            Layer(layer.layer, layer.total, tuple(_two(unit, part) for unit in layer.units), layer.site, layer.skip)
            for layer, part in zip(results.layers, scores, strict=True)
        ]
        flat_units = [part if part.dim() < 2 else part.flatten(1) for part in scores]
        return Strips([layer.label for layer in results.layers], flat_units, whole)
    sorts = "KV" if kind == "kv" else ""
    labels, rows, kept = [], [], []
    for layer, both in zip(results.layers, scores, strict=True):
        for number, part in enumerate(both if sorts else [both]):
            dimension = part.shape[1]
            mine = [unit[-2:] for unit in layer.units if not sorts or unit[0] == number]
            labels.append(f"{layer.layer} {sorts[number]}" if sorts else str(layer.layer))
            rows.append(part.flatten())
            kept.append(Layer(layer.layer, part.numel(), tuple((h * dimension + d,) for h, d in mine)))
    return Strips(labels, rows, kept, len(part))


def _two(unit: tuple[int, ...], scores: Tensor) -> tuple[int, ...]:
    """A unit of several indices with all after the first as one: (head, key, value) as (head, entry)."""
    return unit if len(unit) < 3 else (unit[0], int(np.ravel_multi_index(unit[1:], scores.shape[1:])))


def _flat(scores: Tensor, layer: Layer) -> tuple[tuple[int, ...], ...]:
    """The kept units of a row by their place in its flattened scores."""
    return tuple((int(np.ravel_multi_index(unit, scores.shape)),) for unit in layer.units)


def draw_importance(results: Results, path: Path) -> Path:
    """Writes the heat strips of all layers; see :func:`figure`."""
    strips = strips_of(results, load_masks(results))
    row = (1.55 if strips.states > 1 else 0.6) if len(strips.kept) <= 4 else max(0.26, 0.03 * strips.states)
    width = 6.0 if strips.channels <= WRITTEN else 10.0
    size = (width, min(1.9 + row * len(strips.kept), 22.0))
    return style.save_figure(path, size, partial(figure, results=results, strips=strips))


def figure(figure: Figure, results: Results, strips: Strips) -> None:
    """Left: one strip per layer, unit index to the right. Right: units kept in each layer."""
    kind, states = results.raw["unit"], strips.states
    height = figure.get_figheight()
    panels: dict[str, Axes] = figure.subplot_mosaic(
        [["heat", "bars"], ["scale", "."]], width_ratios=(7, 1.25), height_ratios=(height - 1.5, 0.14)
    )
    left, right = panels["heat"], panels["bars"]
    right.sharey(left)
    named = "unit" if strips.stretched else UNIT.get(kind, kind)
    figure.suptitle(f"{results.raw['title']}: importance of every {named}")
    colour = heat_strips(figure, left, strips.scores, lane=states == 1, stretched=strips.stretched)
    for row, layer in enumerate(strips.kept):
        wide = strips.channels / layer.total if strips.stretched else 1.0
        _mark_kept(left, row, layer.units, states, strips.channels, wide)
    _left_axes(left, strips, kind)
    name, unit = attributed(results)
    gap = "\n" if strips.channels <= WRITTEN else " "
    what = f"importance: attribution of the {name}{gap}({unit} per {named}; positive helps)"
    if results.method != SEARCH:
        what = f"importance: score of the method {results.method}"
    strongest = max(float(scores.abs().max()) for scores in strips.scores)
    beyond = "both" if strongest > colour.norm.vmax else "neither"
    figure.colorbar(colour, cax=panels["scale"], orientation="horizontal", extend=beyond, extendfrac=0.02, label=what)
    kept_bars(right, strips.kept, results, centre=CENTRE if states == 1 else 0.5)


def heat_strips(figure: Figure, axes: Axes, layers: list[Tensor], lane: bool, stretched: bool = False) -> Any:
    """Draws each layer's [units] or [channel, state] scores as a strip of height 1; returns what a colour bar needs.

    One diverging scale for all layers, centred on 0, that ends at the 99.5th percentile of |score|: a few very
    strong units do not fade the others. With ``lane`` the lower quarter of each strip is left for marks;
    ``stretched`` strips are as long as the longest, whatever their number of units.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    strongest = torch.cat([scores.flatten().abs() for scores in layers])
    limit = float(
        torch.quantile(strongest[torch.linspace(0, len(strongest) - 1, min(len(strongest), 10**6)).long()], 0.995)
    )
    limit = limit or float(strongest.max()) or 1.0
    scale = Normalize(-limit, limit)
    longest = max(map(len, layers))
    for row, scores in enumerate(layers):
        wide = longest / len(scores) if stretched else 1.0
        end = wide * len(scores) - 0.5
        cells = strongest_of_neighbours(scores.reshape(len(scores), -1), COLUMNS).T.numpy()
        top, bottom = (row + 0.06, row + 0.70) if lane else (row + 0.06, row + 0.94)
        extent = (-0.5, end, bottom, top)
        axes.imshow(
            cells,
            cmap=style.DIVERGING,
            norm=scale,
            extent=extent,
            aspect="auto",
            interpolation="nearest",
            origin="upper",
        )
        if len(scores) <= WRITTEN:
            for column, score in enumerate(scores.flatten().tolist()):
                ink = "white" if abs(score) > 0.6 * limit else style.INK
                axes.text(
                    wide * (column + 0.5) - 0.5,
                    (top + bottom) / 2,
                    f"{score:.2g}".replace("-", MINUS),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=ink,
                )
        axes.add_patch(_frame(end, top, bottom))
    axes.set(xlim=(-0.5, longest - 0.5), ylim=(len(layers), 0))
    return ScalarMappable(scale, style.DIVERGING)


def strongest_of_neighbours(scores: Tensor, most: int) -> Tensor:
    """[channel, state] to at most ``most`` rows; each is the signed score largest in size among its neighbours."""
    group = -(-len(scores) // most)
    if group == 1:
        return scores
    padded = torch.cat([scores, scores.new_zeros(-len(scores) % group, scores.shape[1])])
    blocks = padded.reshape(-1, group, scores.shape[1])
    return blocks.gather(1, blocks.abs().argmax(1, keepdim=True)).squeeze(1)


def attributed(results: Results) -> tuple[str, str]:
    """(name, unit) of what the scores add up to: of accuracy and perplexity the loss, which has a gradient."""
    return METRICS["loss"] if results.raw["metric"] in ("accuracy", "perplexity") else metric_name(results)


def kept_bars(axes: Axes, layers: list[Layer], results: Results, centre: float) -> None:
    """Units kept in each strip, as bars with the numbers written out; ``centre`` is where in its row a bar lies."""
    kept = [layer.kept for layer in layers]
    rows = [row + centre for row in range(len(kept))]
    axes.barh(rows, kept, height=0.62, color=style.BLUE)
    for row, layer in zip(rows, layers, strict=True):
        text = f" {layer.kept:,} / {layer.total:,}" if len(kept) <= 32 else f" {layer.kept:,}"
        axes.text(layer.kept, row, text, va="center", fontsize=7.5, color=style.INK)
    axes.set(xlim=(0, max(max(kept), 1) * 2.1), xlabel="units kept")
    axes.set_title(f"{results.kept:,} of {results.total:,}", fontsize=9, fontweight="normal")
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=3, integer=True)


def _frame(end: float, top: float, bottom: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((-0.5, top), end + 0.5, bottom - top, fill=False, edgecolor="#999999", linewidth=0.5)


def _mark_kept(
    axes: Axes, row: int, units: tuple[tuple[int, ...], ...], states: int, channels: int, wide: float
) -> None:
    """Ticks below the strip for units of one index, ``wide`` cells apart; circled cells for (channel, state)."""
    if not units:
        return
    if states == 1:
        width = max(0.8, min(3.0, 400 / channels))
        axes.vlines(
            [wide * (unit[0] + 0.5) - 0.5 for unit in units], row + 0.73, row + 0.93, color=style.INK, linewidth=width
        )
        return
    cell = 0.88 / states
    heights = [row + 0.06 + cell * (unit[1] + 0.5) for unit in units]
    roomy = channels <= ROOMY
    axes.scatter(
        [unit[0] for unit in units],
        heights,
        s=22 if roomy else 3,
        marker="s" if roomy else "o",
        facecolors="none" if roomy else style.INK,
        edgecolors=style.INK,
        linewidths=1.0 if roomy else 0,
        zorder=4,
    )


def _left_axes(axes: Axes, strips: Strips, kind: str) -> None:
    rows, channels, states = len(strips.kept), strips.channels, strips.states
    every = -(-rows // 32)
    centre = CENTRE if states == 1 else 0.5
    axes.set_yticks([row + centre for row in range(0, rows, every)], strips.labels[::every])
    group = -(-channels // COLUMNS)
    shown = f"; each cell is the strongest of {group} neighbours" if group > 1 else ""
    if strips.stretched:
        axes.set_xticks([])
    elif channels <= WRITTEN:
        axes.set_xticks([] if kind == "layer" else range(channels), PATHS if kind == "path" else None)
    where = "site" if any(layer.site for layer in strips.kept) else "layer"
    where = "layer and kind of unit" if strips.stretched else where
    inside = f"layer (state entry 0–{states - 1} downwards in each)" if states > 1 else where
    before = ", before it the skip connection" if any(layer.skip for layer in strips.kept) else ""
    along = {
        "path": "path",
        "layer": "",
        **({kind: "units of the row, from the first to the last"} if strips.stretched else {}),
        "mode": f"channel index{shown}",
        "latent": f"latent{shown}; the error last{before}",
    }.get(kind, f"{UNIT.get(kind, kind)} index{shown}")
    if strips.heads:
        size = channels // strips.heads
        axes.set_xticks([size * (head + 0.5) - 0.5 for head in range(strips.heads)], map(str, range(strips.heads)))
        axes.vlines([size * head - 0.5 for head in range(1, strips.heads)], 0, rows, color="#999999", linewidth=0.5)
        along = f"head ({size} dimensions each{shown})"
    axes.set(xlabel=along, ylabel=inside)
    mark = "ticks below a strip" if states == 1 else "squares" if channels <= ROOMY else "dots"
    axes.set_title(f"{mark}: kept by the circuit", fontsize=9, fontweight="normal")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
