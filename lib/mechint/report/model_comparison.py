"""The report of one model's profile, and the page that lays several side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import MechintError
from ..files import read_json, write_json, write_text
from . import markdown, style
from .compare import run_names
from .measured_page import Content, Section, Study, between, figure, load_study, write_study
from .model_differences import ALPHA, CURVES, EXACT, Group, comparable, every_pair, groups
from .model_figures import cka_figure, comparison_figure, differences_figure, profile_figure
from .page import bullets, card, cards, checks, page, picture
from .page import table as html_table
from .words import number, percent

TIMES = "efficiency_measured.json"
COUNTS = {
    "parameters": "parameters", "parameters_without_embeddings": "without embeddings", "parameters_active": "active",
    "flops_per_token": "FLOPs for each token", "bytes_per_generated_token": "bytes read for a generated token",
}  # fmt: skip


def write_profile(run_dir: str | Path, *, heatmaps: bool = True, curves: bool = True) -> list[Path]:
    """Writes profile.png, profile_map_cka.png, profile_report.md and report.html of one model."""
    study = load_study(run_dir, "compare")
    raw = study.raw
    figures = [
        figure(
            "profile.png", "Layer by layer, with 95 % intervals; last: Gini of activations at matched "
            "sites.", (11.0, 6.6),
            profile_figure, raw,
        ),
        figure("profile_map_cka.png", "Linear CKA of the stream behind every two layers.", (4.6, 3.8), cka_figure,
               [Group(raw["label"], [study])], narrow=True),
    ]  # fmt: skip
    metrics = raw["metrics"]
    top = [
        ("Loss", number(metrics["loss"]["value"], 4), f"nats per token {between(metrics['loss'], 4)}"),
        ("Bits per byte", number(metrics["bits_per_byte"]["value"], 4), f"{raw['bytes_per_token']:.3g} bytes "
            f"per token"),
        ("Parameters", number(metrics["parameters"]["value"]),
         f"{percent(metrics['parameters_active']['value'] / metrics['parameters']['value'])} active"),
        ("MFLOP for each token", number(metrics["flops_per_token"]["value"] / 1e6, 3), "at the prompts' length"),
    ]  # fmt: skip
    found = [(True, f"One model: {raw['label']}. Name several checkpoints to compare them (MODELS=<glob>).")]
    return write_study(study, Content(top, found, sections(study), figures), "profile_report.md", heatmaps, curves)


def sections(study: Study) -> list[Section]:
    raw = study.raw
    rows = [(COUNTS[name], number(raw["metrics"][name]["value"])) for name in EXACT]
    layers = range(len(raw["curves"]["update"]))
    curve = [(text, *(between(raw["curves"][name][i]) for i in layers)) for name, text in CURVES.items()]
    memory = [(number(entry["length"]), said(entry["bytes"])) for entry in raw["memory"]]
    timed = [
        (number(t["length"]), f"{t['seconds'][0] * 1e3:.3g}", f"{t['next_token_seconds'][0] * 1e3:.3g}",
         f"{t['peak_bytes'] / 2**20:.3g}")
        for t in times(study)
    ]  # fmt: skip
    found = [
        Section("Costs", "Counted from the sizes and the weights.", ("what", "number"), rows, (1,)),
        Section("Layers", "Means over prompts and tokens.", ("", *(f"layer {i}" for i in layers)), curve,
                range(1, 1 + len(layers)), len(layers) > 6),
        Section("Memory of a prompt", "State and convolution inputs, or keys and values; counted, at any "
                                      "length.", ("tokens", "bytes"), memory,
                (0, 1)),
    ]  # fmt: skip
    if timed:
        text = "Medians of repeated forwards on this machine; other work on it slows them."
        header = ("tokens", "forward (ms)", "one token more (ms)", "peak of a forward (MiB)")
        found.append(Section("Measured", text, header, timed, range(4)))
    return found


def said(count: int | None) -> str:
    """A number, or a dash for a length that the model cannot have."""
    return "–" if count is None else number(count)


def times(study: Study) -> list[dict[str, Any]]:
    """What was timed, where it was."""
    path = study.directory / TIMES
    return list(read_json(path)["measured"]) if path.exists() else []


# ---- several models ------------------------------------------------------------------------------------------------


def write_model_comparison(run_dirs: Sequence[str | Path], output_dir: str | Path) -> list[Path]:
    """Writes comparison.json, comparison*.png, comparison.md and comparison.html of the profiles, in the order given.

    Raises:
        MechintError: fewer than two profiles, profiles of different tasks, or one that can't be read.
    """
    studies = [load_study(run_dir, "compare") for run_dir in run_dirs]
    if len(studies) < 2:
        raise MechintError(f"a comparison needs at least two finished runs; got {len(studies)}")
    names, notes = comparable(studies)
    found = groups(studies)
    pairs = every_pair(found, names)
    notes += remarks(found)
    output = Path(output_dir)
    said = run_names([study.directory for study in studies])
    written = [write_json(output / "comparison.json", data(studies, said, output, pairs, notes))]
    timed = [[times(study) for study in group.studies] for group in found]
    plots = [
        ("comparison.png", (11.0, 9.2), lambda f: comparison_figure(f, found, timed),
         "Every model on common axes, a line for each seed; layers by their depth. Memory is that of a prompt's "
         "state, or "
         "keys and values."),
        ("comparison_map_cka.png", (1.0 + 3.6 * len(found), 3.6), lambda f: cka_figure(f, found),
         "Linear CKA of the stream behind every two layers, means over seeds."),
        *((f"comparison_differences{'' if len(pairs) == 1 else f'_{k}'}.png", (8.6, 1.6 + 0.24 * len(pair["rows"])),
           lambda f, pair=pair: differences_figure(f, pair),
           f"{pair['one']} less {pair['other']}, as a share of the larger of the two means, with 95 % intervals "
           f"({pair['how']}). Blue: p ≤ {ALPHA:g}, adjusted for all rows (Holm).") for k, pair in enumerate(pairs)),
    ]  # fmt: skip
    figures = [(style.save_figure(output / name, size, draw), caption) for name, size, draw, caption in plots]
    written += [path for path, _ in figures]
    tables = [costs_table(found), *(pair_table(pair) for pair in pairs), runs_table(studies, said)]
    findings = [finding for pair in pairs for finding in verdicts(pair)]
    written.append(write_text(output / "comparison.md", as_markdown(findings, tables, figures, notes)))
    return [*written, write_text(output / "comparison.html", as_html(found, findings, tables, figures, notes))]


def remarks(found: list[Group]) -> list[str]:
    notes = []
    if any(len(group.studies) < 2 for group in found) and len(found) > 1:
        notes.append(
            "A group of one seed has no seed noise to tell a difference from: its differences are those of two models, "
            "not of two architectures."
        )
    if len(found) > 1 and len({budget for group in found for budget in group.budgets}) > 1:
        notes.append(
            "The checkpoints do not say that they saw the same data for the same number of steps: differences may be "
            "those of training."
        )
    if steps := sorted({str(s) for group in found for _, s in group.budgets if s is not None}):
        notes.append(
            f"The models had {' or '.join(steps)} steps of training: what differs is so after that budget, and "
            f"may not be "
            "after a longer one."
        )
    counts = {group.label: group.studies[0].raw["metrics"]["parameters"]["value"] for group in found}
    if len(counts) > 1 and max(counts.values()) > 1.1 * min(counts.values()):
        said = "; ".join(f"{name}: {number(value)}" for name, value in counts.items())
        notes.append(f"The groups differ in parameters ({said}): part of what differs may be size.")
    if len(found) == 1:
        notes.append("All checkpoints are of one family and size: there is nothing to tell apart but seeds.")
    return notes


def data(
    studies: list[Study], said: list[str], output: Path, pairs: list[dict[str, Any]], notes: list[str]
) -> dict[str, Any]:
    keep = (
        "label",
        "checkpoint",
        "training",
        "tokenizer",
        "metrics",
        "curves",
        "sparsity",
        "memory",
        "bytes_per_token",
    )
    return {
        "schema": 1,
        "analysis": "compare",
        "runs": [
            {"name": name, "directory": Path(os.path.relpath(study.directory, output)).as_posix(),
             **{key: study.raw[key] for key in keep}}
            for name, study in zip(said, studies, strict=True)
        ],
        "pairs": pairs,
        "notes": notes,
    }  # fmt: skip


Table = tuple[str, str, Sequence[str], Sequence[Sequence[str]]]


def costs_table(found: list[Group]) -> Table:
    rows: list[Sequence[str]] = [
        (COUNTS[name], *(number(fmean(s.raw["metrics"][name]["value"] for s in g.studies)) for g in found))
        for name in EXACT
    ]
    for k, entry in enumerate(found[0].studies[0].raw["memory"]):
        cells = [g.studies[0].raw["memory"][k] for g in found]
        if len({cell["length"] for cell in cells}) == 1:
            rows.append((f"memory of {number(entry['length'])} tokens (bytes)", *(said(c["bytes"]) for c in cells)))
    return "Costs", "Counted; means over seeds where weights count.", ("", *(g.label for g in found)), rows


def pair_table(pair: dict[str, Any]) -> Table:
    one, other = pair["one"], pair["other"]
    rows = [
        (row["meaning"], number(row[one], 4), number(row[other], 4), between(row["difference"]),
         "–" if row["p"] is None else f"{row['p']:.2g}", "–" if row["p"] is None else f"{row['p_adjusted']:.2g}")
        for row in sorted(pair["rows"], key=lambda row: row.get("p_adjusted", 1.0))
    ]  # fmt: skip
    text = f"Intervals over seeds, 95 %, {pair['how']}; p adjusted for all {len(rows)} rows (Holm)."
    return f"{one} against {other}", text, ("", one, other, "difference", "p", "p, adjusted"), rows


def runs_table(studies: list[Study], said: list[str]) -> Table:
    rows = [
        (name, study.raw["checkpoint"], study.raw["label"], str(study.raw["training"].get("seed", "–")),
         between(study.raw["metrics"]["bits_per_byte"], 4))
        for name, study in zip(said, studies, strict=True)
    ]  # fmt: skip
    return "Runs", "Intervals over prompts.", ("run", "checkpoint", "group", "seed", "bits per byte"), rows


def verdicts(pair: dict[str, Any]) -> list[tuple[bool, str]]:
    """What differs beyond seed noise, in words."""
    tested = [row for row in pair["rows"] if row["p"] is not None]
    if not tested:
        return [(False, f"{pair['one']} against {pair['other']}: one seed each, so nothing is told from seed noise.")]
    sure = [row for row in tested if row["p_adjusted"] <= ALPHA]
    apart = [row for row in tested if row["p"] <= ALPHA]
    text = (
        f"{pair['one']} against {pair['other']}: {len(apart)} of {len(tested)} quantities have an interval without 0 "
        f"(about {ALPHA * len(tested):.1f} would by chance); {len(sure)} still differ after adjusting for all of them."
    )
    found = [(bool(sure), text)]
    for row in sorted(sure, key=lambda row: row["p_adjusted"])[:8]:
        values = f"{number(row[pair['one']], 3)} against {number(row[pair['other']], 3)}"
        found.append((True, f"{row['meaning']}: {values}, difference {between(row['difference'])}."))
    return found


def as_markdown(
    findings: list[tuple[bool, str]], tables: list[Table], figures: list[tuple[Path, str]], notes: list[str]
) -> str:
    parts = ["# Model comparison", "\n".join(f"- {'✓' if good else '✗'} {text}" for good, text in findings)]
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    parts += [f"![{path.name}]({path.name})\n\n{caption}" for path, caption in figures]
    for title, text, header, rows in tables:
        parts += [f"## {title}", text, markdown.table(header, rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_html(
    found: list[Group], findings: list[tuple[bool, str]], tables: list[Table], figures: list[tuple[Path, str]],
    notes: list[str],
) -> str:  # fmt: skip
    tiles = []
    for group in found:
        bits = [study.raw["metrics"]["bits_per_byte"]["value"] for study in group.studies]
        many = f"{len(bits)} seed{'s' if len(bits) > 1 else ''}, {number(min(bits), 4)} to {number(max(bits), 4)}"
        tiles.append(card(f"Bits per byte: {group.label}", number(fmean(bits), 4), many))
    body = ["<h1>Model comparison</h1>", cards(tiles), "<h2>What differs beyond seed noise</h2>", checks(findings)]
    body += [bullets(notes)] if notes else []
    body += [picture(path, caption, "map" in path.name) for path, caption in figures]
    for title, text, header, rows in tables:
        body += [f"<h2>{escape(title)}</h2>", f'<p class="soft">{escape(text)}</p>']
        body.append(html_table(header, rows, numeric=range(1, len(header)) if title != "Runs" else (3, 4)))
    return page("Model comparison", body)
