"""Summarises steering into results: effects with intervals, and p beside other directions of the same length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...utils.multiple_tests import beside_draws, max_t_of
from ...utils.statistics import Array, ClusterBootstrap, Number, alone, number, spread, sureness

Stage = Mapping[str, Any]
"""The numbers of one site, as :mod:`.measure` gives them."""


@dataclass(frozen=True)
class Sides:
    """The prompts of both sides as they are.

    Attributes:
        lacking, having: The bootstrap over the templates of each side.
        lacks, has: The metric of its prompts, [prompt].
    """

    lacking: ClusterBootstrap
    having: ClusterBootstrap
    lacks: Array
    has: Array


def mean(bootstrap: ClusterBootstrap, values: Array) -> Number:
    return bootstrap.interval(lambda means: means, values)


def plain_p(p: float) -> float | None:
    return None if math.isnan(p) else float(p)


def named(site: str) -> dict[str, Any]:
    """The kind and the layer of a site; a site outside of layers has no layer."""
    layer = int(site.split(".")[1]) if site.startswith("layers.") else None
    return {"name": site, "site": site.rpartition(".")[2], "layer": layer}


def of_draws(values: Array) -> Number | None:
    """The middle of other directions' effects and the central 95 % of them; None without any."""
    return spread(values.tolist(), "directions of the same length") if len(values) else None


def of_rows(values: Array) -> Number:
    """The mean KL over rows of text, with an interval over the rows."""
    found = mean(ClusterBootstrap(list(range(len(values))), 1000, 0, "rows of text"), values)
    return {**found, "low": None if found["low"] is None else max(0.0, found["low"])}


def curves(found: Mapping[str, Stage], strengths: Sequence[float], sides: Sides) -> list[dict[str, Any]]:
    """The effect at every site and strength, beside other directions, and the side effects."""
    rows: list[dict[str, Any]] = []
    towards: list[float] = []
    beside: list[Array] = []
    for site, stage in found.items():
        others = stage["others"].numpy() - sides.lacks  # [draw, strength, prompt]
        for k, strength in enumerate(strengths):
            effect = stage["pushed"][k].numpy() - sides.lacks
            draws = others[:, k].mean(-1)
            towards.append(math.copysign(1.0, strength) * float(effect.mean()))
            beside.append(math.copysign(1.0, strength) * draws)
            row = {
                **named(site),
                "strength": strength,
                "effect": mean(sides.lacking, effect),
                "others": of_draws(draws),
            }
            if "kl" in stage:
                row |= {
                    "kl": of_rows(stage["kl"][k].numpy()),
                    "others_kl": of_draws(stage["others kl"][:, k].mean(-1).numpy()),
                }
            rows.append(row)
    p = beside_draws(np.array(towards), np.stack(beside, 1))
    return [{**row, "p": plain_p(chance)} for row, chance in zip(rows, p, strict=True)]


def projections(found: Mapping[str, Stage], sides: Sides) -> list[dict[str, Any]]:
    """The change of the metric where the direction is projected out of prompts with the property."""
    rows, against, beside = [], [], []
    for site, stage in found.items():
        effect = stage["removed"].numpy() - sides.has
        draws = (stage["others removed"].numpy() - sides.has).mean(-1)
        against.append(-float(effect.mean()))
        beside.append(-draws)
        rows.append({**named(site), "effect": mean(sides.having, effect), "others": of_draws(draws)})
    p = beside_draws(np.array(against), np.stack(beside, 1))
    return [{**row, "p": plain_p(chance)} for row, chance in zip(rows, p, strict=True)]


def directions(found: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """The length of each direction, and its share of the length of the values there."""
    return [
        {
            **named(site),
            "length": float(stage["length"]),
            "share": None if math.isnan(stage["size"]) else float(stage["length"]) / float(stage["size"]),
        }
        for site, stage in found.items()
    ]


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The surest push towards the property, of equals the one with the largest effect; of all if none is towards."""
    towards = [row for row in rows if row["strength"] > 0] or list(rows)
    key = lambda row: (sureness(row["p"], None)[0], -math.copysign(1.0, row["strength"]) * row["effect"]["value"])
    return min(towards, key=key)


def lasts(found: Mapping[int, Mapping[str, Any]], sides: Sides) -> list[dict[str, Any]]:
    """For each layer the effects of one push at each site, by the tokens between it and the answer."""
    rows: list[dict[str, Any]] = []
    differences: list[Array] = []
    for layer, one in found.items():
        if one["strengths"] is None:
            rows.append({"layer": layer, "strengths": None, "pushes": [], "difference": None})
            continue
        effects = {site: values.numpy() - sides.lacks for site, values in one["after"].items()}  # [k, prompt]
        pushes = [
            {
                "site": site, "layer": layer, "after": k,
                "effect": over_present(sides.lacking, effect[k]),
            }
            for site, effect in effects.items()
            for k in range(len(effect))
            if not np.isnan(effect[k]).all()
        ]  # fmt: skip
        state, stream = effects["state"], effects["resid_post"]
        later = state[1:] - stream[1:]
        there = ~np.isnan(later)
        each = np.divide(
            np.nan_to_num(later).sum(0), there.sum(0), out=np.full(later.shape[1], np.nan), where=there.any(0)
        )
        differences.append(each)
        rows.append({
            "layer": layer, "strengths": one["strengths"], "pushes": pushes,
            "difference": over_present(sides.lacking, each),
        })  # fmt: skip
    if not differences:
        return rows
    table = np.stack(differences, 1)
    there = ~np.isnan(table)
    tested = sides.lacking.tested(np.divide, np.nan_to_num(table), there.astype(np.float64), present=there)
    p = iter(max_t_of(sides.lacking, tested))
    return [
        row | {"p": plain_p(float(next(p)))} if row["difference"] is not None else row | {"p": None} for row in rows
    ]


def over_present(bootstrap: ClusterBootstrap, values: Array) -> Number:
    """The mean over the prompts that are long enough (the others are NaN), with its interval."""
    there = ~np.isnan(values)
    point, low, high = bootstrap.estimate(np.divide, np.nan_to_num(values), there.astype(np.float64), present=there)
    count = int(there.sum())
    if bootstrap.too_few or math.isnan(float(low)):
        return {**alone(float(point), count, ""), "interval": bootstrap.too_few or "too few prompts: no interval"}
    return number(float(point), float(low), float(high), count, bootstrap.kind)


def tensors_of(found: Mapping[str, Stage]) -> dict[str, Tensor]:
    """Every number of every prompt, for ``effects.pt``."""
    return {
        f"{site} {name}": value
        for site, stage in found.items()
        for name, value in stage.items()
        if isinstance(value, Tensor) and name != "vector"
    }
