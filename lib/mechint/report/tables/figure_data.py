"""The data of a drawn figure as rows: every line, interval, map and bar that a reader sees, by panel.

Rows are read from the drawn figure itself, so they are what it shows, whichever analysis drew it. Annotations, patches,
colour bars and other panels' curves behind those of a panel are left out.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOUR_BAR = "<colorbar>"
"""Matplotlib's label of the panel of a colour bar."""
BEHIND = "<behind>"
"""Label of the curves behind a panel's own, which stand in the rows of their own panels."""
NUMBER = re.compile(r"([-+]?[\d.,]+(?:e[-+]?\d+)?)( %)?")


@dataclass(frozen=True)
class Point:
    """One row of a figure's data; an empty field says that the figure has nothing there.

    Attributes:
        panel: Number of the panel, from 1.
        title, x_axis, y_axis: Its title and the labels of its axes.
        mark: ``line``, ``errorbar``, ``band``, ``map``, ``bar``, ``points``, ``steps``, ``segment`` or ``rule`` (a
            line across the whole panel).
        series: Name of the series in the legend; of one without a name, its number among the marks of its kind.
        x, y: Position; of a bar, the position of its end.
        x_name, y_name: Labels of the ticks there, if they are names.
        low, high: Ends of the interval.
        value: Value of a map's cell, length of a bar, or colour value of a point.
    """

    panel: int
    title: str
    x_axis: str
    y_axis: str
    mark: str
    series: str
    x: float | None = None
    x_name: str = ""
    y: float | None = None
    y_name: str = ""
    low: float | None = None
    high: float | None = None
    value: float | None = None


def as_csv(figure: Figure) -> str:
    """The data of a drawn figure as CSV, with the fields of :class:`Point` as columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Point))
    writer.writerows([cell(value) for value in astuple(point)] for point in points(figure))
    return text.getvalue()


def cell(value: Any) -> str:
    """A cell of CSV: the shortest decimal that gives a number again, whole numbers without a point."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def points(figure: Figure) -> Iterator[Point]:
    """Every row of a figure that has been drawn, panel by panel."""
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != COLOUR_BAR]
    for number, axes in enumerate(shown, 1):
        title = axes.get_title(loc="left") or axes.get_title() or axes.get_title(loc="right")
        panel = Point(number, flat(title), flat(axes.get_xlabel()), flat(axes.get_ylabel()), "", "")
        names = (names_of(axes.xaxis), names_of(axes.yaxis))
        for mark, series, found in marks(axes):
            for said in found:
                x, y = said.get("x"), said.get("y")
                x_name, y_name = name_at(x, names[0]), name_at(y, names[1])
                yield replace(panel, mark=mark, series=series, x_name=x_name, y_name=y_name, **said)


def flat(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())


def name_at(place: float | None, names: dict[float, str]) -> str:
    """The name of the tick at a place, or of the category that it is in: they are one apart, and marks stand beside
    their middle."""
    if place is None or not names or not math.isfinite(place):
        return ""
    nearest = min(names, key=lambda tick: abs(tick - place))
    near = 0.5 if not NUMBER.fullmatch(names[nearest]) else 1e-9 * max(1.0, abs(nearest))
    return names[nearest] if abs(nearest - place) < near else ""


def names_of(axis: Axis) -> dict[float, str]:
    """Names at the ticks of an axis, by their place; ticks that only write out their own place have none."""
    ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
    named = {float(place): flat(label.get_text()) for place, label in ticks}
    return {place: name for place, name in named.items() if name and not writes(name, place)}


def writes(name: str, place: float) -> bool:
    """True if a label is a way of writing the number it stands at."""
    match = NUMBER.fullmatch(name.replace("\N{MINUS SIGN}", "-"))
    if match is None:
        return False
    try:
        number = float(match[1].replace(",", "")) / (100 if match[2] else 1)
    except ValueError:
        return False
    return math.isclose(number, place, rel_tol=0.01, abs_tol=1e-12)


Rows = Iterator[dict[str, Any]]


def marks(axes: Axes) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(kind, name of the series, rows) of everything that a panel shows."""
    from matplotlib.collections import LineCollection, PathCollection, PolyCollection
    from matplotlib.container import BarContainer, ErrorbarContainer
    from matplotlib.patches import StepPatch

    count: dict[str, int] = {}

    def one(mark: str, artist: Any, rows: Rows) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
        count[mark] = count.get(mark, 0) + 1
        label = str(artist.get_label() or "")
        found = list(rows)
        if found:
            yield mark, str(count[mark]) if not label or label.startswith("_") else flat(label), found

    taken: set[int] = set()  # parts of error bars are lines, too
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            line, caps, bars = container.lines
            taken |= {id(part) for part in (line, *caps, *bars)}
            yield from one("errorbar", container, error_bars(line, bars, bool(container.has_xerr)))
        elif isinstance(container, BarContainer):
            yield from one("bar", container, bars_of(container))
    for line in axes.lines:
        if id(line) not in taken:
            across = across_of(axes, line)
            yield from one("rule" if across else "line", line, line_rows(line, across))
    kinds: tuple[tuple[type, str, Callable[[Any], Rows]], ...] = (
        (LineCollection, "segment", segments),
        (PathCollection, "points", scattered),
        (PolyCollection, "band", band_rows),
    )
    for artist in axes.collections:
        if id(artist) not in taken and artist.get_visible() and artist.get_label() != BEHIND:
            for kind, mark, rows in kinds:
                if isinstance(artist, kind):
                    yield from one(mark, artist, rows(artist))
                    break
    for image in axes.images:
        yield from one("map", image, map_rows(image))
    for patch in axes.patches:
        if isinstance(patch, StepPatch):
            yield from one("steps", patch, step_rows(patch))


def across_of(axes: Axes, line: Any) -> str:
    """The coordinate of a line across the whole panel: 'x' of a vertical one, 'y' of a horizontal one; else ''."""
    in_x, in_y = line.get_transform().contains_branch_seperately(axes.transData)
    return "" if in_x and in_y else "x" if in_x else "y"


def line_rows(line: Any, across: str) -> Rows:
    x, y = (np.asarray(values, dtype=np.float64) for values in (line.get_xdata(), line.get_ydata()))
    if across:
        yield {across: float((x if across == "x" else y)[0])}
        return
    for px, py in zip(x, y, strict=True):
        if math.isfinite(px) and math.isfinite(py):
            yield {"x": float(px), "y": float(py)}


def error_bars(line: Any, bars: Any, horizontal: bool) -> Rows:
    """A row for each value with the ends of its interval, which lie along x where the bars are horizontal."""
    if line is None:
        return
    along = 0 if horizontal else 1
    segments = bars[0].get_segments() if bars else []  # one for each value; matplotlib empties those without ends
    ends = [segment[:, along] if segment.ndim == 2 else [] for segment in segments]
    for k, (x, y) in enumerate(zip(line.get_xdata(), line.get_ydata(), strict=True)):
        low, high = (float(min(ends[k])), float(max(ends[k]))) if k < len(ends) and len(ends[k]) else (None, None)
        if math.isfinite(x) and math.isfinite(y):
            yield {"x": float(x), "y": float(y), "low": low, "high": high}


def bars_of(container: Any) -> Rows:
    for patch in container.patches:
        x, y, width, height = patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()
        if container.orientation == "horizontal":
            yield {"x": float(x + width), "y": float(y + height / 2), "value": float(width)}
        else:
            yield {"x": float(x + width / 2), "y": float(y + height), "value": float(height)}


def segments(lines: Any) -> Rows:
    for segment in lines.get_segments():
        for x, y in segment:
            yield {"x": float(x), "y": float(y)}


def scattered(dots: Any) -> Rows:
    values = dots.get_array()
    for k, (x, y) in enumerate(np.ma.filled(dots.get_offsets(), np.nan)):
        yield {"x": float(x), "y": float(y), "value": None if values is None else float(values[k])}


def band_rows(shape: Any) -> Rows:
    """The ends of a shaded interval at every x."""
    ends: dict[float, list[float]] = {}
    for path in shape.get_paths():
        for x, y in path.vertices:
            ends.setdefault(float(x), []).append(float(y))
    for x in sorted(ends):
        yield {"x": x, "low": min(ends[x]), "high": max(ends[x])}


def map_rows(image: Any) -> Rows:
    """A row for each cell; cells without a value have none."""
    values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=np.float64), np.nan)
    if values.ndim != 2:
        raise ValueError("the data of a figure are read from maps of one number a cell")
    left, right, bottom, top = image.get_extent()
    rows, columns = values.shape
    first, last = (top, bottom) if image.origin == "upper" else (bottom, top)
    for i in range(rows):
        for j in range(columns):
            x, y = left + (j + 0.5) * (right - left) / columns, first + (i + 0.5) * (last - first) / rows
            yield {"x": float(x), "y": float(y), "value": float(values[i, j])}


def step_rows(patch: Any) -> Rows:
    """A row for each step of a histogram: its edges as ``low`` and ``high``, its height as ``y``."""
    values, edges, _ = patch.get_data()
    for k, height in enumerate(values):
        low, high = float(edges[k]), float(edges[k + 1])
        yield {"x": (low + high) / 2, "y": float(height), "low": low, "high": high}
