"""Units: what a circuit keeps or drops, and how a mask over them becomes edits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError, an
from .edits import Edit
from .model import Model
from .unit_kinds import Block, UnitKind, side_by_side


@dataclass(frozen=True)
class Row:
    """The units of one kind in one layer.

    Attributes:
        layer: The layer's number.
        kind: The kind of unit.
        blocks: Its blocks in this layer.
        shape: Units of the one block, or [block, …].
        start: The number of the first of them among all units of the model.
    """

    layer: int
    kind: UnitKind
    blocks: tuple[Block, ...]
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def sites(self) -> list[str]:
        """The full names of the sites at which a dropped unit is replaced."""
        return [f"layers.{self.layer}.{site}" for block in self.blocks for site in block.sites]

    @property
    def block_sizes(self) -> list[int]:
        """Units of each block."""
        return [self.size // len(self.blocks)] * len(self.blocks)


class Units:
    """All units of one kind, or of several kinds side by side, in one model, numbered layer by layer.

    Each kind of a layer is a row; layers that have no unit of a kind have no such row.

    Args:
        model: From :func:`mechint.load`.
        kinds: Kinds of unit, of :attr:`Model.unit_kinds`.

    Raises:
        MechintError: no layer has units of one of the kinds, or two kinds replace the same site.
    """

    def __init__(self, model: Model, *kinds: UnitKind) -> None:
        self.kind = kinds[0] if len(kinds) == 1 else side_by_side(kinds)
        rows: list[Row] = []
        for layer in range(model.num_layers):
            for kind in kinds:
                if blocks := kind.blocks_of(model.sites, layer):
                    start = rows[-1].start + rows[-1].size if rows else 0
                    rows.append(Row(layer, kind, blocks, kind.shape(model.sites, layer), start))
        for kind in kinds:
            if not any(row.kind is kind for row in rows):
                raise MechintError(f"no layer of this {model.config.family} model has units of the kind {kind.name!r}")
        self.by_row = rows
        """The rows: one for each kind in each layer that has such units, bottom up."""
        self.numbers = [row.layer for row in rows]
        """The number of each row's layer."""
        self.layers = len(rows)
        """The count of rows: of one kind, the layers that have such units."""
        self.sizes = [row.size for row in rows]
        """Units of each row."""
        self.total = sum(self.sizes)
        mixed = len(kinds) > 1
        self.said_layers = list(range(len(rows))) if mixed else self.numbers
        """The number by which results call each row."""
        self.layer_names = [f"layers.{row.layer}.{row.kind.name}" if mixed else f"layers.{row.layer}" for row in rows]
        self.about: list[dict[str, Any]] = [{"site": name} if mixed else {} for name in self.layer_names]
        """A word about each row that reports put beside its number."""
        self.sites = [site for row in rows for site in row.sites]
        self.needs = self.sites
        """Sites that :meth:`read` takes."""
        self.width = {site: len(model.sites[site].units) for site in self.sites}
        """Unit axes of each site."""
        self.counted = [size for row in rows for size in (row.block_sizes if row.kind.apart else [row.size])]
        """Units of each group that is counted apart: the rows, or the blocks of a row (keys and values)."""
        self.rows = len(self.counted)
        """Groups of units that are counted apart."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every row's units.

        Raises:
            MechintError: layers differ.
        """
        shapes = {row.shape for row in self.by_row}
        if len(shapes) > 1:
            raise MechintError(f"layers of this model have different numbers of {self.kind.several}")
        return shapes.pop()

    @property
    def per_layer(self) -> int:
        """Units of every row; an error, as :attr:`shape`, where layers differ."""
        return math.prod(self.shape)

    def read(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values that ablations average and exchange, for each site: here the site's own."""
        return values

    def edits(self, mask: Tensor, fills: dict[str, Any]) -> list[Edit]:
        """Masks at every site of every row.

        Args:
            mask: [units], 1 keeps a unit and 0 replaces it.
            fills: The values that replace it, for each name of ``self.sites``; broadcasts to [batch, position, unit].
        """
        parts = mask.split(self.sizes)
        return [
            edit for row, part in zip(self.by_row, parts, strict=True) for edit in self._row_edits(row, part, fills)
        ]

    def _row_edits(self, row: Row, mask: Tensor, fills: dict[str, Any]) -> list[Edit]:
        """Masks at every site of a row, from its part of the mask [units of the row]."""
        edits, own = [], row.shape[1:] if len(row.blocks) > 1 else row.shape
        for value, block in zip(mask.view(len(row.blocks), *own), row.blocks, strict=True):
            for site in block.sites:
                name, part = f"layers.{row.layer}.{site}", value
                if block.axes is not None:  # the same for all entries of a unit
                    part = value.reshape(*value.shape[: block.axes], *[1] * (self.width[name] - block.axes))
                edits.append(Edit(name, "mask", part, fill=fills[name]))
        return edits

    def row_of(self, unit: int) -> Row:
        """The row that a unit, by its number, belongs to."""
        return next(row for row in self.by_row if unit < row.start + row.size)

    def dropping(self, unit: int, fills: dict[str, Any]) -> list[Edit]:
        """The edits that replace one unit, by its number, and keep all others."""
        sample, row = next(iter(fills.values())), self.row_of(unit)
        mask = torch.ones(row.size, device=sample.device if isinstance(sample, Tensor) else None)
        mask[unit - row.start] = 0.0
        return self._row_edits(row, mask, fills)

    def number(self, kind: str, layer: int, unit: tuple[int, ...]) -> int:
        """The number of a unit, from the name of its kind, its layer and its index there (empty for one of a layer).

        Raises:
            MechintError: the layer has no such unit.
        """
        row = next((row for row in self.by_row if (row.layer, row.kind.name) == (layer, kind)), None)
        index = unit or (0,)
        inside = row is not None and len(index) == len(row.shape)
        if row is None or not inside or not all(0 <= i < size for i, size in zip(index, row.shape, strict=True)):
            raise MechintError(f"layer {layer} has no unit {list(unit)} of the kind {kind!r}")
        number = 0
        for i, size in zip(index, row.shape, strict=True):
            number = number * size + i
        return row.start + number

    def removals(self, mask: Tensor, units: list[int], fills: dict[str, Any]) -> tuple[list[Edit], list[list[Edit]]]:
        """A circuit [units] without each of some units in turn: edits that hold in all, and each one's own on top."""
        return self.edits(mask, fills), [self.dropping(unit, fills) for unit in units]

    def by_layer(self, values: Tensor) -> list[Tensor]:
        """Values of all units [units] -> those of each row, of the shape its units have."""
        return [part.view(row.shape) for row, part in zip(self.by_row, values.split(self.sizes), strict=True)]

    def groups(self) -> list[Tensor]:
        """Numbers of the units of each block of each row."""
        return list(torch.arange(self.total).split([size for row in self.by_row for size in row.block_sizes]))

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
        """Units kept in each row, or in each block of a row where those are counted apart, [rows]."""
        return [int(part.sum()) for part in mask.split(self.counted)]

    def random(self, counts: list[int], generator: torch.Generator) -> Tensor:
        """A random mask [units] that keeps as many units in each row as ``counts`` says."""
        return torch.cat([random_row(size, count, generator) for size, count in zip(self.counted, counts, strict=True)])

    def names(self, mask: Tensor) -> list[list[Any]]:
        """The kept units of each row: numbers, names of paths, or indices such as [channel, state].

        A key or value channel is [0 for K or 1 for V, head, dimension].
        """
        return [
            [_name(row.kind, index) for index in part.nonzero().tolist()]
            for row, part in zip(self.by_row, self.by_layer(mask), strict=True)
        ]


def _name(kind: UnitKind, index: list[int]) -> Any:
    if len(index) > 1:
        return index
    return kind.labels[index[0]] if kind.labels else index[0]


def units_named(model: Model, name: str) -> Units:
    """All units of a kind by its name, or of several kinds side by side (``ssm_channel+kv``)."""
    return Units(model, *(model.unit_kinds[part] for part in name.split("+")))


def kind_named(model: Model, *names: str) -> UnitKind:
    """The first of some names that this model has units of.

    Raises:
        MechintError: it has none of them; those it has are listed.
    """
    known = model.unit_kinds
    found = next((known[name] for name in names if name in known), None)
    if found is None:
        raise MechintError(
            f"{an(model.config.family)} model has no units of the kind {names[-1]!r}; it has {', '.join(known)}"
        )
    return found


def random_row(size: int, count: int, generator: torch.Generator) -> Tensor:
    """A mask [size] with ``count`` ones in random places."""
    return torch.zeros(size).index_fill_(0, torch.randperm(size, generator=generator)[:count], 1.0)
