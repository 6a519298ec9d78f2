"""From the numbers of every model and seed to the rows of the card, each with what it varies over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from ..utils.statistics import Number, number, over_seeds
from .edges import EDGE_METHODS
from .methods import Method
from .traces import NULL_DRAWS

LEVEL = 0.05
"""Nominal level of the false-positive side."""
NULLS = ("random", "compiled")
SCORES = ("auroc", "average_precision", "cpr", "cmd", "seconds", "peak_mib")


def summarise(parts: list[dict[str, Any]], planted: list[dict[str, Any]], methods: dict[str, Method]) -> dict[str, Any]:
    """Numbers over seeds: units, random weights, positions, edges, probes, dictionaries, and what must be nothing."""
    models = list(dict.fromkeys(part["model"] for part in parts))
    of = {model: [part for part in parts if part["model"] == model] for model in models}
    return {
        "card": [row for model in models for row in rows(of[model], methods)],
        "best": [
            {"model": model, **{name: least_and_most([p["best"][name] for p in of[model]]) for name in ("cpr", "cmd")}}
            for model in models
        ],
        "random": [
            {"method": key, "auroc": by_chance(parts, key), "models": tried(parts, key)}
            for key in [*methods, *EDGE_METHODS]
            if tried(parts, key)
        ],
        "positions": [
            {"model": model, "site": site, "share": least_and_most(shares)}
            for model in models
            for site in ("write", "state", "v")
            if (shares := [p["positions"][site] for p in of[model] if site in p["positions"]])
        ],
        "edges": [row for model in models for row in of_kind(of[model], "edges", list(EDGE_METHODS))],
        "probes": [row for model in models for row in of_kind(of[model], "probes", ["lasso", "logistic"])],
        "planted_probes": planted_rows(planted, "probes", ("accuracy",)),
        "dictionaries": planted_rows(
            planted, "rows",
            ("mean_cosine", "f1", "l0", "true_l0", "explained", "stranger_cosine", "stranger_f1"),
        ),
        "costs": costs(parts, planted),
        "false_positives": false_positives(parts),
    }  # fmt: skip


def false_positives(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates at which something is found where nothing is."""
    found: dict[str, Any] = {"level": LEVEL, "bootstrap_draws": NULL_DRAWS}
    for weights in NULLS:
        for kind in ("trace", "units"):
            hits = [p <= LEVEL for part in parts for p in part["null"].get(weights, {}).get(kind, [])]
            if hits:
                found[f"{kind} {weights}"] = rate(hits)
    mixed = [row["p_shuffled"] <= LEVEL for part in parts for row in part["probes"]]
    if mixed:
        found["probes shuffled"] = rate(mixed)
    if same := [part["same_twins"] for part in parts if "same_twins" in part]:
        found["same_twins_largest_effect"] = max(same)
    return found


def tried(parts: list[dict[str, Any]], key: str) -> int:
    """On how many models' random weights a method was tried, each seed counted."""
    return sum(cell["method"] == key for part in parts for cell in part["random"])


def costs(parts: list[dict[str, Any]], planted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds and peak memory of work that ranks no units, over models and seeds; rankings are in the card's rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        found.setdefault("trace", []).extend([part["trace"]] if part["positions"] else [])
        for kind in ("edges", "probes"):
            for row in part[kind]:
                found.setdefault(row["method"], []).append(row)
    for part in planted:
        sites = {row["site"]: row for row in part["rows"]}
        found.setdefault("dictionaries", []).extend(sites.values())
    return [
        {"what": what}
        | {
            name: least_and_most([row[name] for row in rows])
            for name in ("seconds", "peak_mib")
            if all(row[name] is not None for row in rows)
        }
        for what, rows in found.items()
        if rows
    ]


def rows(parts: list[dict[str, Any]], methods: dict[str, Method]) -> Iterator[dict[str, Any]]:
    for key in methods:
        found = [cell for part in parts for cell in part["compiled"] if cell["method"] == key]
        if not found:
            continue  # it was not asked of this model
        yield {
            "model": parts[0]["model"],
            "method": key,
            "units": [cell["units"] for cell in found],
            "total": found[0]["total"],
            **{
                name: least_and_most([float(cell[name]) for cell in found])
                for name in SCORES
                if all(cell.get(name) is not None for cell in found)
            },
            "exact": rate([cell["exact"] for cell in found]),
            **several([cell.get("several", {}) for cell in found]),
            **stops([cell["stops"] for cell in found if "stops" in cell]),
        }


def several(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of the questions that a model asks, and of the correlation with shares."""
    found: dict[str, Any] = {}
    for name in cells[0]:
        values = [cell[name] for cell in cells if name in cell]
        if name == "shares":
            found[name] = least_and_most(values)
        else:
            found[name] = {
                "auroc": least_and_most([value["auroc"] for value in values]),
                "exact": rate([value["exact"] for value in values]),
            }
    return {"several": found} if found else {}


def stops(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: the size that a method chose over the declared one, how often it is that, and its faithfulness."""
    if not cells:
        return {}
    ratios = [cell["size"] / cell["true"] for cell in cells]
    found = {
        "ratio": least_and_most(ratios),
        "right": rate([ratio == 1 for ratio in ratios]),
        "faithfulness": least_and_most([cell["faithfulness"] for cell in cells]),
    }
    return {"stops": found}


def of_kind(parts: list[dict[str, Any]], kind: str, order: list[str]) -> Iterator[dict[str, Any]]:
    """Means over seeds of everything that edges or probes are scored by."""
    for key in order:
        found = [row for part in parts for row in part[kind] if row["method"] == key]
        if found:
            names = [name for name in found[0] if all(isinstance(row[name], int | float) for row in found)]
            yield {"model": parts[0]["model"], "method": key} | {
                name: least_and_most([float(row[name]) for row in found]) for name in names
            }


def planted_rows(planted: list[dict[str, Any]], kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Means over seeds by site and method."""
    places = list(dict.fromkeys((row["site"], row["method"]) for part in planted for row in part[kind]))
    return [
        {"site": site, "method": method}
        | {
            name: least_and_most(
                [row[name] for part in planted for row in part[kind] if (row["site"], row["method"]) == (site, method)]
            )
            for name in names
        }
        for site, method in places
    ]


def least_and_most(values: Sequence[float]) -> Number:
    return number(fmean(values), min(values), max(values), len(values), "mean, least and most over seeds")


def by_chance(parts: list[dict[str, Any]], key: str) -> Number:
    """AUROC on random weights: each seed's mean over the models, and its interval over the seeds.

    By seeds, since models of one seed draw their places from the same random numbers; a seed whose models are of
    another family than the method has none.
    """
    seeds: dict[int, list[float]] = {}
    for part in parts:
        seeds.setdefault(part["seed"], []).extend(c["auroc"] for c in part["random"] if c["method"] == key)
    means = [fmean(values) for values in seeds.values() if values]
    if len(means) < 2:
        return number(means[0], 0.0, 1.0, 1, "one seed: no interval")
    return over_seeds(means, "seeds")[0]


def rate(hits: Sequence[bool]) -> Number:
    """A share, with Wilson's interval (1927)."""
    n, z = len(hits), 1.96
    share = sum(hits) / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return number(
        share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), n, "95 % by Wilson's score"
    )
