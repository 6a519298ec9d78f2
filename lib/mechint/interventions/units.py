"""Units: what a circuit keeps or drops, and how a mask over them becomes edits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError
from .edits import Edit
from .model import Model
from .unit_kinds import UnitKind


class Units:
    """All units of one kind in one model, numbered layer by layer; layers that have none are left out.

    Raises:
        MechintError: no layer has such units, or layers have different numbers of them.
    """

    def __init__(self, model: Model, kind: UnitKind) -> None:
        self.kind = kind
        self.blocks = {i: blocks for i in range(model.num_layers) if (blocks := kind.blocks_of(model.sites, i))}
        """The blocks of each layer that has such units, by the layer's number."""
        self.numbers = list(self.blocks)
        """The numbers of these layers, bottom up."""
        if not self.numbers:
            raise MechintError(f"no layer of this {model.config.family} model has units of the kind {kind.name!r}")
        self.said_layers = self.numbers
        """The number by which results call each of these layers."""
        self.layers = len(self.numbers)
        """The count of these layers."""
        shapes = {kind.shape(model.sites, i) for i in self.numbers}
        if len(shapes) > 1:
            raise MechintError(f"layers of this model have different numbers of {kind.several}, which is not supported")
        self.shape = shapes.pop()
        self.per_layer = math.prod(self.shape)
        self.total = self.layers * self.per_layer
        self.sizes = [self.per_layer] * self.layers
        """Units of each layer."""
        self.layer_names = [f"layers.{layer}" for layer in self.numbers]
        self.about: list[dict[str, Any]] = [{} for _ in range(self.layers)]
        """A word about each layer that reports put beside its number."""
        self.sites = [
            f"layers.{layer}.{site}"
            for layer, blocks in self.blocks.items()
            for block in blocks
            for site in block.sites
        ]
        self.width = {site: len(model.sites[site].units) for site in self.sites}
        """Unit axes of each site."""
        self.rows = self.layers * (len(kind.blocks) if kind.apart else 1)
        """Groups of units that are counted apart: the layers, or the blocks of each layer."""

    def read(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values that ablations average and exchange, for each site: here the site's own."""
        return values

    def edits(self, mask: Tensor, fills: dict[str, Any]) -> list[Edit]:
        """Masks at every site of every layer.

        Args:
            mask: [units], 1 keeps a unit and 0 replaces it.
            fills: The values that replace it, for each name of ``self.sites``; broadcasts to [batch, position, unit].
        """
        several = len(self.kind.blocks) > 1
        mask = mask.view(self.layers, len(self.kind.blocks), *self.shape[several:])
        edits = []
        for row, (layer, blocks) in enumerate(self.blocks.items()):
            for number, block in enumerate(blocks):
                for site in block.sites:
                    value, name = mask[row, number], f"layers.{layer}.{site}"
                    if block.axes is not None:  # the same for all entries of a unit
                        value = value.reshape(*value.shape[: block.axes], *[1] * (self.width[name] - block.axes))
                    edits.append(Edit(name, "mask", value, fill=fills[name]))
        return edits

    def dropping(self, unit: int, fills: dict[str, Any]) -> list[Edit]:
        """The edits that replace one unit, by its number, and keep all others."""
        sample = next(iter(fills.values()))
        mask = torch.ones(self.total, device=sample.device if isinstance(sample, Tensor) else None)
        mask[unit] = 0.0
        layer = f"layers.{self.numbers[unit // self.per_layer]}."
        return [edit for edit in self.edits(mask, fills) if edit.site.startswith(layer)]

    def removals(self, mask: Tensor, units: list[int], fills: dict[str, Any]) -> tuple[list[Edit], list[list[Edit]]]:
        """A circuit [units] without each of some units in turn: edits that hold in all, and each one's own on top."""
        return self.edits(mask, fills), [self.dropping(unit, fills) for unit in units]

    def by_layer(self, values: Tensor) -> list[Tensor]:
        """Values of all units [units] -> those of each layer, of the shape its units have."""
        return list(values.view(self.layers, *self.shape))

    def top(self, scores: Tensor, count: int) -> Tensor:
        """The mask [units] of exactly ``count`` units with the highest scores; equal scores by number."""
        if not 1 <= count <= self.total:
            raise MechintError(
                f"a circuit of {count} units is asked for; this model has {self.total} ({self.kind.several}); "
                f"choose a BUDGET from 1 to {self.total}"
            )
        order = torch.sort(scores, descending=True, stable=True).indices[:count]
        return torch.zeros(self.total, device=scores.device).index_fill_(0, order, 1.0)

    def counts(self, mask: Tensor) -> list[int]:
        """Units kept in each layer, or in each block of each layer where those are counted apart, [rows]."""
        return [int(count) for count in mask.view(self.rows, -1).sum(1)]

    def random(self, counts: list[int], generator: torch.Generator) -> Tensor:
        """A random mask [units] that keeps as many units in each row as ``counts`` says."""
        size = self.total // self.rows
        return torch.cat([random_row(size, count, generator) for count in counts])

    def names(self, mask: Tensor) -> list[list[Any]]:
        """The kept units of each layer: numbers, names of paths, or indices such as [channel, state].

        A key or value channel is [0 for K or 1 for V, head, dimension].
        """
        layers = mask.view(self.layers, *self.shape)
        return [[self._name(index) for index in layer.nonzero().tolist()] for layer in layers]

    def _name(self, index: list[int]) -> Any:
        if len(index) > 1:
            return index
        return self.kind.labels[index[0]] if self.kind.labels else index[0]


def kind_named(model: Model, *names: str) -> UnitKind:
    """The first of some names that this model has units of.

    Raises:
        MechintError: it has none of them; those it has are listed.
    """
    known = model.unit_kinds
    found = next((known[name] for name in names if name in known), None)
    if found is None:
        raise MechintError(
            f"a {model.config.family} model has no units of the kind {names[-1]!r}; it has {', '.join(known)}"
        )
    return found


def random_row(size: int, count: int, generator: torch.Generator) -> Tensor:
    """A mask [size] with ``count`` ones in random places."""
    return torch.zeros(size).index_fill_(0, torch.randperm(size, generator=generator)[:count], 1.0)
