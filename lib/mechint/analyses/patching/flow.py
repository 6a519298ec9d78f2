"""Cuts of the flow: in one layer, all tokens of one role stop reading those of another, by one path or by all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...interventions.edits import CUTS, Edit
from ...interventions.model import Model, layer_sites, windows

Pair = tuple[int, int]
"""The role of the reader i, and the role of the source j."""


@dataclass(frozen=True)
class Path:
    """One way in which a position reads earlier ones, and its map.

    Attributes:
        kind: Name of the site within its layer where the cut is made.
        sites: For each layer, the sites that are cut together: a window around it; none where it has no such site.
        reach: Number of positions that a position reads back there; None for as far as there are positions.
    """

    kind: str
    sites: tuple[tuple[str, ...], ...]
    reach: int | None

    def cells(self, roles: Tensor, pairs: list[Pair], decay: str) -> list[list[Edit]]:
        """Cells in the order of [layer, pair] for prompts of these roles [prompt, position]; empty for no such pair."""
        found = [self.groups(roles, pair) for pair in pairs]
        return [
            [
                Edit(site, "cut", positions=readers, sources=sources, rows=rows, decay=decay)
                for site in sites
                for (readers, sources), rows in groups.items()
            ]
            for sites in self.sites
            for groups in found
        ]

    def groups(self, roles: Tensor, pair: Pair) -> dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]]:
        """Groups the prompts by the positions of the two roles, (readers, sources), that can read or be read."""
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        reach = roles.shape[1] if self.reach is None else self.reach
        for row, role in enumerate(roles.tolist()):
            readers, sources = ([p for p, r in enumerate(role) if r == wanted] for wanted in pair)
            near = [(i, j) for i in readers for j in sources if 0 <= i - j <= reach]
            if near:
                key = tuple(sorted({i for i, _ in near})), tuple(sorted({j for _, j in near}))
                rows.setdefault(key, []).append(row)
        return rows

    def present(self, roles: Tensor, pairs: list[Pair]) -> Tensor:
        """True where a prompt has tokens of both roles of a pair, [pair, prompt]."""
        there = torch.zeros(len(pairs), len(roles), dtype=torch.bool)
        for k, pair in enumerate(pairs):
            for rows in self.groups(roles, pair).values():
                there[k, rows] = True
        return there


def path_kinds(model: Model) -> list[str]:
    """The sites of a layer where this model can be cut."""
    return [kind for kind in CUTS if layer_sites(model, kind)]


def paths(model: Model, kinds: list[str], window: int) -> list[Path]:
    found = []
    for kind in kinds:
        names = layer_sites(model, kind)
        reach = model.sites[names[0] + "_state"].units[1] if kind == "conv" else None
        found.append(Path(kind, windows(model, kind, window), reach))
    return found


def role_pairs(roles: list[Tensor], count: int) -> list[Pair]:
    """The pairs of ``count`` roles that any prompt has; ``roles`` [prompt, position] for each batch."""
    whole = Path("", (), None)
    every = [(i, j) for i in range(count) for j in range(count)]
    return [pair for pair in every if any(whole.groups(part, pair) for part in roles)]
