"""``python -m benchmarks [SECTION ...]``: measures, prints each target and whether it holds, writes output/bench."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mechint import files, scan

from .pairs import measure
from .questions import SECTIONS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--output", type=Path, default=Path("output/bench"), help="directory of the results")
    flags = parser.parse_args()
    if unknown := [name for name in flags.sections if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    flags.output.mkdir(parents=True, exist_ok=True)
    found = []
    for name in flags.sections:
        for question in SECTIONS[name]():
            found.append(measure(question))
            print("\n".join(table([found[-1]])), flush=True)
    files.write_json(flags.output / "results.json", {"machine": machine(), "questions": found})
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    files.write_text(flags.output / "table.md", "\n".join([about, "", *table(found), ""]))
    draw(found, flags.output / "bench.png")
    print(f"written: {flags.output}/results.json, table.md, bench.png")


def machine() -> dict[str, Any]:
    return {
        "processor": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "scan": scan.chosen(),
        **{name: version(name) for name in ("torch", "transformers", "mambapy")},
    }


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(found: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for question in found:
        lines += [f"**{question['title']}**", "", "| | median | least … most | peak |", "|---|---|---|---|"]
        for name, row in question["rows"].items():
            note = "" if row["extrapolated"] == 1 else f" (extrapolated × {row['extrapolated']:.1f})"
            spread = f"{row['least_s']:.3g} … {row['most_s']:.3g} s"
            lines.append(f"| {name}{note} | {row['median_s']:.3g} s | {spread} | {row['peak_mib']:.0f} MiB |")
        lines += [""] if question["targets"] else []
        for t in question["targets"]:
            bound, verdict = f"{'≤' if t['at_most'] else '≥'} {t['bound']:g}", "holds" if t["holds"] else "MISSED"
            ratio = f"{t['ratio']:.2f} [{t['least']:.2f}, {t['most']:.2f}]"
            lines.append(f"- {t['slow']} / {t['fast']}: {ratio}, to be {bound}: **{verdict}**")
        lines.append("")
    return lines


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Bars of the medians on one logarithmic scale, a panel for each question."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [len(question["rows"]) + 1.2 for question in found]
    figure, panels = plt.subplots(
        len(found), 1, figsize=(8, 0.38 * sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axes, question in zip(panels[:, 0], found, strict=True):
        rows = question["rows"]
        medians = [row["median_s"] for row in rows.values()]
        colours = ["#0072B2" if name.startswith("mechint") else "#999999" for name in rows]
        bars = axes.barh(list(rows), medians, color=colours)
        axes.bar_label(bars, [f" {seconds:.3g} s" for seconds in medians], fontsize=8)
        axes.set(xscale="log", xlim=(min(medians) / 2, max(medians) * 4))
        axes.set_title(question["title"], fontsize=9, loc="left")
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("seconds (median, logarithmic; shorter is faster)", fontsize=9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
