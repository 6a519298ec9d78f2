"""From the effects of every prompt to the numbers of a trace: means by role of the token, intervals, p-values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...utils.statistics import (
    FEW,
    FEWEST,
    FEWEST_TESTED,
    ROOM,
    Array,
    ClusterBootstrap,
    Number,
    certain,
    effective,
    joined,
    said,
)
from ...utils.step_down import adjusted
from .panels import Panel


def role_means(effects: Array, roles: Array, wanted: list[int]) -> Array:
    """Mean over the tokens of each wanted role: [panel, layer, position, prompt], [prompt, position] -> [prompt, panel,
    layer, role]; NaN where a prompt has no token of that role."""
    member = (roles[:, :, None] == np.array(wanted)).astype(np.float64)  # [prompt, position, role]
    tokens = member.sum(1)  # [prompt, role]
    sums = np.einsum("klpn,npr->nklr", effects, member)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / np.where(tokens == 0, np.nan, tokens)[:, None, None, :])


def numbers(
    found: list[dict[str, Tensor]],
    roles: list[Tensor],
    names: tuple[str, ...],
    plan: dict[str, list[Panel]],
    right: Array,
    templates: Array,
    draws: int,
    seed: int,
    metrics: dict[str, Number],
) -> tuple[dict[str, Any], list[str], dict[str, Tensor]]:
    """The section ``trace`` of results.json, notes, and what comparisons need; the ends go into ``metrics``.

    The last holds ``answered`` and ``templates`` of all prompts and, of the answered ones, ``total`` and for each
    direction ``means.…`` [prompt, panel, layer, role].

    Effects are shares of the total effect (clean less corrupted), unless that may be nothing: then they stay in the
    metric's own units, and a note says so.
    """
    bootstrap = ClusterBootstrap(templates[right], draws, seed)
    ends = {name: np.concatenate([part[name].numpy() for part in found])[right] for name in ("clean", "corrupted")}
    for name, values in ends.items():
        metrics[name] = bootstrap.interval(lambda mean: mean, values)
    total = ends["clean"] - ends["corrupted"]
    metrics["total_effect"] = bootstrap.interval(lambda mean: mean, total)
    there = [k for k in range(len(names)) if any(bool((role == k).any()) for role in roles)]
    names = tuple(names[k] for k in there)
    notes, shares = [], certain(metrics["total_effect"])
    if not shares:
        notes.append(
            f"The corruption does not hurt for certain: the total effect is {said(metrics['total_effect'], '.3g')}. "
            f"Effects are therefore not given as shares of it; choose another corruption or more prompts"
        )
    kept = {"answered": right, "templates": templates, "total": total}
    directions: dict[str, Any] = {}
    strongest: list[dict[str, Any]] = []
    for direction, kinds in plan.items():
        parts = [
            role_means(part[direction].numpy(), role.numpy(), there) for part, role in zip(found, roles, strict=True)
        ]
        means = np.concatenate(parts)[right]  # [prompt, panel, layer, role]
        kept[f"means.{direction}"] = means
        present = ~np.isnan(means)
        point, low, high, p = ratio(bootstrap, means, present, total if shares else None)
        count = present.sum(0)
        agreement = correlation(found, direction, right)
        directions[direction] = {
            "panels": [
                {
                    "name": panel.name,
                    "kind": panel.kind,
                    "sever": panel.sever,
                    "attribution_correlation": agreement[k],
                    **{
                        name: table(values[k])
                        for name, values in (("value", point), ("low", low), ("high", high), ("p", p), ("n", count))
                    },
                }
                for k, panel in enumerate(kinds)
            ]
        }
        for k, panel in enumerate(kinds):
            size = np.where(np.isnan(point[k]), -np.inf, np.abs(point[k]))
            if panel.kind == "resid_post" and len(size) > 1:
                size[-1] = -np.inf  # the last residual at the last token is the whole effect, by definition
            layer, role = np.unravel_index(int(size.argmax()), size.shape)
            at = (k, layer, role)
            strongest.append(
                {
                    "direction": direction, "panel": panel.name, "layer": int(layer), "role": names[role],
                    "value": plain(point[at]), "low": plain(low[at]), "high": plain(high[at]), "p": plain(p[at]),
                    "n": int(count[at]),
                }
            )  # fmt: skip
    share = {"unit": "share of the total effect" if shares else "metric", "interval": bootstrap.kind}
    section = {**share, "roles": list(names), "directions": directions, "strongest": strongest}
    return section, notes, {name: torch.from_numpy(value) for name, value in kept.items()}


def ratio(
    bootstrap: ClusterBootstrap, means: Array, present: NDArray[np.bool_], total: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Mean effect over the prompts that have the cell, divided by the mean total effect of the same prompts.

    ``means`` and ``present`` [prompt, panel, layer, role], ``total`` [prompt] or None for a division by 1. Returns the
    ratios, both edges of their intervals and their p-values, adjusted for all cells (:mod:`.utils.step_down`); each
    [panel, layer, role], NaN where no prompt has the cell, and all but the ratio where too few clusters do.
    """
    weight = np.ones(len(means)) if total is None else total
    flat, there = np.nan_to_num(means).reshape(len(means), -1), present.reshape(len(means), -1)
    parts = []
    step = max(1, ROOM // len(bootstrap.weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, flat.shape[1], step):
            here = slice(start, start + step)
            below = there[:, here] * weight[:, None]
            parts.append(bootstrap.tested(np.divide, flat[:, here], below, present=there[:, here]))
    found = joined(parts)
    shape = means.shape[1:]
    value = np.where(there.any(0), found.value, np.nan)
    edges = (value, found.low, found.high, adjusted(bootstrap, found))
    point, low, high, p = (side.reshape(shape) for side in edges)
    return point, low, high, p


def few_notes(templates: NDArray[np.integer[Any]], done: str) -> list[str]:
    """What so few subjects or templates can't say."""
    few = len(set(templates.tolist()))
    if len(templates) == 1:
        return [f"One prompt was {done}: no interval and no p-value, and nothing about other prompts"]
    if few == 1:
        return [f"Prompts of one subject or template were {done}: no interval and no p-value"]
    if few < FEWEST:
        return [
            f"Prompts of {few} different subjects or templates were {done}: no interval (it takes {FEWEST}) and no "
            f"p-value (it takes {FEWEST_TESTED})"
        ]
    sizes = np.unique(templates, return_counts=True)[1].astype(np.float64)
    if float(effective(sizes)) < FEW:
        untested = f", and there is no p-value (it takes {FEWEST_TESTED})" if few < FEWEST_TESTED else ""
        apart = (
            "" if float(effective(sizes)) > 0.95 * few else f", which say as much as {effective(sizes):.1f} of one size"
        )
        return [
            f"Only {few} different subjects or templates were {done}{apart}: intervals are wide and hold the truth in "
            f"fewer than 95 % of samples where effects are skewed{untested}"
        ]
    return []


def correlation(found: list[dict[str, Tensor]], direction: str, right: Array) -> list[float | None]:
    """Pearson correlation of attribution patching's estimate with the exact effect, for each panel."""
    if f"{direction} estimates" not in found[0]:
        return [None] * len(found[0][direction])
    pairs = []
    for part in found:
        answered = part["right"].numpy()
        exact, guess = (part[name].numpy()[..., answered] for name in (direction, f"{direction} estimates"))
        pairs.append((exact.reshape(len(exact), -1), guess.reshape(len(guess), -1)))
    exact, guess = (np.concatenate(side, 1) for side in zip(*pairs, strict=True))
    values: list[float | None] = []
    for a, b in zip(exact, guess, strict=True):
        defined = np.isfinite(b).all() and a.std() > 0 and b.std() > 0
        values.append(float(np.corrcoef(a, b)[0, 1]) if defined else None)
    return values


def table(values: Array) -> list[list[float | int | None]]:
    """[layer, role] as JSON; None for what no prompt has, and for intervals and p-values of what one alone has."""
    return [[None if np.isnan(value) else value for value in row] for row in values.tolist()]


def plain(value: Any) -> Any:
    """A number as JSON has it."""
    return None if np.isnan(value) else float(value)
