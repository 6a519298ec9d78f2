"""Chooses the profile that represents each training run, its learning rate, and the profiles along training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from ...report.along_training import Track, axis_of, step_of
from ...report.finished import FinishedRun
from ...report.values import Value
from ...report.words import number
from ...utils.statistics import Number
from .differences import CURVES, MEASURED, P50, ROLES, groups
from .results import Profile, profile_of

Reader = Callable[[Profile], list[Number]]


def several_steps(studies: Sequence[FinishedRun]) -> bool:
    """True if some of the profiles are of one training run at several steps."""
    return axis_of([study.raw for study in studies]).steps


def run_of(study: FinishedRun) -> tuple[Any, ...] | None:
    """A key that checkpoints of one training run share; None where the checkpoint does not say."""
    profile = profile_of(study)
    said = profile.training
    if said.seed is None or said.budget is None:
        return None
    return profile.label, said.seed, said.budget, said.lr, study.raw["model"].get("variant")


def last_of_each(studies: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """One profile of each training run, its last step: steps of one run do not count as seeds."""
    axis = axis_of([study.raw for study in studies])
    keep = [line.runs[-1] for line in axis.lines] if axis.steps else list(range(len(studies)))
    last: dict[Any, int] = {}
    for k in sorted(keep):
        key = run_of(studies[k]) or ("by itself", k)
        if key not in last or (step_of(studies[k].raw) or 0) > (step_of(studies[last[key]].raw) or 0):
            last[key] = k
    kept = [studies[k] for k in sorted(last.values())]
    if len(kept) == len(studies):
        return kept, []
    return kept, [
        f"{len(studies)} checkpoints come from {len(kept)} training runs: each run counts once, with its last "
        f"checkpoint, because steps of one run are not independent seeds."
    ]


def rate_of(study: FinishedRun) -> float | None:
    rate = profile_of(study).training.lr
    return float(rate) if isinstance(rate, (int, float)) else None


def at_best_rates(studies: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """The runs at the best learning rate of every family and size, and notes about the rates.

    The best has the least mean of the losses on held-out prompts that trainings themselves reported.
    """
    by_label = groups(studies)
    kept: list[FinishedRun] = []
    chosen: dict[str, list[float]] = {}
    said = []
    for group in by_label:
        label, own = group.label, group.studies
        rates = sorted({rate for study in own if (rate := rate_of(study)) is not None})
        losses = {rate: mean_loss([study for study in own if rate_of(study) == rate]) for rate in rates}
        if len(rates) > 1 and all(map(math.isfinite, losses.values())):
            best = min(rates, key=lambda rate: losses[rate])
            own = [study for study in own if rate_of(study) == best]
            table = ", ".join(f"{rate:g}: {number(losses[rate])}" for rate in rates)
            edge = best in (rates[0], rates[-1])
            at_edge = (
                f" It is the {'lowest' if best == rates[0] else 'highest'} rate that was tried: try rates beyond it."
                if edge
                else ""
            )
            said.append(
                f"{label} is compared at the learning rate {best:g}, the best of {len(rates)} by held-out loss in nats "
                f"({table}).{at_edge}"
            )
            rates = [best]
        kept += own
        chosen[label] = rates
    rates = sorted({rate for found in chosen.values() for rate in found})
    if len(by_label) > 1 and len(said) < len(by_label) and any(chosen.values()):
        which = f"one learning rate, {rates[0]:g}" if len(rates) == 1 else "learning rates that were not tried for both"
        said.append(
            f"The groups were trained at {which}. A rate that suits one family may not suit the other, and the rate "
            f"can matter more than the interval of a difference, which covers seeds at this rate only: train every "
            f"group at several rates (lr= in KNLP_TRAIN_VARIANTS) before you attribute the difference to the "
            f"architecture."
        )
    return kept, said


def mean_loss(studies: Sequence[FinishedRun]) -> float:
    losses = [profile_of(study).training.held_out_loss for study in studies]
    known = [loss for loss in losses if loss is not None]
    return fmean(known) if known and len(known) == len(losses) else math.nan


def profile_tracks(studies: Sequence[FinishedRun], names: set[str] | None) -> list[Track]:
    """The numbers of profiles that are followed along the training: of curves and sites the mean over layers.

    The interval of a mean over layers is the mean of the layers' intervals, which is at least as wide as the exact
    interval.
    """
    found: dict[str, tuple[str, Reader]] = {}
    for name, text in MEASURED.items():
        found[name] = (text, partial(of_metric, name=name))
    for name, text in CURVES.items():
        found[name] = (f"{text}, mean of layers", partial(of_curve, name=name))
    for role, meaning in ROLES.items():
        found[f"gini {role}"] = (f"gini: {meaning}", partial(gini_of, role=role))
        found[f"p50 {role}"] = (f"{P50}: {meaning}", partial(p50_of, role=role))
    tracks = []
    for name, (text, read) in found.items():
        if names is None or name in names:
            values = [mean_of(read(profile_of(study))) for study in studies]
            if any(value is not None for value in values):
                tracks.append(Track(name, text, values, share=name == "accuracy"))
    return tracks


def of_metric(profile: Profile, name: str) -> list[Number]:
    return [profile.metrics[name]]


def of_curve(profile: Profile, name: str) -> list[Number]:
    return [entry for entry in profile.curves[name] if entry is not None]


def gini_of(profile: Profile, role: str) -> list[Number]:
    return [cell.measures["gini"] for cell in profile.of_role(role) if "gini" in cell.measures]


def p50_of(profile: Profile, role: str) -> list[Number]:
    return [cell.percentiles["p50"] for cell in profile.of_role(role) if cell.percentiles]


def mean_of(entries: list[Number]) -> Value | None:
    if not entries:
        return None
    end = lambda key: fmean(math.nan if entry[key] is None else entry[key] for entry in entries)
    return Value(end("value"), end("low"), end("high"), min(entry["n"] for entry in entries))
