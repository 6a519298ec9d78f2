"""Maps of effects of two models on the same prompts: how alike they are, and in which cells they differ.

Traces and patchings keep the effects of every prompt. Two of them on the same prompts are compared cell by cell over
the prompts that both models answer: one bootstrap of the templates draws both models together, so that differences stay
paired, and their p-values are adjusted for all cells of all maps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..report import figure_style as style
from ..report.content import Figure, Section, between, figure, table_section
from ..report.words import chance, number, value_cells
from ..utils.statistics import FEWEST, Array, ClusterBootstrap, Number, pearson_along, ranks
from .effect_tables import over_cells, with_effect

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DRAWS, SHOWN, ALPHA = 1000, 3, 0.05
FEWEST_CELLS = 4
"""Cells without which two maps have no correlation."""
AGREEMENT = ("run", "and", "map", "cells", "correlation (Pearson)", "rank correlation (Spearman)", "n", "differ")
DIFFERENCES = ("run", "less", "map", "layer", "cell", "difference", "interval", "n", "p", "effects")
ALIKE = (
    "Correlations of the maps' cells, over the prompts that both models answer, with 95 % intervals from one bootstrap "
    "of their templates. Noise in the cells lowers a correlation, so two models that work alike stay below 1 where "
    "prompts are few. The last column counts cells that certainly differ (p ≤ {alpha:g}, adjusted for all cells of all "
    "maps of the two runs)."
)
PAIRED = (
    "Differences of effects ({unit}), over the prompts that both models answer, with intervals from one bootstrap of "
    "their templates and p-values adjusted for all cells of all maps of the two runs. The largest of each map are "
    "shown: they are chosen by size, so their intervals are too narrow for that choice; the p-values allow for it."
)


@dataclass(frozen=True)
class EffectMap:
    """One map of a model.

    Attributes:
        cells: (layer, name) of each cell.
        effects: The effect in every cell, [answered prompt, cell]; NaN where a prompt does not have the cell.
    """

    name: str
    cells: Sequence[tuple[int, str]]
    effects: Array


@dataclass(frozen=True)
class Measured:
    """The maps of one model on its prompts.

    Attributes:
        answered: True for the prompts that it answers, [prompt].
        templates: The cluster of each prompt, [prompt].
        total: The total effect that effects are shares of, [answered prompt]; None where they are no shares.
    """

    answered: NDArray[np.bool_]
    templates: NDArray[np.int64]
    total: Array | None
    maps: Sequence[EffectMap]


@dataclass(frozen=True)
class CellPair:
    """One cell of both models, and the other's effect less the one's; NaN where there is no interval or p-value."""

    layer: int
    name: str
    one: float
    other: float
    value: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True)
class MapPair:
    """One map of both models; a correlation is None where there are too few cells, or none vary."""

    name: str
    pearson: Number | None
    spearman: Number | None
    cells: list[CellPair]

    @property
    def differing(self) -> int:
        """The number of cells that certainly differ."""
        return sum(cell.p <= ALPHA for cell in self.cells)

    def largest(self, most: int = SHOWN) -> list[CellPair]:
        """The largest differences, first the largest."""
        there = [cell for cell in self.cells if math.isfinite(cell.value)]
        return sorted(there, key=lambda cell: -abs(cell.value))[:most]


def compared(one: Measured, other: Measured) -> list[MapPair]:
    """Every map that both models have, over their common cells; none where no prompt is answered by both."""
    both = one.answered & other.answered
    named = {each.name: each for each in other.maps}
    maps = [(each, named[each.name]) for each in one.maps if each.name in named]
    if not both.any() or not maps:
        return []
    bootstrap = ClusterBootstrap(one.templates[both], DRAWS, 0)
    columns: list[list[Array]] = [[], [], [], []]  # effects and weights of the one, and of the other
    present: list[list[NDArray[np.bool_]]] = [[], []]
    labels: list[list[tuple[int, str]]] = []
    for first, second in maps:
        place = {cell: k for k, cell in enumerate(second.cells)}
        common = [(k, place[cell]) for k, cell in enumerate(first.cells) if cell in place]
        for side, (measured, each) in enumerate(((one, first), (other, second))):
            has = ~np.isnan(each.effects[both[measured.answered]][:, [pair[side] for pair in common]])
            total = None if measured.total is None else measured.total[both[measured.answered]]
            kept_cells = with_effect(bootstrap, has, total).any(0) == has.any(0)
            common = [pair for pair, kept in zip(common, kept_cells, strict=True) if kept]
        labels.append([first.cells[k] for k, _ in common])
        for side, (measured, each) in enumerate(((one, first), (other, second))):
            kept = both[measured.answered]
            effects = each.effects[kept][:, [pair[side] for pair in common]]
            weight = np.ones(len(effects)) if measured.total is None else measured.total[kept]
            columns[2 * side].append(np.nan_to_num(effects))
            columns[2 * side + 1].append(~np.isnan(effects) * weight[:, None])
            present[side].append(~np.isnan(effects))
    numbers = [np.concatenate(parts, 1) for parts in columns]
    there = np.concatenate(present[0], 1) & np.concatenate(present[1], 1)
    value, low, high, p = over_cells(bootstrap, lambda a, b, c, d: c / d - a / b, numbers, there)
    with np.errstate(invalid="ignore", divide="ignore"):
        sides = [numbers[k].mean(0) / numbers[k + 1].mean(0) for k in (0, 2)]
    tested = bootstrap.having(there) >= min(FEWEST, len(bootstrap.sizes))
    found, start, count = [], 0, there.sum(0)
    for (first, _), cells in zip(maps, labels, strict=True):
        here = np.arange(start, start + len(cells))
        start += len(cells)
        parts = [part[:, here[tested[here]]] for part in numbers]
        pairs = [
            CellPair(
                layer, name, float(sides[0][k]), float(sides[1][k]), float(value[k]), float(low[k]), float(high[k]),
                float(p[k]), int(count[k]),
            )
            for k, (layer, name) in zip(here, cells, strict=True)
        ]  # fmt: skip
        alike = correlation(bootstrap, parts, ranked=False), correlation(bootstrap, parts, ranked=True)
        found.append(MapPair(first.name, alike[0], alike[1], pairs))
    return found


def correlation(bootstrap: ClusterBootstrap, columns: Sequence[Array], ranked: bool) -> Number | None:
    """The correlation of two maps' cells, each a ratio of means, with its interval over clusters.

    Args:
        columns: Effects and weights of the one and of the other, each [prompt, cell].
        ranked: Correlate ranks (Spearman) instead of values (Pearson).
    """
    if columns[0].shape[1] < FEWEST_CELLS:
        return None

    def statistic(a: Array, b: Array, c: Array, d: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            sides = [a / b, c / d]
            if ranked:
                gaps = np.isnan(sides[0]) | np.isnan(sides[1])
                sides = [np.where(gaps.any(-1, keepdims=True), np.nan, ranks(side, axis=-1)) for side in sides]
            return pearson_along(*sides)

    found = bootstrap.interval(statistic, *columns, within=(-1.0, 1.0))
    return None if math.isnan(float(found["value"])) else found


# ---- tables and figures -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunPair:
    """The comparison of one run with the first one."""

    run: str
    less: str
    maps: list[MapPair]

    def entries(self) -> dict[str, Any]:
        """The comparison for JSON, which has no NaN."""
        plain = lambda x: None if math.isnan(x) else x
        return {
            "run": self.run, "less": self.less,
            "maps": [
                {"name": each.name, "cells": len(each.cells), "pearson": each.pearson, "spearman": each.spearman,
                 "differing": each.differing,
                 "largest": [
                     {"layer": c.layer, "cell": c.name, "one": plain(c.one), "other": plain(c.other), "n": c.n,
                      **{name: plain(getattr(c, name)) for name in ("value", "low", "high", "p")}}
                     for c in each.largest()
                 ]}
                for each in self.maps
            ],
        }  # fmt: skip


def sections(pairs: Sequence[RunPair], unit: str) -> list[Section]:
    """The tables of correlations between maps, and of their largest differences."""
    if not pairs:
        return []
    alike = [
        (
            pair.run, pair.less, each.name, str(len(each.cells)),
            *("–" if value is None else between(value) for value in (each.pearson, each.spearman)),
            str(max((cell.n for cell in each.cells), default=0)), str(each.differing),
        )
        for pair in pairs
        for each in pair.maps
    ]  # fmt: skip
    rows = [
        (
            pair.run, pair.less, each.name, str(cell.layer), cell.name,
            *value_cells(cell.value, *(None if math.isnan(end) else end for end in (cell.low, cell.high))),
            str(cell.n), chance(None if math.isnan(cell.p) else cell.p),
            f"{number(cell.other, 3)} and {number(cell.one, 3)}",
        )
        for pair in pairs
        for each in pair.maps
        for cell in each.largest()
    ]  # fmt: skip
    return [
        table_section("How alike the maps are", ALIKE.format(alpha=ALPHA), AGREEMENT, alike, (3, 4, 5, 6, 7)),
        table_section("Largest differences", PAIRED.format(unit=unit), DIFFERENCES, rows, (3, 5, 6, 7, 8, 9)),
    ]


def findings(pairs: Sequence[RunPair]) -> list[str]:
    """The cells that differ, in a sentence for each run."""
    said = []
    for pair in pairs:
        cells, sure = sum(len(each.cells) for each in pair.maps), sum(each.differing for each in pair.maps)
        if not cells:
            said.append(f"{pair.run} and {pair.less}: the models answer no prompt in common.")
            continue
        text = f"{pair.run} less {pair.less}: {sure} of {cells:,} cells certainly differ (p ≤ {ALPHA:g}, adjusted)"
        if sure:
            each, cell = max(
                ((m, c) for m in pair.maps for c in m.cells if c.p <= ALPHA), key=lambda found: abs(found[1].value)
            )
            text += (
                f"; the largest is {number(cell.value, 3)} at {each.name}, layer {cell.layer}, {cell.name} "
                f"({number(cell.other, 3)} and {number(cell.one, 3)})"
            )
        said.append(f"{text}.")
    return said


def figures(pairs: Sequence[RunPair], unit: str) -> list[Figure]:
    """The cells of every map against those of the first run: a figure of all maps of two runs, or one for each map."""
    pairs = [pair for pair in pairs if pair.maps]
    if not pairs:
        return []
    text = (
        f"Every cell's effect ({unit}) in the run {pairs[0].less} (across) and in another (up); on the line both are "
        f"equal. Blue: the cell certainly differs (p ≤ {ALPHA:g}, adjusted for all cells of all maps)."
    )
    if len(pairs) == 1:
        panels = [(each.name, each) for each in pairs[0].maps]
        size = style.multiples_size(len(panels))
        title = f"{pairs[0].run} against {pairs[0].less}"
        return [figure("comparison_map_cells.png", text, (size[0], size[1] * 1.5), scatters, panels, title)]
    found = []
    for name in dict.fromkeys(each.name for pair in pairs for each in pair.maps):
        panels = [(pair.run, each) for pair in pairs for each in pair.maps if each.name == name]
        size = style.multiples_size(len(panels))
        slug = re.sub(r"\W+", "_", name).strip("_").lower()
        file = f"comparison_map_cells_{slug}.png"
        title = f"{name}: against {pairs[0].less}"
        found.append(figure(file, f"{name}. {text}", (size[0], size[1] * 1.5), scatters, panels, title))
    return found


def scatters(figure: Canvas, panels: Sequence[tuple[str, MapPair]], title: str) -> None:
    """A panel for each pair of maps, a dot for each cell."""
    rows, columns = style.grid_of(len(panels))
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for k, (place, (name, each)) in enumerate(zip(places, panels, strict=False)):
        scatter(place, each)
        rank = "" if each.spearman is None else f" (ρ {number(each.spearman['value'], 2)})"
        place.set_title(f"{name}{rank}", fontsize=8)
        if k + columns >= len(panels):
            place.set_xlabel("effect, first run")
        if k % columns == 0:
            place.set_ylabel("effect, this run")
    for place in places[len(panels) :]:
        place.set_visible(False)
    figure.suptitle(title)


def scatter(place: Axes, each: MapPair) -> None:
    sure = np.array([cell.p <= ALPHA for cell in each.cells], dtype=bool)
    x, y = (np.array([getattr(cell, side) for cell in each.cells], dtype=np.float64) for side in ("one", "other"))
    place.axline((0, 0), slope=1, color=style.GREY, linewidth=0.8)
    for chosen, colour, order in ((~sure, style.GREY, 2), (sure, style.BLUE, 3)):
        place.plot(
            x[chosen], y[chosen], linestyle="none", marker=".", markersize=4, color=colour, alpha=0.8, zorder=order
        )
