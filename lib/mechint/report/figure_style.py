"""One look for every figure: colours, sizes, saving to the byte, and the helpers that analyses share.

Matplotlib is imported when the first figure is drawn and used through its object API on the Agg canvas, so nothing
here touches pyplot, a display, or the caller's settings.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import io
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import MechintError, did_you_mean, shown
from ..utils.files import write_bytes, write_text
from ..utils.options import listed
from .tables.figure_data import BEHIND, as_csv
from .values import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.ticker import Locator

DPI = 160
# Okabe and Ito's palette (2008), told apart with any colour vision; yellow is left out, it is faint on white.
BLUE, GREEN, ORANGE, SKY, PURPLE, RED = "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00"
CYCLE = (BLUE, ORANGE, GREEN, SKY, RED)  # purple is kept for controls that search or measure again
GREY, INK = "#767676", "#1A1A1A"
DIVERGING = "RdBu_r"
PALE = "#CFCFCF"
MANY = 8
"""Curves that one panel can show apart; more of them are drawn as small multiples."""

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the bytes do not depend on the machine's fonts
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "text.parse_math": False,  # what is written comes from files and prompts, where $ is a dollar
    "figure.titlesize": 12.0,
    "figure.titleweight": "bold",
}


VECTOR = ("svg", "pdf")
"""Formats that a figure can be written in beside its PNG."""
PAPER: dict[Any, Any] = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "figure.titlesize"), 8.0),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7.0),
    "lines.linewidth": 1.0,
    "lines.markersize": 4.0,
    "axes.linewidth": 0.6,
    "svg.hashsalt": "mechint",  # names inside the file, which are random without it
    "pdf.fonttype": 42,  # TrueType, which other programs can edit
}
"""The style of the vector formats, beside :data:`RC`."""
COLUMN, PAGE = 3.35, 6.9
"""Widths in inches: one column of a two-column paper, and both."""
LARGEST = 8.0
"""Points of the largest text in a vector format."""
NO_DATES = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Metadata that is left out, by the format."""
_formats: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("formats", default=())


def formats_of(text: str, where: str) -> tuple[str, ...]:
    """The vector formats that an option asks for; ``png`` may be named and is written in any case.

    Args:
        where: The option's name in the error.

    Raises:
        MechintError: something else is named.
    """
    names = listed(text, where)
    for name in names:
        if name not in ("png", *VECTOR):
            raise MechintError(
                f"{where}: no figures are written as {shown(name)}{did_you_mean(name, ['png', *VECTOR])}; name png, "
                "svg or pdf"
            )
    return tuple(name for name in VECTOR if name in names)


@contextlib.contextmanager
def in_formats(formats: Sequence[str]) -> Iterator[None]:
    """Has every figure that is saved inside written in these vector formats, too."""
    token = _formats.set(tuple(formats))
    try:
        yield
    finally:
        _formats.reset(token)


def _matplotlib() -> Any:
    """The package, without the backend that MPLBACKEND names: a notebook's or a wrong one would fail at its import."""
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    return matplotlib


@contextlib.contextmanager
def plain_settings() -> Iterator[None]:
    """Matplotlib's own defaults plus :data:`RC`, whatever the user's matplotlibrc says; put back afterwards."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def save_figure(path: str | Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> Path:
    """Draws on a fresh figure of ``size`` (width, height in inches) and writes a PNG without date or version.

    Beside it lies the figure's data as CSV, and the figure for a paper in the formats of :func:`in_formats`.
    """
    path = Path(path)
    with plain_settings():
        figure, unspell = _drawn(size, draw)
        buffer = io.BytesIO()
        figure.canvas.print_png(
            buffer, metadata={"Software": None}
        )  # what savefig writes, which draws the figure twice
        unspell()
        data = as_csv(figure)
        paper = {name: _for_paper(name, _paper_size(figure), draw) for name in _formats.get()}
    for name, drawn in paper.items():
        write_bytes(path.with_suffix(f".{name}"), drawn)
    write_text(path.with_suffix(".csv"), data)
    return write_bytes(path, buffer.getvalue())


def _drawn(
    size: tuple[float, float], draw: Callable[[Figure], None], paper: bool = False
) -> tuple[Any, Callable[[], None]]:
    """A figure on a canvas, with titles that fit; and what gives it its letters again that the font lacks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    plain_powers(figure)
    if paper:
        _plain(figure)
    unspell = spell(figure)
    fit_titles(figure)
    return figure, unspell


def _paper_size(figure: Any) -> tuple[float, float]:
    """A column's width for one panel beside another at the most once, the page's for more; panels keep their height
    to read, since their text shrinks less than they do."""
    width, height = figure.get_size_inches()
    places = [spec.get_gridspec().ncols for axes in figure.axes if (spec := axes.get_subplotspec()) is not None]
    chosen = COLUMN if max(places, default=1) == 1 and width <= 8 else PAGE
    return chosen, min(max(height * chosen / width * 1.2, 1.8), 9.0)


def _for_paper(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """The figure in a vector format, without what a caption says; the same bytes for the same numbers."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context(PAPER):
        figure, _ = _drawn(size, draw, paper=True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=name, metadata=NO_DATES[name])
    return buffer.getvalue()


def _plain(figure: Any) -> None:
    """Takes the figure's title away, and that of a lone panel, and keeps text to its largest size."""
    from matplotlib.text import Text

    if figure.get_suptitle():
        figure.suptitle("").set_in_layout(False)
    titled = [axes for axes in figure.axes if axes.get_visible() and axes.get_title(loc="left")]
    if len(titled) == 1:
        titled[0].set_title("", loc="left")
    for text in figure.findobj(Text):
        text.set_fontsize(min(float(text.get_fontsize()), LARGEST))


SUPERSCRIPTS = str.maketrans("0123456789-\N{MINUS SIGN}", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻")
_POWER = re.compile(r"\^\{(.*?)\}")


def plain_powers(figure: Figure) -> None:
    """Labels of logarithmic axes without TeX, which text is not read as here: 10⁻³."""
    from matplotlib.ticker import LogFormatter

    class Plain:
        """In front of a formatter of powers, whose labels it takes the TeX out of."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            text = str(super().__call__(x, pos))  # type: ignore[misc]
            text = text.strip("$").removeprefix(r"\mathdefault{").removesuffix("}") if text.startswith("$") else text
            return _POWER.sub(lambda found: found[1].translate(SUPERSCRIPTS), text.replace(r"\times", "×"))

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for formatter in (axis.get_major_formatter(), axis.get_minor_formatter()):
                if isinstance(formatter, LogFormatter) and not isinstance(formatter, Plain):
                    formatter.__class__ = type("PlainPowers", (Plain, type(formatter)), {})


def spell(figure: Figure) -> Callable[[], None]:
    """Writes characters that the font lacks as their code points, which would be empty boxes.

    Returns:
        A function that puts the characters back: the figure's data have them.
    """
    from matplotlib import font_manager
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    def spelled(words: str, text: Text) -> str:
        if words.isascii():
            return words
        known = font_manager.get_font(font_manager.findfont(text.get_fontproperties())).get_charmap()
        return with_code_points(words, lambda character: character == "\n" or ord(character) in known)

    def shown_by(formatter: Any, like: Text, x: float, place: int | None = None) -> str:
        return spelled(str(formatter(x, place)), like)

    undo: list[Callable[[], object]] = []
    ticks: set[int] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks |= {id(label) for label in axis.get_ticklabels(which="both")}
            formatter, labels = axis.get_major_formatter(), axis.get_majorticklabels()
            if not isinstance(formatter, (FixedFormatter, FuncFormatter)):
                continue  # numbers
            if all(spelled(label.get_text(), label) == label.get_text() for label in labels):
                continue
            undo.append(functools.partial(axis.set_major_formatter, formatter))
            axis.set_major_formatter(FuncFormatter(functools.partial(shown_by, formatter, labels[0])))
    for text in figure.findobj(Text):
        words = text.get_text()
        if id(text) not in ticks and (instead := spelled(words, text)) != words:
            undo.append(functools.partial(text.set_text, words))
            text.set_text(instead)

    def unspell() -> None:
        for each in undo:
            each()

    return unspell


def with_code_points(words: str, known: Callable[[str], bool]) -> str:
    """A text whose unknown characters are written as U+6CD5, apart from one another and from letters and digits."""
    found = ""
    for character in words:
        said = character if known(character) else f"U+{ord(character):04X}"
        near = found[-1:].isalnum() and said[:1].isalnum()
        apart = near and (len(said) > 1 or UNKNOWN.search(found) is not None)
        found += f" {said}" if apart else said
    return found


UNKNOWN = re.compile(r"U\+[0-9A-F]{4,6}$")


def fit_titles(figure: Figure) -> None:
    """Breaks titles into lines where they are wider than the room they have, so that none is cut off."""
    layout = figure.get_layout_engine()
    if layout is None:
        raise ValueError("titles are fitted to panels that a layout engine places")
    layout.execute(figure)
    title = figure.get_suptitle()
    if title:
        figure.suptitle(_broken(figure.suptitle(title), 0.97 * figure.bbox.width))
    for axes in figure.axes:
        text = axes.get_title(loc="left")
        if text:
            box = axes.get_window_extent()
            same_row = [other.get_window_extent() for other in figure.axes if other is not axes]
            right = [b.x0 for b in same_row if b.x0 > box.x1 - 1 and b.y0 < box.y1 and b.y1 > box.y0]
            room = min([*right, figure.bbox.x1]) - box.x0
            axes.set_title(_broken(axes.set_title(text, loc="left"), 0.98 * room), loc="left")


def _broken(text: Text, room: float) -> str:
    """The words of a text in lines that are not wider than ``room``, in pixels."""
    words = text.get_text()
    for _ in range(4):
        width = text.get_window_extent().width
        if width <= room:
            break
        longest = max(map(len, text.get_text().splitlines()))
        text.set_text("\n".join(textwrap.wrap(words, max(8, int(longest * room / width)))))
    return text.get_text()


def of_many(k: int, count: int) -> Any:
    """The colour of the k-th of several curves: of the palette, or where it has too few, from dark to light."""
    if count <= len(CYCLE):
        return CYCLE[k]
    from matplotlib import colormaps

    return colormaps["viridis"](0.92 * k / (count - 1))


def panel_letter(axes: Axes, letter: str) -> None:
    """A bold letter left of the panel's title, as captions refer to it."""
    axes.annotate(
        letter,
        (0, 1),
        xytext=(-30, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=11,
        fontweight="bold",
    )


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Shares between 0 and 1 are labelled as percentages, with as many digits as tell neighbouring ticks apart."""
    import numpy as np
    from matplotlib.ticker import FuncFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis

    def label(share: float, _: Any) -> str:
        ticks = 100 * np.unique(axis.get_majorticklocs())
        if len(ticks) < 2:
            return share_label(share)
        decimals = 1 - math.floor(math.log10(np.diff(ticks).min()))
        return share_label(share, 1 + math.floor(math.log10(np.abs(ticks).max())) + decimals)

    axis.set_major_formatter(FuncFormatter(label))


def share_label(share: float, digits: int = 4) -> str:
    """0.5 is ``50 %``; small shares keep the digits they need, four at least."""
    return f"{100 * share:.{max(4, digits)}g} %".replace("-", "\N{MINUS SIGN}")


def no_ticks() -> Locator:
    """For an axis without minor ticks."""
    from matplotlib.ticker import NullLocator

    return NullLocator()


def log_count_axis(axes: Axes, low: float, high: float) -> None:
    """A log x axis of counts from ``low`` to ``high``, with plain numbers at 1, 2, 5 times a power of ten."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(low / 1.08, high * 1.08)
    ticks = nice_log_ticks(low, high)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", bottom=False)


def nice_log_ticks(low: float, high: float, most: int = 11) -> list[float]:
    """Multiples 1, 2, 5 of powers of ten within [low, high]: at most ``most``, and more where those are not three."""
    from math import ceil, floor, log10

    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**p for p in powers for m in multiples if low * 0.999 <= m * 10.0**p <= high * 1.001]
        if len(ticks) <= most:
            break
    if len(ticks) < 3:
        finer = [m * 10.0**p for p in powers for m in ((1, 1.5, 2, 3, 4, 6, 8) if p > 0 else (1, 2, 3, 4, 6, 8))]
        return [tick for tick in finer if low * 0.999 <= tick <= high * 1.001]
    return ticks


def band(
    axes: Axes, x: Sequence[float], points: Sequence[Value], colour: str, label: str, marker: str = "o", line: str = "-"
) -> None:
    """A line through the values with its interval shaded."""
    axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, [p.value for p in points], color=colour, linestyle=line, marker=marker, markersize=3.2, label=label)


def dot(
    axes: Axes, x: float, y: Value, colour: str, label: str, marker: str, size: float = 7.0, hollow: bool = False
) -> None:
    """One value with its interval as an error bar."""
    axes.errorbar(
        [x],
        [y.value],
        yerr=[[max(y.value - y.low, 0.0)], [max(y.high - y.value, 0.0)]],
        color=colour,
        ecolor=colour,
        marker=marker,
        markersize=size,
        markerfacecolor="white" if hollow else colour,
        markeredgecolor=colour if hollow else "white",
        markeredgewidth=1.4 if hollow else 0.6,
        linestyle="none",
        capsize=3,
        elinewidth=1.3,
        zorder=6,
        label=label,
    )


@dataclass(frozen=True)
class Curve:
    """One of many curves.

    Attributes:
        panel: Title of its panel; curves of one title share it.
        mark: A place on the x axis to mark by a dotted line; None for none.
    """

    panel: str
    x: Sequence[float]
    points: Sequence[Value]
    colour: Any = BLUE
    mark: float | None = None


def grid_of(panels: int) -> tuple[int, int]:
    """Rows and columns of so many small multiples."""
    columns = panels if panels <= 4 else min(5, math.ceil(math.sqrt(panels)))
    return -(-panels // columns), columns


def multiples_size(panels: int) -> tuple[float, float]:
    """Width and height in inches of a figure of small multiples."""
    return 11.0, 1.0 + 1.75 * grid_of(panels)[0]


def small_multiples(figure: Figure, curves: Sequence[Curve], title: str, dress: Callable[[Axes], None]) -> None:
    """A panel for each curve, or for those of one title, with all others in grey behind; all panels share their axes.

    Args:
        dress: Sets scales, ticks and labels of a panel.
    """
    from matplotlib.collections import LineCollection

    panels = list(dict.fromkeys(curve.panel for curve in curves))
    rows, columns = grid_of(len(panels))
    places = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for k, (place, panel) in enumerate(zip(places, panels, strict=False)):
        others = [list(zip(c.x, (p.value for p in c.points), strict=True)) for c in curves if c.panel != panel]
        place.add_collection(LineCollection(others, colors=PALE, linewidths=0.7, zorder=1, label=BEHIND), autolim=False)
        for curve in (curve for curve in curves if curve.panel == panel):
            values, low, high = ([getattr(p, name) for p in curve.points] for name in ("value", "low", "high"))
            place.fill_between(curve.x, low, high, color=curve.colour, alpha=0.2, linewidth=0, zorder=2)
            marker = "." if len(values) <= 60 else ""
            place.plot(curve.x, values, color=curve.colour, linewidth=1.3, marker=marker, markersize=4, zorder=3)
            if curve.mark is not None:
                place.axvline(curve.mark, color=INK, linewidth=0.9, linestyle=":")
        place.set_title(panel, fontsize=8)
        dress(place)
        if k % columns:
            place.set_ylabel("")
        lowest = k + columns >= len(panels)
        place.tick_params(labelbottom=lowest)
        if not lowest:
            place.set_xlabel("")
    for place in places[len(panels) :]:
        place.set_visible(False)
    figure.suptitle(title)
