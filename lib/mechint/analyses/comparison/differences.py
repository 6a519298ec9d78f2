"""Differences between groups of models, tested against the differences between training seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ...report.finished import FinishedRun
from ...utils.errors import MechintError
from ...utils.multiple_tests import holm
from ...utils.statistics import number, over_seeds, t_quantile, t_tail
from .results import Profile, profile_of

EXACT = (
    "parameters",
    "parameters_without_embeddings",
    "parameters_active",
    "flops_per_token",
    "bytes_per_generated_token",
)
"""Counts that follow from sizes or weights: shown, without a test. The share of active parameters is nearly that of any
normal distribution, whatever was learned."""
MEASURED = {
    "loss": "loss (nats per token)", "bits_per_byte": "loss (bits per byte)", "accuracy": "accuracy",
    "gain_per_mflop": "nats gained over a uniform guess per MFLOP",
}  # fmt: skip
LEADS = ("bits_per_byte", "accuracy")
"""The quantities that a comparison reports first, significant or not."""
P50 = "P50 of units' variance over its mean"
CURVES = {
    "stream_norm": "RMS of the stream", "update": "update of the stream (share)",
    "effective_rank": "effective rank (share)",
    "layer_effect": "loss when a layer is removed (nats)", "unit_effect_gini": "Gini of unit effects",
    "attention_distance": "distance read (share of prompt)", "attention_entropy": "entropy of what is read (share)",
}  # fmt: skip
ROLES = {"stream": "stream", "added": "added by layers", "read": "read by output projections"}
ALPHA = 0.05


@dataclass(frozen=True)
class Group:
    """Models of one family and size."""

    label: str
    studies: list[FinishedRun]

    @property
    def profiles(self) -> list[Profile]:
        return [profile_of(study) for study in self.studies]

    @property
    def seeds(self) -> list[int | None]:
        return [profile.training.seed for profile in self.profiles]

    @property
    def budgets(self) -> set[tuple[str | None, int | None]]:
        return {(profile.training.budget, profile.training.steps) for profile in self.profiles}


def groups(studies: Sequence[FinishedRun]) -> list[Group]:
    """The runs by their label, in the order in which labels come."""
    found: dict[str, list[FinishedRun]] = {}
    for study in studies:
        found.setdefault(profile_of(study).label, []).append(study)
    return [Group(label, members) for label, members in found.items()]


def quantities(study: FinishedRun, names: set[str] | None = None) -> dict[str, tuple[str, float]]:
    """(meaning, value) of every number of a profile that is compared, means over layers."""
    profile = profile_of(study)
    metrics = {name: float(value["value"]) for name, value in profile.metrics.items()}
    found = {name: (text, metrics[name]) for name, text in MEASURED.items()}
    for name, text in CURVES.items():
        if values := [float(entry["value"]) for entry in profile.curves[name] if entry is not None]:
            found[name] = (f"{text}, mean of layers", fmean(values))
    neighbours = [float(profile.cka[i][i + 1]["value"]) for i in range(len(profile.cka) - 1)]
    if neighbours:
        found["cka"] = ("CKA of neighbouring layers", fmean(neighbours))
    for role, meaning in ROLES.items():
        cells = profile.of_role(role)
        for measure in cells[0].measures if cells else ():
            value = fmean(float(cell.measures[measure]["value"]) for cell in cells)
            found[f"{measure} {role}"] = (f"{measure.replace('_', ' ')}: {meaning}", value)
        medians = [cell.percentiles["p50"] for cell in cells if cell.percentiles]
        if medians:
            found[f"p50 {role}"] = (f"{P50}: {meaning}", fmean(float(entry["value"]) for entry in medians))
    return found if names is None else {name: entry for name, entry in found.items() if name in names}


def untrained(study: FinishedRun) -> dict[str, float]:
    """The numbers of :func:`quantities` on shuffled weights, as far as they were measured; means over layers."""
    profile = profile_of(study)
    control = profile.control
    rows = [row for row in control["quantities"] if row["shuffled"] is not None] if control else []
    roles = {cell.site: cell.role for cell in profile.sparsity}
    found: dict[str, list[float]] = {}
    for row in rows:
        name = row["quantity"] if row["site"] is None else f"{row['quantity']} {roles[row['site']]}"
        found.setdefault(name, []).append(float(row["shuffled"]["value"]))
    return {name: fmean(values) for name, values in found.items()}


def comparable(studies: Sequence[FinishedRun]) -> tuple[set[str] | None, list[str]]:
    """The quantities that can be compared between these runs (None: all), and notes on the others."""
    notes = []
    left_out: set[str] = set()
    profiles = [profile_of(study) for study in studies]
    if len({profile.tokenizer for profile in profiles}) > 1:
        left_out = {"loss", "accuracy", "gain_per_mflop", "attention_distance", "attention_entropy"}
        notes.append(
            "The models have different tokenizers: the loss is compared per byte, and quantities counted in tokens "
            "are not compared."
        )
    elif len({profile.prompts for profile in profiles}) > 1:
        notes.append("The models were measured on different prompts: differences include those between the prompts.")
    if len({profile.metric for profile in profiles} | {study.raw["task"]["name"] for study in studies}) > 2:
        raise MechintError("profiles on different tasks can't be compared; analyse all checkpoints on one task")
    return (set(quantities(studies[0])) - left_out if left_out else None), notes


def differences(one: Group, other: Group, names: set[str] | None) -> tuple[list[dict[str, Any]], str]:
    """Every quantity of one group less the other's, with intervals over seeds, and how they were made.

    Where both groups have the same seeds, once each, and the same data and budget, runs are paired by their seed.
    Otherwise Welch's interval with the smaller group's degrees of freedom, which is never too narrow. p-values are
    adjusted for all quantities (Holm). ``shuffled`` is the same difference of models with shuffled weights, and
    ``beyond`` the part of the difference that shuffled models do not show.
    """
    paired = sorted(map(str, one.seeds)) == sorted(map(str, other.seeds)) and len(set(one.seeds)) == len(one.seeds)
    paired = paired and None not in one.seeds and one.budgets == other.budgets
    ordered = [sorted(group.studies, key=lambda s: str(profile_of(s).training.seed)) for group in (one, other)]
    values = [[quantities(study, names) for study in studies] for studies in ordered]
    random = [[untrained(study) for study in studies] for studies in ordered]
    rows: list[dict[str, Any]] = []
    for name in (name for name in values[0][0] if all(name in run for run in values[1])):
        a, b = ([run[name][1] for run in runs] for runs in values)
        difference, p = compare(a, b, paired)
        row = {"quantity": name, "meaning": values[0][0][name][0], one.label: fmean(a), other.label: fmean(b),
               "difference": difference, "p": p, "shuffled": None, "p_beyond": None}  # fmt: skip
        rows.append(row)
        if all(name in run for runs in random for run in runs):
            c, d = ([run[name] for run in runs] for runs in random)
            row["shuffled"] = fmean(c) - fmean(d)
            own, others = ([x - y for x, y in zip(*pair, strict=True)] for pair in ((a, c), (b, d)))
            row["beyond"], row["p_beyond"] = compare(own, others, paired)
    tested = [row for row in rows if row["p"] is not None]
    for key, adjusted in (("p", "p_adjusted"), ("p_beyond", "p_beyond_adjusted")):
        there = [row for row in tested if row[key] is not None]
        for row, p in zip(there, holm([row[key] for row in there]), strict=True):
            row[adjusted] = p
    how = "paired by seed" if paired else "Welch's interval; seeds or budgets differ, or are not known"
    return rows, how if tested else "one seed: no interval"


def compare(a: list[float], b: list[float], paired: bool) -> tuple[dict[str, Any], float | None]:
    """The difference of the means with its interval, and p; without a second seed neither interval nor p."""
    if min(len(a), len(b)) < 2:
        middle = fmean(a) - fmean(b)
        return number(middle, middle, middle, 1, "one seed: no interval"), None
    if paired:
        return over_seeds([x - y for x, y in zip(a, b, strict=True)], "seeds")
    freedom = min(len(a), len(b)) - 1
    error = math.sqrt(sum(sum((x - fmean(v)) ** 2 for x in v) / (len(v) - 1) / len(v) for v in (a, b)))
    middle, half = fmean(a) - fmean(b), t_quantile(freedom) * error
    p = t_tail(middle / error, freedom) if error > 0 else float(middle == 0)
    return number(middle, middle - half, middle + half, min(len(a), len(b)), "95 % by Welch over seeds"), p


def every_pair(found: list[Group], names: set[str] | None) -> list[dict[str, Any]]:
    """The differences of every two groups."""
    return [
        dict(zip(("one", "other", "rows", "how"), (a.label, b.label, *differences(a, b, names)), strict=True))
        for a, b in itertools.combinations(found, 2)
    ]
