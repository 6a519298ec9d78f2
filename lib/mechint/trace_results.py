"""From the effects of every prompt to the numbers of a trace: means by role of the token, intervals, p-values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .statistics import LEVEL, Array, ClusterBootstrap, Number, certain, max_t, said
from .trace_plan import Panel


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
    interval = f"one {bootstrap.single}: no interval" if bootstrap.single else "95 % bootstrap over templates"
    directions: dict[str, Any] = {}
    strongest: list[dict[str, Any]] = []
    for direction, kinds in plan.items():
        parts = [
            role_means(part[direction].numpy(), role.numpy(), there) for part, role in zip(found, roles, strict=True)
        ]
        means = np.concatenate(parts)[right]  # [prompt, panel, layer, role]
        kept[f"means.{direction}"] = means
        present = ~np.isnan(means)
        point, low, high = ratio(bootstrap, means, present, total if shares else None)
        p = adjusted(means, bootstrap, draws, seed)
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
    share = {"unit": "share of the total effect" if shares else "metric", "interval": interval}
    section = {**share, "roles": list(names), "directions": directions, "strongest": strongest}
    return section, notes, {name: torch.from_numpy(value) for name, value in kept.items()}


def ratio(
    bootstrap: ClusterBootstrap, means: Array, present: NDArray[np.bool_], total: Array | None
) -> tuple[Array, Array, Array]:
    """Mean effect over the prompts that have the cell, divided by the mean total effect of the same prompts.

    ``means`` and ``present`` [prompt, panel, layer, role], ``total`` [prompt] or None for a division by 1; each of
    the results is [panel, layer, role], NaN where no prompt has the cell, and edges
    are where the prompts of one cluster alone do.
    """
    weight = np.ones(len(means)) if total is None else total
    upper = bootstrap.means(np.nan_to_num(means))
    lower = bootstrap.means(present * weight[:, None, None, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        point, drawn = (up / down for up, down in zip(upper, lower, strict=True))
    drawn = np.where(np.isfinite(drawn), drawn, np.nan)
    edges = np.full((2, *point.shape[1:]), np.nan)
    several = (bootstrap.having(present) > 1) & np.isfinite(drawn).any(0)
    edges[:, several] = np.nanquantile(drawn[:, several], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    point = np.where(present.any(0), point[0], np.nan)
    return point, np.minimum(edges[0], point), np.maximum(edges[1], point)


def adjusted(means: Array, bootstrap: ClusterBootstrap, draws: int, seed: int) -> Array:
    """:func:`max_t`, with NaN for what one cluster alone has: it can be tested as little as it has an interval."""
    several = bootstrap.having(~np.isnan(means)) > 1
    return np.where(several, max_t(means, bootstrap.cluster, draws, seed), np.nan)


def few_notes(templates: NDArray[np.integer[Any]], done: str) -> list[str]:
    """What so few subjects or templates can't say."""
    few = len(set(templates.tolist()))
    if len(templates) == 1:
        return [f"One prompt was {done}: no interval and no p-value, and nothing about other prompts"]
    if few == 1:
        return [f"Prompts of one subject or template were {done}: no interval and no p-value"]
    if few < 8:
        return [
            f"Only {few} different subjects or templates were {done}: the intervals and p-values say little about "
            f"other prompts"
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
