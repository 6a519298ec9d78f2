"""Summarises the measurements of every prompt into the results of an analysis of units."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...utils.statistics import LEVEL, Array, ClusterBootstrap, Number, exact, jaccard, number, rank_correlation
from ..circuits.methods.attention import CONTROL
from ..circuits.methods.delta import RANKINGS
from ..metrics import faithfulness
from ..patching.results import NAMES, Finished, strongest, units
from ..random_weights import Quantities, quantity
from ..sparsity.measures import gini
from ..unit_groups import Parts
from .deletion_curves import SHARES, areas
from .tokens import TERMS

EDGES = 24
"""Strongest effects of a unit on a unit of a later layer in the results."""


@dataclass(frozen=True)
class Found:
    """The measurements of all batches, whose last axis is the prompt, and the settings that they were made with."""

    batches: list[dict[str, Tensor]]
    parts: list[Parts]
    layers: list[int]
    ranked: list[int]
    """Those of the layers that have units of the main site."""
    deltas: list[str]
    orders: dict[str, Tensor]
    top: dict[int, list[int]]
    main: str
    family: str
    templates: NDArray[np.int64]
    draws: int
    seed: int
    top_k: int
    random: int
    depth: int
    steps: dict[str, list[int]]

    @functools.cached_property
    def bootstrap(self) -> ClusterBootstrap:
        return ClusterBootstrap(self.templates, self.draws, self.seed)

    def of(self, name: str) -> Array:
        """An entry of all batches with the prompt first, [prompt, …]."""
        return np.moveaxis(np.concatenate([batch[name].numpy() for batch in self.batches], -1), -1, 0)

    def has(self, name: str) -> bool:
        return name in self.batches[0]


def numbers(done: Found, circuits: dict[str, Any]) -> dict[str, Any]:
    """The sections of results.json."""
    finished = Finished(
        found=done.batches, names=(), pairs=[], paths=[], present=[], parts=done.parts, templates=done.templates,
        twins=False, means=False, draws=done.draws, seed=done.seed,
    )  # fmt: skip
    single = units(finished, None)
    for entry in single:
        entry["axis"] = {"model": "entry"}.get(entry["axis"], entry["axis"])  # of the residual stream
        for direction in NAMES:
            entry[direction]["profile"] = profile(done, f"{direction} {entry['name']}")
    metrics: dict[str, Number] = {
        "prompts_used": exact(done.bootstrap.n),
        "clean": done.bootstrap.interval(lambda mean: mean, done.of("clean")),
        "units_measured": exact(sum(len(parts.chosen) for parts in done.parts)),
    }
    notes: list[str] = []
    whole = circuit_numbers(done, circuits, metrics, notes)
    return {
        "scale": "metric",
        "flow": None,
        "metrics": metrics,
        "units": single,
        "strongest": strongest({"flow": None, "units": single})["units"],
        "circuit": {"site": done.main, "layers": done.ranked, "per_layer": done.top_k, "units": list(done.top.values()),
                    **whole},
        "delta": [delta(done, site) for site in done.deltas],
        "attention": [entry for layer in done.ranked for entry in attention(done, layer)] if done.orders else [],
        "tokens": shared_out(done),
        "across": across(done),
        "notes": notes,
    }  # fmt: skip


def circuit_numbers(
    done: Found, circuits: dict[str, Any], metrics: dict[str, Number], notes: list[str]
) -> dict[str, Any]:
    """Faithfulness and completeness of the top-k units, and random circuits of as many."""
    full, empty, top, without = (np.array(circuits[name]) for name in ("full", "empty", "top", "without"))
    effect = done.bootstrap.interval(lambda mean: mean, full - empty)
    metrics["effect_of_all_units"] = effect
    if float(effect["low"]) <= 0 <= float(effect["high"]):
        notes.append(
            f"Ablating all units at {done.main} changes the metric by {effect['value']:.3g} [{effect['low']:.3g}, "
            f"{effect['high']:.3g}], which may be nothing: there is no share of it to report"
        )
        return {"random": []}
    metrics["faithfulness_top_k"] = done.bootstrap.interval(faithfulness, top, full, empty)
    metrics["completeness_top_k"] = done.bootstrap.interval(
        lambda c, f, e: 1 - faithfulness(c, f, e), without, full, empty
    )
    random = [float(faithfulness(np.mean(values), full.mean(), empty.mean())) for values in circuits["random"]]
    low, middle, high = np.quantile(random, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    metrics["faithfulness_random"] = number(middle, low, high, len(random), "2.5 to 97.5 % over random circuits")
    return {"random": random}


def columns(bootstrap: ClusterBootstrap, statistic: Callable[..., Array], *values: Array) -> dict[str, Any]:
    """Columns of a table: a statistic of the means of each of ``values`` [prompt, …], with its edges; None for none."""
    point, low, high = bootstrap.estimate(statistic, *values)
    return {"value": point.tolist(), "low": as_json(low), "high": as_json(high)}


def as_json(edges: Array) -> list[Any]:
    """Converts the edges of intervals to JSON: NaN becomes None."""
    return np.where(np.isnan(edges), np.array(None), edges.astype(object)).tolist()


def same(means: Array) -> Array:
    return means


def delta(done: Found, site: str) -> dict[str, Any]:
    """The four rankings of one layer's channels, with intervals, their correlations and the overlap of their top-k."""
    found: dict[str, Any] = {}
    for name in ("gradient", "do_mean"):
        found[name] = columns(done.bootstrap, same, done.of(f"{site} {name}"))
    for name, prefix in (("variance", site), ("output_variance", f"{site} output")):
        moments = (done.of(f"{prefix} {p}") for p in ("mean", "square"))
        found[name] = columns(done.bootstrap, lambda first, second: second - first**2, *moments)
    size = {name: np.abs(found[name]["value"]) for name in RANKINGS}
    top = {name: set(np.argsort(-value, kind="stable")[: done.top_k].tolist()) for name, value in size.items()}
    return {
        "layer": int(site.split(".")[1]),
        "site": "dt",
        "n": done.bootstrap.n,
        "rankings": found,
        "profile": {name: profile(done, f"{site} {name}") for name in ("gradient", "do_mean")},
        "tokens": tokens(done, site),
        "top": {name: np.argsort(-value, kind="stable")[: done.top_k].tolist() for name, value in size.items()},
        "spearman": [[rank_correlation(size[a], size[b]) for b in RANKINGS] for a in RANKINGS],
        "jaccard": [[jaccard(top[a], top[b]) for b in RANKINGS] for a in RANKINGS],
    }


def tokens(done: Found, site: str) -> dict[str, Any]:
    """Summarises the effects of single tokens' Δ, [channel, token] each; the last token is -1."""
    found: dict[str, Any] = {"channels": done.steps[site]}
    for name in ("gradient", "do_mean", "step"):
        found[name] = columns(done.bootstrap, same, done.of(f"{site} token {name}"))
    found["tokens"] = list(range(-len(found["step"]["value"][0]), 0))
    return found


def profile(done: Found, name: str) -> dict[str, Number]:
    """Computes the mean size of the units' effects [unit, prompt], and the Gini index of the units' mean sizes."""
    size = np.abs(done.of(name))
    return {
        "size": done.bootstrap.interval(lambda mean: mean, size.mean(1), within=(0.0, np.inf)),
        "gini": done.bootstrap.interval(unequal, size, within=(0.0, 1.0)),
    }


def unequal(sizes: Array) -> Array:
    """The Gini index over the last axis."""
    return np.asarray(gini(torch.from_numpy(np.ascontiguousarray(sizes))))


def diversity(done: Found, name: str) -> Number | None:
    """Computes 1 - mean |correlation| over tokens of every two of a ranking's top units; None for one unit."""
    means, products = done.of(f"mean {name}"), done.of(f"product {name}")
    k = means.shape[1]
    if k < 2:
        return None
    upper = np.triu_indices(k, 1)

    def apart(mean: Array, product: Array) -> Array:
        covariance = product - mean[:, :, None] * mean[:, None, :]
        scale = np.sqrt(np.maximum(np.einsum("dee->de", covariance), 0))
        both = scale[:, :, None] * scale[:, None, :]
        correlation = np.divide(covariance, both, out=np.zeros_like(covariance), where=both > 0)
        return np.asarray(1 - np.abs(correlation[:, upper[0], upper[1]]).mean(1))

    return done.bootstrap.interval(apart, means, products)


def quantities(results: dict[str, Any]) -> Quantities:
    """Lists the quantities compared with shuffled weights: sizes and inequality of effects, and values of rankings."""
    metrics, main = results["metrics"], results["circuit"]["site"]
    found = [quantity(results["metric"], metrics["clean"])]
    for name in ("effect_of_all_units", "faithfulness_top_k", "completeness_top_k"):
        if name in metrics:
            found.append(quantity(name, metrics[name], main))
    for kind in results["units"]:
        for direction in NAMES:
            for name, value in kind[direction]["profile"].items():
                found.append(quantity(f"{name} of effects, {direction}", value, kind["name"]))
    for entry in results["delta"]:
        for ranking, name in (("gradient", "gini"), ("do_mean", "size"), ("do_mean", "gini")):
            found.append(quantity(f"{name} of {ranking}", entry["profile"][ranking][name], "dt", entry["layer"]))
    for entry in results["attention"]:
        if entry["method"] != "random":
            found.append(quantity(f"{entry['method']} over random", entry["over_random"], main, entry["layer"]))
    for pair in results["across"]["pairs"] if results["across"] else ():
        found.append(quantity(f"effect on layer {pair['target']}", pair["patched"], main, pair["source"]))
    return found


def attention(done: Found, layer: int) -> list[dict[str, Any]]:
    """The deletion curves of one layer's rankings, and how far their areas are above the controls'."""
    site = f"layers.{layer}.{done.main}"
    mean = lambda values: values
    area = {name: done_areas(done, name) for name in done.orders if name.startswith(f"{site} ")}
    draws = np.stack([area[f"{site} random {k}"] for k in range(done.random)])  # [draw, prompt]
    random = draws.mean(0)
    control = area[f"{site} {CONTROL}"]
    entries = []
    for name, values in area.items():
        method = name.removeprefix(f"{site} ")
        if method.startswith("random"):
            continue
        entries.append(
            {
                "layer": layer,
                "site": done.main,
                "method": method,
                "top": done.orders[name][: done.top_k].tolist(),
                "mean_activation": done.bootstrap.interval(mean, done.of(f"size {name}").mean(1)),
                "diversity": diversity(done, name),
                "area": done.bootstrap.interval(mean, values),
                "over_random": done.bootstrap.over_baselines(values, draws, "random rankings"),
                "over_gradient_x_input": done.bootstrap.interval(mean, values - control),
                **curve_of(done, [name]),
            }
        )
    every = [f"{site} random {k}" for k in range(done.random)]
    spread = done.bootstrap.interval(mean, random)
    nothing = done.bootstrap.interval(mean, np.zeros_like(random))
    entries.append(
        {"layer": layer, "site": done.main, "method": "random", "top": [], "mean_activation": None,
         "diversity": None, "area": spread, "over_random": nothing,
         "over_gradient_x_input": done.bootstrap.interval(mean, random - control), **curve_of(done, every)}
    )  # fmt: skip
    return entries


def done_areas(done: Found, name: str) -> Array:
    """The area between the curves of a ranking, of each prompt."""
    return areas(torch.from_numpy(np.ascontiguousarray(np.moveaxis(done.of(f"curve {name}"), 0, -1)))).numpy()


def curve_of(done: Found, names: list[str]) -> dict[str, Any]:
    """Both curves, means over rankings where there are several."""
    values = np.mean([done.of(f"curve {name}") for name in names], 0)  # [prompt, 2, share]
    found: dict[str, Any] = {"shares": list(SHARES)}
    for k, name in enumerate(("morf", "lerf")):
        found[name] = [done.bootstrap.interval(lambda mean: mean, values[:, k, s]) for s in range(len(SHARES))]
    return found


def shared_out(done: Found) -> dict[str, Any] | None:
    """Summarises the token terms of the last answer's logit and of every block; None where they are not asked for."""
    if not done.has("relevance"):
        return None
    relevance = columns(done.bootstrap, same, done.of("relevance"))  # [layer, token]
    mean = lambda values: done.bootstrap.interval(lambda m: m, values)
    bias, blocks = done.of("relevance bias"), []
    for layer in (n for n in done.layers if done.has(f"sources {n}")):
        sources = columns(done.bootstrap, same, done.of(f"sources {layer}"))
        terms = done.of(f"terms {layer}")
        blocks.append(
            {"layer": layer, "sources": sources, "missed": float(done.of(f"missed {layer}").max()),
             "n": done.bootstrap.n, **{name: mean(terms[:, k]) for k, name in enumerate(TERMS)}}
        )  # fmt: skip
    return {
        "tokens": list(range(-len(relevance["value"][0]), 0)),
        "relevance": relevance | {"n": done.bootstrap.n},
        "bias": [mean(bias[:, layer]) for layer in range(bias.shape[1])],
        "missed": float(done.of("relevance error").max()),
        "blocks": blocks,
    }


def across(done: Found) -> dict[str, Any] | None:
    """Effects of layers on layers and of units on units, means over prompts with intervals."""
    if not done.has("layers"):
        return None
    layers = columns(done.bootstrap, same, done.of("layers"))  # [i, j]
    pairs, edges = [], []
    for i in done.ranked:
        for j in (later for later in done.ranked if done.has(f"across {i} {later} patched")):
            patched, linear = (done.of(f"across {i} {j} {way}") for way in ("patched", "linear"))  # [prompt, e, f]
            value = patched.mean(0)
            found = columns(done.bootstrap, same, patched)
            estimate = linear.mean(0)
            pairs.append(
                {"source": i, "target": j, "n": done.bootstrap.n,
                 "spearman": rank_correlation(value.ravel(), estimate.ravel()),
                 "patched": done.bootstrap.interval(lambda mean: mean, patched.mean((1, 2))),
                 "linear": done.bootstrap.interval(lambda mean: mean, linear.mean((1, 2)))}
            )  # fmt: skip
            for e, f in np.ndindex(*value.shape):
                edges.append(
                    {"source": i, "source_unit": done.top[i][e], "target": j, "target_unit": done.top[j][f],
                     **{name: found[name][e][f] for name in ("value", "low", "high")},
                     "linear": float(estimate[e, f]), "n": done.bootstrap.n}
                )  # fmt: skip
    return {
        "site": done.main,
        "layers": layers | {"n": done.bootstrap.n},
        "pairs": pairs,
        "edges": sorted(edges, key=lambda edge: -edge["value"])[:EDGES],
    }
