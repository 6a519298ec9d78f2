"""Turns readings and contributions of every prompt into results: means with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...utils.statistics import Array, ClusterBootstrap, Number, exact
from ..random_weights import Quantities, quantity
from .contributions import Contributions
from .reading import MEASURES, depth

COMPARED = ("logprob", "rank", "kl")
"""Measures that are compared with models of shuffled weights."""
SHOWN = {"logit": "logit lens", "tuned": "tuned lens"}


def layer_of(site: str) -> int:
    return int(site.split(".")[1])


def number_of(bootstrap: ClusterBootstrap, measure: str, values: Array) -> Number:
    """The mean of a measure over prompts; the rank's is geometric, and shares have an interval of their own kind."""
    if measure == "right":
        return bootstrap.share(values)
    if measure == "rank":
        return bootstrap.interval(np.exp, values, within=(1.0, math.inf))
    ends = {"probability": (0.0, 1.0), "logprob": (-math.inf, 0.0), "kl": (0.0, math.inf)}[measure]
    return bootstrap.interval(lambda mean: mean, np.clip(values, *ends), within=ends)


def readings(bootstrap: ClusterBootstrap, found: Mapping[str, Array], sites: Sequence[str]) -> list[dict[str, Any]]:
    """Every measure of every lens at every site that it reads, from [prompt, site, measure]."""
    return [
        {
            "name": SHOWN[lens],
            "site": site.rpartition(".")[2],
            "layer": layer_of(site),
            "depth": depth(sites, site),
            **{m: number_of(bootstrap, m, values[:, k, j]) for j, m in enumerate(MEASURES)},
        }
        for lens, values in found.items()
        for k, site in enumerate(sites)
        if not np.isnan(values[:, k]).any()
    ]


def contributed(bootstrap: ClusterBootstrap, found: Contributions) -> list[dict[str, Any]]:
    """The mean contribution of every part."""
    rows = []
    for k, name in enumerate(found.parts):
        where = {"site": name.rpartition(".")[2], "layer": layer_of(name)} if name.startswith("layers.") else {}
        value = bootstrap.interval(lambda mean: mean, found.values[:, k].numpy())
        rows.append({"name": name, **where, "contribution": value})
    return rows


def decided(right: Array, depths: Sequence[float]) -> Array:
    """The layers behind which the likeliest token stays the answer, of each prompt; NaN where it is not at the end.

    Args:
        right: Share of right answers, [prompt, site].
        depths: The layers below each site.
    """
    stays = np.logical_and.accumulate(right[:, ::-1] == 1, axis=1)[:, ::-1]
    return np.where(stays[:, -1], np.asarray(depths)[stays.argmax(1)], np.nan)


def decision(bootstrap: ClusterBootstrap, layers: Array, most: float) -> Number | None:
    """The mean of :func:`decided` over the answered prompts, of at most ``most`` layers; None where no prompt is
    answered."""
    there = ~np.isnan(layers)
    if not there.any():
        return None
    share = lambda values, answered: np.divide(values, answered, out=np.full_like(values, np.nan), where=answered > 0)
    found = bootstrap.interval(share, np.where(there, layers, 0.0), there.astype(np.float64), within=(0.0, most))
    return {**found, "n": int(there.sum())}


def improvement(bootstrap: ClusterBootstrap, found: Mapping[str, Array], sites: Sequence[str]) -> list[dict[str, Any]]:
    """KL at all positions of held-out prompts by both lenses, and how much less the tuned lens has, by site."""
    rows = []
    for k, site in enumerate(sites[:-1]):
        logit, tuned = (found[lens][:, k] for lens in ("logit", "tuned"))
        if np.isnan(tuned).any():
            continue
        of = lambda values: bootstrap.interval(lambda mean: mean, values)
        place = {"site": site.rpartition(".")[2], "layer": layer_of(site)}
        rows.append({**place, "logit_lens": of(logit), "tuned_lens": of(tuned), "saved": of(logit - tuned)})
    return rows


def metrics_of(bootstrap: ClusterBootstrap, logit: Array, sites: Sequence[str], total: Array) -> dict[str, Number]:
    """The main numbers: accuracy and log-probability at the end, the layer of the decision, and the quantity that the
    contributions add up to."""
    by = lambda measure: logit[:, :, MEASURES.index(measure)]
    found = {
        "prompts_used": exact(len(logit)),
        "accuracy": bootstrap.share(by("right")[:, -1]),
        "logprob": number_of(bootstrap, "logprob", by("logprob")[:, -1]),
        "target": bootstrap.interval(lambda mean: mean, total),
    }
    depths = [depth(sites, site) for site in sites]
    layers = decision(bootstrap, decided(by("right"), depths), max(depths))
    return found if layers is None else {**found, "decided_at": layers}


def quantities(results: dict[str, Any]) -> Quantities:
    """The quantities that are compared with shuffled weights: what the logit lens reads, and all contributions."""
    read = [entry for entry in results["readings"] if entry["name"] == SHOWN["logit"]]
    last = read[-1]
    found = [
        quantity(measure, entry[measure], entry["site"], entry["layer"])
        for measure in COMPARED
        for entry in read
        if not (measure == "kl" and entry is last)
    ]
    return found + [
        quantity("contribution", entry["contribution"], entry.get("site", entry["name"]), entry.get("layer"))
        for entry in results["contributions"]
    ]
