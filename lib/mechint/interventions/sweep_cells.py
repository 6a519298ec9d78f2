"""What a sweep's forwards carry: the edits of many cells, each on its own rows, and looks at the base run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .edits import Edit
from .sweep_cells_sweep_cells import Cell
from .taps import Tap


class RowEdits:
    """The edits of many cells at one site, each on its own rows of the batch; stands in for an :class:`Edit`."""

    is_cut = False

    def __init__(self, parts: Sequence[tuple[slice, Edit]]) -> None:
        self.parts = parts
        each = [edit.positions for _, edit in parts]
        known = [set(positions) for positions in each if positions is not None]
        self.positions = sorted(set().union(*known)) if len(known) == len(each) else None
        self.length = parts[0][1].length

    def apply(self, tensor: Tensor, offset: int = 0) -> Tensor:
        there = [(rows, edit) for rows, edit in self.parts if edit.here(offset, tensor.shape[1])]
        if not there:
            return tensor
        tensor = tensor.clone()
        for rows, edit in there:
            tensor[rows] = edit.apply(tensor[rows], offset)
        return tensor

    def on_share(self) -> RowEdits:
        return RowEdits([(rows, edit.on_share()) for rows, edit in self.parts])


class RowTap(Tap):
    """A tap on a batch of cells: ``edits[k]`` hold on the k-th ``rows`` rows."""

    def __init__(self, edits: Sequence[Sequence[Edit]], rows: int, offset: int) -> None:
        super().__init__((), (), offset)
        by_site: dict[str, list[tuple[slice, Edit]]] = {}
        for k, cell in enumerate(edits):
            for edit in cell:
                if edit.is_cut:  # the forward makes these itself and knows rows
                    chosen = [k * rows + row for row in (range(rows) if edit.rows is None else edit.rows)]
                    self.edits.setdefault(edit.target, []).append(edit.on_rows(chosen))
                else:
                    by_site.setdefault(edit.target, []).append((slice(k * rows, (k + 1) * rows), edit))
        for site, parts in by_site.items():
            self.edits.setdefault(site, []).append(RowEdits(parts))  # type: ignore[arg-type]


class Probe:
    """Sees, in the base run, which cells' edits change anything; changes nothing itself."""

    is_cut = False

    def __init__(self, parts: Sequence[tuple[Cell, Edit]]) -> None:
        self.parts = parts
        each = [edit.positions for _, edit in parts]
        self.positions = None if None in each else sorted({p for positions in each for p in positions or ()})
        self.length = parts[0][1].length if parts else None

    def apply(self, tensor: Tensor, offset: int = 0) -> Tensor:
        for cell, edit in self.parts:
            if cell.idle and edit.here(offset, tensor.shape[1]):
                cell.idle = edit.changes_nothing(tensor, offset)
        return tensor

    def on_share(self) -> Probe:
        """What a cut in the base removes from a state is no place to look at."""
        return Probe(())


class Keeper:
    """Keeps what stands at a site of the base run, piece by piece; changes nothing."""

    is_cut = False
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
