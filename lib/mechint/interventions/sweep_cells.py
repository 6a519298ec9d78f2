"""The edits of a sweep's forwards: many cells, each on its own rows, and observers of the base run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .edits import Edit, told
from .model import Model
from .taps import Tap


class Watcher:
    """Looks at a site of the base run, and changes nothing; stands in for an :class:`Edit`."""

    is_cut = False
    asks_gradient = False

    def replaces_always(self, size: int) -> None:
        """It replaces nothing."""


class RowEdits:
    """The edits of many cells at one site, each on its own rows of the batch; stands in for an :class:`Edit`.

    Args:
        parts: Rows and edit, in the order in which the edits of a row are applied.
        cells: Cells of the batch.
    """

    is_cut = False

    def __init__(self, parts: Sequence[tuple[slice, Edit]], cells: int) -> None:
        self.parts, self.cells = parts, cells
        each = [edit.positions for _, edit in parts]
        known = [set(positions) for positions in each if positions is not None]
        self.positions = sorted(set().union(*known)) if len(known) == len(each) else None
        self.length = parts[0][1].length
        self.anywhere = all(edit.anywhere for _, edit in parts)

    @property
    def asks_gradient(self) -> bool:
        return any(edit.asks_gradient for _, edit in self.parts)

    def replaces_always(self, size: int) -> Tensor | None:
        """The units [size] that the first edit of every cell replaces, whatever they hold; None if one may not."""
        first: dict[int, Edit] = {}
        for rows, edit in self.parts:
            first.setdefault(rows.start, edit)
        if len(first) < self.cells:
            return None
        each = [edit.replaces_always(size) for edit in {id(edit): edit for edit in first.values()}.values()]
        found = [shut for shut in each if shut is not None]
        return torch.stack(found).all(0) if len(found) == len(each) else None

    def apply(self, tensor: Tensor, offset: int = 0) -> Tensor:
        there = [(rows, edit) for rows, edit in self.parts if edit.here(offset, tensor.shape[1])]
        if not there:
            return tensor
        tensor = tensor.clone()
        for rows, edit in there:
            tensor[rows] = edit.apply(tensor[rows], offset)
        return tensor

    def on_share(self) -> RowEdits:
        return RowEdits([(rows, edit.on_share()) for rows, edit in self.parts], self.cells)


class RowTap(Tap):
    """A tap on a batch of cells: ``edits[k]`` hold on the k-th ``rows`` rows."""

    def __init__(self, edits: Sequence[Sequence[Edit]], rows: int, offset: int) -> None:
        super().__init__((), (), offset)
        by_site: dict[str, list[tuple[slice, Edit]]] = {}
        for k, cell in enumerate(edits):
            for edit in told(cell):
                if edit.is_cut:  # the forward makes cuts itself and handles rows
                    chosen = [k * rows + row for row in (range(rows) if edit.rows is None else edit.rows)]
                    self.edits.setdefault(edit.target, []).append(edit.on_rows(chosen))
                else:
                    by_site.setdefault(edit.target, []).append((slice(k * rows, (k + 1) * rows), edit))
        for site, parts in by_site.items():
            self.edits.setdefault(site, []).append(RowEdits(parts, len(edits)))


class Probe(Watcher):
    """Sees, in the base run, which cells' edits change anything; changes nothing itself."""

    def __init__(self, parts: Sequence[tuple[Cell, Edit]]) -> None:
        self.parts = parts
        each = [edit.positions for _, edit in parts]
        self.positions = None if None in each else sorted({p for positions in each for p in positions or ()})
        self.length = parts[0][1].length if parts else None
        self.anywhere = all(edit.anywhere for _, edit in parts)

    def apply(self, tensor: Tensor, offset: int = 0) -> Tensor:
        for cell, edit in self.parts:
            if cell.idle and edit.here(offset, tensor.shape[1]):
                cell.idle = edit.changes_nothing(tensor, offset)
        return tensor

    def on_share(self) -> Probe:
        """An observer of nothing: the part of a state that a cut in the base removes is not looked at."""
        return Probe(())


class Keeper(Watcher):
    """Keeps what stands at a site of the base run, piece by piece; changes nothing."""

    anywhere = False  # what is kept is read beside the edits' own values
    positions: list[int] | None = None
    length: int | None = None

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []

    def apply(self, tensor: Tensor, offset: int = 0) -> Tensor:
        self.pieces.append(tensor)
        return tensor

    def on_share(self) -> Probe:
        return Probe(())

    @property
    def value(self) -> Tensor:
        if len(self.pieces) > 1:
            self.pieces = [torch.cat(self.pieces, 1)]
        return self.pieces[0]


HELD = (".readout", ".write", ".decay", ".conv_state")


@dataclass
class Cell:
    """The edits of one cell, and the first place where it can differ from the base."""

    number: int
    edits: list[Edit]
    layer: int
    """The layer it runs from: behind the first edited residual, or the first edited; the number of layers for edits
    behind them all."""
    position: int
    idle: bool = True
    """True while every edit has been seen to leave its site unchanged."""
    late: Edit | None = None
    """The only edit of that layer, where it is at a late site: what it adds to the stream behind it is all it does."""

    @property
    def joins(self) -> int:
        """The first layer that has to be run."""
        return self.layer if self.late is None else self.layer + 1

    @staticmethod
    def of(number: int, edits: list[Edit], model: Model) -> Cell:
        layers = [starts_at(edit, model) for edit in edits]
        # a cut reads its sources' positions again, so it needs all of them
        starts = [0 if edit.is_cut or edit.positions is None else min(edit.positions) for edit in edits]
        return Cell(number, edits, min(layers, default=len(model.layers)), min(starts, default=0))

    def reaches(self, model: Model, wanted: set[int]) -> bool:
        """True if any wanted position can see an edit."""

        def seen(edit: Edit) -> bool:
            if edit.positions is None:
                return True
            layer, kind = layer_of(edit.site, model), edit.target.rpartition(".")[2]
            # a cut at the state changes what C reads there, not the state
            local = kind in model.local_sites or (edit.is_cut and kind == "state")
            if layer == len(model.layers) or (layer == len(model.layers) - 1 and local):
                return not wanted.isdisjoint(edit.positions)
            return max(wanted) >= min(edit.positions)

        return any(seen(edit) for edit in self.edits)


def kind_of(cell: Cell) -> tuple[str, ...]:
    """The kinds of site it edits, on which the memory of its forward depends."""
    late = () if cell.late is None else ("late",)
    return (*sorted({edit.target.rpartition(".")[2] for edit in cell.edits}), *late)


def late_edit(cell: Cell, base: Sequence[Edit], model: Model) -> Edit | None:
    """The cell's only edit in its first layer, if that is at a late site and the base edits nothing behind it there."""
    if cell.layer == len(model.layers) or next(model.parameters()).dtype.itemsize < 4:
        return None  # a difference of half-precision numbers would lose the effect
    here = [edit for edit in cell.edits if starts_at(edit, model) == cell.layer]
    kind = here[0].target.rpartition(".")[2]
    if len(here) > 1 or here[0].is_cut or here[0].reads or kind not in model.late_sites:
        return None
    own = [name for name in model.sites if name.startswith(f"layers.{cell.layer}.")]
    behind = own[own.index(here[0].site) + 1 :]
    return None if any(edit.target in behind for edit in base) else here[0]


def starts_at(edit: Edit, model: Model) -> int:
    """The first layer that an edit needs run: behind a residual that it edits."""
    return layer_of(edit.site, model) + edit.target.endswith(".resid_post")


def layer_of(site: str, model: Model) -> int:
    if site.startswith("layers."):
        return int(site.split(".")[1])
    return 0 if site in model.first_sites else len(model.layers)
