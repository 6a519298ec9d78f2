"""Turns the readings of every prompt into results: means with intervals, and p-values adjusted for all readings."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ...utils.multiple_tests import ABOVE, max_t_of
from ...utils.statistics import Array, ClusterBootstrap, Number, sureness
from ..lens.results import layer_of
from ..random_weights import Quantities, quantity
from .reading import MEASURES, Place

COMPARED = ("right", "surprisal")
"""Measures that are compared with models of shuffled weights."""


def number_of(bootstrap: ClusterBootstrap, measure: str, values: Array) -> Number:
    """The mean of a measure over prompts; the rank's is geometric, and a share's interval is of its own kind."""
    if measure == "right":
        return bootstrap.share(values)
    if measure == "rank":
        return bootstrap.interval(np.exp, values, within=(1.0, math.inf))
    return bootstrap.interval(lambda mean: mean, values, within=(0.0, math.inf))


def named(site: str, into: str) -> str:
    """``layer 3 resid_post``, and where it is put into another layer ``layer 3 resid_post into layer 1``."""
    kind = site.rpartition(".")[2]
    there = "" if site == into else f" into layer {layer_of(into)}"
    return f"layer {layer_of(site)} {kind}{there}"


def readings(
    bootstrap: ClusterBootstrap, places: Sequence[Place], found: Mapping[str, Mapping[str, Tensor]],
    trivial: Collection[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """An entry for each site and layer that it is put into.

    Args:
        found: For each site what :meth:`.analyzer.Scope.of_place` gives.
        trivial: Sites where a reading is the logit lens of the source and nothing else.
    """
    rows, gains = [], []
    for place in places:
        stage = {name: value.numpy() for name, value in found[place.site].items()}
        for k, into in enumerate(place.into):
            own = stage["own"][k]
            others = stage["others"][:, k] if "others" in stage else None
            row = {
                "name": named(place.site, into), "site": place.kind, "layer": layer_of(place.site),
                "into": layer_of(into), "trivial": into in trivial,
            }  # fmt: skip
            row |= {name: number_of(bootstrap, name, own[:, j]) for j, name in enumerate(MEASURES)}
            for j, name in enumerate(MEASURES[:2]):
                value = None if others is None else number_of(bootstrap, name, others[..., j].mean(0))
                row[f"others_{name}"] = value
                row[f"lens_{name}"] = number_of(bootstrap, name, stage["lens"][:, j]) if "lens" in stage else None
            row["gain"] = None
            if others is not None:
                row["gain"] = bootstrap.interval(lambda mean: mean, others[..., 1].mean(0) - own[:, 1])
            row["mentioned"] = bootstrap.share(stage["mentions"][k]) if "mentions" in stage else None
            row["p"] = None
            rows.append(row)
            if others is not None and into not in trivial:
                gains.append((row, (others[..., 1].mean(0) - own[:, 1])))
    if gains and not bootstrap.too_few:
        tested = bootstrap.tested(lambda mean: mean, np.stack([values for _, values in gains], 1))
        for (row, _), p in zip(gains, max_t_of(bootstrap, tested, ABOVE), strict=True):
            row["p"] = None if math.isnan(p) else float(p)
    return rows


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The surest reading that is not trivial, then the one with the largest gain; None where all are trivial."""
    left = [row for row in rows if not row["trivial"]]
    size = lambda row: -row["surprisal"]["value"] if row["gain"] is None else row["gain"]["value"]
    return min(left, key=lambda row: (sureness(row["p"], None)[0], -size(row)), default=None)


def quantities(results: dict[str, Any]) -> Quantities:
    """The quantities that are compared with shuffled weights."""
    return [
        quantity(measure if row["layer"] == row["into"] else f"{measure} in layer {row['into']}", row[measure],
                 row["site"], row["layer"])
        for measure in COMPARED
        for row in results["readings"]
        if not row["trivial"]
    ]  # fmt: skip
