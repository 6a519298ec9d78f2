"""The report of a study: claims first, then every step with its figure and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import Block, Bullets, Content, Figure, Section, Table, Text, of_run
from ...report.finished import ALL_FIGURES, Drawn, FinishedRun, read_finished
from ...report.to_log import ToLog, metric_values, records
from ...utils.statistics import MANY_TIMES
from .figures import draw_study
from .results import CandidateClaim, Claim, Claims, CombinedClaim, StudyResults, study_of

Found = Mapping[str, Any]
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


def write_study(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes all figures, study_report.md and report.html of a finished study into its directory."""
    found = read_finished(run_dir, "study")
    figures = draw_study(study_of(found), found.directory)
    return write_page(found.directory, content(found, figures), "study_report.md", drawn)


Figures = dict[str, tuple[Path, str]]
"""Step -> its figure, drawn, and the caption."""


def content(run: FinishedRun, figures: Figures) -> Content:
    """The page: the combined circuit, the claims with their evidence, then every step."""
    study = study_of(run)
    verdicts, setup = study.claims.verdicts, study.steps["setup"]
    cards = [(name, str(verdicts[name]), "claims") for name in ("supported", "refuted", "underpowered")]
    if "accuracy" in setup:
        value = setup["accuracy"]
        cards.append(("accuracy", f"{value['value']:.0%}", f"chance {setup['chance']['value']:.0%}, n = {value['n']}"))
    steps = [section(study, name, figures) for name in TITLES if name != "circuit"]
    sections = [section(study, "circuit", figures), claims(study.claims, figures), *steps]
    title, lead = title_of(run.raw), headline_of(study.claims)
    return of_run(run, sections, study.notes, title=title, lead=lead, cards=cards)


def claims(found: Claims, figures: Figures) -> Section:
    """Every claim, and what stands behind each."""
    made = found.claims
    if not made:
        return Section("15 · Claims", [Text(found.said)])
    behind = [Bullets(evidence(claim), folded=f"{claim.verdict}: {claim.claim}") for claim in made]
    return Section("15 · Claims", [Table(HEADER, claim_rows(made), (2, 3, 4, 5)), shown(figures["claims"]), *behind])


def shown(figure: tuple[Path, str]) -> Figure:
    """A figure that is drawn already."""
    path, caption = figure
    return Figure(path.name, caption, lambda place: path)


def claim_rows(made: Sequence[Claim]) -> list[tuple[str, ...]]:
    return [
        (
            claim.verdict, claim.claim, f"{claim.effect['value']:.2f}",
            f"{claim.effect['low']:.2f} to {claim.effect['high']:.2f}", str(claim.effect["n"]),
            f"{claim.p_holm:.2g}", claim.why,
        )
        for claim in made
    ]  # fmt: skip


def evidence(claim: Claim) -> list[str]:
    """The evidence for one claim, and the outcome that would refute it."""
    lines = [
        f"{name}: {value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}], {value['interval']}"
        for name, value in claim.controls.items()
    ]
    effects = [
        f"{name}: {value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
        for name, value in (claim.effects.items() if isinstance(claim, CandidateClaim | CombinedClaim) else ())
    ]
    return [
        *([f"Effects ({claim.metric}, ablation {claim.ablation}): {'; '.join(effects)}"] if effects else []),
        *(f"Control, {line}" for line in lines),
        *(f"Not asked: {reason}." for reason in (claim.not_asked if isinstance(claim, CandidateClaim) else ())),
        f"It would be refuted if {claim.refuted_by}.",
    ]


def title_of(raw: Found) -> str:
    return f"Study of {Path(raw['checkpoint']).name or raw['checkpoint']} on {raw['task']['name']}"


def section(study: StudyResults, name: str, figures: Figures) -> Section:
    """A step's title, what it says, its figure and its notes; of the combined circuit its numbers and its units too."""
    entry = study.steps.get(name)
    if entry is None:
        return Section(TITLES[name], [])
    blocks: list[Block] = [Text(entry["said"])]
    if name in figures:
        blocks.append(shown(figures[name]))
    if name == "circuit" and "effect" in entry:
        blocks += [Table(CIRCUIT_HEADER, circuit_table(entry), (1,)), Bullets(unit_lines(entry), folded="The units")]
    if entry.get("notes"):
        blocks.append(Bullets(entry["notes"], folded=NOTES.get(name, "What could not be measured")))
    return Section(TITLES[name], blocks)


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
            "effect that as many units of a model with shuffled weights reach, searched for this model's predictions",
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
    known = [float(value[key]) for key in ("value", "low", "high") if value[key] is not None]
    many = form.endswith("%") and max(map(abs, known)) > MANY_TIMES
    shown, *edges = (f"{each:{'.1f' if many else form}}" for each in known)
    return shown + (" times the whole" if many else "") + (f" [{', '.join(edges)}]" if edges else "")


def unit_lines(entry: Found) -> list[str]:
    return [
        f"{layer['site']}: {layer['kept']} of {layer['total']}: {', '.join(map(str, layer['units'])) or 'none'}"
        for layer in entry["layers"].values()
    ]


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    return headline_of(study_of(read_finished(run_dir, "study")).claims)


def headline_of(found: Claims) -> str:
    made = len(found.claims)
    return f"Claims tested: {made}; {found.said}" if made else found.said.capitalize()


def to_log(run_dir: str | Path) -> ToLog:
    """The metrics, and every claim with its verdict."""
    found = read_finished(run_dir, "study")
    names = ("verdict", "claim", "why", "p_holm")
    claims = [
        {name: getattr(claim, name) for name in names} | {"effect": claim.effect["value"]}
        for claim in study_of(found).claims.claims
    ]
    return ToLog(metric_values(found.metrics), records("claims", claims))
