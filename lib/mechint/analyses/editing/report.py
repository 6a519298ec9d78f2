"""The report of editing: scores by map and layer, controls, and the correlations with causal tracing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import Section, between, figure, study, table_section
from ...report.finished import ALL_FIGURES, Drawn, FinishedRun, read_finished, valid
from ...report.words import chance, number, percent
from .figures import OVER, WORDS, beside_tracing, by_layer, layers_size, tracing_size
from .judge import MEASURES
from .results import best_cell

ALPHA = 0.05
DIVIDED = (
    "A rewrite score is P(new) after − before, divided by 1 − P(new) before: behind prompts that say the new answer "
    "already before the edit it can be far below −1, and a few of them decide its mean. P(new) after − before is the "
    "difference alone."
)
SCORES = ("efficacy", "accuracy", "rewrite", "paraphrase", "neighbourhood", "kept", "subject_kept", "score")
"""Measures of the table of every map and layer."""
TITLES = {
    "score": "score", "efficacy": "efficacy", "magnitude": "P(new) − P(old)", "accuracy": "new is likeliest",
    "rewrite": "rewrite score", "paraphrase": "paraphrase", "paraphrase_magnitude": "paraphrase, P(new) − P(old)",
    "paraphrase_rewrite": "paraphrase, rewrite score", "neighbourhood": "neighbourhood",
    "neighbourhood_magnitude": "neighbourhood, P(own) − P(new)", "kept": "neighbours kept",
    "subject_kept": "subject's other facts kept", "fluency": "fluency (bits)", "fluency_change": "change of fluency",
    "gain": "P(new) after − before", "paraphrase_gain": "paraphrase, P(new) after − before",
}  # fmt: skip


def write_edit(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes edit_layers.png, edit_tracing.png, edit_report.md and report.html."""
    run = read_finished(run_dir, "edit")
    raw = run.raw
    with valid(run.directory / "results.json"):
        over = "with 95 % intervals over facts" if raw["interval"].startswith("95 %") else raw["interval"]
        figures = [
            figure(
                "edit_layers.png",
                f"{raw['method'].upper()} at every map and layer, {over}. Dotted: an update of the same size along a "
                "random direction of the map's inputs.",
                layers_size(raw["edits"]),
                by_layer,
                raw["edits"],
            )
        ]
        if raw["traced"]:
            figures.append(
                figure(
                    "edit_tracing.png",
                    f"Left: the rewrite score of edits, and what restoring a site at the subject's last token brings "
                    f"back. Right: their rank correlation over the facts of each layer, {over}; layers without a "
                    "point have effects that do not vary.",
                    tracing_size(raw),
                    beside_tracing,
                    raw,
                )
            )
        content = study(run, cards(raw), findings(raw), sections(raw), figures, caveats(raw))
    return write_page(run.directory, content, "edit_report.md", drawn)


def where_of(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']} of layer {entry['layer']}"


def cards(raw: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    best = best_cell(raw["edits"])
    found = [
        ("Facts edited", number(raw["metrics"]["facts_edited"]["value"]), "one at a time" if raw["method"] == "rome"
         else "all at once"),
        ("Best place", f"layer {best['layer']}", best["name"]),
        ("Efficacy there", percent(best["efficacy"]["value"]), between(best["efficacy"])),
    ]  # fmt: skip
    if "paraphrase" in best:
        found.append(("Paraphrases", percent(best["paraphrase"]["value"]), between(best["paraphrase"])))
    if "neighbourhood" in best:
        found.append(("Neighbourhood", percent(best["neighbourhood"]["value"]), between(best["neighbourhood"])))
    if (known := best_correlation(raw)) is not None:
        said = f"{known['name']}, {OVER[known['over']]}: {between(known['correlation'])}"
        found.append(("Tracing and editing", f"ρ = {number(known['correlation']['value'], 2)}", said))
    return found


def lead_correlations(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Correlations of the rewrite score with the effect of the site that the map's part adds, over facts."""
    own = {entry["name"]: entry["site"] for entry in raw["edits"]}
    return [
        entry
        for entry in raw["correlations"]
        if entry["over"] == "facts" and entry["measure"] == "rewrite" and entry["site"] == own[entry["name"]]
    ]


def best_correlation(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The correlation of the map that is edited best; None where there is none."""
    name = best_cell(raw["edits"])["name"]
    return next((entry for entry in lead_correlations(raw) if entry["name"] == name), None)


def findings(raw: Mapping[str, Any]) -> list[tuple[bool, str]]:
    best = best_cell(raw["edits"])
    found = [(best["efficacy"]["value"] > 0.5, lead(raw))]
    for control in best["controls"]:
        above = control["above"]
        sure = above["p"] is not None and above["p"] <= ALPHA and above["value"] > 0
        found.append(
            (sure, f"There the rewrite score is {between(above)} above that of the control “{control['control']}” "
             f"(p {chance(above['p'])}, adjusted for all maps and layers).")
        )  # fmt: skip
    for entry in lead_correlations(raw):
        p = entry["correlation"]["p"]
        sure = p is not None and p <= ALPHA
        does = "correlates" if sure else "does not certainly correlate"
        found.append(
            (sure, f"{entry['name']}: within layers, a fact's effect of tracing at {entry['site']} {does} with the "
             f"success of its edit: mean rank correlation {between(entry['correlation'])}, p {chance(p)}.")
        )  # fmt: skip
    return found


def lead(raw: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    best = best_cell(raw["edits"])
    said = [f"efficacy {between(best['efficacy'])}"]
    said += [f"{name} {between(best[name])}" for name in ("paraphrase", "neighbourhood") if name in best]
    method = {"rome": "ROME", "memit": "MEMIT"}[raw["method"]]
    sentence = f"{method} succeeds best at {where_of(best)}: {', '.join(said)}."
    if (known := best_correlation(raw)) is not None:
        sentence += (
            f" The effects of causal tracing and the success of edits of {known['name']} correlate by "
            f"{between(known['correlation'])} over facts."
        )
    return sentence


def sections(raw: Mapping[str, Any]) -> list[Section]:
    shown = [name for name in SCORES if any(name in entry for entry in raw["edits"])]
    cell = lambda entry, name: between(entry[name]) if name in entry else "–"
    rows = [
        (entry["name"], str(entry["layer"]), *(cell(entry, name) for name in shown), between(entry["chance"]),
         between(entry["size"]))
        for entry in raw["edits"]
    ]  # fmt: skip
    more = [name for name in MEASURES if name not in SCORES and any(name in entry for entry in raw["edits"])]
    magnitudes = [(entry["name"], str(entry["layer"]), *(cell(entry, name) for name in more)) for entry in raw["edits"]]
    controls = [
        (entry["name"], str(entry["layer"]), control["control"], between(control["above"]),
         chance(control["above"]["p"]), *(cell(control, name) for name in ("efficacy", "paraphrase", "neighbourhood")))
        for entry in raw["edits"]
        for control in entry["controls"]
    ]  # fmt: skip
    correlated = [
        (entry["name"], entry["site"], WORDS[entry["measure"]], OVER[entry["over"]], between(entry["correlation"]),
         chance(entry["correlation"]["p"]))
        for entry in raw["correlations"]
    ]  # fmt: skip
    within = [
        (entry["name"], str(entry["layer"]), entry["site"], WORDS[entry["measure"]], between(entry["correlation"]),
         chance(entry["correlation"]["p"]))
        for entry in raw["within_layers"]
    ]  # fmt: skip
    facts = [(entry["prompt"], entry["old"], entry["new"]) for entry in raw["facts"]]
    found = [
        table_section(
            "Every map and layer", "Means over facts. “Shift alone” is the probability of the new answer while the "
            "map's output is shifted as the edit should shift it, a bound on what the weight can do; the size is "
            "‖Δ‖ / ‖W‖.",
            ("map", "layer", *(TITLES[name] for name in shown), "shift alone", "size"), rows,
            range(1, len(shown) + 4),
        ),
        table_section(
            "Further measures", DIVIDED, ("map", "layer", *(TITLES[name] for name in more)), magnitudes,
            range(1, len(more) + 2), True,
        ),
        table_section(
            "Controls", "The same update with a random direction in the place of C⁻¹k, of the same size; and the "
            "update added to the same map of another layer. “Above” is the edit's rewrite score less the control's, "
            "paired over facts.",
            ("map", "layer", "control", "above", "p (all)", "efficacy", "paraphrase", "neighbourhood"), controls,
            range(3, 8), True,
        ),
    ]  # fmt: skip
    if raw["traced"]:
        found += [
            table_section(
                "Does tracing say where to edit?", "Rank correlations (Spearman) of the effect of restoring a site at "
                "the subject's last token with the success of edits.",
                ("map", "traced site", "measure", "over", "correlation", "p (all of these)"), correlated, (4, 5),
            ),
            table_section(
                "Within every layer", "Over the facts of each layer.",
                ("map", "layer", "traced site", "measure", "correlation", "p (all of these)"), within, (1, 4, 5), True,
            ),
        ]  # fmt: skip
    header = ("prompt", "old answer", "new answer")
    if "saved" in raw:
        saved = [(entry["prompt"], entry["old"], entry["new"]) for entry in raw["saved"]]
        found.append(table_section("Saved", "Edited in the checkpoint `edited` beside this page.", header, saved))
    return [*found, table_section("Facts", "The first ones.", header, facts)]


def caveats(raw: Mapping[str, Any]) -> list[str]:
    return [
        "An edit that succeeds does not show that the fact was stored there: weights that any later layer reads can "
        "override it (Hase et al. 2023). Compare with the controls and with other layers.",
        "The best map and layer are chosen by their score on the same facts, so their numbers are too good for that "
        "choice; the p-values of the differences from controls account for it.",
        "Paraphrases and neighbours are the task's other prompts; a fact without them does not count there.",
        *(
            ["Correlations over layers are of one model's layers: their interval is over facts, and says nothing of "
             "other models."]
            if raw["traced"]
            else []
        ),
    ]  # fmt: skip


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    run: FinishedRun = read_finished(run_dir, "edit")
    with valid(run.directory / "results.json"):
        return lead(run.raw)
