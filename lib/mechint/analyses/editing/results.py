"""Summarises the scores of every edit: means over facts with intervals, controls, and correlations with tracing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.multiple_tests import holm, max_t_of
from ...utils.statistics import Array, ClusterBootstrap, Estimate, Number, alone, exact, number
from . import localisation
from .edits import CONTROLS
from .judge import MEASURES
from .maps import WeightMap

SHARES = ("efficacy", "accuracy", "paraphrase", "neighbourhood", "kept", "subject_kept")
"""Measures from 0 to 1 that are shares of prompts."""
DIFFERENCES = ("magnitude", "paraphrase_magnitude", "neighbourhood_magnitude", "gain", "paraphrase_gain")
"""Differences of two probabilities."""
RANGES = {
    "rewrite": (-math.inf, 1.0), "paraphrase_rewrite": (-math.inf, 1.0), "fluency": (0.0, math.inf),
    **dict.fromkeys(DIFFERENCES, (-1.0, 1.0)),
}  # fmt: skip
"""Ranges of the other measures."""
SCORE = ("efficacy", "paraphrase", "neighbourhood")
"""Measures whose harmonic mean is the score."""
CORRELATED = ("rewrite", "paraphrase_rewrite", "neighbourhood_magnitude")
"""Measures that are correlated with the effects of causal tracing."""
LEVELS = ("layers", "facts", "all")


def column(found: Array, measure: str) -> Array:
    """One measure of every fact, [fact]."""
    return np.asarray(found[:, MEASURES.index(measure)])


def ratio(values: Array, there: Array) -> Array:
    """Means over the facts that have a measure, from means over all."""
    return np.divide(values, there, out=np.full_like(values, np.nan), where=there > 0)


def mean_of(bootstrap: ClusterBootstrap, measure: str, values: Array) -> Number | None:
    """The mean over the facts that have the measure; None where none has it."""
    there = ~np.isnan(values)
    if not there.any():
        return None
    if measure in SHARES:
        return (bootstrap if there.all() else some(bootstrap, there)).share(values[there])
    within = RANGES.get(measure, (-math.inf, math.inf))
    if there.all():
        return bootstrap.interval(lambda mean: mean, values, within=within)
    found = bootstrap.interval(ratio, np.nan_to_num(values), there.astype(np.float64), within=within)
    return {**found, "n": int(there.sum())}


def harmonic(*shares: Array) -> Array:
    """The harmonic mean; 0 where one of them is 0."""
    below = sum(np.divide(1.0, share, out=np.full_like(share, np.inf), where=share > 0) for share in shares)
    return np.asarray(len(shares) / below)


def score_of(bootstrap: ClusterBootstrap, found: Array) -> Number | None:
    """The harmonic mean of efficacy, paraphrase and neighbourhood score; None where facts lack one of them."""
    parts, columns = [], [column(found, measure) for measure in SCORE]
    for values in columns:
        there = ~np.isnan(values)
        if not there.any():
            return None
        parts += [np.nan_to_num(values), there.astype(np.float64)]

    def statistic(*means: Array) -> Array:
        return harmonic(*(np.clip(ratio(means[k], means[k + 1]), 0, 1) for k in range(0, len(means), 2)))

    return bootstrap.interval(statistic, *parts, within=(0.0, 1.0))


def summarised(bootstrap: ClusterBootstrap, found: Array) -> dict[str, Number]:
    """Every measure that facts have, and the score."""
    numbers = {measure: mean_of(bootstrap, measure, column(found, measure)) for measure in MEASURES}
    return {
        name: value for name, value in {"score": score_of(bootstrap, found), **numbers}.items() if value is not None
    }


def cells(bootstrap: ClusterBootstrap, found: Mapping[WeightMap, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An entry for each map of each layer: its measures, its controls, and how far the rewrite is above these.

    The difference from a control is paired over facts; its p is adjusted for all maps and layers.
    """
    entries: list[dict[str, Any]] = []
    above = {name: adjusted(bootstrap, found, name) for name in CONTROLS}
    for one, part in found.items():
        controls = []
        for name in CONTROLS:
            if name in part:
                controls.append(
                    {
                        "name": f"{one.name}, {name}",
                        "control": name,
                        "above": above[name][one],
                        **summarised(bootstrap, part[name].numpy()),
                    }
                )
        plain = lambda values, most: bootstrap.interval(lambda mean: mean, values.numpy(), within=(0.0, most))
        entries.append(
            {"name": one.name, "layer": one.layer, "site": one.site.rpartition(".")[2],
             **summarised(bootstrap, part["edit"].numpy()), "chance": plain(part["chance"], 1.0),
             "size": plain(part["size"], math.inf), "controls": controls}
        )  # fmt: skip
    return entries


def adjusted(
    bootstrap: ClusterBootstrap, found: Mapping[WeightMap, Mapping[str, Any]], control: str
) -> dict[WeightMap, Number]:
    """The rewrite score less a control's, with p adjusted for all maps and layers that have it."""
    there = [one for one, part in found.items() if control in part]
    if not there:
        return {}
    apart = [
        column(found[one]["edit"].numpy(), "rewrite") - column(found[one][control].numpy(), "rewrite") for one in there
    ]
    tested = bootstrap.tested(lambda mean: mean, np.stack(apart, 1))
    p = max_t_of(bootstrap, tested)
    return {one: {**estimated(bootstrap, tested, k), "p": plain_p(p[k])} for k, one in enumerate(there)}


def estimated(bootstrap: ClusterBootstrap, found: Estimate, at: Any = ()) -> Number:
    """One cell of an estimate as a number."""
    value, low, high = (float(part[at]) for part in (found.value, found.low, found.high))
    n = bootstrap.n
    if math.isnan(low):
        return {**alone(value, n, ""), "interval": bootstrap.too_few or "no number without some facts: no interval"}
    return number(value, low, high, n, bootstrap.kind)


def plain_p(p: float) -> float | None:
    return None if math.isnan(p) else float(p)


def best_cell(entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The map and layer with the best score, or the best rewrite score where facts have none."""
    key = lambda entry: (entry.get("score", entry["rewrite"])["value"], entry["rewrite"]["value"])
    return max(entries, key=key)


def metrics_of(
    bootstrap: ClusterBootstrap, every: ClusterBootstrap, right: Array, entries: Sequence[Mapping[str, Any]]
) -> dict[str, Number]:
    """The main numbers: accuracy of the pool, facts that were edited, and the measures of the best cell."""
    best = best_cell(entries)
    kept = {name: best[name] for name in ("score", *SCORE, "rewrite", "kept") if name in best}
    return {
        "accuracy_full": every.share(right), "facts_edited": exact(bootstrap.n),
        **{f"best_{name}": value for name, value in kept.items()},
    }  # fmt: skip


# ---- beside causal tracing ---------------------------------------------------------------------------------------


def traced(bootstrap: ClusterBootstrap, effects: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The mean effect of each kind of site in each layer that has it."""
    return [
        {"site": kind, "layer": layer, "effect": bootstrap.interval(lambda mean: mean, values[:, layer])}
        for kind, values in effects.items()
        for layer in range(values.shape[1])
        if not np.isnan(values[:, layer]).any()
    ]


def correlations(
    bootstrap: ClusterBootstrap, found: Mapping[WeightMap, Mapping[str, Any]], effects: Mapping[str, Array]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Correlations of tracing's effects with the measures of edits, and those within each layer.

    p-values are Holm's, over the correlations of the list.
    """
    rows: list[dict[str, Any]] = []
    within: list[dict[str, Any]] = []
    for name in dict.fromkeys(one.name for one in found):
        maps = [one for one in found if one.name == name]
        layers = [one.layer for one in maps]
        own = maps[0].site.rpartition(".")[2]
        for kind in dict.fromkeys((own, localisation.STREAM)):
            effect = effects[kind][:, layers]
            if np.isnan(effect).any():
                continue
            for measure in CORRELATED:
                score = np.stack([column(found[one]["edit"].numpy(), measure) for one in maps], 1)
                there = np.asarray(~np.isnan(score).any(1))
                if not there.any():
                    continue
                own_bootstrap = bootstrap if there.all() else some(bootstrap, there)
                each, mean = localisation.facts_correlation(own_bootstrap, effect[there], score[there])
                made = {"facts": mean}
                if len(maps) >= localisation.FEWEST_LAYERS:
                    made["layers"] = localisation.layers_correlation(own_bootstrap, effect[there], score[there])
                made |= {
                    "all": localisation.all_correlation(own_bootstrap, effect[there], score[there]),
                }
                place = {"name": name, "site": kind, "measure": measure}
                rows += [
                    {**place, "over": level, "correlation": correlated(own_bootstrap, made[level])}
                    for level in LEVELS
                    if level in made and not math.isnan(float(made[level].value))
                ]  # fmt: skip
                within += [
                    {**place, "layer": layer, "correlation": correlated(own_bootstrap, each, k)}
                    for k, layer in enumerate(layers)
                    if not math.isnan(float(each.value[k]))
                ]  # fmt: skip
    for entries in (rows, within):
        known = [entry["correlation"] for entry in entries if entry["correlation"]["p"] is not None]
        for found_p, p in zip(known, holm([one["p"] for one in known]), strict=True):
            found_p["p"] = p
    return rows, within


def some(bootstrap: ClusterBootstrap, there: NDArray[np.bool_]) -> ClusterBootstrap:
    """A bootstrap of the same kind over some of the facts."""
    return ClusterBootstrap(bootstrap.cluster[there], len(bootstrap.weights), 0, bootstrap.over)


def correlated(bootstrap: ClusterBootstrap, found: Estimate, at: Any = ()) -> Number:
    """A correlation with its p; the interval can't leave −1 … 1."""
    one = {**estimated(bootstrap, found, at), "p": plain_p(float(found.p[at]))}
    if one["low"] is None:
        return one
    return {**one, "low": max(one["low"], -1.0), "high": min(one["high"], 1.0)}
