"""The report of a study of units: the largest, Δ, attention's rankings tried by deletion, and effects on layers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import Figure, Section, between, figure, study, table_section
from ...report.control import control_figure, control_findings, control_sections
from ...report.finished import ALL_FIGURES, Drawn, FinishedRun, read_finished
from ...report.words import METRICS, metric_label, number, percent
from ...utils.statistics import UNADJUSTED
from ..patching import figures as patch
from ..patching.figures import DIRECTIONS, Patching
from ..patching.report import UNITS, screen_rows, unit_rows
from .figures import across_figure, curves_figure, delta_figure, graph_figure, shared_figure, tokens_figure

RANKINGS = {
    "gradient": "|∂m/∂Δ|",
    "do_mean": "Δ := mean",
    "variance": "variance of Δ",
    "output_variance": "variance of output",
}
ALPHA = 0.05
ACTIVE = ("mean_activation", "diversity")


def write_neurons(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes the figures, neuron_report.md and report.html of a finished study of units."""
    run = read_finished(run_dir, "neuron")
    raw = run.raw
    shown = as_patching(run)
    plan = [*unit_figures(raw, shown), *step_figures(raw), *curve_figures(raw), *layer_figures(raw)]
    plan += control_figure("neuron_control.png", raw["control"])
    content = study(run, top(raw), findings(raw), sections(raw, shown), plan, caveats(raw))
    return write_page(run.directory, content, "neuron_report.md", drawn)


def unit_figures(raw: dict[str, Any], shown: Patching) -> list[Figure]:
    kinds = len(raw["units"])
    return [
        figure(
            "neuron_units.png", "Effect of every measured unit, layer by layer: the effect that is lost when only "
                                "this unit is ablated (necessary), and the effect that comes back when only this unit "
                                "is kept (sufficient). Blue: p ≤ 0.05, adjusted for all units of a direction.",
            (8.6, 1.2 + 1.9 * kinds), partial(patch.units_figure, patching=shown),
        ),
        figure(
            "neuron_ranking.png", "The largest units of each kind, with 95 % intervals over templates.",
            (1.2 + 3.4 * min(3, kinds), 5.4), partial(patch.ranking_figure, patching=largest(shown)),
        ),
    ]  # fmt: skip


def step_figures(raw: dict[str, Any]) -> list[Figure]:
    """Figures of Δ, and of what tokens bring."""
    plan = []
    if raw["delta"]:
        plan.append(
            figure(
                "neuron_delta.png", "Effect of each channel's step size: the exact gradient, against the intervention "
                                    "that holds Δ at its mean, and against the documented ranking by variance of the "
                                    "output.",
                (9.4, 0.8 + 3.0 * len(raw["delta"])), delta_figure, raw["delta"],
            )
        )  # fmt: skip
        plan.append(
            figure(
                "neuron_map_tokens.png", "The channels whose step matters most (by gradients on other prompts), "
                "token by token, counted from the last: the step, the exact gradient, and the loss when only that "
                "token's step is set to the channel's mean. Means over prompts.",
                (10.4, 0.8 + 2.6 * len(raw["delta"])), tokens_figure, raw["delta"],
            )
        )  # fmt: skip
    if raw["tokens"]:
        plan.append(
            figure(
                "neuron_map_shared.png", "Left: relevance of every token for the logit of the last answer, before each "
                "layer. "
                "Right: size of each token's contribution to a block's output at the answer's position. Means over "
                "prompts; tokens are counted from the last.", (10.4, 3.6), shared_figure, raw["tokens"],
            )
        )  # fmt: skip
    return plan


def curve_figures(raw: dict[str, Any]) -> list[Figure]:
    layers = len({entry["layer"] for entry in raw["attention"]})
    plan = []
    if raw["attention"]:
        plan.append(
            figure(
                "neuron_deletion.png", "The metric as units are ablated, most relevant first (MoRF, solid) and least "
                "relevant first (LeRF, dashed). A ranking is good when the two are far apart; grey is the mean "
                "of random "
                "rankings.", (9.4, 0.8 + 3.2 * layers), curves_figure, raw["attention"], raw["metric"],
            )
        )  # fmt: skip
    return plan


def layer_figures(raw: dict[str, Any]) -> list[Figure]:
    """Figures of the effects of layers and their units on later ones."""
    plan = []
    if raw["across"]:
        plan.append(
            figure(
                "neuron_map_layers.png", "Left: relative change of what a layer adds (columns) without what an "
                "earlier one "
                "adds (rows). Right: mean effect of its top units on the top units of later layers, in standard "
                "deviations, by patching.", (9.0, 4.0), across_figure, raw["across"], raw["circuit"]["layers"],
            )
        )  # fmt: skip
        if raw["across"]["edges"]:
            plan.append(
                figure(
                    "neuron_graph.png", "The strongest effects of single units on single units of later layers; "
                    "the width "
                    "is the effect in standard deviations of the unit that it reaches.", (7.2, 4.6), graph_figure,
                    raw["across"],
                )
            )  # fmt: skip
    return plan


def as_patching(run: FinishedRun) -> Patching:
    """The units in the form of a patching, whose tables and figures are the same."""
    return Patching(**vars(run))


def largest(shown: Patching) -> Patching:
    """The three kinds of site with the largest units."""
    size = lambda kind: max(abs(v) for name in DIRECTIONS for v in kind[name]["value"])
    kinds = sorted(shown.kinds, key=size, reverse=True)[:3]
    return Patching(shown.directory, {**shown.raw, "units": kinds}, {}, shown.manifest, shown.config)


def top(raw: dict[str, Any]) -> list[tuple[str, str, str]]:
    metrics = raw["metrics"]
    found = [
        ("Prompts measured", number(metrics["prompts_used"]["value"]), "held-out"),
        ("Units measured", number(metrics["units_measured"]["value"]), "each ablated alone, and kept alone"),
        (METRICS[raw["metric"]][0], number(metrics["clean"]["value"], 3), between(metrics["clean"])),
    ]
    if "faithfulness_top_k" in metrics:
        share, random = metrics["faithfulness_top_k"], metrics["faithfulness_random"]
        circuit = raw["circuit"]
        found.append(
            (
                f"Top {circuit['per_layer']} of each layer as a circuit",
                percent(share["value"]),
                f"of the effect of {circuit['site']}; random {percent(random['value'])}",
            )
        )
    return found


def findings(raw: dict[str, Any]) -> list[tuple[bool, str]]:
    found = []
    for kind in raw["units"]:
        counts = [sum(p is not None and p <= ALPHA for p in kind[name]["p"]) for name in DIRECTIONS]
        of = f"{kind['name']}: of {len(kind['unit'])} units {counts[0]} are necessary and {counts[1]} sufficient alone"
        found.append(
            (sum(counts) > 0, f"{of} (p ≤ {ALPHA:g}, step-down bootstrap of templates, adjusted for all units).")
        )
    metrics = raw["metrics"]
    if "faithfulness_top_k" in metrics:
        good = metrics["faithfulness_top_k"]["low"] > metrics["faithfulness_random"]["high"]
        said = f"{between(metrics['faithfulness_top_k'])} against random {between(metrics['faithfulness_random'])}"
        found.append((good, f"Faithfulness of the top units as a circuit: {said}."))
    for entry in raw["attention"]:
        if entry["method"] in ("random", "gradient_x_input", "single_ablation"):
            continue
        ahead, control = entry["over_random"], entry["over_gradient_x_input"]
        verdict = (
            "better than" if control["low"] > 0 else "worse than" if control["high"] < 0 else "not told apart from"
        )
        found.append(
            (ahead["low"] > 0, f"{entry['method']}, layer {entry['layer']}: {between(ahead)} over random rankings; "
             f"{verdict} gradient × input ({between(control)}).")
        )  # fmt: skip
    return found + control_findings(raw["control"])


def sections(raw: dict[str, Any], shown: Patching) -> list[Section]:
    found = [
        table_section("Units", f"Effects on the {metric_label(raw['metric'])}; the largest of each kind. Intervals: "
                f"{raw['metrics']['clean']['interval']}{UNADJUSTED}.", UNITS, unit_rows(shown),
                range(1, 10), True),
        table_section("Gradients against exact effects", "Attribution patching on the units measured exactly.",
                ("site", "units", "measured", "correlation, necessary", "correlation, sufficient"), screen_rows(shown),
                range(1, 5)),
    ]  # fmt: skip
    for entry in raw["delta"]:
        rows = [
            (
                str(e),
                *(between({k: entry["rankings"][name][k][e] for k in ("value", "low", "high")}) for name in RANKINGS),
            )
            for e in entry["top"]["gradient"]
        ]
        found.append(
            table_section(f"Step size Δ, layer {entry['layer']}: the channels with the largest effect", "Sorted by "
                                                                                                        "the exact "
                "gradient.",
                    ("channel", *RANKINGS.values()), rows, range(5))
        )  # fmt: skip
    if raw["delta"]:
        names = list(RANKINGS)
        rows = [
            (str(e["layer"]), RANKINGS[a], RANKINGS[b], "–" if (r := e["spearman"][i][j]) is None else f"{r:.2f}",
             percent(e["jaccard"][i][j]))
            for e in raw["delta"] for i, a in enumerate(names) for j, b in enumerate(names) if i < j
        ]  # fmt: skip
        found.append(
            table_section("Do the rankings of Δ agree?", "Spearman's correlation over all channels, and overlap of "
                    "the top ones.",
                    ("layer", "one", "other", "Spearman", "Jaccard of the top"), rows, (0, 3, 4))
        )  # fmt: skip
    if raw["tokens"]:
        found.append(shared_section(raw["tokens"]))
    if raw["attention"]:
        rows = [
            (str(e["layer"]), e["method"], between(e["area"]), between(e["over_random"]),
             between(e["over_gradient_x_input"]), *(between(e[k]) if e[k] else "–" for k in ACTIVE),
             ", ".join(map(str, e["top"])))
            for e in raw["attention"]
        ]  # fmt: skip
        found.append(
            table_section("Units ranked by attention, tested by deletion", f"Area between LeRF and MoRF, in units of "
                    f"{metric_label(raw['metric'])}; "
                    "ranked on discovery prompts, measured on others. Of the top units: the mean size of an activation "
                    "and diversity, 1 less the mean size of the correlation of two of them over tokens.",
                    ("layer", "method", "area", "over random", "over gradient × input", "mean activation", "diversity",
                     "top units"), rows, (0, 2, 3, 4, 5, 6))
        )  # fmt: skip
    if raw["across"]:
        rows = [
            (str(p["source"]), str(p["target"]), between(p["patched"]), between(p["linear"]),
             "–" if p["spearman"] is None else f"{p['spearman']:.2f}")
            for p in raw["across"]["pairs"]
        ]  # fmt: skip
        found.append(
            table_section("Units of one layer on those of later ones", 
                    "Means over pairs of top units, in standard deviations.",
                    ("from layer", "to layer", "by patching", "by gradient", "Spearman of the two"), rows,
                    range(5), len(rows) > 40)
        )  # fmt: skip
        edges = [
            (
                f"{e['source']}.{e['source_unit']}",
                f"{e['target']}.{e['target_unit']}",
                between(e),
                number(e["linear"], 3),
            )
            for e in raw["across"]["edges"]
        ]
        found.append(
            table_section("Strongest edges", "layer.unit, in standard deviations of the target.",
                    ("from", "to", "by patching", "by gradient"), edges, (2, 3), True)
        )  # fmt: skip
    return found + control_sections(raw["control"])


def shared_section(found: dict[str, Any]) -> Section:
    """The terms of every block, and what the sums of terms and of relevance miss."""
    rows = []
    for block in found["blocks"]:
        *others, own = block["sources"]["value"]
        rows.append(
            (str(block["layer"]), number(own, 3), number(max(others, default=0.0), 3),
             *(between(block[name]) for name in ("skip", "bias", "residual")), f"{block['missed']:.1e}")
        )  # fmt: skip
    said = (
        "Sizes of the exact terms of each block's output at the position where the last answer is read: the term of "
        "the last token, the largest term of an earlier token, D u, biases, and the residual stream. The last column "
        "is the difference between their sum and the output, as a share of the output's largest entry; at every layer "
        f"relevance misses the logit by at most {found['missed']:.1e} of its size."
    )
    return table_section(
        "Token by token", said,
        ("layer", "last token", "largest other", "D u", "biases", "residual", "missed"), rows, range(7),
    )  # fmt: skip


def caveats(raw: dict[str, Any]) -> list[str]:
    found = [
        "Other units may back up a unit that is ablated alone, and a unit that is kept alone works on what the "
        "ablated units leave. Both effects are shown; neither is the unit's share of the whole.",
        "The largest units are chosen by their size, so their own intervals are too narrow for that choice; the "
        "p-values "
        "account for it.",
    ]
    if raw["delta"]:
        found.append(
            "The variance of a layer's output, which ranked channels as delta-sensitive before, does not read Δ; the "
            "report shows it under its own name."
        )
    return found


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    return findings(read_finished(run_dir, "neuron").raw)[0][1]
