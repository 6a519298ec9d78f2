"""The page of the scorecard; its picture is in :mod:`mechint.scorecard.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..ground_truth.questions import QUESTIONS
from ..report.compose import write_page
from ..report.content import Block, Content, Figure, Section, Table, Text, table_section
from .figures import by_place, draw, draw_recovery, mark, titles_of

NO = "✗ no"
"""A verdict that a reader must not miss."""


def write_scorecard(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes scorecard.png, scorecard.md and scorecard.html."""
    return write_page(folder, content(results), "scorecard.md", page_name="scorecard.html")


def content(results: dict[str, Any]) -> Content:
    """The whole card: AUROC and exact recovery side by side, then every number, then where nothing is to be found."""
    sections = [units_section, several_section, sizes_section, recovery_section, random_section, edge_section,
                trace_section, probe_section, dictionary_section, nothing_section, numbers_section]  # fmt: skip
    every = [section for write in sections for section in write(results)]
    return Content("Scorecard: methods on models whose circuit is known", every, lead=headline(results))


def headline(results: dict[str, Any]) -> str:
    """The number of methods that find every circuit, and on how many models each was asked."""
    asked: dict[str, list[bool]] = {}
    for row in results["card"]:
        asked.setdefault(row["method"], []).append(row["exact"]["value"] == 1.0)
    found = [results["methods"][key] for key in titles_of(results, "methods") if all(asked.get(key, [False]))]
    named = f": {', '.join(found)}" if found else ""
    models = len({row["model"] for row in results["card"]})
    return (
        f"{len(found)} of {len(asked)} methods find the circuit to the unit on every seed of every model that they "
        f"are asked of, among {models}{named}."
    )


def picture(results: dict[str, Any]) -> Figure:
    caption = (
        "Left: AUROC of each method and model, mean over seeds; ● is the circuit (or all edges) to the unit on every "
        "seed, k/n on k of n seeds, – not asked. Right: AUROC on random weights, where 0.5 is expected, with 95 % "
        "intervals over seeds; below, cosines of dictionaries with planted features, least to most over seeds."
    )
    return Figure("scorecard.png", caption, partial(draw, results))


def units_section(results: dict[str, Any]) -> list[Section]:
    config = results["config"]
    units = Text(
        f"Each compiled model has {config['seeds']} seeds, from {config['first_seed']} on: the circuit stands "
        "elsewhere in each. AUROC of the units of the circuit among all, mean over seeds; `●` is the circuit to the "
        "unit on every seed, else the number of seeds is said. Units of the circuit "
        "that are the same under a method's ablation are not to be found by it; of trained ones whose part in that is "
        "not known it is not asked.",
        soft=True,
        code=True,
    )
    faithful = Text(
        "How faithful the circuits of all sizes are that each method's scores give (CMD of Mueller et al. 2025: area "
        "between faithfulness and 1, the smaller the better); the last row is the declared circuit itself, its units "
        "in the order of their numbers.",
        soft=True,
    )
    groups = results["groups"]
    return [
        Section("Units", [picture(results), units, *(short_table(results, models) for models in groups)]),
        Section("Faithfulness", [faithful, *(areas_table(results, models) for models in groups)]),
    ]


def several_section(results: dict[str, Any]) -> list[Section]:
    """The questions of hard models, where needed alone, needed together and sufficient are not the same."""
    rows = [row for row in results["card"] if row.get("several")]
    if not rows:
        return []

    def said(found: dict[str, Any], question: str) -> str:
        if question not in found:
            return "–"
        if question == "shares":
            return f"{found[question]['value']:.2f}"
        return f"{found[question]['auroc']['value']:.3f} {mark(found[question])}".strip()

    asked = (*QUESTIONS, "shares")
    table_rows = [
        (row["model"], results["methods"][row["method"]], *(said(row["several"], question) for question in asked))
        for row in rows
    ]
    text = (
        "Models with several ways to their answers, pairs that cancel, or shares. AUROC of the units that are needed "
        "alone, of those of all ways together, and of the smallest set that suffices (the set nearest to the ranking, "
        "where several are); rank correlation with the declared shares. – is not asked."
    )
    header = ("model", "method", "needed alone", "together", "sufficient", "shares")
    return [table_section("Hard models: what is needed", text, header, table_rows, range(2, 6))]


def sizes_section(results: dict[str, Any]) -> list[Section]:
    """Compares the sizes that methods choose with the declared ones."""
    cells = {place: row for place, row in by_place(results).items() if "stops" in row}
    if not cells:
        return []
    text = Text(
        "Units of the circuit that a method chooses by the search `smallest`, the fewest that recover 95 % of the "
        "effect on the discovery prompts, over those of the smallest declared circuit that suffices: mean over seeds, "
        "least to most, and in brackets how often it is that number. – is not asked, or no such circuit is declared.",
        soft=True,
        code=True,
    )

    def said(row: dict[str, Any] | None) -> str:
        if row is None:
            return "–"
        ratio, right = row["stops"]["ratio"], row["stops"]["right"]
        spread = f"{ratio['value']:.2f} [{ratio['low']:.2f} … {ratio['high']:.2f}]"
        return f"{spread} ({round(right['value'] * right['n'])} of {right['n']})"

    def one(models: list[str]) -> Table:
        asked = {key for key, model in cells if model in models}
        titles = {key: title for key, title in titles_of(results, "methods").items() if key in asked}
        rows = [(title, *(said(cells.get((key, model))) for model in models)) for key, title in titles.items()]
        return Table(("size / declared", *models), rows, numbers(models))

    having = {model for _, model in cells}
    groups = [[model for model in group if model in having] for group in results["groups"]]
    return [Section("Where the search for the smallest stops", [text, *(one(models) for models in groups if models)])]


def recovery_section(results: dict[str, Any]) -> list[Section]:
    """AUROC over noise and over width."""
    rows = results.get("recovery", [])
    if not rows:
        return []
    text = (
        "AUROC of the circuit's units among all, mean and 95 % interval over seeds, where all weights have noise "
        "(the standard deviation of what it does to a projection of inputs of size 1), and where the model is "
        "wider. A curve ends where noise takes half of the margin or makes the declared truth wrong: there is no "
        "circuit to find."
    )
    blocks: list[Block] = [Text(text, soft=True)]
    if any(row["method"] for row in rows):
        caption = "AUROC over noise on all weights, or over the width of the residual stream; intervals over seeds."
        blocks.append(Figure("recovery.png", caption, partial(draw_recovery, results)))
    said = [
        (
            row["model"],
            row["axis"],
            f"{row['value']:g}",
            results["methods"].get(row["method"], "no circuit is left"),
            f"{row['auroc']['value']:.3f}" if row["method"] else "–",
            f"{row['auroc']['low']:.3f} … {min(1.0, row['auroc']['high']):.3f}"
            if row["method"] and row["auroc"]["low"] is not None
            else "–",
            f"{row['exact']:.0%}" if row["method"] else "–",
            f"{row['seeds'] - row['destroyed']} of {row['seeds']}",
        )
        for row in rows
    ]
    header = ("model", "axis", "value", "method", "AUROC", "interval", "exact", "seeds with a circuit")
    return [Section("Noise and width", [*blocks, Table(header, said, range(4, 8))])]


def areas_table(results: dict[str, Any], models: list[str]) -> Table:
    cells = by_place(results)
    best = {row["model"]: row for row in results["best"]}
    said = lambda row: f"{row['cmd']['value']:.3f}" if row else "–"
    asked = asked_of(results, models)
    every = [(title, *(said(cells.get((key, model))) for model in models)) for key, title in asked.items()]
    rows = [*every, ("the declared circuit", *(said(best[model]) for model in models))]
    return Table(("CMD", *models), rows, numbers(models))


def numbers(columns: Sequence[Any]) -> range:
    """The places of columns of numbers behind the first of a table."""
    return range(1, len(columns) + 1)


def random_section(results: dict[str, Any]) -> list[Section]:
    if not results["random"]:
        return []
    titles = titles_of(results, "methods") | titles_of(results, "edge_methods")
    said = (
        "AUROC of the same methods on random weights of the same sizes, against the same masks and links, within a "
        "layer or between two (keys and values apart): it should be 0.5. Each seed tries one model in "
        f"{results['config']['random_every']} of each family, in turn; 95 % intervals by Student's t over the means of "
        f"the seeds, for each method alone: of {len(results['random'])} such intervals one may miss by chance. (Flows "
        "are not asked: on any weights near positions are read more than far ones.)"
    )
    rows = [
        (
            titles[row["method"]],
            f"{row['auroc']['value']:.3f}",
            interval(row["auroc"]),
            str(row["models"]),
            str(row["auroc"]["n"]),
            holds(row["auroc"]),
        )
        for row in results["random"]
    ]
    header = ("method", "AUROC", "interval", "models", "seeds", "holds 0.5")
    return [table_section("Random weights", said, header, rows, range(1, 5))]


def interval(value: dict[str, Any]) -> str:
    return f"{value['low']:.3f} … {value['high']:.3f}" if value["n"] > 1 else "–"


def holds(value: dict[str, Any]) -> str:
    """True if an interval holds 0.5; one seed has no interval."""
    if value["n"] < 2:
        return "–"
    return "yes" if value["low"] <= 0.5 <= value["high"] else NO


def edge_section(results: dict[str, Any]) -> list[Section]:
    if not results["edges"]:
        return []
    cells = {(row["method"], row["model"]): row for row in results["edges"]}

    def said(key: str, model: str) -> str:
        row = cells.get((key, model))
        if row is None:
            return "–"
        mark = " ●" if row["exact"]["low"] == 1.0 else ""
        return f"{row['auroc']['value']:.3f} / {row['average_precision']['value']:.2f}{mark}"

    def one(models: list[str]) -> Table:
        asked = {key for key, model in cells if model in models}
        titles = {key: title for key, title in titles_of(results, "edge_methods").items() if key in asked}
        rows = [(title, *(said(key, model) for model in models)) for key, title in titles.items()]
        return Table(("method", *models), rows, numbers(models))

    having = {model for _, model in cells}
    text = Text(
        "AUROC / average precision, mean over seeds; `●` is every edge above all others on every seed and prompt. "
        "Flows are edges between positions, through the convolution or the scan of a layer or through one head of it, "
        f"on {results['config']['edge_prompts']} prompts of a seed, among {results['config']['edges']} edges that no "
        "prompt needs; links are edges between channels of two layers (of a GPT-2 value channels and neurons that "
        "write, query, key and value channels and neurons that read), among all pairs. What sees no more than a source "
        "gives is not asked for flows whose source only takes attention from others.",
        soft=True,
        code=True,
    )
    return [Section("Edges", [text, *(one(models) for models in results["groups"] if having & set(models))])]


def trace_section(results: dict[str, Any]) -> list[Section]:
    if not results["positions"]:
        return []
    said = (
        "Share of prompts whose largest denoising effect is at a declared layer and position (of a state: the first "
        "that is within 1 % of the largest, for a state restored later restores as much), mean over seeds."
    )
    rows = [
        (row["model"], row["site"], percent(row["share"]["value"]), between(row["share"]))
        for row in results["positions"]
    ]
    return [table_section("Causal traces", said, ("model", "site", "share of prompts", "least … most"), rows, (2, 3))]


def probe_section(results: dict[str, Any]) -> list[Section]:
    blocks: list[Block] = []
    if results["probes"]:
        names = ("accuracy", "chance", "auroc", "average_precision")
        rows = [(row["model"], *(ranged(row[name]) for name in names)) for row in results["probes"]]
        header = ("model", "accuracy", "shuffled", "AUROC of channels", "average precision")
        blocks += [
            Text(
                "A lasso of the answer on the circuit's last layer (`gated`; of attention `head_out`, of neurons "
                "`mlp_post`), at the answer's position: accuracy on held-out prompts, that on shuffled labels, and how "
                "its weights rank the channels that say the answers. A probe finds what is there, not what is used: "
                "where an idle head reads the same, it may rank that head's channels first.",
                soft=True,
                code=True,
            ),
            Table(header, rows, range(1, 5)),
        ]
    if results["planted_probes"]:
        found = [(row["site"], row["method"], ranged(row["accuracy"])) for row in results["planted_probes"]]
        blocks += [
            Text(
                "The class of planted features, read at the query; `layers.0.resid_pre` does not have it there:",
                soft=True,
                code=True,
            ),
            Table(("site", "probe", "accuracy"), found, (2,)),
        ]
    return [Section("Probes", blocks)] if blocks else []


def dictionary_section(results: dict[str, Any]) -> list[Section]:
    if not results["dictionaries"]:
        return []
    said = (
        "Of a model whose residual stream and state hold more known directions than dimensions: mean cosine of each "
        "direction with the nearest latent, F1 of that latent as a detector of the feature, and the cosine with the "
        "directions of another model, which is what the same number of latents has with any directions. "
        f"Trained on {results['config']['sae_tokens']:,} activations."
    )
    names = ("mean_cosine", "f1", "stranger_cosine", "stranger_f1")
    rows = [
        (
            row["site"],
            row["method"],
            *(ranged(row[name]) for name in names),
            f"{row['l0']['value']:.2f} ({row['true_l0']['value']:.2f})",
            ranged(row["explained"]),
        )
        for row in results["dictionaries"]
    ]
    header = ("site", "dictionary", "mean cosine", "F1", "another's cosine", "another's F1", "L0 (true)", "explained")
    return [table_section("Dictionaries on planted features", said, header, rows, range(2, 8))]


RATES = {
    "trace random": "a causal trace, random weights",
    "trace compiled": "a causal trace, compiled models",
    "units random": "patching of single units, random weights",
    "units compiled": "patching of single units, compiled models",
    "probes shuffled": "a probe of shuffled labels",
}


def nothing_section(results: dict[str, Any]) -> list[Section]:
    false = results["false_positives"]
    if "same_twins_largest_effect" not in false:  # units alone were scored
        return []
    said = (
        "Twins are unrelated prompts of a second draw, and the mean over all prompts is subtracted from each real "
        "effect: share of samples of these prompts in which any cell, or unit, is significant at "
        f"{false['level']:.0%}, adjusted for all of them. Cells of fewer values than a sample has prompts are left "
        "out. Of probes: share of shuffled labels whose p is at most that."
    )
    rows = [
        (
            title,
            percent(false[key]["value"]),
            f"{percent(false[key]['low'])} … {percent(false[key]['high'])}",
            str(false[key]["n"]),
            verdict(false[key], false["level"]),
        )
        for key, title in RATES.items()
        if key in false
    ]
    same = (
        "With each prompt as its own twin the largest effect of any cell of a trace is "
        f"{false['same_twins_largest_effect']:g}."
    )
    table = Table(("what", "false positives", "95 % interval", "samples", "at or below the level"), rows, range(1, 4))
    return [Section("Where nothing is to be found", [Text(said, soft=True), table, Text(same)])]


def numbers_section(results: dict[str, Any]) -> list[Section]:
    titles = results["edge_methods"] | {"trace": "causal trace", "lasso": "probe"}
    minutes = sum(part["seconds"] for part in [*results["parts"], *results["planted"]]) / 60
    units = Text(
        "Mean [least … most] over seeds. Seconds and memory: of rankings by Δ, and of attribution with one ablation, "
        "the first that is asked for pays for all. Memory is the process's peak beside what it held before.",
        soft=True,
    )
    rows = [
        (
            titles.get(row["what"], row["what"]),
            f"{row['seconds']['value']:.2f} [{row['seconds']['low']:.2f} … {row['seconds']['high']:.2f}]",
            f"{row['peak_mib']['high']:.0f}" if "peak_mib" in row else "–",
        )
        for row in results["costs"]
    ]
    others = Text(
        "The same of what scores no units; of all dictionaries of a site together, which are trained side by side.",
        soft=True,
    )
    costs = Table(("what", "seconds", "MiB at most"), rows, (1, 2))
    took = Text(f"Measuring took {minutes:.0f} minutes, those of all processes added up.")
    return [Section("Every number of units", [units, long_table(results), others, costs, took])]


def ranged(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f} … {value['high']:.3f}]"


def asked_of(results: dict[str, Any], models: list[str]) -> dict[str, str]:
    """Titles of the methods that any of these models was asked by."""
    asked = {row["method"] for row in results["card"] if row["model"] in models}
    return {key: title for key, title in titles_of(results, "methods").items() if key in asked}


def short_table(results: dict[str, Any], models: list[str]) -> Table:
    cells = by_place(results)
    said = lambda row: f"{row['auroc']['value']:.3f} {mark(row)}".strip() if row else "–"
    rows = [
        (title, *(said(cells.get((key, model))) for model in models))
        for key, title in asked_of(results, models).items()
    ]
    return Table(("method", *models), rows, numbers(models))


def long_table(results: dict[str, Any]) -> Table:
    rows = [
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
    ]
    header = ("model", "method", "circuit", "AUROC", "average precision", "exact", "CPR", "CMD", "seconds", "MiB")
    return Table(header, rows, range(2, 10), folded=f"{len(rows)} rows")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def between(share: dict[str, Any]) -> str:
    return f"{percent(share['low'])} … {percent(share['high'])}"


def verdict(share: dict[str, Any], level: float) -> str:
    if share["value"] <= level:
        return "yes"
    return "above, within chance" if share["low"] <= level else NO
