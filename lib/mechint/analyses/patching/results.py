"""Summarises the effects of every prompt into results: maps of the flow, effects of units, intervals and p-values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...utils.statistics import Array, ClusterBootstrap, Number, pearson, sureness
from ..effect_tables import Answered, ends, failed_notes, few_notes, ratio, shareless, table
from ..unit_groups import Parts
from .flow import Pair, Path


def numbers(done: Finished) -> tuple[dict[str, Any], dict[str, Number], list[str]]:
    """The sections of results.json, its metrics and its notes.

    Effects are shares of the total effect (clean less twin), unless there are no twins, they are not asked for or they
    may change nothing: then they stay in the metric's own units.
    """
    mean = lambda values: values
    every = ClusterBootstrap(done.templates, done.draws, done.seed)
    corrupted = done.joined("corrupted") if done.twins else None
    metrics, total, notes = ends(every, done.right, done.bootstrap, done.joined("clean"), corrupted)
    if done.means:
        for parts in done.parts:
            metrics[f"all_{parts.kind}"] = done.bootstrap.interval(mean, done.joined(f"all {parts.kind}"))
        notes.append(
            "Units were set to their means over the discovery prompts' tokens of the same role. Necessary: one unit "
            "has its means, the others keep their values. Sufficient: one unit keeps its value, while all other units "
            "of its kind in all layers have their means; all_… in the metrics is clean less the run in which all "
            "units have their means"
        )
    few = few_notes(done.templates[done.right], "patched")
    notes += few
    notes += failed_notes(done.right)
    sections: dict[str, Any] = {
        "scale": "share of the total effect" if total is not None else "metric",
        "flow": flow(done, total, notes) if done.paths else None,
        "units": units(done, total) if done.parts else None,
    }
    sections |= {"strongest": strongest(sections), "few": few}
    return sections, metrics, notes


def flow(done: Finished, total: Array | None, notes: list[str]) -> dict[str, Any]:
    """The maps of the flow's effects; p-values are adjusted for all cells of all maps. Cells without a share are said
    in the notes."""
    means = done.joined("flow")
    values = done.intervals(means, total)
    notes += shareless(~np.isnan(means), values["value"])
    there = sorted({role for pair in done.pairs for role in pair})  # roles that any token has
    return {
        "roles": [done.names[role] for role in there],
        "pairs": [[there.index(role) for role in pair] for pair in done.pairs],
        "paths": [
            {"name": path.kind, **{name: table(value[k]) for name, value in values.items()}}
            for k, path in enumerate(done.paths)
        ],
    }


NAMES = ("necessary", "sufficient")


SHOWN = 5
"""Strongest cells of each way to be read, and units of each direction, in summaries."""


@dataclass(frozen=True, kw_only=True)
class Finished(Answered):
    """The effects of all batches, with the paths, units and prompts that they belong to."""

    names: tuple[str, ...]
    pairs: list[Pair]
    paths: list[Path]
    present: list[list[Tensor]]
    """For each batch and path, which prompts have a pair, [pair, prompt]."""
    parts: list[Parts]
    twins: bool
    means: bool
    """True if units were given means instead of the twin's values."""

    def intervals(self, means: Array, total: Array | None) -> dict[str, Array]:
        """``means`` [prompt, map, layer, cell] -> value, low, high, p and n, each [map, layer, cell]."""
        there = ~np.isnan(means)
        value, low, high, p = ratio(self.bootstrap, means, there, total)
        return {"value": value, "low": low, "high": high, "p": p, "n": there.sum(0)}


def units(done: Finished, total: Array | None) -> list[dict[str, Any]]:
    """The measured units of each kind; p-values are adjusted for those of all kinds, one direction at a time."""
    kinds: list[dict[str, Any]] = [
        {
            "name": parts.kind,
            "axis": parts.axis,
            "layers": len(parts.sites),
            "per_layer": per_layer(parts),
            "layer": [parts.layer_of(number) for number in parts.chosen],
            "unit": [parts.place(number)[1] for number in parts.chosen],
            "correlation": {},
        }
        for parts in done.parts
    ]
    edges = np.cumsum([0, *(len(parts.chosen) for parts in done.parts)])
    for name in NAMES:
        means = np.concatenate([done.joined(f"{name} {parts.kind}") for parts in done.parts], 1)
        values = {key: value[0, 0] for key, value in done.intervals(means[:, None, None], total).items()}
        for k, (entry, parts) in enumerate(zip(kinds, done.parts, strict=True)):
            here = slice(edges[k], edges[k + 1])
            guess = done.joined(f"{name} {parts.kind} estimates").mean(0)
            actual = means[:, here].mean(0)
            entry[name] = {key: table(value[None, here])[0] for key, value in values.items()}
            entry[name]["estimate"] = (guess / (1.0 if total is None else total.mean())).tolist()
            entry["correlation"][name] = pearson(actual, guess)
    return kinds


def per_layer(parts: Parts) -> int | dict[str, int]:
    """The units of a layer, where all that have some have equally many; else those of each layer by its number."""
    if len(set(parts.sizes)) == 1:
        return parts.sizes[0]
    return {str(layer): size for layer, size in zip(parts.layers, parts.sizes, strict=True)}


def leading(kinds: list[dict[str, Any]], count: int) -> list[str]:
    """The names of the units of each kind that are surest, then largest, in either direction; ``count`` of each."""
    found = []
    for kind in kinds:
        keys = [
            (*min(sureness(kind[name]["p"][k], kind[name]["value"][k]) for name in NAMES), k)
            for k in range(len(kind["unit"]))
        ]
        for *_, k in sorted(keys)[:count]:
            found.append(f"layers.{kind['layer'][k]}.{kind['name']}[{kind['unit'][k]}]")
    return found


def strongest(sections: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The cells of every map of the flow, and the units of each kind and direction: the surest, then the largest."""
    cells, most = [], []
    if sections["flow"]:
        roles = sections["flow"]["roles"]
        for path in sections["flow"]["paths"]:
            every = [
                (*sureness(path["p"][layer][k], value), layer, k)
                for layer, row in enumerate(path["value"])
                for k, value in enumerate(row)
                if value is not None
            ]
            for *_, layer, k in sorted(every)[:SHOWN]:
                reader, source = sections["flow"]["pairs"][k]
                found = {name: path[name][layer][k] for name in ("value", "low", "high", "p", "n")}
                cells.append(
                    {"path": path["name"], "layer": layer, "reader": roles[reader], "source": roles[source], **found}
                )
    for kind in sections["units"] or ():
        for name in NAMES:
            found = kind[name]
            order = sorted(range(len(found["value"])), key=lambda k: (*sureness(found["p"][k], found["value"][k]), k))
            for k in order[:SHOWN]:
                entry = {key: found[key][k] for key in ("value", "low", "high", "p", "n")}
                most.append(
                    {
                        "direction": name, "kind": kind["name"], "layer": kind["layer"][k], "unit": kind["unit"][k],
                        **entry,
                    }
                )  # fmt: skip
    return {"flow": cells, "units": most}
