"""Units: what a circuit keeps or drops, and how a mask over them becomes edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import MechintError
from .interventions import Edit


@dataclass(frozen=True)
class UnitKind:
    """A kind of unit of one family.

    Attributes:
        name: As the menus say it.
        sites: (site of a layer, index of the unit or None): None when the layer's units are the site's own units,
            a number when the whole site is that one unit.
        meaning: One sentence for reports.
    """

    name: str
    sites: tuple[tuple[str, int | None], ...]
    meaning: str

    def shape(self, model: Any) -> tuple[int, ...]:
        """Units of one layer."""
        site, index = self.sites[0]
        if index is not None:
            return (len(self.sites),)
        return tuple(model.sites[f"layers.0.{site}"].units)


# A channel's only ways out of itself are u (into Δ, B and C of every channel) and gated (into the mixer's output), so
# a dropped channel is replaced at both; what it does in between is then read by nobody.
SSM_UNITS = {
    kind.name: kind
    for kind in (
        UnitKind(
            "channel", (("u", None), ("gated", None)), "an SSM channel: all it computes, replaced where others read it"
        ),
        UnitKind("mode", (("readout", None),), "one (channel, state) entry of the recurrent state, as C reads it"),
        UnitKind(
            "path", (("x", 0), ("z", 1), ("dt", 2), ("B", 3), ("C", 4)), "a whole path of a layer: x, z, Δ, B or C"
        ),
        UnitKind("layer", (("out", 0),), "a whole mixer: what it adds to the residual stream"),
    )
}
PATHS = ("x", "z", "dt", "B", "C")


class Units:
    """All units of one kind in one model, numbered layer by layer."""

    def __init__(self, model: Any, kind: UnitKind) -> None:
        self.kind = kind
        self.layers: int = model.config.n_layer
        self.shape = kind.shape(model)
        self.per_layer = int(torch.tensor(self.shape).prod())
        self.total = self.layers * self.per_layer
        self.sites = [f"layers.{layer}.{site}" for layer in range(self.layers) for site, _ in kind.sites]

    def edits(self, mask: Tensor, fills: dict[str, Any]) -> list[Edit]:
        """Masks at every site of every layer.

        Args:
            mask: [units], 1 keeps a unit and 0 replaces it.
            fills: What replaces it, for each name of ``self.sites``; broadcasts to [batch, position, unit].
        """
        mask = mask.view(self.layers, *self.shape)
        return [
            Edit(name, "mask", mask[layer] if index is None else mask[layer, index], fill=fills[name])
            for layer in range(self.layers)
            for site, index in self.kind.sites
            for name in [f"layers.{layer}.{site}"]
        ]

    def top(self, scores: Tensor, count: int) -> Tensor:
        """The mask [units] of exactly ``count`` units with the highest scores; equal scores by number."""
        if not 1 <= count <= self.total:
            raise MechintError(
                f"a circuit of {count} units is asked for; this model has {self.total} ({self.kind.name}s); "
                f"choose a BUDGET from 1 to {self.total}"
            )
        order = torch.sort(scores, descending=True, stable=True).indices[:count]
        return torch.zeros(self.total, device=scores.device).index_fill_(0, order, 1.0)

    def counts(self, mask: Tensor) -> list[int]:
        """Units kept in each layer."""
        return [int(count) for count in mask.view(self.layers, -1).sum(1)]

    def random(self, counts: list[int], generator: torch.Generator) -> Tensor:
        """A random mask [units] that keeps as many units in each layer as ``counts`` says."""
        rows = torch.zeros(self.layers, self.per_layer)
        for layer, count in enumerate(counts):
            rows[layer, torch.randperm(self.per_layer, generator=generator)[:count]] = 1.0
        return rows.view(-1)

    def names(self, mask: Tensor) -> list[list[Any]]:
        """The kept units of each layer: numbers, [channel, state] pairs, or the names of paths."""
        return [[self._name(int(unit)) for unit in row.nonzero().flatten()] for row in mask.view(self.layers, -1)]

    def _name(self, unit: int) -> Any:
        if self.kind.name == "path":
            return PATHS[unit]
        return [unit // self.shape[1], unit % self.shape[1]] if len(self.shape) == 2 else unit
