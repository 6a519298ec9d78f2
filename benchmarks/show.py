"""What was measured as Markdown and as pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Found = dict[str, Any]
OURS, OTHERS = "#0072B2", "#999999"


def table(found: Iterable[Found]) -> list[str]:
    lines = []
    for question in found:
        lines += [f"**{question['title']}**", "", "| | median | least … most | turns | peak |", "|---|---|---|---|---|"]
        for row in question["rows"]:
            note = "" if row["extrapolated"] == 1 else f" (extrapolated × {row['extrapolated']:.1f})"
            median, least, most = (number(row[f"{key}_s"]) for key in ("median", "least", "most"))
            peak = "not measured" if row["peak_mib"] is None else f"{row['peak_mib']:.0f} MiB"
            lines.append(f"| {row['name']}{note} | {median} s | {least} … {most} s | {row['turns']} | {peak} |")
        lines += [""] if question["targets"] else []
        for t in question["targets"]:
            unit = f" {t['unit']}" if t["unit"] else ""
            spread = "" if t["least"] == t["most"] else f" [{number(t['least'])}, {number(t['most'])}]"
            bound, verdict = f"{'≤' if t['at_most'] else '≥'} {t['bound']:g}{unit}", "holds" if t["holds"] else "MISSED"
            lines.append(f"- {t['claim']}: {number(t['value'])}{unit}{spread}, to be {bound}: **{verdict}**")
        lines.append("")
    return lines


def number(value: float) -> str:
    """Three digits, without powers of ten."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw(found: list[Found], folder: Path) -> list[Path]:
    """bench.png for candidates side by side, curves.png for what grows; whichever was measured."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    for chosen, name, picture in (
        ([q for q in found if not q["curve"]], "bench.png", bars),
        ([q for q in found if q["curve"]], "curves.png", lines),
    ):
        if chosen:
            figure = picture(chosen)
            figure.savefig(folder / name, dpi=110)
            drawn.append(folder / name)
    return drawn


def bars(found: list[Found]) -> Any:
    """The medians, a panel for each question; one logarithmic scale for all of them."""
    import matplotlib.pyplot as plt

    heights = [len(question["rows"]) + 1.6 for question in found]
    figure, panels = plt.subplots(
        len(found), 1, figsize=(9, 0.3 * sum(heights) + 0.6), squeeze=False, sharex=True,
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    every = [row["median_s"] for question in found for row in question["rows"]]
    for axes, question in zip(panels[:, 0], found, strict=True):
        rows = question["rows"]
        names = [row["name"] + ("" if row["extrapolated"] == 1 else " (extrapolated)") for row in rows]
        medians = [row["median_s"] for row in rows]
        drawn = axes.barh(names, medians, color=[OURS if name.startswith("mechint") else OTHERS for name in names])
        axes.bar_label(drawn, [f" {number(seconds)} s" for seconds in medians], fontsize=8)
        axes.set(xscale="log", xlim=(min(every) / 3, max(every) * 6))
        axes.set_title(textwrap.fill(question["title"], 76), fontsize=9, loc="left")
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g} s")
    panels[-1, 0].set_xlabel("median, one logarithmic scale for all; shorter is faster", fontsize=9)
    return figure


def lines(found: list[Found]) -> Any:
    """Seconds over size, both logarithmic, three panels in a row; the power they grow by is in the corner."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator

    deep = -(-len(found) // 3)
    figure, panels = plt.subplots(deep, 3, figsize=(10, 2.9 * deep), squeeze=False, layout="constrained")
    for axes, question in zip(panels.flat, found, strict=False):
        rows, size = question["rows"], question["curve"]
        sizes = [float(row["name"].rpartition(" ")[2]) for row in rows]
        low, middle, high = ([row[f"{key}_s"] for row in rows] for key in ("least", "median", "most"))
        axes.fill_between(sizes, low, high, color=OURS, alpha=0.2, linewidth=0)
        axes.plot(sizes, middle, "o-", color=OURS)
        axes.set(xscale="log", yscale="log", ylim=(min(low) / 2, max(high) * 2))
        axes.set_xticks(sizes, [f"{n:g}" for n in sizes], fontsize=8)
        axes.set_yticks(middle, [f"{number(s)} s" for s in middle], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(size, fontsize=9)
        axes.set_title(textwrap.fill(question["title"].partition(";")[0], 38), fontsize=9, loc="left")
        grows = next(t["value"] for t in question["targets"] if t["claim"].startswith("seconds grow"))
        axes.text(0.05, 0.9, f"grows as {size}$^{{{grows:.2f}}}$", transform=axes.transAxes, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    return figure
