"""Holds a declared truth against ablations of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..interventions.edits import Edit
from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.units import Units
from ..tasks.answers import Prompts
from ..tasks.base import Task
from ..utils.errors import MechintError
from .together import check_together
from .truth import POSITIONS, STEPS, TIE, GroundTruth, Part, margins, only_at, remove_taps

ROWS = 32
"""Prompts that one part's removal is tried on: of those that the part matters for."""


def verify(
    model: Model, truth: GroundTruth, task: Task, count: int = 1000, split: str = "train", seed: int = 0
) -> dict[str, float]:
    """Holds a declared truth against ablations of the model.

    Args:
        model: The model that the truth is about.
        truth: The declared circuit.
        task: The task that the model does.
        count: Prompts that are drawn; those that a part matters for are taken from them.
        split: Split of the prompts. A method that is to find a part must be shown prompts that need it, and the
            discovery split of a task with few templates may lack them: verified there, such a truth is refused.
        seed: Seed of the draw.

    Returns:
        For each declared part (by its name) the accuracy without it; for each kind (``idle channel, zero``) the
        largest change of a logit when all of its idle units are removed, and likewise for blind ablations.

    Raises:
        MechintError: the model fails the task, a part can be removed and the answers stay right, or idle units
            matter; the first such contradiction is named.
    """
    prompts = task.sample(count, split, seed)
    clean, _ = margins(model, prompts)
    if not bool((clean > TIE).all()) or float(clean.min()) < truth.margin:
        raise MechintError(
            f"{model.source}: {float((clean > TIE).float().mean()):.1%} of the answers are right, the least margin is "
            f"{float(clean.min()):.3g}; declared are 100 % and a margin of {truth.margin:.3g}"
        )
    found: dict[str, float] = {}
    for part in truth.parts:
        affected = part.affects(prompts)
        rows = affected.any(1).nonzero().flatten()[:ROWS]
        if len(rows) == 0:
            raise MechintError(
                f"{model.source}: {part.name} is declared to matter for answers of which {count} {split} prompts "
                "have none; take more prompts, a task with more templates, or correct the declaration"
            )
        some = prompts[rows]
        margin, _ = margins(model, some, part.removal(model, some))
        found[part.name] = float((margin > TIE)[affected[rows]].float().mean())
        if found[part.name] > part.accuracy:
            raise MechintError(
                f"{model.source}: without {part.name} {found[part.name]:.1%} of the answers it is declared to matter "
                f"for are right, and at most {part.accuracy:.1%} may be; the declared truth is wrong"
            )
    found |= dict(check_together(model, truth, prompts))
    few = prompts[:ROWS]
    found |= {f"{part.name}, {name}": change for part, name, change in blind_changes(model, truth, few)}
    _, reference = margins(model, few)
    for name, edits in idle_removals(model, truth, few):
        _, logits = margins(model, few, edits)
        found[f"idle {name}"] = float((logits - reference).abs().max())
        if found[f"idle {name}"] > truth.tolerance:
            raise MechintError(
                f"{model.source}: removing what is declared idle ({name}) changes a logit by "
                f"{found[f'idle {name}']:.3g}, and at most {truth.tolerance:.3g} is declared; the declared truth is "
                "wrong"
            )
    return found


def blind_changes(model: Model, truth: GroundTruth, prompts: Prompts) -> Iterator[tuple[Part, str, float]]:
    """For each unit and each ablation that is declared blind to it, how much a logit changes.

    Raises:
        MechintError: it changes by more than the tolerance.
    """
    _, reference = margins(model, prompts)
    donors = {"mean": prompts.tokens.roll(1, 0), "resample": prompts.tokens.roll(1, 0), "counterfactual": prompts.twins}
    taken: dict[tuple[str, str], dict[str, Any]] = {}
    for part in truth.parts:
        for name in part.blind:
            if name in STEPS:
                edits = [step_taken(model, part, name, prompts)]
            else:
                units = Units(model, model.unit_kinds[part.kind])
                if (part.kind, name) not in taken:
                    other = donors[name]
                    assert other is not None  # every task that is compiled has twins
                    with torch.no_grad():
                        values = run(model, other, record=units.sites).values
                    taken[part.kind, name] = {s: v.mean(0) if name == "mean" else v for s, v in values.items()}
                edits = units.dropping(part.number(units), taken[part.kind, name])
            change = float((margins(model, prompts, edits)[1] - reference).abs().max())
            if change > truth.tolerance:
                raise MechintError(
                    f"{model.source}: {part.name} is declared the same under {name}, which changes a logit by "
                    f"{change:.3g}, more than {truth.tolerance:.3g}; the declared truth is wrong"
                )
            yield part, name, change


def step_taken(model: Model, part: Part, ablation: str, prompts: Prompts) -> Edit:
    """A channel's step Δ alone, held at zero or at its mean over prompts and tokens."""
    site, value = f"layers.{part.layer}.dt", torch.zeros(len(part.unit))
    if ablation == "step_mean":
        with torch.no_grad():
            value = run(model, prompts.tokens, record=[site])[site][..., list(part.unit)].mean((0, 1))
    return Edit(site, "replace", value, units=part.unit)


def idle_removals(model: Model, truth: GroundTruth, prompts: Prompts) -> Iterator[tuple[str, list[Edit]]]:
    """For each declared kind, its name and the edits that remove every unit of it that is not declared."""
    for kind, unit_kind in model.unit_kinds.items():
        if kind not in truth.idle and all(part.kind != kind for part in truth.parts):
            continue
        units, mask = Units(model, unit_kind), truth.mask(model, kind)
        yield f"{kind}, zero", units.edits(mask, dict.fromkeys(units.sites, 0.0))
        if kind not in ("mode", "ssm_mode", "path"):
            with torch.no_grad():
                values = run(model, prompts.tokens.roll(1, 0), record=units.sites).values
            yield f"{kind}, resample", units.edits(mask, dict(values))
    for layer in range(model.config.n_layer if truth.units("tap") else 0):
        taps = torch.ones(model.config.d_inner, model.config.d_conv)
        for e, back in [unit for at, unit in truth.units("tap") if at == layer]:
            taps[e, back] = 0
        yield f"tap, layer {layer}", [remove_taps(model, layer, taps, prompts)]
    by_place: dict[tuple[str, int, tuple[int, ...]], list[Part]] = {}
    for part in truth.parts:
        if part.kind in POSITIONS and part.enough:
            by_place.setdefault((part.kind, part.layer, part.unit), []).append(part)
    for (kind, layer, _), parts in by_place.items():
        there = [part.where.of(prompts) for part in parts if part.where is not None]
        yield f"{kind}, layer {layer}", [only_at(model, parts[0], torch.stack(there).any(0))]
