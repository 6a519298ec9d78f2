"""The scorecard as Markdown and as a heat map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """The whole card: AUROC and exact recovery side by side, then every number, then where nothing is to be found."""
    sections = [units_section, random_section, edge_section, trace_section, probe_section, dictionary_section,
                nothing_section, numbers_section]  # fmt: skip
    return "\n\n".join(block for section in sections for block in section(results) if block) + "\n"


def units_section(results: dict[str, Any]) -> list[str]:
    config = results["config"]
    return [
        "# Scorecard: methods on models whose circuit is known",
        f"Each compiled model has {config['seeds']} seeds, from {config['first_seed']} on: the circuit stands "
        "elsewhere in each. AUROC of the units of the circuit among all, mean over seeds; `●` is the circuit to the "
        "unit on every seed, else the number of seeds is said. A method is not asked for units that its ablation is "
        "blind to.",
        short_table(results),
        "How faithful the circuits of all sizes are that each method's scores give (CMD of Mueller et al. 2025: area "
        "between faithfulness and 1, the smaller the better); the last row is the declared circuit itself, its units "
        "in the order of their numbers.",
        areas_table(results),
    ]


def areas_table(results: dict[str, Any]) -> str:
    cells, models = by_place(results), list(results["models"])
    best = {row["model"]: row for row in results["best"]}
    said = lambda row: f"{row['cmd']['value']:.3f}" if row else "–"
    every = [(title, *(said(cells.get((key, model))) for model in models)) for key, title in results["methods"].items()]
    return table(("CMD", *models), [*every, ("the declared circuit", *(said(best[model]) for model in models))])


def random_section(results: dict[str, Any]) -> list[str]:
    if not results["random"]:
        return []
    titles = results["methods"] | results["edge_methods"]
    return [
        "## Random weights",
        "AUROC of the same methods on random weights of the same sizes, against the same masks and links, within a "
        f"layer or between two: it should be 0.5. Each seed tries {results['config']['random_models']} of the models, "
        f"in turn; 95 % intervals by Student's t over {results['config']['seeds']} seeds, for each method alone: of "
        f"{len(results['random'])} such intervals one may miss by chance. (Flows are not asked: on any weights near "
        "positions are read more than far ones.)",
        table(
            ("method", "AUROC", "interval", "holds 0.5"),
            [
                (
                    titles[row["method"]],
                    f"{row['auroc']['value']:.3f}",
                    f"{row['auroc']['low']:.3f} … {row['auroc']['high']:.3f}",
                    "yes" if row["auroc"]["low"] <= 0.5 <= row["auroc"]["high"] else "**no**",
                )
                for row in results["random"]
            ],
        ),
    ]


def edge_section(results: dict[str, Any]) -> list[str]:
    if not results["edges"]:
        return []
    titles, models = results["edge_methods"], list(dict.fromkeys(row["model"] for row in results["edges"]))
    cells = {(row["method"], row["model"]): row for row in results["edges"]}
    asked = {key for key, _ in cells}

    def said(key: str, model: str) -> str:
        row = cells.get((key, model))
        if row is None:
            return "–"
        mark = " ●" if row["exact"]["low"] == 1.0 else ""
        return f"{row['auroc']['value']:.3f} / {row['average_precision']['value']:.2f}{mark}"

    return [
        "## Edges",
        "AUROC / average precision, mean over seeds; `●` is every edge above all others on every seed and prompt. "
        "Flows are edges between positions, through the convolution or the scan of a layer or through one head of it, "
        f"on {results['config']['edge_prompts']} prompts of a seed, among {results['config']['edges']} edges that no "
        "prompt needs; links are edges between channels of two layers (of a GPT-2 value channels and neurons that "
        "write, query, key and value channels and neurons that read), among all pairs. What sees no more than a source "
        "gives is not asked for flows whose source only takes attention from others.",
        table(
            ("method", *models),
            [(titles[key], *(said(key, model) for model in models)) for key in titles if key in asked],
        ),
    ]  # fmt: skip


def trace_section(results: dict[str, Any]) -> list[str]:
    return [
        "## Causal traces",
        "Share of prompts whose largest denoising effect is at a declared layer and position (of a state: the first "
        "that is within 1 % of the largest, for a state restored later restores as much), mean over seeds.",
        table(
            ("model", "site", "share of prompts", "least … most"),
            [
                (row["model"], row["site"], percent(row["share"]["value"]), between(row["share"]))
                for row in results["positions"]
            ],
        ),
    ]


def probe_section(results: dict[str, Any]) -> list[str]:
    blocks = []
    if results["probes"]:
        blocks = [
            "## Probes",
            "A lasso of the answer on the circuit's last layer (`gated`; of a GPT-2 `head_out`), at the answer's "
            "position: accuracy on held-out prompts, that on shuffled labels, and how its weights rank the channels "
            "that say the answers. A probe finds what is there, not what is used: where an idle head reads the same, "
            "it may rank that head's channels first.",
            table(
                ("model", "accuracy", "shuffled", "AUROC of channels", "average precision"),
                [
                    (
                        row["model"],
                        *(ranged(row[name]) for name in ("accuracy", "chance", "auroc", "average_precision")),
                    )
                    for row in results["probes"]
                ],
            ),
        ]
    if results["planted_probes"]:
        blocks += [
            "The class of planted features, read at the query; `layers.0.resid_pre` does not have it there:",
            table(
                ("site", "probe", "accuracy"),
                [(row["site"], row["method"], ranged(row["accuracy"])) for row in results["planted_probes"]],
            ),
        ]
    return blocks


def dictionary_section(results: dict[str, Any]) -> list[str]:
    if not results["dictionaries"]:
        return []
    return [
        "## Dictionaries on planted features",
        "Of a model whose residual stream and state hold more known directions than dimensions: mean cosine of each "
        "direction with the nearest latent, F1 of that latent as a detector of the feature, and the cosine with the "
        "directions of another model, which is what the same number of latents has with any directions. "
        f"Trained on {results['config']['sae_tokens']:,} activations.",
        table(
            ("site", "dictionary", "mean cosine", "F1", "another's cosine", "another's F1", "L0 (true)", "explained"),
            [
                (
                    row["site"],
                    row["method"],
                    *(ranged(row[name]) for name in ("mean_cosine", "f1", "stranger_cosine", "stranger_f1")),
                    f"{row['l0']['value']:.2f} ({row['true_l0']['value']:.2f})",
                    ranged(row["explained"]),
                )
                for row in results["dictionaries"]
            ],
        ),
    ]


RATES = {
    "trace random": "a causal trace, random weights",
    "trace compiled": "a causal trace, compiled models",
    "units random": "patching of single units, random weights",
    "units compiled": "patching of single units, compiled models",
    "probes shuffled": "a probe of shuffled labels",
}


def nothing_section(results: dict[str, Any]) -> list[str]:
    false = results["false_positives"]
    return [
        "## Where nothing is to be found",
        "Twins are unrelated prompts of a second draw, and a coin for each prompt says which of the two answers is "
        "called right: share of these shuffles in which any cell, or unit, is significant at "
        f"{false['level']:.0%}, adjusted by max-t. Of probes: share of shuffled labels whose p is at most that.",
        table(
            ("what", "false positives", "95 % interval", "shuffles", "at or below the level"),
            [
                (
                    title,
                    percent(false[key]["value"]),
                    f"{percent(false[key]['low'])} … {percent(false[key]['high'])}",
                    str(false[key]["n"]),
                    verdict(false[key], false["level"]),
                )
                for key, title in RATES.items()
                if key in false
            ],
        ),
        "With each prompt as its own twin the largest effect of any cell of a trace is "
        f"{false['same_twins_largest_effect']:g}.",
    ]


def numbers_section(results: dict[str, Any]) -> list[str]:
    minutes = sum(part["seconds"] for part in [*results["parts"], *results["planted"]]) / 60
    return [
        "## Every number of units",
        "Mean [least … most] over seeds. Seconds and memory: of rankings by Δ, and of attribution with one ablation, "
        "the first that is asked for pays for all. Memory is the process's peak beside what it held before.",
        long_table(results),
        f"All of it took {minutes:.0f} minutes.",
    ]


def ranged(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f} … {value['high']:.3f}]"


def short_table(results: dict[str, Any]) -> str:
    cells, models = by_place(results), list(results["models"])
    said = lambda row: f"{row['auroc']['value']:.3f} {mark(row)}".strip() if row else "–"
    return table(
        ("method", *models),
        [(title, *(said(cells.get((key, model))) for model in models)) for key, title in results["methods"].items()],
    )


def long_table(results: dict[str, Any]) -> str:
    return table(
        ("model", "method", "circuit", "AUROC", "average precision", "exact", "CPR", "CMD", "seconds", "MiB"),
        [
            (
                row["model"],
                results["methods"][row["method"]],
                f"{'–'.join(map(str, sorted({min(row['units']), max(row['units'])})))} of {row['total']}",
                *(ranged(row[name]) for name in ("auroc", "average_precision")),
                f"{row['exact']['value']:.0%}",
                *(ranged(row[name]) for name in ("cpr", "cmd")),
                f"{row['seconds']['value']:.2f} [{row['seconds']['low']:.2f} … {row['seconds']['high']:.2f}]",
                f"{row['peak_mib']['value']:.0f}" if "peak_mib" in row else "–",
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
    """AUROC of units by method and model beside random weights; below that of edges, beside dictionaries."""
    edges = asked_edges(results)
    heights, columns = (len(results["methods"]), len(edges) or 1), len(results["models"])
    size = (4.6 + 0.92 * columns, 3.0 + 0.34 * sum(heights))

    def paint(figure: Figure) -> None:
        rows = 2 if edges or results["dictionaries"] else 1
        panels = figure.subplots(
            rows, 2, width_ratios=(0.92 * columns, 2.4), height_ratios=heights[:rows], squeeze=False
        )
        methods, models = results["methods"], list(results["models"])
        cells = {place: (row["auroc"]["value"], mark(row)) for place, row in by_place(results).items()}
        heat_map(figure, panels[0, 0], cells, methods, models)
        panels[0, 0].set_title(f"Units: AUROC, mean of {results['config']['seeds']} seeds")
        chance(panels[0, 1], results)
        if rows == 2:
            found = {(r["method"], r["model"]): (r["auroc"]["value"], whole(r)) for r in results["edges"]}
            heat_map(figure, panels[1, 0], found, edges, models)
            panels[1, 0].set_title("Edges: AUROC")
            panels[1, 0].set_xlabel("● all found, nothing else, on every seed;  k/n on k of n;  –: not asked")
            recovered(panels[1, 1], results)

    return save_figure(path, size, paint)


def asked_edges(results: dict[str, Any]) -> dict[str, str]:
    """Titles of the ways of scoring edges that any model was asked by."""
    asked = {row["method"] for row in results["edges"]}
    return {key: title for key, title in results["edge_methods"].items() if key in asked}


def whole(row: dict[str, Any]) -> str:
    return "●" if row["exact"]["low"] == 1.0 else ""


def heat_map(
    figure: Figure,
    axes: Axes,
    cells: dict[tuple[str, str], tuple[float, str]],
    methods: dict[str, str],
    models: list[str],
) -> None:
    """A square for each method and model: its number and its mark."""
    values = [[cells.get((key, model), (float("nan"), ""))[0] for model in models] for key in methods]
    image = axes.imshow(values, cmap=SCALE, vmin=0.5, vmax=1.0, aspect="auto")
    for i, key in enumerate(methods):
        for j, model in enumerate(models):
            if (key, model) not in cells:
                axes.text(j, i, "–", ha="center", va="center", fontsize=7.5, color=GREY)
                continue
            value, sign = cells[key, model]
            label = f"{value:.3f} {sign}".replace("(", "").replace(")", "").replace(" of ", "/").strip()
            colour = INK if value > 0.78 else "white"
            axes.text(j, i, label, ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(models)), [model.replace("_", "\n") for model in models])
    axes.set_yticks(range(len(methods)), list(methods.values()))
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="right", extend="min", fraction=0.03, pad=0.01, aspect=30)
    bar.set_ticks([0.5, 0.75, 1.0])
    bar.outline.set_visible(False)


def recovered(axes: Axes, results: dict[str, Any]) -> None:
    """Mean best cosine of planted features for each dictionary and site, beside that of another model's features."""
    rows = results["dictionaries"]
    if not rows:
        axes.set_axis_off()
        return
    for i, row in enumerate(rows):
        for name, colour in (("stranger_cosine", GREY), ("mean_cosine", BLUE)):
            value, low, high = (row[name][key] for key in ("value", "low", "high"))
            axes.errorbar(
                [value], [i], xerr=[[value - low], [high - value]], fmt="o", color=colour, markersize=3.5, capsize=2,
                elinewidth=1.0, label={"mean_cosine": "planted", "stranger_cosine": "another model's"}[name] if i == 0
                else None,
            )  # fmt: skip
    labels = [f"{row['method']}, {row['site'].removeprefix('layers.0.')}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=6.5)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks([0.0, 0.5, 1.0])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Dictionaries")
    axes.set_xlabel("cosine with planted features")
    axes.legend(fontsize=6.5, loc="lower right", borderpad=0.2, handletextpad=0.2)


def chance(axes: Axes, results: dict[str, Any]) -> None:
    """AUROC on random weights with its interval; red where that misses one half."""
    order = list(results["methods"])
    for row in (row for row in results["random"] if row["method"] in order):
        i = order.index(row["method"])
        value, low, high = (row["auroc"][name] for name in ("value", "low", "high"))
        colour = BLUE if low <= 0.5 <= high else RED
        axes.errorbar(
            [value], [i], xerr=[[value - low], [high - value]], fmt="o", color=colour, markersize=4, capsize=2,
            elinewidth=1.2,
        )  # fmt: skip
    axes.set_yticks(range(len(order)), [])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.axvline(0.5, color=GREY, linewidth=0.9, linestyle="--", zorder=0)
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks([0.0, 0.5, 1.0])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("Random weights")
    axes.set_xlabel("AUROC within layers, 95 %")
