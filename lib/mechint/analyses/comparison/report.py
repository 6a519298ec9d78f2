"""The report of one model's profile, and the page that lays several side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...report.along_training import MOST, write_along
from ...report.compose import write_page
from ...report.content import Block, Bullets, Checks, Content, Figure, Section, between, figure, table_section
from ...report.content import study as study_of
from ...report.control import control_figure, control_findings, control_sections
from ...report.finished import ALL_FIGURES, Drawn, FinishedRun, read_finished, run_names, valid
from ...report.members import Warned, gathered, member_section
from ...report.results import Address
from ...report.words import number
from ...utils.errors import MechintError
from ...utils.files import read_json, write_json
from .differences import ALPHA, CURVES, EXACT, LEADS, MEASURED, Group, comparable, every_pair, groups
from .figures import cka_figure, cka_grid, comparison_plots, differences_figure, profile_figure
from .results import UNKNOWN, Profile, profile_of
from .runs import at_best_rates, last_of_each, profile_tracks, several_steps

TIMES = "efficiency_measured.json"
COUNTS = {
    "parameters": "parameters", "parameters_without_embeddings": "without embeddings", "parameters_active": "active",
    "flops_per_token": "FLOPs for each token", "bytes_per_generated_token": "bytes read for a generated token",
}  # fmt: skip


def write_profile(run_dir: str | Path, drawn: Drawn = ALL_FIGURES) -> list[Path]:
    """Writes profile.png, profile_map_cka.png, profile_report.md and report.html of one model."""
    study = read_finished(run_dir, "compare")
    profile = profile_of(study)
    figures = [
        figure(
            "profile.png", "Layer by layer, with 95 % intervals; last: Gini of activations at matched "
            "sites.", (11.0, 6.6),
            profile_figure, profile,
        ),
        figure("profile_map_cka.png", "Linear CKA between the streams after every two layers.", (4.6, 3.8), cka_figure,
               [Group(profile.label, [study])]),
    ]  # fmt: skip
    metrics = profile.metrics
    top = [
        ("Loss", number(metrics["loss"]["value"], 4), f"nats per token {between(metrics['loss'])}"),
        ("Bits per byte", number(metrics["bits_per_byte"]["value"], 4), f"{profile.bytes_per_token:.3g} bytes "
            f"per token"),
        ("Parameters", number(metrics["parameters"]["value"]),
         f"{number(metrics['parameters_without_embeddings']['value'])} without embeddings"),
        ("MFLOP for each token", number(metrics["flops_per_token"]["value"] / 1e6, 3), "at the prompts' length"),
    ]  # fmt: skip
    found = [
        (True, f"This page describes one model: {profile.label}. Several checkpoints give a comparison."),
        *control_findings(profile.control),
    ]
    figures += control_figure("profile_random_weights.png", profile.control)
    content = study_of(study, top, found, sections(study), figures)
    return write_page(study.directory, content, "profile_report.md", drawn)


def headline(run_dir: str | Path) -> str:
    """The result in one sentence."""
    profile = profile_of(read_finished(run_dir, "compare"))
    loss, bits = profile.metrics["loss"], profile.metrics["bits_per_byte"]
    return (
        f"{profile.label}: {between(loss)} nats per token, {number(bits['value'], 4)} bits per byte, "
        f"{number(profile.metrics['parameters']['value'])} parameters."
    )


def cell(raw: Mapping[str, Any], address: Address, index: tuple[int, ...]) -> dict[str, Any]:
    """Columns of a number: the layer of a curve's point, and the two layers of a similarity."""
    if address[0] == "curves" and len(address) == 3:
        return {"metric": address[1], "layer": address[2]}
    if address[0] == "cka" and len(address) == 3:
        return {"name": f"layers {address[1]} and {address[2]}"}
    return {}


def sections(study: FinishedRun) -> list[Section]:
    profile = profile_of(study)
    rows = [(COUNTS[name], number(profile.metrics[name]["value"])) for name in EXACT]
    layers = range(profile.layers)
    curve = [
        (text, *("–" if value is None else between(value) for value in profile.curves[name]))
        for name, text in CURVES.items()
    ]
    memory = [(number(entry.length), said(entry.bytes)) for entry in profile.memory]
    timed = [
        (number(t["length"]), f"{t['seconds'][0] * 1e3:.3g}", f"{t['next_token_seconds'][0] * 1e3:.3g}",
         f"{t['peak_bytes'] / 2**20:.3g}")
        for t in times(study)
    ]  # fmt: skip
    found = [
        table_section("Costs", "Counted from the model's sizes and its weights.", ("what", "number"), rows, (1,)),
        table_section("Layers", "Means over prompts and tokens.", ("", *(f"layer {i}" for i in layers)), curve,
                range(1, 1 + len(layers)), len(layers) > 6),
        table_section("Sparsity: P50", "P50 is the median over units of the variance over tokens, divided by the mean "
                                       "of that variance over units. The Gini index is higher where activations are "
                                       "sparser.",
                ("layer", "site", "P50", "Gini"),
                [(str(c.layer), c.site, between(c.percentiles["p50"]) if c.percentiles else "–",
                  between(c.measures["gini"])) for c in profile.sparsity], (0, 2, 3), len(profile.sparsity) > 12),
        table_section("Memory of a prompt", "Bytes of the state and the convolution inputs, or of keys and values, "
                                            "counted for each length.", ("tokens", "bytes"), memory,
                (0, 1)),
    ]  # fmt: skip
    if timed:
        text = "Medians of repeated forwards on this machine; other work on the machine makes them slower."
        header = ("tokens", "forward, P50 (ms)", "one token more, P50 (ms)", "peak of a forward (MiB)")
        found.append(table_section("Measured", text, header, timed, range(4)))
    return [*found, *control_sections(profile.control)]


def said(count: int | None) -> str:
    """A number, or a dash for a length that the model cannot have."""
    return "–" if count is None else number(count)


def times(study: FinishedRun) -> list[dict[str, Any]]:
    """The measured times of a profile; none where nothing was timed."""
    path = study.directory / TIMES
    with valid(path):
        return list(read_json(path)["measured"]) if path.exists() else []


# ---- several models ------------------------------------------------------------------------------------------------


def write_model_comparison(run_dirs: Sequence[str | Path], output_dir: str | Path) -> list[Path]:
    """Writes comparison.json, comparison*.png, comparison.md and comparison.html of the profiles.

    Groups of one family and size are compared, in the order given, with one profile of each training run, at the best
    of the learning rates that were tried; more than a dozen checkpoints of training runs are shown along their steps.

    Raises:
        MechintError: fewer than two profiles, profiles of different tasks, or one that can't be read.
    """
    studies = [read_finished(run_dir, "compare") for run_dir in run_dirs]
    if len(studies) < 2:
        raise MechintError(f"a comparison needs at least two finished runs; got {len(studies)}")
    names, notes = comparable(studies)
    output = Path(output_dir)
    said = run_names([study.directory for study in studies])
    profiles = [profile_of(study) for study in studies]
    warned = gathered(said, (map(str, profile.notes) for profile in profiles))
    labels = {profile.label for profile in profiles}
    if len(studies) > MOST and (several_steps(studies) or len(labels) > MOST):
        raws, directories = [study.raw for study in studies], [study.directory for study in studies]
        tracks = profile_tracks(studies, names)
        return write_along(output, "Model comparison", raws, directories, said, tracks, warned, notes)
    kept, of_runs = last_of_each(studies)
    kept, of_rates = at_best_rates(kept)
    found = groups(kept)
    pairs = every_pair(found, names)
    notes += [*of_rates, *of_runs, *remarks(found)]
    findings = [finding for pair in pairs for finding in verdicts(pair)]
    written = [write_json(output / "comparison.json", data(studies, said, output, pairs, notes, findings, warned))]
    timed = [[times(study) for study in group.studies] for group in found]
    rows, columns = cka_grid(len(found))
    plots = [
        *comparison_plots(found, timed),
        ("comparison_map_cka.png", (1.0 + 3.6 * columns, 3.6 * rows), lambda f: cka_figure(f, found),
         "Linear CKA between the residual streams after every two layers; means over seeds."),
        *((f"comparison_differences{'' if len(pairs) == 1 else f'_{k}'}.png", (8.6, 1.6 + 0.24 * len(pair["rows"])),
           lambda f, pair=pair: differences_figure(f, pair),
           f"{pair['one']} less {pair['other']}, as a share of the larger of the two means, with 95 % intervals "
           f"({pair['how']}). Blue: p ≤ {ALPHA:g}, adjusted for all rows (Holm).") for k, pair in enumerate(pairs)),
    ]  # fmt: skip
    figures = [figure(name, caption, size, draw) for name, size, draw, caption in plots]
    tables = [*(pair_table(pair) for pair in pairs), costs_table(found), *times_table(found, timed)]
    tables.append(runs_table(studies, said))
    members = warned, len(studies)
    content = page_of(found, findings, tables, figures, notes, members)
    return [*written, *write_page(output, content, "comparison.md", page_name="comparison.html")]


def remarks(found: list[Group]) -> list[str]:
    notes = []
    if any(len(group.studies) < 2 for group in found) and len(found) > 1:
        notes.append(
            "A group with one seed has no estimate of seed noise: its differences are differences between two models, "
            "not between two architectures."
        )
    if len(found) > 1 and len({budget for group in found for budget in group.budgets}) > 1:
        notes.append(
            "The checkpoints do not record that they were trained on the same data for the same number of steps: "
            "differences may come from training."
        )
    if steps := sorted({str(s) for group in found for _, s in group.budgets if s is not None}):
        notes.append(
            f"The models were trained for {' or '.join(steps)} steps: the differences hold for this budget and may "
            f"vanish with longer training."
        )
    counts = {group.label: group.profiles[0].metrics["parameters"]["value"] for group in found}
    if len(counts) > 1 and max(counts.values()) > 1.1 * min(counts.values()):
        said = "; ".join(f"{name}: {number(value)}" for name, value in counts.items())
        notes.append(
            f"The groups differ in their number of parameters ({said}): part of each difference may come from size."
        )
    if len(found) == 1:
        notes.append("All checkpoints have the same family and size: only their seeds can be compared.")
    return notes


def data(
    studies: list[FinishedRun], said: list[str], output: Path, pairs: list[dict[str, Any]], notes: list[str],
    findings: list[tuple[bool, str]], warned: Warned,
) -> dict[str, Any]:  # fmt: skip
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
        "control",
    )
    return {
        "schema": 1,
        "analysis": "compare",
        "runs": [
            {"name": name, "directory": Path(os.path.relpath(study.directory, output)).as_posix(),
             **{key: study.raw.get(key) for key in keep}}
            for name, study in zip(said, studies, strict=True)
        ],
        "pairs": pairs,
        "findings": [text for _, text in findings],
        "notes": notes,
        "warnings": warned,
    }  # fmt: skip


def costs_table(found: list[Group]) -> Section:
    rows: list[Sequence[str]] = [
        (COUNTS[name], *(number(fmean(p.metrics[name]["value"] for p in g.profiles)) for g in found)) for name in EXACT
    ]
    for k, entry in enumerate(found[0].profiles[0].memory):
        cells = [g.profiles[0].memory[k] for g in found]
        if len({cell.length for cell in cells}) == 1:
            rows.append((f"memory of {number(entry.length)} tokens (bytes)", *(said(c.bytes) for c in cells)))
    header = ("", *(g.label for g in found))
    text = "Counted; where the weights matter, means over seeds."
    return table_section("Costs", text, header, rows, range(1, len(header)))


def times_table(found: list[Group], timed: list[list[list[dict[str, Any]]]]) -> list[Section]:
    """P50 of forwards and of one token more, by length; nothing where nothing was timed."""
    lengths = sorted({entry["length"] for runs in timed for run in runs for entry in run})
    rows = []
    for length in lengths:
        cells = []
        for runs in timed:
            own = [entry for run in runs for entry in run if entry["length"] == length]
            for key in ("seconds", "next_token_seconds"):
                cells.append(f"{fmean(entry[key][0] for entry in own) * 1e3:.3g}" if own else "–")
        rows.append((number(length), *cells))
    header = ["tokens"]
    for group in found:
        header += [f"{group.label}: forward (ms)", f"{group.label}: one token more (ms)"]
    text = (
        "P50 (medians of repeated forwards on this machine), means over seeds; other work on the machine makes "
        "them slower."
    )
    return [table_section("Measured time", text, header, rows, range(1, len(header)))] if rows else []


def pair_table(pair: dict[str, Any]) -> Section:
    one, other = pair["one"], pair["other"]
    p = lambda row, key: "–" if row.get(key) is None else f"{row[key]:.2g}"
    rows = [
        (row["meaning"], number(row[one], 4), number(row[other], 4), between(row["difference"]), p(row, "p"),
         p(row, "p_adjusted"), "–" if row["shuffled"] is None else number(row["shuffled"], 3),
         p(row, "p_beyond_adjusted"))
        for row in sorted(pair["rows"], key=lambda row: (row["quantity"] not in LEADS, row.get("p_adjusted", 1.0)))
    ]  # fmt: skip
    text = (
        f"Intervals over seeds, 95 %, {pair['how']}; p is adjusted for all {len(rows)} rows (Holm). The last two "
        f"columns: the same difference between models with shuffled weights, and the adjusted p-value of the null "
        f"hypothesis that the trained difference equals it."
    )
    header = ("", one, other, "difference", "p", "p, adjusted", "shuffled", "p beyond it")
    return table_section(f"{one} against {other}", text, header, rows, range(1, len(header)))


def runs_table(studies: list[FinishedRun], said: list[str]) -> Section:
    rows = [
        (name, study.raw["checkpoint"], profile.label, seed_of(profile), between(profile.metrics["bits_per_byte"]))
        for name, study, profile in zip(said, studies, map(profile_of, studies), strict=True)
    ]  # fmt: skip
    header = ("run", "checkpoint", "group", "seed", "bits per byte")
    return table_section("Runs", "Intervals over prompts.", header, rows, (3, 4))


def seed_of(profile: Profile) -> str:
    """The seed of training in a table; a dash where the checkpoint says nothing about its training."""
    return "–" if profile.training == UNKNOWN else str(profile.training.seed)


def verdicts(pair: dict[str, Any]) -> list[tuple[bool, str]]:
    """Differences beyond seed noise, in words."""
    tested = [row for row in pair["rows"] if row["p"] is not None]
    if not tested:
        return [
            (
                False,
                f"{pair['one']} against {pair['other']}: one seed each, so no difference can be told from seed noise.",
            )
        ]
    sure = [row for row in tested if row["p_adjusted"] <= ALPHA]
    apart = [row for row in tested if row["p"] <= ALPHA]
    found = []
    for row in (row for name in LEADS for row in tested if row["quantity"] == name):
        good = row["p_adjusted"] <= ALPHA
        found.append((good, f"{of_row(pair, row)}{'' if good else ' Seeds alone may cause a difference this large.'}"))
    found.append((
        bool(sure),
        f"{pair['one']} against {pair['other']}: {len(apart)} of {len(tested)} quantities have an interval without 0 "
        f"(about {ALPHA * len(tested):.1f} would by chance); {len(sure)} still differ after adjusting for all of them.",
    ))  # fmt: skip
    rest = [row for row in sorted(sure, key=lambda row: row["p_adjusted"]) if row["quantity"] not in LEADS]
    learned = [row for row in rest if row.get("p_beyond_adjusted", 0.0) <= ALPHA]
    found += [(True, of_row(pair, row)) for row in learned[:8]]
    built = [row["meaning"] for row in rest if row not in learned]
    if built:
        text = (
            f"Not told apart from the difference between shuffled models, so no evidence about training: "
            f"{'; '.join(built)}."
        )
        found.append((False, text))
    if any(row["shuffled"] is None for row in rest if row["quantity"] not in MEASURED):
        found.append((False, "Some models were not measured with shuffled weights: it is unknown how much of a "
                             "difference the architecture makes without training."))  # fmt: skip
    return found


def of_row(pair: dict[str, Any], row: dict[str, Any]) -> str:
    values = f"{number(row[pair['one']], 3)} ({pair['one']}) against {number(row[pair['other']], 3)} ({pair['other']})"
    return f"{row['meaning']}: {values}, difference {between(row['difference'])}."


def page_of(
    found: list[Group], findings: list[tuple[bool, str]], tables: list[Section], figures: list[Figure],
    notes: list[str], members: tuple[Warned, int],
) -> Content:  # fmt: skip
    """The page of the comparison."""
    cards = []
    for group in found:
        bits = [profile.metrics["bits_per_byte"]["value"] for profile in group.profiles]
        many = f"{len(bits)} seed{'s' if len(bits) > 1 else ''}, {number(min(bits), 4)} to {number(max(bits), 4)}"
        cards.append((f"Bits per byte: {group.label}", number(fmean(bits), 4), many))
    evidence: list[Block] = [Checks(findings), Bullets(notes)]
    first = [Section("Differences beyond seed noise", evidence), member_section(*members), Section("Figures", figures)]
    return Content("Model comparison", [*first, *tables], cards=cards)
