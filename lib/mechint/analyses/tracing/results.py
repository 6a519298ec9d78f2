"""Summarises the effects of every prompt into a trace: means by role of the token, intervals, p-values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...utils.statistics import Array, ClusterBootstrap, Number, certain, said
from ..effect_tables import correlation, plain, ratio, shareless, table
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
    templates: NDArray[np.int64],
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
            f"The corruption does not certainly lower the metric: the total effect is "
            f"{said(metrics['total_effect'], '.3g')}. "
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
        notes += [f"{direction}: {note}" for note in shareless(present, point)]
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
