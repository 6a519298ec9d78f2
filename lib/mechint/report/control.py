"""The control on random weights in a report: what differs from shuffled weights, what does not, a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import figure_style as style
from .content import Figure, Section, between, figure, table_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

NAMED = 6
"""Quantities that a finding names."""
COLUMNS = 3
MOST = 15
"""Panels of the figure."""


def place(row: dict[str, Any]) -> str:
    """``gated, layer 3``, as far as the quantity has them."""
    layer = None if row["layer"] is None else f"layer {row['layer']}"
    return ", ".join(part for part in (row["site"], layer) if part)


def models_of(control: Mapping[str, Any]) -> str:
    """Names the models with shuffled weights, with their number."""
    return "a model" if control["models"] == 1 else f"{control['models']} models"


Better = Callable[[str], int]
"""Says of a quantity's name whether more of it is better (1), less is (-1), or neither (0)."""


def better_shuffled(control: Mapping[str, Any], better: Better) -> list[dict[str, Any]]:
    """The quantities in which shuffled weights are better than the trained ones, intervals apart."""
    apart = [row for row in control["quantities"] if row["differs"]]
    gap = lambda row: row["shuffled"]["value"] - row["trained"]["value"]
    return [row for row in apart if better(row["quantity"]) * gap(row) > 0]


def control_findings(control: Mapping[str, Any] | None, better: Better | None = None) -> list[tuple[bool, str]]:
    """Says what the control shows, as evidence for (True) or against.

    Args:
        better: Where given, quantities in which shuffled weights are better are named, and count as no evidence.
    """
    if control is None:
        return [
            (False, "Nothing was measured on shuffled weights, so it is not known what an untrained model would show.")
        ]
    known = [row for row in control["quantities"] if row["differs"] is not None]
    apart, alike = ([row for row in known if row["differs"] is wanted] for wanted in (True, False))
    models = models_of(control) + " with the same weights, shuffled"
    worse = [] if better is None else better_shuffled(control, better)
    said = f"{len(apart)} of {len(known)} quantities differ from those of {models} (intervals apart)"
    if worse:
        own = len(apart) - len(worse)
        said += f": {own or 'none'} in the trained model's favour, {len(worse)} in that of shuffled weights"
    found = [(len(apart) > len(worse), f"{said}.")]
    if worse:
        found.append((False, f"Better with shuffled weights than with the trained ones: {some(worse, both=True)}."))
    if alike:
        found.append((False, f"Not told apart from shuffled weights: {some(alike)}."))
    return found + [(False, f"A shuffled model could not be measured: {reason}") for reason in control["failed"]]


def some(rows: list[dict[str, Any]], both: bool = False) -> str:
    """Names the first quantities, on request with both values (shuffled, trained)."""
    named = []
    for row in rows[:NAMED]:
        name = f"{row['quantity']} ({place(row)})" if place(row) else str(row["quantity"])
        values = f" {between(row['shuffled'])} against {between(row['trained'])}" if both else ""
        named.append(name + values)
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return "; ".join(named) + more


def control_sections(control: Mapping[str, Any] | None) -> list[Section]:
    if control is None:
        return []
    verdict = {True: "yes", False: "no", None: "–"}
    rows = [
        (
            row["quantity"],
            place(row),
            between(row["trained"]),
            "–" if row["shuffled"] is None else between(row["shuffled"]),
            verdict[row["differs"]],
        )
        for row in control["quantities"]
    ]
    said = (
        f"The same quantities in {models_of(control)} with the entries of every weight tensor shuffled: their "
        f"mean, and the range from the lowest to the highest end of all their intervals. Two quantities differ when "
        f"their intervals do not overlap; – marks a quantity that shuffled weights do not have."
    )
    return [
        table_section(
            "Random weights", said, ("quantity", "where", "trained", "shuffled", "differs"), rows, (2, 3), True
        )
    ]


def control_figure(name: str, control: Mapping[str, Any] | None) -> list[Figure]:
    """A panel for each quantity, with the trained model's intervals beside the shuffled ones'."""
    if control is None:
        return []
    panels = list(dict.fromkeys(row["quantity"] for row in control["quantities"]))[:MOST]
    caption = (
        "Every quantity of the trained model (blue) beside the same of models with shuffled weights (purple, from the "
        "least to the most of their 95 % intervals). A quantity whose intervals overlap is no evidence of training."
    )
    lines = -(-len(panels) // COLUMNS)
    return [figure(name, caption, (11.0, 0.9 + 2.3 * lines), draw, control["quantities"], panels)]


def draw(target: Canvas, rows: list[dict[str, Any]], panels: list[str]) -> None:
    lines = -(-len(panels) // COLUMNS)
    axes = target.subplots(lines, COLUMNS, squeeze=False).flatten()
    for spot, name in zip(axes, panels, strict=False):
        own = [row for row in rows if row["quantity"] == name]
        for key, colour, shift in (("trained", style.BLUE, -0.12), ("shuffled", style.PURPLE, 0.12)):
            there = [(k, row[key]) for k, row in enumerate(own) if row[key] is not None]
            errors(spot, [k + shift for k, _ in there], [value for _, value in there], colour, key)
        step = -(-len(own) // 12)
        spot.set_xticks(range(0, len(own), step), [short(row) for row in own[::step]])
        spot.set_xlim(-0.6, len(own) - 0.4)
        spot.set_title(name.replace("_", " ").replace(" x ", " × "))
        spot.grid(axis="x", visible=False)
    for spot in axes[len(panels) :]:
        spot.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    target.legend(handles, labels, loc="outside lower center", ncols=2)
    target.suptitle("Trained and shuffled weights")


def short(row: dict[str, Any]) -> str:
    """The place in a tick's label: the layer where there is one, else the site."""
    return (row["site"] or "all") if row["layer"] is None else f"layer {row['layer']}"


def errors(spot: Axes, x: list[float], numbers: list[dict[str, Any]], colour: str, label: str) -> None:
    value, low, high = (np.array([n[key] for n in numbers], dtype=np.float64) for key in ("value", "low", "high"))
    spot.errorbar(
        x, value, yerr=[value - low, high - value], fmt="o", color=colour, markersize=3.5, capsize=2, elinewidth=1.1,
        label=label,
    )  # fmt: skip
