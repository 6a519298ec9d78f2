"""Patchings of several checkpoints side by side: their main numbers, and every map cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...report.along_training import MOST, Added
from ...report.content import Section
from ...report.finished import FinishedRun, valid
from ...report.tables.generic import write_comparison
from ...utils.files import read_torch
from ..map_comparison import EffectMap, Measured, RunPair, compared, figures, findings, sections
from .figures import DIRECTIONS, Patching, load_patching

ASKED = ("metric", "values", "window", "decay")
"""Options without which effects are not of one kind."""


def write_patch_comparison(run_dirs: Sequence[str | Path], output_dir: str | Path) -> list[Path]:
    """Writes comparison.json, .md, .html and the figures of several patchings.

    Their main numbers are followed along the training; up to a dozen patchings are compared with the first one map by
    map, cell by cell.

    Raises:
        MechintError: fewer than two patchings, or one that can't be read.
    """
    return write_comparison(run_dirs, output_dir, maps)


def maps(runs: Sequence[FinishedRun], names: Sequence[str]) -> Added:
    """The comparison of the maps of the others with those of the first run."""
    if len(runs) > MOST:
        note = f"Maps are compared cell by cell for up to {MOST} runs; these are {len(runs)}."
        return Added(notes=[note])
    patchings = [load_patching(run.directory) for run in runs]
    first, pairs, notes = patchings[0], [], []
    for other, name in zip(patchings[1:], names[1:], strict=True):
        if reason := incomparable(first, other):
            notes.append(f"{name} and {names[0]}: {reason}, so their maps are not compared.")
            continue
        pairs.append(RunPair(name, names[0], compared(measured(first), measured(other))))
    shown = [*sections(pairs, first.unit), Section("Maps", figures(pairs, first.unit))]
    return Added(findings(pairs), notes, shown, {"maps": [pair.entries() for pair in pairs]})


def incomparable(one: Patching, other: Patching) -> str:
    """Why the maps of two patchings can't be subtracted; '' when they can."""
    for what, of in (
        ("other prompts", lambda run: run.manifest.get("prompts")),
        (f"another {', '.join(ASKED[:-1])} or {ASKED[-1]}", lambda run: [run.raw["config"].get(n) for n in ASKED]),
        ("another unit of effects", lambda run: run.unit),
    ):  # fmt: skip
        if of(one) != of(other):
            return what
    for run in (one, other):
        if "templates" not in read(run):
            return "effects.pt of one of them, by an earlier version, does not name the templates of its prompts"
    return ""


def read(run: Patching) -> dict[str, Tensor]:
    found: dict[str, Tensor] = read_torch(run.directory / "effects.pt", "effects", "run the analysis again")
    return found


def measured(run: Patching) -> Measured:
    """The effects of every prompt in every cell of the flow and every measured unit.

    Raises:
        MechintError: effects.pt is missing, or has other entries than results.json.
    """
    found = read(run)
    batches = sum(name.startswith("right.") for name in found)
    whole = lambda name: torch.cat([found[f"{name}.{k}"] for k in range(batches)], -1).numpy()
    with valid(run.directory / "effects.pt"):
        right = whole("right").astype(bool)
        rows = lambda values: np.ascontiguousarray(values[..., right].reshape(-1, right.sum()).T.astype(np.float64))
        maps = []
        if run.paths:
            roles, pairs = run.roles, run.raw["flow"]["pairs"]
            every = whole("flow")
            for effects, path in zip(every, run.paths, strict=True):
                cells = [
                    (layer, f"{roles[reader]} ← {roles[source]}")
                    for layer in range(len(effects))
                    for reader, source in pairs
                ]
                maps.append(EffectMap(f"cut at {path['name']}", cells, rows(effects)))
        for kind in run.kinds:
            cells = [(layer, f"unit {unit}") for layer, unit in zip(kind["layer"], kind["unit"], strict=True)]
            maps += [
                EffectMap(f"{kind['name']}, {direction}", cells, rows(whole(f"{direction} {kind['name']}")))
                for direction in DIRECTIONS
            ]
        shares = run.raw["scale"] != "metric"
        total = rows(whole("clean") - whole("corrupted"))[:, 0] if shares else None
        return Measured(right, found["templates"].numpy(), total, maps)
