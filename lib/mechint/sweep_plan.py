"""The parts of a sweep: where cells start, the base they share, the batches they run in."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import MechintError
from .interventions import Edit
from .models.sites import Tap

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
    """Whether every edit has been seen to put there what was there already."""

    @staticmethod
    def of(number: int, edits: list[Edit], model: Any) -> Cell:
        layers = [layer_of(edit.site, model) + edit.target.endswith(".resid_post") for edit in edits]
        # a cut reads its sources' positions again, so it needs all of them
        starts = [0 if edit.is_cut or edit.positions is None else min(edit.positions) for edit in edits]
        return Cell(number, edits, min(layers, default=len(model.layers)), min(starts, default=0))

    def reaches(self, model: Any, wanted: set[int]) -> bool:
        """Whether any wanted position can see an edit."""

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
    """What its memory depends on."""
    return tuple(sorted({edit.target.rpartition(".")[2] for edit in cell.edits}))


def layer_of(site: str, model: Any) -> int:
    if site.startswith("layers."):
        return int(site.split(".")[1])
    return 0 if site in model.first_sites else len(model.layers)


@dataclass
class Batch:
    """Cells that run together: they start at one position."""

    start: int
    cells: list[Cell]


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


@dataclass
class Base:
    """One run of the base, kept where cells start: residuals by layer, and each layer's memory by position."""

    model: Any
    tokens: Tensor
    edits: list[Edit]
    plan: list[Cell]
    wanted: Tensor
    memory_mib: float
    by_head: bool = False
    """Whether what the head reads stands in for the logits."""
    residual: dict[int, Tensor] = field(default_factory=dict)
    memory: dict[tuple[int, int], Any] = field(default_factory=dict)
    needs: dict[tuple[str, ...], int] = field(default_factory=dict)
    highest: dict[tuple[str, ...], Cell] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted, layers = set(self.wanted.flatten().tolist()), len(self.model.layers)
        active = [cell for cell in self.plan if cell.edits and cell.reaches(self.model, wanted)]
        tap = RowTap([self.edits], len(self.tokens), 0)
        at_site: dict[str, list[tuple[Cell, Edit]]] = {}
        for cell in active:
            for edit in cell.edits:
                if edit.is_cut:
                    cell.idle = False
                elif edit.target.endswith(HELD) or (edit.target.endswith(".state") and edit.positions is None):
                    cell.idle = False  # a look at these would hold every state of the base
                else:
                    at_site.setdefault(edit.target, []).append((cell, edit))
        for site, parts in at_site.items():
            tap.edits.setdefault(site, []).append(Probe(parts))  # type: ignore[arg-type]
        self.starts = sorted({cell.position for cell in active})
        cuts = any(edit.is_cut for edit in self.edits)
        if cuts:  # a cut in the base needs its sources in every run
            self.starts = [0] if active else []
        lowest = {
            start: min((cell.layer for cell in active if cuts or cell.position == start), default=layers)
            for start in self.starts
        }
        self.logits = self.walk(tap, lowest)
        self.active = [cell for cell in active if not cell.idle]
        self.starts = sorted({0 if cuts else cell.position for cell in self.active})
        for cell in self.active:
            cell.position = 0 if cuts else cell.position

    def walk(self, tap: Tap, lowest: dict[int, int]) -> Tensor:
        """The base, layer by layer, and what each remembers where cells start."""
        tokens, model = self.tokens, self.model
        starts = sorted({0, *lowest})
        joined = {cell.layer for cell in self.plan}
        allowed, held = self.memory_mib * 2**20 / 2, 0
        counted: set[int] = set()  # memories of several positions may share what they hold
        r = model.begin(tokens, tap)
        for i in range(len(model.layers)):
            if i in joined:
                self.residual[i] = r
                held += size(r, counted)
            r, memories = model.block_from_start(i, r, starts, tap)
            for start, memory in zip(starts, memories, strict=True):
                if lowest.get(start, len(model.layers)) <= i:
                    self.memory[i, start] = memory
                    held += size(memory, counted)
                if held > allowed:
                    raise MechintError(
                        f"sweep: {self.memory_mib:g} MiB are too few: half of them hold the base's memory, which has "
                        f"come to {mib(held)} MiB for {len(tokens)} rows at layer {i}; give more, sweep fewer rows at "
                        "a time, or start cells at fewer positions"
                    )
        self.residual[len(model.layers)] = r
        return self.finish(r, tap, self.wanted)

    def finish(self, r: Tensor, tap: Tap, wanted: Tensor) -> Tensor:
        """Logits at the wanted positions; all of them first if the sites behind the layers are edited."""
        if self.by_head or any(name in tap.edits for name in ("final_norm", "logits")):
            logits = tap("final_norm", self.model.ending[0](r)) if self.by_head else self.model.finish(r, tap)
            return logits.gather(1, wanted.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
        return self.model.finish(r, tap, wanted)

    def batches(self, start: int, memory_mib: float, wanted: Tensor) -> Iterator[Batch]:
        """The cells that start here, in batches that fit the budget."""
        cells = sorted((cell for cell in self.active if cell.position == start), key=lambda cell: cell.layer)
        if not cells:
            return
        for cell in cells:  # the highest cell of a kind is the cheapest trial: the layers are alike
            self.highest[kind_of(cell)] = cell
        for kind in {kind_of(cell) for cell in cells} - self.needs.keys():
            # starts come in ascending order, and a later one needs less
            self.needs[kind] = peak_bytes(self.run, Batch(start, [self.highest[kind]]), wanted)
        needed = max(self.needs[kind_of(cell)] for cell in cells)
        room = memory_mib * 2**20 / 2
        if needed > room:
            raise MechintError(
                f"sweep: {memory_mib:g} MiB are too few for one cell of {len(self.tokens)} rows, which needs "
                f"{mib(2 * needed)} MiB (half for the base); give more, or sweep fewer rows at a time"
            )
        # even batches: a small rest would waste its matrix products
        count = -(-len(cells) // int(room // needed))
        edges = [len(cells) * k // count for k in range(count + 1)]
        yield from (Batch(start, cells[a:b]) for a, b in itertools.pairwise(edges))

    def run(self, batch: Batch, wanted: Tensor) -> Tensor:
        """The logits of a batch of cells, [cell · row, wanted, vocabulary]; cells in the batch's order."""
        model, start, rows = self.model, batch.start, len(self.tokens)
        layers, r = len(model.layers), None
        first = batch.cells[0].layer
        for i in range(first, layers + 1):
            active = [cell for cell in batch.cells if cell.layer <= i]
            joining = sum(cell.layer == i for cell in active)
            here = RowTap([[*self.edits, *cell.edits] for cell in active], rows, start)
            here.goes_on = False
            if joining:
                if i == 0:  # the embedding's edits belong to the first layer
                    fresh = model.begin(self.tokens[:, start:].repeat(joining, 1), here)
                else:
                    fresh = self.residual[i][:, start:].repeat(joining, 1, 1)
                if i > 0:  # the residual behind the layer below is the first edited
                    cells = [cell.edits for cell in active if cell.layer == i]
                    fresh = RowTap(cells, rows, start)(f"layers.{i - 1}.resid_post", fresh)
                r = fresh if r is None else torch.cat([r, fresh])
            assert r is not None
            if i < layers:
                r, _ = model.block(i, r, self.memory[i, start].repeat(len(active)), here)
        # logits before the start are the base's
        asked = wanted.repeat(len(batch.cells), 1)
        behind = self.finish(r, here, (asked - start).clamp(min=0))  # type: ignore[arg-type]
        if int(asked.min()) >= start:
            return behind
        return torch.where((asked < start).unsqueeze(-1), self.logits.repeat(len(batch.cells), 1, 1), behind)


def size(held: Any, counted: set[int]) -> int:
    """Bytes that a tensor, or the tensors of a dataclass or list, keep alive, without those counted before."""
    if isinstance(held, Tensor):
        storage = held.untyped_storage()
        fresh = storage._cdata not in counted
        counted.add(storage._cdata)
        return storage.nbytes() if fresh else 0
    parts: Iterable[Any] = held if isinstance(held, (list, tuple)) else getattr(held, "__dict__", {}).values()
    return sum(size(part, counted) for part in parts)


def mib(count: float) -> str:
    return f"{count / 2**20:.3g}"


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves(args) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:  # a view makes nothing
                self.see(tensor.untyped_storage())
        return made

    def see(self, storage: Any) -> None:
        name, count = storage._cdata, storage.nbytes()
        if name in self.known:
            return
        self.known.add(name)
        self.now += count
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self.known.discard(name)
            self.now -= count

        weakref.finalize(storage, gone)


def peak_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """The most bytes that the tensors made by ``work(*arguments)`` held at once."""
    with _Live() as live:
        work(*arguments)
    return live.peak
