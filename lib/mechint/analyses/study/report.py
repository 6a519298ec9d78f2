"""The report of a study: claims first, then every step with its figure and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...report.finished import SCHEMA
from ...report.html import repeat as repeat_html
from ...report.markdown import repeat as repeat_markdown
from ...report.markdown import table as markdown_table
from ...report.page import bullets, card, cards, folded, page, picture, table
from ...report.values import Value, optional_text, read_object, read_value
from ...utils.errors import MechintError
from ...utils.files import write_text
from ...utils.progress import Progress
from .figures import draw_study

Found = dict[str, Any]
TITLES = {
    "circuit": "16 · Combined circuit",
    "setup": "1 · Setup", "activations": "2 · Activations", "sae": "3 · Sparse autoencoders", "probes": "4 · Probes",
    "candidates": "5 · Candidate circuits", "necessity": "6 · Necessity and sufficiency",
    "robustness": "7 · Robustness and granularity", "temporal": "8 · Temporal causality", "dynamics": "9 · Dynamics",
    "reproducibility": "10 · Reproducibility", "transfer": "11 · Transfer to other tasks", "controls": "13 · Controls",
    "scale": "14 · Checkpoints and cost",
}  # fmt: skip
CIRCUIT_HEADER = ("of the combined circuit", "value [95 % interval]", "interval over")
NOTES = {"circuit": "Notes of the search"}
HEADER = ("verdict", "claim", "effect", "95 % interval", "n", "p (all claims)", "why")


@dataclass(frozen=True)
class StudyResults:
    """results.json of a finished study, and what lies beside it."""

    directory: Path
    raw: Found
    metrics: dict[str, Value]
    manifest: dict[str, Any]
    config: str | None


def load_study(run_dir: str | Path) -> StudyResults:
    """Reads a finished study.

    Raises:
        MechintError: a file is missing, or is not that of a finished study.
    """
    directory = Path(run_dir)
    path = directory / "results.json"
    raw = read_object(path)
    if raw.get("schema") != SCHEMA or raw.get("status") != "complete" or raw.get("report") != "study":
        raise MechintError(f"{path} is not a finished study of schema {SCHEMA}; run the analysis again")
    metrics = {name: read_value(value, path, f"metrics.{name}") for name, value in sorted(raw["metrics"].items())}
    manifest = read_object(directory / "manifest.json")
    return StudyResults(directory, raw, metrics, manifest, optional_text(directory / "config"))


def write_study(run_dir: str | Path) -> list[Path]:
    """Writes the figures, study_report.md and report.html of a finished study into its directory."""
    found = load_study(run_dir)
    with Progress("report", 3) as progress:
        figures = draw_study(found.raw, found.directory)
        progress.step("figures")
        text = write_text(found.directory / "study_report.md", markdown(found, figures))
        progress.step(text.name)
        report = write_text(found.directory / "report.html", html(found, figures))
        progress.step(report.name)
    return [*(file for file, _ in figures.values()), text, report]


def claim_rows(raw: Found) -> list[tuple[str, ...]]:
    return [
        (
            claim["verdict"], claim["claim"], f"{claim['effect']['value']:.2f}",
            f"{claim['effect']['low']:.2f} to {claim['effect']['high']:.2f}", str(claim["effect"]["n"]),
            f"{claim['p_holm']:.2g}", claim["why"],
        )
        for claim in raw["claims"]["claims"]
    ]  # fmt: skip


def evidence(claim: Found) -> list[str]:
    """What stands behind one claim, and what would refute it."""
    lines = [
        f"{name}: {value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}], {value['interval']}"
        for name, value in claim["controls"].items()
    ]
    effects = [
        f"{name}: {value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
        for name, value in claim.get("effects", {}).items()
    ]
    return [
        *([f"Effects ({claim['metric']}, ablation {claim['ablation']}): {'; '.join(effects)}"] if effects else []),
        *(f"Control, {line}" for line in lines),
        *(f"Not asked: {reason}." for reason in claim.get("not_asked", ())),
        f"It would be refuted if {claim['refuted_by']}.",
    ]


def title_of(raw: Found) -> str:
    return f"Study of {Path(raw['checkpoint']).name or raw['checkpoint']} on {raw['task']['name']}"


def html(found: StudyResults, figures: dict[str, tuple[Path, str]]) -> str:
    raw = found.raw
    verdicts = raw["claims"]["verdicts"]
    setup = raw["steps"]["setup"]
    body = [f"<h1>{escape(title_of(raw))}</h1>"]
    body.append(
        f'<p class="lead">{escape(raw["claims"]["said"].capitalize())} {escape(raw["task"]["description"])}.</p>'
    )
    items = [card(name, str(verdicts[name]), "claims") for name in ("supported", "refuted", "underpowered")]
    if "accuracy" in setup:
        value = setup["accuracy"]
        items.append(
            card("accuracy", f"{value['value']:.0%}", f"chance {setup['chance']['value']:.0%}, n = {value['n']}")
        )
    body.append(cards(items))
    body += section(raw, "circuit", figures)
    body.append("<h2>15 · Claims</h2>")
    if raw["claims"]["claims"]:
        body.append(table(HEADER, claim_rows(raw), numeric=(2, 3, 4, 5)))
        body.append(picture(*figures["claims"]))
        for claim in raw["claims"]["claims"]:
            body.append(folded(f"{claim['verdict']}: {claim['claim']}", bullets(evidence(claim))))
    else:
        body.append(f"<p>{escape(raw['claims']['said'])}</p>")
    for name in TITLES:
        if name != "circuit":
            body += section(raw, name, figures)
    body += ["<h2>Again</h2>", *repeat_html(found)]
    return page(title_of(raw), body)


def section(raw: Found, name: str, figures: dict[str, tuple[Path, str]]) -> list[str]:
    """A step's title, what it says, its figure and its notes; of the combined circuit its numbers and its units too."""
    entry = raw["steps"].get(name)
    if entry is None:
        return []
    body = [f"<h2>{escape(TITLES[name])}</h2>", f"<p>{escape(entry['said'])}</p>"]
    if name in figures:
        body.append(picture(*figures[name]))
    if name == "circuit" and "effect" in entry:
        body.append(table(CIRCUIT_HEADER, circuit_table(entry), numeric=(1,)))
        body.append(folded("The units", bullets(unit_lines(entry))))
    if entry.get("notes"):
        body.append(folded(NOTES.get(name, "What could not be measured"), bullets(entry["notes"])))
    return body


def circuit_table(entry: Found) -> list[tuple[str, ...]]:
    """Every number of the combined circuit: (what, value with interval, over what)."""
    named = [
        ("effect kept alone", entry["effect"], ".1%"),
        ("accuracy, kept alone", entry["accuracy"], ".1%"),
        ("accuracy of the whole model", entry["accuracy_full"], ".1%"),
        ("effect kept by as many random units of each layer", entry["random_units"], ".1%"),
        ("effect left without the circuit", entry["complement"]["effect"], ".1%"),
        ("completeness: effect lost without the circuit", entry["completeness"], ".1%"),
        ("KL from the whole model's predictions (nats)", entry.get("kl"), ".2g"),
        (
            "effect kept by as many units, searched for in a model with shuffled weights",
            entry.get("random_weights"),
            ".1%",
        ),
        (
            "minimality: tried units whose removal certainly costs faithfulness (one-sided adjusted p ≤ 0.05)",
            entry.get("minimality"),
            ".1%",
        ),
        (f"agreement of searches (Jaccard; by chance {entry['agreement_chance']:.2f})", entry["agreement"], ".2f"),
    ]
    if entry["candidates"] is not None:
        named.append(("effect kept by the tested candidates' units", entry["candidates"]["effect"], ".1%"))
        named.append(("accuracy of the tested candidates' units", entry["candidates"]["accuracy"], ".1%"))
    rows = [(name, interval(value, form), value["interval"]) for name, value, form in named if value is not None]
    return [("units", f"{entry['kept']} of {entry['total']}", "exact count"), *rows]


def interval(value: Found, form: str) -> str:
    if value["low"] is None:
        return f"{value['value']:{form}}"
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def unit_lines(entry: Found) -> list[str]:
    return [
        f"{layer['site']}: {layer['kept']} of {layer['total']}: {', '.join(map(str, layer['units'])) or 'none'}"
        for layer in entry["layers"].values()
    ]


def markdown(found: StudyResults, figures: dict[str, tuple[Path, str]]) -> str:
    raw = found.raw
    lines = [f"# {title_of(raw)}", "", raw["claims"]["said"].capitalize(), ""]
    lines += [*section_markdown(raw, "circuit", figures), "", "## Claims", ""]
    if raw["claims"]["claims"]:
        lines += [markdown_table(HEADER, claim_rows(raw)), ""]
        for claim in raw["claims"]["claims"]:
            lines += [f"**{claim['verdict']}**: {claim['claim']}", "", *(f"- {line}" for line in evidence(claim)), ""]
    for name in TITLES:
        if name != "circuit":
            lines += section_markdown(raw, name, figures)
    return "\n".join([*lines, "## Again", "", "\n\n".join(repeat_markdown(found))]).rstrip() + "\n"


def section_markdown(raw: Found, name: str, figures: dict[str, tuple[Path, str]]) -> list[str]:
    entry = raw["steps"].get(name)
    if entry is None:
        return []
    lines = [f"## {TITLES[name]}", "", entry["said"], ""]
    lines += [f"![{figures[name][1]}]({figures[name][0].name})", ""] if name in figures else []
    if name == "circuit" and "effect" in entry:
        lines += [markdown_table(CIRCUIT_HEADER, circuit_table(entry)), "", *(f"- {u}" for u in unit_lines(entry))]
    return [*lines, *(f"- {note}" for note in entry.get("notes", ()))]
