"""The report of probes: the best probe of each label, the profile by layer, and every probe beside its controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...report.compose import write_page
from ...report.content import between, figure, study, table_section
from ...report.control import control_findings, control_sections
from ...report.finished import ALL_FIGURES, Drawn, read_finished, valid
from ...report.words import chance, number, percent
from .figures import MOST_LABELS, profile, size

ALPHA = 0.05


def write_probes(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes probe_profile.png, probe_report.md and report.html."""
    run = read_finished(run_dir, "probe")
    raw = run.raw
    with valid(run.directory / "results.json"):
        first = f" The first {MOST_LABELS} labels are drawn." if len(raw["labels"]) > MOST_LABELS else ""
        shown = figure(
            "probe_profile.png",
            "Accuracy on held-out templates with 95 % intervals; dashed the same probe on control labels; dotted on "
            f"models with the same weights, shuffled.{first}",
            size(raw["probes"]),
            profile,
            raw["probes"],
            raw["control"],
        )
        rows = [
            (
                row["label"], str(row["layer"]), row["site"], between(row["accuracy"]), between(row["control_labels"]),
                between(row["selectivity"]), chance(row["p"]), between(row["shuffled"]), percent(row["most_frequent"]),
                str(row["units_used"]),
            )
            for row in raw["probes"]
        ]  # fmt: skip
        table = table_section(
            "Every probe",
            f"Kind of probe: {raw['method']}. Control labels are random for each token {place(raw)}.",
            ("label", "layer", "site", "accuracy", "control labels", "selectivity", "p (all probes)",
             "shuffled labels", "most frequent", "units"), rows, (1, 3, 4, 5, 6, 7, 8, 9), len(rows) > 24,
        )  # fmt: skip
        sections = [table, *control_sections(raw["control"])]
        content = study(run, cards(raw), findings(raw), sections, [shown], caveats())
    return write_page(run.directory, content, "probe_report.md", drawn)


def place(raw: dict[str, Any]) -> str:
    """The token whose identity control labels hang on."""
    back = raw["control_token"]
    if not back:
        return "at the probed position"
    return f"{back} token{'s' if back > 1 else ''} before the probed position, the nearest one that differs"


def cards(raw: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = [("Prompts tested", number(raw["metrics"]["prompts_used"]["value"]), "held-out")]
    return found + [
        (
            row["label"],
            percent(row["accuracy"]["value"]),
            f"layer {row['layer']} {row['site']}; {row['classes']} classes",
        )
        for row in raw["best"][:3]
    ]


def reads(row: dict[str, Any]) -> bool:
    return row["p"] <= ALPHA and row["selectivity"]["low"] is not None and row["selectivity"]["low"] > 0


def findings(raw: dict[str, Any]) -> list[tuple[bool, str]]:
    return [*((reads(row), sentence(row)) for row in raw["best"]), *control_findings(raw["control"])]


def sentence(row: dict[str, Any]) -> str:
    """The best probe of a label in one sentence."""
    return (
        f"The label {row['label']} ({row['classes']} classes) is read best at layer {row['layer']} {row['site']}: "
        f"accuracy {between(row['accuracy'])}, {between(row['selectivity'])} above control labels "
        f"(p {chance(row['p'])})."
    )


def caveats() -> list[str]:
    return [
        "A probe shows that a label can be read, not that the model reads it: steer along the probe, project it out or "
        "patch the site to see that.",
        "The site of a label is chosen by folds of the discovery prompts, and its accuracy is of held-out templates.",
        "A high accuracy with a low selectivity may be the probe's own memory. Where labels follow from the tokens "
        "themselves, models with shuffled weights are read as well.",
    ]


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    run = read_finished(run_dir, "probe")
    with valid(run.directory / "results.json"):
        return sentence(max(run.raw["best"], key=lambda row: row["selectivity"]["value"]))
