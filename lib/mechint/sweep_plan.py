"""The base that the cells of a sweep share, and the batches they run in."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import MechintError
from .interventions import Edit
from .models.sites import Tap
from .sweep_cells import HELD, Cell, kind_of, late_edit, layer_of
from .sweep_taps import Keeper, Probe, RowTap


@dataclass
class Batch:
    """Cells that run together: they start at one position."""

    start: int
    cells: list[Cell]


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
    kept: dict[str, Keeper] = field(default_factory=dict)
    """What stands at the late sites that cells edit."""

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
        for cell in active:
            cell.late = late_edit(cell, self.edits, self.model)
            for site in () if cell.late is None else self.late_sites(cell.late):
                if site not in self.kept:
                    self.kept[site] = Keeper()
                    tap.edits.setdefault(site, []).append(self.kept[site])  # type: ignore[arg-type]
        self.starts = sorted({cell.position for cell in active})
        cuts = any(edit.is_cut for edit in self.edits)
        if cuts:  # a cut in the base needs its sources in every run
            self.starts = [0] if active else []
        lowest = {
            start: min((cell.joins for cell in active if cuts or cell.position == start), default=layers)
            for start in self.starts
        }
        self.logits = self.walk(tap, lowest)
        self.active = [cell for cell in active if not cell.idle]
        self.starts = sorted({0 if cuts else cell.position for cell in self.active})
        for cell in self.active:
            cell.position = 0 if cuts else cell.position

    def late_sites(self, edit: Edit) -> list[str]:
        """The site of a late edit, and the one that it is multiplied by."""
        layer, _, kind = edit.target.rpartition(".")
        other = self.model.late_sites[kind][0]
        return [edit.target, f"{layer}.{other}"] if other else [edit.target]

    def behind(self, cell: Cell, start: int) -> Tensor:
        """The residual stream behind the first layer of a late cell, from a position on, [row, position, model]."""
        r, edit = self.residual[cell.joins][:, start:], cell.late
        assert edit is not None
        site, *others = self.late_sites(edit)
        change = edit.change(self.kept[site].value[:, start:], start)  # [row, position, unit]
        for other in others:
            change = change * edit.selection(self.kept[other].value[:, start:], start)
        added = self.model.into_stream(cell.layer, site.rpartition(".")[2], change, edit.units)
        return edit.plus(r, added, start)

    def walk(self, tap: Tap, lowest: dict[int, int]) -> Tensor:
        """The base, layer by layer, and what each remembers where cells start."""
        tokens, model = self.tokens, self.model
        starts = sorted({0, *lowest})
        joined = {cell.joins for cell in self.plan}
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
            held += sum(size(k.pieces, counted) for name, k in self.kept.items() if layer_of(name, model) == i)
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
        cells = sorted((cell for cell in self.active if cell.position == start), key=lambda cell: cell.joins)
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
        first = batch.cells[0].joins
        for i in range(first, layers + 1):
            active = [cell for cell in batch.cells if cell.joins <= i]
            joining = [cell for cell in active if cell.joins == i]
            here = RowTap([[*self.edits, *cell.edits] for cell in active], rows, start)
            here.goes_on = False
            if joining:
                if i == 0:  # the embedding's edits belong to the first layer
                    fresh = model.begin(self.tokens[:, start:].repeat(len(joining), 1), here)
                else:
                    clean = self.residual[i][:, start:]
                    fresh = torch.cat([clean if cell.late is None else self.behind(cell, start) for cell in joining])
                if i > 0:  # the residual behind the layer below is the first edited
                    edits = [cell.edits for cell in joining]
                    fresh = RowTap(edits, rows, start)(f"layers.{i - 1}.resid_post", fresh)
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
