"""The figures of the lenses: curves by layer, contributions of the parts, and one prompt layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...report import figure_style as style
from ...report.values import Value, read_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "logprob": "log-probability of the answer (nats)",
    "rank": "rank of the answer (geometric mean)",
    "right": "answer is the likeliest token",
    "kl": "KL(model ‖ lens) at the answer (nats)",
}
COLOURS = {"logit lens": style.BLUE, "tuned lens": style.ORANGE}
MOST_PARTS = 60
"""Parts of the figure of contributions; of more the largest are drawn."""
MOST_TOKENS = 16
"""Positions of the figure of one prompt, the last ones."""


def row_name(site: str, layer: int) -> str:
    """A site as rows and ticks name it."""
    if site == "resid_pre" and layer == 0:
        return "embeddings"
    inside = site.removeprefix("resid_").replace("_", " ")
    return f"layer {layer}" if inside == "post" else f"layer {layer} {inside}"


def point(entry: Mapping[str, Any]) -> Value:
    return read_value(entry, Path("results.json"), "a number")


def curves(figure: Figure, readings: Sequence[dict[str, Any]], control: dict[str, Any] | None) -> None:
    """A panel for each measure: lenses by depth with intervals, and the logit lens on shuffled weights dotted."""
    axes = figure.subplots(2, 2).flatten()
    depths = {(entry["site"], entry["layer"]): entry["depth"] for entry in readings}
    for place, (measure, title) in zip(axes, PANELS.items(), strict=True):
        for name in dict.fromkeys(entry["name"] for entry in readings):
            own = [entry for entry in readings if entry["name"] == name]
            style.band(place, [e["depth"] for e in own], [point(e[measure]) for e in own], COLOURS[name], name)
        random = [
            row for row in (control["quantities"] if control else ()) if row["quantity"] == measure and row["shuffled"]
        ]
        if random:
            at = [depths[row["site"], row["layer"]] for row in random]
            values = [row["shuffled"]["value"] for row in random]
            place.plot(at, values, ":", color=style.PURPLE, marker="x", markersize=3.5, label="shuffled weights")
        if measure == "rank":
            place.set_yscale("log")
        if measure == "right":
            style.percent_axis(place)
            place.set_ylim(-0.03, 1.03)
        place.set_title(title)
        place.set_xlabel("layers below")
        whole_layers(place, max(depths.values()))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle("What the residual stream says of the answer")


def whole_layers(axes: Axes, last: float) -> None:
    step = -(-int(last) // 8)
    axes.set_xticks(range(0, int(last) + 1, max(1, step)))


def drawn_parts(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of the figure, in the forward's order."""
    largest = sorted(parts, key=lambda part: -abs(part["contribution"]["value"]))[:MOST_PARTS]
    return [part for part in parts if part in largest]


def bars_size(parts: Sequence[dict[str, Any]]) -> tuple[float, float]:
    return 7.5, 1.5 + 0.24 * len(drawn_parts(parts))


def bars(figure: Figure, parts: Sequence[dict[str, Any]], control: dict[str, Any] | None, metric: str) -> None:
    """A bar for each part with its interval, and the same of shuffled weights as a range."""
    place = figure.subplots()
    shown = drawn_parts(parts)
    points = [point(part["contribution"]) for part in shown]
    values = np.array([p.value for p in points])
    errors = np.array([[p.value - p.low, p.high - p.value] for p in points]).T
    at = np.arange(len(shown))
    place.barh(at, values, color=np.where(values > 0, style.BLUE, style.RED), height=0.62)
    place.errorbar(values, at, xerr=errors, fmt="none", ecolor=style.INK, elinewidth=1.0, capsize=2)
    random = {
        (row["site"], row["layer"]): row["shuffled"]
        for row in (control["quantities"] if control else ())
        if row["quantity"] == "contribution" and row["shuffled"]
    }
    there = [(k, random.get((part.get("site", part["name"]), part.get("layer")))) for k, part in enumerate(shown)]
    both = [(k, row) for k, row in there if row]
    if both:
        ends = [[row["value"] - row["low"] for _, row in both], [row["high"] - row["value"] for _, row in both]]
        place.errorbar(
            [row["value"] for _, row in both], [k + 0.38 for k, _ in both], xerr=ends, fmt="x", color=style.PURPLE,
            markersize=3.5, elinewidth=1.0, label="shuffled weights",
        )  # fmt: skip
        place.legend(loc="best")
    place.axvline(0, color=style.GREY, linewidth=0.8)
    place.set_yticks(at, [part["name"] for part in shown])
    place.set_ylim(len(shown) - 0.4, -0.6)
    place.set_xlabel(f"contribution to the {metric}")
    figure.suptitle("What every part adds, with the final norm's scale held")


def map_size(example: dict[str, Any]) -> tuple[float, float]:
    columns = min(MOST_TOKENS, len(example["tokens"]))
    return 2.2 + 0.72 * columns, 1.5 + 0.27 * len(first_lens(example)["sites"])


def first_lens(example: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = example["lenses"]["logit"]
    return found


def one_prompt(figure: Figure, example: dict[str, Any]) -> None:
    """The likeliest token of every layer and position, coloured by its probability; the last layer on top."""
    place = figure.subplots()
    entry, skip = first_lens(example), max(0, len(example["tokens"]) - MOST_TOKENS)
    chances = np.array([[cell[0] for cell in line[skip:]] for line in entry["probability"]])[::-1]
    image = place.imshow(chances, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, line in enumerate(reversed(entry["top"])):
        for j, cell in enumerate(line[skip:]):
            colour = "white" if chances[i, j] > 0.6 else style.INK
            place.text(j, i, clipped(cell[0]), ha="center", va="center", fontsize=6.5, color=colour)
    names = [row_name(site.rpartition(".")[2], int(site.split(".")[1])) for site in entry["sites"]]
    place.set_yticks(range(len(names)), names[::-1])
    place.set_xticks(range(chances.shape[1]), [clipped(token) for token in example["tokens"][skip:]], rotation=45,
                     ha="right")  # fmt: skip
    place.grid(False)
    figure.colorbar(image, ax=place, label="probability of the likeliest token")
    figure.suptitle(f"Logit lens of one prompt, answer “{clipped(example['answer'])}”")


def clipped(text: str, most: int = 9) -> str:
    """A token in few letters, in which line breaks are seen, and spaces where it is nothing else."""
    plain = "".join(one if one.isprintable() else "⏎" if one == "\n" else "·" for one in text)
    plain = plain if plain.strip() else plain.replace(" ", "␣")
    return plain if len(plain) <= most else plain[: most - 1] + "…"
