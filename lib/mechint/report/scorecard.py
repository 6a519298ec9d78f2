"""The scorecard as Markdown and as a heat map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .markdown import table
from .style import BLUE, GREY, INK, RED, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALE = "viridis"
"""Perceptually even (Smith & van der Walt 2015), readable in grey and with any colour vision."""


def by_place(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["method"], row["model"]): row for row in results["card"]}


def markdown(results: dict[str, Any]) -> str:
    """The whole card: AUROC and exact recovery side by side, then every number, then the false-positive side."""
    seeds, false = results["config"]["seeds"], results["false_positives"]
    return "\n\n".join(
        [
            "# Scorecard: methods on Mambas whose circuit is known",
            f"Each compiled model has {seeds} seeds, from {results['config']['first_seed']} on: the circuit stands "
            "elsewhere in each. AUROC of the channels of the circuit among all, mean over seeds [least … most]; "
            "`●` is the circuit to the unit on every seed, else the number of seeds is said. A method is not asked for "
            "channels that its ablation is blind to.",
            short_table(results),
            "## Random weights",
            "AUROC of the same methods on random weights of the same sizes, against the same masks, within "
            "layers: it should be 0.5. "
            f"Means over models, 95 % intervals by Student's t over {seeds} seeds, for each method alone: of "
            f"{len(results['random'])} such intervals one may miss by chance.",
            table(
                ("method", "AUROC", "interval", "holds 0.5"),
                [
                    (
                        results["methods"][row["method"]],
                        f"{row['auroc']['value']:.3f}",
                        f"{row['auroc']['low']:.3f} … {row['auroc']['high']:.3f}",
                        "yes" if row["auroc"]["low"] <= 0.5 <= row["auroc"]["high"] else "**no**",
                    )
                    for row in results["random"]
                ],
            ),
            "## Causal traces",
            "Share of prompts whose largest denoising effect is at a declared layer and position (of a state: the "
            "first that is within 1 % of the largest, for a state restored later restores as much), mean over seeds.",
            table(
                ("model", "site", "share of prompts", "least … most"),
                [
                    (row["model"], row["site"], percent(row["share"]["value"]), between(row["share"]))
                    for row in results["positions"]
                ],
            ),
            "Traces in which nothing is to be found: twins are unrelated prompts of a second draw, and a coin for each "
            "prompt says which of the two answers is called right. Share of these shuffles in which any cell of the "
            f"trace is significant at {false['level']:.0%}, adjusted by max-t:",
            table(
                ("weights", "false positives", "95 % interval", "shuffles", "at or below the level"),
                [
                    (
                        weights,
                        percent(false[weights]["value"]),
                        f"{percent(false[weights]['low'])} … {percent(false[weights]['high'])}",
                        str(false[weights]["n"]),
                        verdict(false[weights], false["level"]),
                    )
                    for weights in ("random", "compiled")
                ],
            ),
            "With each prompt as its own twin the largest effect of any cell is "
            f"{false['same_twins_largest_effect']:g}.",
            "## Every number",
            long_table(results),
            f"All of it took {sum(part['seconds'] for part in results['parts']) / 60:.0f} minutes.",
        ]
    ) + "\n"  # fmt: skip


def short_table(results: dict[str, Any]) -> str:
    cells, models = by_place(results), list(results["models"])
    return table(
        ("method", *models),
        [(title, *(said(cells.get((key, model))) for model in models)) for key, title in results["methods"].items()],
    )


def said(row: dict[str, Any] | None) -> str:
    """AUROC and exact recovery; a dash where the method is not asked."""
    return "–" if row is None else f"{row['auroc']['value']:.3f} {mark(row)}".strip()


def long_table(results: dict[str, Any]) -> str:
    return table(
        ("model", "method", "circuit", "AUROC", "average precision", "exact", "seconds"),
        [
            (
                row["model"],
                results["methods"][row["method"]],
                f"{'–'.join(map(str, sorted({min(row['units']), max(row['units'])})))} of {row['total']}",
                *(
                    f"{row[name]['value']:.3f} [{row[name]['low']:.3f} … {row[name]['high']:.3f}]"
                    for name in ("auroc", "average_precision")
                ),
                f"{row['exact']['value']:.0%}",
                f"{row['seconds']['value']:.2f} [{row['seconds']['low']:.2f} … {row['seconds']['high']:.2f}]",
            )
            for row in results["card"]
        ],
    )


def mark(row: dict[str, Any]) -> str:
    """Exact recovery: a full circle for all seeds, the number of them for some, nothing for none."""
    n = row["exact"]["n"]
    hits = round(row["exact"]["value"] * n)
    return "●" if hits == n else f"({hits} of {n})" if hits else ""


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def between(share: dict[str, Any]) -> str:
    return f"{percent(share['low'])} … {percent(share['high'])}"


def verdict(share: dict[str, Any], level: float) -> str:
    if share["value"] <= level:
        return "yes"
    return "above, within chance" if share["low"] <= level else "**no**"


def draw(results: dict[str, Any], path: Path) -> Path:
    """AUROC by method and model, with exact recovery; beside it the same methods on random weights."""
    rows, columns = len(results["methods"]), len(results["models"])
    size = (3.9 + 0.92 * columns, 1.5 + 0.34 * rows)

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(0.92 * columns, 1.9))
        heat_map(figure, left, results)
        chance(right, results)

    return save_figure(path, size, paint)


def heat_map(figure: Figure, axes: Axes, results: dict[str, Any]) -> None:
    cells, models, methods = by_place(results), list(results["models"]), results["methods"]
    values = [
        [cells[key, model]["auroc"]["value"] if (key, model) in cells else np.nan for model in models]
        for key in methods
    ]
    image = axes.imshow(values, cmap=SCALE, vmin=0.5, vmax=1.0, aspect="auto")
    for i, key in enumerate(methods):
        for j, model in enumerate(models):
            label = said(cells.get((key, model))).replace("(", "").replace(")", "").replace(" of ", "/")
            colour = "white" if values[i][j] <= 0.78 else INK
            axes.text(j, i, label, ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(models)), [model.replace("_", "\n") for model in models])
    axes.set_yticks(range(len(methods)), list(methods.values()))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    seeds = results["config"]["seeds"]
    axes.set_title(f"AUROC, mean of {seeds} seeds")
    axes.set_xlabel("● to the unit on every seed;  k/n on k of n")
    bar = figure.colorbar(image, ax=axes, location="right", extend="min", fraction=0.03, pad=0.01, aspect=30)
    bar.set_ticks([0.5, 0.75, 1.0])
    bar.outline.set_visible(False)


def chance(axes: Axes, results: dict[str, Any]) -> None:
    """AUROC on random weights with its interval; red where that misses one half."""
    for i, row in enumerate(results["random"]):
        value, low, high = (row["auroc"][name] for name in ("value", "low", "high"))
        colour = BLUE if low <= 0.5 <= high else RED
        axes.errorbar(
            [value], [i], xerr=[[value - low], [high - value]], fmt="o", color=colour, markersize=4, capsize=2,
            elinewidth=1.2,
        )  # fmt: skip
    axes.axvline(0.5, color=GREY, linewidth=0.9, linestyle="--", zorder=0)
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks([0.0, 0.5, 1.0])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("random weights")
    axes.set_xlabel("AUROC within layers, 95 %")
