"""Summarises the effects of every prompt into results: a matrix of senders and receivers with intervals and p."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...interventions.path_patching import Node, Place
from ...utils.statistics import Array, ClusterBootstrap, Number, said, said_p, sureness
from ..effect_tables import Answered, ends, failed_notes, few_notes, ratio, table

DIRECTIONS = {"necessary": "noise", "sufficient": "denoise"}
SHOWN = 10
"""Strongest paths of each direction, in summaries."""


@dataclass(frozen=True, kw_only=True)
class Finished(Answered):
    """The effects of all batches, with the nodes and prompts that they belong to."""

    senders: list[Node]
    receivers: list[Node]
    along: list[list[Node]]
    directions: list[str]
    places: Mapping[str, Place]
    axes: Mapping[str, str]
    """The axis that units of a site are counted along: ``head``, ``channel``, ``neuron`` and so on."""

    def tables(self, values: Array, total: Array | None) -> dict[str, Any]:
        """``values`` [prompt, row, column] -> value, low, high, p and n, each a list of rows; p adjusted for all."""
        there = ~np.isnan(values)
        found = ratio(self.bootstrap, values[:, None], there[:, None], total)
        named = dict(zip(("value", "low", "high", "p"), (each[0] for each in found), strict=True))
        return {name: table(each) for name, each in named.items()} | {"n": there.sum(0).tolist()}

    def described(self, node: Node) -> dict[str, Any]:
        """A node in plain values: its name, its place in the forward, and the part that it belongs to."""
        place = self.places[node.site]
        part = next((site for site in place.added if order(self.places, site) >= order(self.places, node.site)), "")
        return {
            "node": str(node), "kind": node.site.rpartition(".")[2], "layer": place.layer, "step": place.step,
            "part": part.rpartition(".")[2], "head": node.unit, "axis": self.axes[node.site],
        }  # fmt: skip


def order(places: Mapping[str, Place], site: str) -> int:
    return list(places).index(site)


def numbers(done: Finished) -> tuple[dict[str, Any], dict[str, Number], list[str]]:
    """The sections of results.json, its metrics and its notes.

    Effects are shares of the total effect (clean less twin), unless the twins may change nothing: then they stay in the
    metric's own units.
    """
    every = ClusterBootstrap(done.templates, done.draws, done.seed)
    clean, corrupted = done.joined("clean"), done.joined("corrupted")
    metrics, total, notes = ends(every, done.right, done.bootstrap, clean, corrupted)
    few = few_notes(done.templates[done.right], "measured")
    notes += [*few, *failed_notes(done.right)]
    matrix, totals, named = {}, {}, []
    for name in done.directions:
        matrix[name] = done.tables(done.joined(f"{name} paths"), total)
        whole = done.tables(done.joined(f"{name} totals")[:, None], total)
        totals[name] = {key: values[0] for key, values in whole.items()}
        if done.along:
            whole = done.tables(done.joined(f"{name} named")[:, None], total)
            for k, path in enumerate(done.along):
                entry = {"name": " > ".join(map(str, path)), "direction": name}
                named.append(entry | {key: values[0][k] for key, values in whole.items()})
    sections: dict[str, Any] = {
        "scale": "share of the total effect" if total is not None else "metric",
        "senders": [done.described(node) for node in done.senders],
        "receivers": [done.described(node) for node in done.receivers],
        "paths": matrix,
        "totals": totals,
        "along": named,
        "few": few,
    }
    return sections | {"strongest": strongest(sections)}, metrics, notes


def strongest(sections: dict[str, Any]) -> list[dict[str, Any]]:
    """The paths of each direction: the surest, then the largest."""
    found = []
    for direction, matrix in sections["paths"].items():
        every = [
            (*sureness(matrix["p"][s][r], value), s, r)
            for s, row in enumerate(matrix["value"])
            for r, value in enumerate(row)
            if value
        ]
        for rank, (*_, s, r) in enumerate(sorted(every)[:SHOWN], 1):
            ends = {"sender": sections["senders"][s]["node"], "receiver": sections["receivers"][r]["node"]}
            cells = {name: matrix[name][s][r] for name in ("value", "low", "high", "p", "n")}
            found.append({"direction": direction, "rank": rank, **ends, **cells})
    return found


def lines(sections: dict[str, Any], most: int = 3) -> list[str]:
    """Lines for the terminal: the strongest paths of each direction."""
    return [
        f"  {entry['direction']:<16}{said(entry, '.2f')} {entry['sender']} → {entry['receiver']}; {said_p(entry['p'])}"
        for entry in sections["strongest"]
        if entry["rank"] <= most
    ]
