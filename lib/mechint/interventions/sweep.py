"""Sweeps: many small interventions on the same prompts, for a fraction of one forward each.

A cell is a list of edits, the unit of a sweep. Exact savings, in the order they are made:

* cells that change nothing (an edit that puts there what is there already, or one whose effect no wanted logit can
  see) take the unedited answer;
* layers below a cell's first edit, and positions before it, come from one run of the base (convolution memory and
  recurrent state, or keys and values, carry it on);
* the cells that start at one position walk up the layers together and join where their first edit is, so that every
  matrix product is large.

All of it is without gradients; :func:`gradients` is the variant that needs one forward and backward for all sites.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..utils import files
from ..utils.errors import MechintError
from ..utils.memory import mib, peak_bytes, size
from ..utils.progress import Progress
from ..utils.rundir import fingerprint, kept
from ..utils.workers import gather_parts, team
from .edits import Edit, check_edits, told
from .model import Model
from .run import check_tokens
from .sweep_cells import HELD, Cell, Keeper, Probe, RowTap, kind_of, late_edit, layer_of
from .taps import Tap
from .taps import wanted as wanted_of

Metric = Callable[[Tensor], Tensor]
TOGETHER = 1024
"""Tokens of the cells that run together, where cells of several starts do: more make no product faster."""


@torch.no_grad()
def sweep(
    model: Model,
    tokens: Tensor,
    cells: Sequence[Sequence[Edit]],
    metric: Metric | None = None,
    *,
    base: Sequence[Edit] = (),
    logits_at: Tensor | None = None,
    memory_mib: float = 1024.0,
    store: str | Path | None = None,
    key: str = "",
    title: str = "sweep",
    by_head: bool = False,
) -> Tensor:
    """The metric of every cell on every prompt: the same numbers as one :func:`mechint.run` for each cell.

    Args:
        model: From :func:`mechint.load`.
        tokens: Prompts of one length, [row, position]. Noise draws are rows of their own.
        cells: The edits of each cell, over the base.
        metric: Turns logits [cell, row, wanted position, vocabulary] into [cell, row, …], elementwise in cell and row;
            None returns the logits.
        base: Edits that hold in every cell, before its own (a corruption, say).
        logits_at: Positions whose logits are wanted, [row, wanted]; None for all.
        memory_mib: MiB that the base's memory and one batch of cells may take together, weights not counted. Batches
            are as large as fits, by a measured trial of each kind of cell.
        store: Directory that keeps finished batches, so that a killed sweep goes on. Not removed at the end.
        key: Names what the stored numbers depend on besides the tokens and the plan: weights, values, metric.
        title: Begins the progress line.
        by_head: The metric gets what the head reads, [cell, row, wanted position, model], and makes logits itself, a
            few at a time: those of many positions and a large vocabulary would not fit.

    Returns:
        [cell, row, …], on the CPU, in the order of ``cells``. Within :func:`mechint.utils.workers.together`
        each process of a group (torchrun) does its share of the batches and all of them return everything.

    Raises:
        MechintError: an edit that does not fit the model or contradicts another of its cell; a budget too small
            for one cell (what it needs is said); numbers that are not finite.
    """
    check_tokens(model, tokens)
    if not len(cells):
        raise MechintError("a sweep needs at least one cell")
    rows, length = tokens.shape
    base = check_edits(model.sites, base, rows, length)
    plan = [Cell.of(k, check_edits(model.sites, edits, rows, length), model) for k, edits in enumerate(cells)]
    if by_head and any(edit.site == "logits" for edits in (base, *(cell.edits for cell in plan)) for edit in edits):
        raise MechintError("sweep: an edit of logits in a sweep that makes none; leave by_head out")
    metric = metric or (lambda logits: logits)
    wanted = logits_at if logits_at is not None else torch.arange(length).expand(rows, -1)
    wanted = wanted.to(tokens.device)

    unedited = Base(model, tokens, base, plan, wanted, memory_mib, by_head)
    answer = metric(unedited.logits.unsqueeze(0)).cpu()  # [1, row, …]
    check_finite(answer, "the base run")
    result = answer.repeat(len(plan), *[1] * (answer.dim() - 1))
    batches = list(unedited.batches(memory_mib, wanted))
    rank, world = team()
    directory = None if store is None else Path(store)
    plan_key = fingerprint([key, tokens.tolist(), wanted.tolist(), [[c.number for c in b.cells] for b in batches]])
    parts: dict[int, Tensor] = {}
    with Progress(title, sum(len(batch.cells) for batch in batches)) as progress:
        for k, batch in enumerate(batches):
            if k % world != rank:
                continue
            file = None if directory is None else directory / f"{plan_key[:16]}-{k}.pt"
            if file is not None and (found := kept(file)) is not None:
                [parts[k]] = found
            else:
                logits = unedited.run(batch, wanted)  # [cell · row, wanted, vocabulary]
                parts[k] = metric(logits.unflatten(0, (len(batch.cells), rows))).cpu()
                check_finite(parts[k], f"cell {batch.cells[0].number} or one of {len(batch.cells)} beside it")
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    files.write_sealed(file, parts[k])
            progress.step(count=len(batch.cells))
    for k, part in (gather_parts(parts) if world > 1 else parts).items():
        result[[cell.number for cell in batches[k].cells]] = part
    return result


def check_finite(values: Tensor, where: str) -> None:
    if not torch.isfinite(values).all():
        raise MechintError(
            f"sweep: {where} gives numbers that are NaN or infinite; look at that run with mechint.run, which names "
            "the first layer and position"
        )


@dataclass
class Group:
    """Cells that start at one position, those that join first in front."""

    start: int
    cells: list[Cell]


@dataclass
class Batch:
    """Cells that run together, by where they start."""

    groups: list[Group]

    @property
    def cells(self) -> list[Cell]:
        return [cell for group in self.groups for cell in group.cells]


@dataclass
class Base:
    """One run of the base, kept where cells start: residuals by layer, and each layer's memory by position."""

    model: Model
    tokens: Tensor
    edits: list[Edit]
    plan: list[Cell]
    wanted: Tensor
    memory_mib: float
    by_head: bool = False
    """True if the input of the head is wanted instead of the logits."""
    residual: dict[int, Tensor] = field(default_factory=dict)
    memory: dict[tuple[int, int], Any] = field(default_factory=dict)
    needs: dict[tuple[str, ...], int] = field(default_factory=dict)
    kept: dict[str, Keeper] = field(default_factory=dict)
    """Values of the base at the late sites that cells edit."""

    def __post_init__(self) -> None:
        wanted, layers = set(self.wanted.flatten().tolist()), len(self.model.layers)
        active = [cell for cell in self.plan if cell.edits and cell.reaches(self.model, wanted)]
        tap = RowTap([self.edits], len(self.tokens), 0)
        at_site: dict[str, list[tuple[Cell, Edit]]] = {}
        for cell in active:
            for edit in told(cell.edits):
                if edit.is_cut:
                    cell.idle = False
                elif edit.target.endswith(HELD) or (edit.target.endswith(".state") and edit.positions is None):
                    cell.idle = False  # observing these would hold every state of the base
                else:
                    at_site.setdefault(edit.target, []).append((cell, edit))
        for site, parts in at_site.items():
            tap.edits.setdefault(site, []).append(Probe(parts))
        for cell in active:
            cell.late = late_edit(cell, self.edits, self.model)
            for site in () if cell.late is None else self.late_sites(cell.late):
                if site not in self.kept:
                    self.kept[site] = Keeper()
                    tap.edits.setdefault(site, []).append(self.kept[site])
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
        units = cast("Sequence[int] | None", edit.units)  # late sites have one axis of units
        added = self.model.into_stream(cell.layer, site.rpartition(".")[2], change, units)
        return edit.plus(r, added.to(r.device), start)

    def walk(self, tap: Tap, lowest: dict[int, int]) -> Tensor:
        """The base, layer by layer, and what each remembers where cells start."""
        tokens, model = self.tokens, self.model
        starts = sorted({0, *lowest})
        tap.goes_on = starts != [0]  # what stands before the first position is nothing
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

    def batches(self, memory_mib: float, wanted: Tensor) -> Iterator[Batch]:
        """All cells, in batches that fit the budget: of one start each, or of several where products are shared."""
        each = [Group(start, self.starting(start)) for start in self.starts]
        if not self.model.side_by_side:
            for group in each:
                yield from self.cut([group], memory_mib, wanted)
        elif each:
            yield from self.cut(each, memory_mib, wanted)

    def starting(self, start: int) -> list[Cell]:
        return sorted((cell for cell in self.active if cell.position == start), key=lambda cell: cell.joins)

    def cut(self, groups: list[Group], memory_mib: float, wanted: Tensor) -> Iterator[Batch]:
        """The cells of some groups, in even batches: a small rest would waste its matrix products."""
        cells = [cell for group in groups for cell in group.cells]
        for kind in {kind_of(cell) for cell in cells} - self.needs.keys():
            # later starts and higher layers need less memory: the cheapest sure trial is the earliest, highest cell
            one = max((cell for cell in cells if kind_of(cell) == kind), key=lambda cell: (-cell.position, cell.joins))
            self.needs[kind] = peak_bytes(self.run, Batch([Group(one.position, [one])]), wanted)
        needed = max(self.needs[kind_of(cell)] for cell in cells)
        room = memory_mib * 2**20 / 2
        if needed > room:
            raise MechintError(
                f"sweep: {memory_mib:g} MiB are too few for one cell of {len(self.tokens)} rows, which needs "
                f"{mib(2 * needed)} MiB (half for the base); give more, or sweep fewer rows at a time"
            )
        count = -(-len(cells) // int(room // needed))
        if len(groups) > 1:
            tokens = sum((self.tokens.shape[1] - cell.position) * len(self.tokens) for cell in cells)
            count = max(count, min(len(cells), -(-tokens // TOGETHER)))
        edges = [len(cells) * k // count for k in range(count + 1)]
        for a, b in itertools.pairwise(edges):
            starts = itertools.groupby(cells[a:b], key=lambda cell: cell.position)
            yield Batch([Group(start, list(some)) for start, some in starts])

    def run(self, batch: Batch, wanted: Tensor) -> Tensor:
        """The logits of a batch of cells, [cell · row, wanted, vocabulary]; cells in the batch's order."""
        model, layers = self.model, len(self.model.layers)
        asked = {group.start: wanted.repeat(len(group.cells), 1) for group in batch.groups}
        places = {start: (each - start).clamp(min=0) for start, each in asked.items()}
        streams: dict[int, Tensor] = {}
        taps: dict[int, RowTap] = {}
        for i in range(min(cell.joins for cell in batch.cells), layers + 1):
            for group in batch.groups:
                if group.cells[0].joins <= i:
                    taps[group.start] = self.tap(group, i)
                    streams[group.start] = self.joined(group, i, streams.get(group.start), taps[group.start])
            if i == layers:
                break
            live, only = [start for start in asked if start in streams], None
            if i == layers - 1 and self.ends_early(batch, taps.values()):
                only = list(places.values())
                every = torch.arange(wanted.shape[1], device=wanted.device)
                places = {start: every.expand_as(each) for start, each in places.items()}
            before = [streams[start] for start in live]
            caches = [self.memory[i, start].repeat(len(streams[start]) // len(self.tokens)) for start in live]
            behind = model.blocks(i, before, caches, [taps[start] for start in live], only)
            streams = dict(zip(live, behind, strict=True))
        found = self.ended([streams[start] for start in asked], [taps[start] for start in asked], list(places.values()))
        for k, (start, each) in enumerate(asked.items()):
            if int(each.min()) < start:  # logits before the start are the base's
                base = self.logits.repeat(len(each) // len(self.tokens), 1, 1)
                found[k] = torch.where((each < start).unsqueeze(-1), base, found[k])
        return torch.cat(found)

    def ends_early(self, batch: Batch, taps: Iterable[RowTap]) -> bool:
        """True if the last layer may give the wanted positions alone: all cells run it, none edits its output."""
        last = len(self.model.layers) - 1
        kept = {f"layers.{last}.{name}" for name in self.model.local_sites} | {"final_norm", "logits"}
        runs = all(cell.joins <= last for cell in batch.cells)
        return self.model.side_by_side and runs and not any(kept & tap.edits.keys() for tap in taps)

    def tap(self, group: Group, i: int) -> RowTap:
        """The edits of a group's cells that run at layer i."""
        edits = [[*self.edits, *cell.edits] for cell in group.cells if cell.joins <= i]
        here = RowTap(edits, len(self.tokens), group.start)
        here.goes_on = False
        return here

    def joined(self, group: Group, i: int, r: Tensor | None, here: RowTap) -> Tensor:
        """The stream of a group's cells before layer i, [cell · row, position, model], with those that join there."""
        joining, start, rows = [cell for cell in group.cells if cell.joins == i], group.start, len(self.tokens)
        if joining:
            if i == 0:  # the embedding's edits belong to the first layer
                fresh = self.model.begin(self.tokens[:, start:].repeat(len(joining), 1), here)
            else:
                clean = self.residual[i][:, start:]
                fresh = torch.cat([clean if cell.late is None else self.behind(cell, start) for cell in joining])
                # the residual behind the layer below is the first edited
                edits = [cell.edits for cell in joining]
                fresh = self.model.at_stream(RowTap(edits, rows, start), f"layers.{i - 1}.resid_post", fresh)
            r = fresh if r is None else torch.cat([r, fresh])
        assert r is not None  # the group's first cell has set it
        return r

    def ended(self, streams: list[Tensor], taps: list[RowTap], places: list[Tensor]) -> list[Tensor]:
        """The logits of streams [row, position, model] behind the last layer at places [row, wanted] of each."""
        if self.by_head or any(name in tap.edits for tap in taps for name in ("final_norm", "logits")):
            return [self.finish(*each) for each in zip(streams, taps, places, strict=True)]
        read = [wanted_of(*each) for each in zip(streams, places, strict=True)]  # one matrix product for all
        return list(self.model.finish(torch.cat(read), Tap()).split([len(each) for each in read]))
