"""Plots of a finished run's numbers into axes that the caller may give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...utils.errors import MechintError, did_you_mean, shown
from ..words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Point(Protocol):
    """The columns of a row of results that are drawn."""

    @property
    def entry(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def site(self) -> str | None: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def axes_of(ax: Axes | None) -> Axes:
    """The caller's axes, or those of a new figure in the house's style, which ``ax.figure`` is."""
    if ax is not None:
        return ax
    from .. import figure_style as style

    with style.plain_settings():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        return figure.subplots()


def metrics(axes: Axes, rows: Sequence[Point], names: Sequence[str] = ()) -> Axes:
    """A line for each metric, its value with its interval.

    Args:
        names: The metrics to show, in this order; all if empty.

    Raises:
        MechintError: the run has no such metric, or none.
    """
    by_name = {row.metric: row for row in rows}
    for name in names:
        if name not in by_name:
            raise MechintError(f"the run has no metric {shown(name)}{did_you_mean(name, by_name)}")
    chosen = [by_name[name] for name in names] or list(rows)
    some(chosen, "metrics")
    for k, row in enumerate(chosen):
        low, high = (row.value if math.isnan(end) else end for end in (row.low, row.high))
        axes.errorbar([row.value], [k], xerr=[[row.value - low], [high - row.value]], fmt="o", capsize=3)
        axes.annotate(number(row.value), (row.value, k), xytext=(0, 5), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(chosen)), [row.metric for row in chosen])
    axes.invert_yaxis()
    return axes


def curve(axes: Axes, rows: Sequence[Point]) -> Axes:
    """A line with its interval for each curve of the run, over layers or over what its points are named by.

    Raises:
        MechintError: the run has no curve.
    """
    some(rows, "curve")
    for name in dict.fromkeys(row.metric for row in rows):
        line = [row for row in rows if row.metric == name]
        x = [place(row, k) for k, row in enumerate(line)]
        axes.plot(x, [row.value for row in line], marker="o", markersize=3, label=name)
        axes.fill_between(x, [row.low for row in line], [row.high for row in line], alpha=0.18, linewidth=0)
    if all(row.layer is not None for row in rows):
        axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("layer" if rows[0].layer is not None else (rows[0].name or "").lstrip("0123456789, ") or "point")
    axes.legend()
    return axes


def place(row: Point, k: int) -> float:
    """The place of a curve's point: its layer, the number its name begins with, or its order."""
    if row.layer is not None:
        return row.layer
    first = (row.name or "").split(" ")[0].replace(",", "")
    return float(first) if first.isdecimal() else k


def cells(axes: Axes, rows: Sequence[Point], site: str | None = None) -> Axes:
    """A map of layers and names at one site, on a scale centred on zero.

    Args:
        site: The site; the first that the run has if None.

    Raises:
        MechintError: the run has no cells, or no such site.
    """
    some(rows, "cells")
    of_maps = [row for row in rows if ".value." in row.entry]  # and no single cell that is said again, as the strongest
    rows = of_maps or rows
    sites = list(dict.fromkeys(row.site for row in rows if row.layer is not None))
    some(sites, "cells with a layer")
    if site is not None and site not in sites:
        known = [each for each in sites if each]
        raise MechintError(f"the run has no cells at the site {shown(site)}{did_you_mean(site, known)}")
    chosen = [row for row in rows if row.site == (site or sites[0]) and row.layer is not None]
    layers = sorted({row.layer for row in chosen if row.layer is not None})
    names = list(dict.fromkeys(row.name or row.metric for row in chosen))
    values: Any = np.full((len(names), len(layers)), np.nan)
    for row in chosen:
        values[names.index(row.name or row.metric), layers.index(row.layer or 0)] = row.value
    limit = float(np.nanmax(np.abs(values))) or 1.0
    axes.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(layers)), list(map(str, layers)))
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("layer")
    axes.set_title(site or sites[0] or "")
    return axes


def some(rows: Sequence[Any], what: str) -> None:
    if not rows:
        raise MechintError(f"the run has no {what} to plot; rows() lists its numbers")
