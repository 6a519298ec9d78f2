"""Makes a found circuit as small as single removals and exchanges can, or as good as they can at its size."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .circuit import METRICS, Bench, faithfulness
from .minimality import read, removed
from .progress import Progress
from .sweep import sweep

FEWEST_EVALUATIONS = 64
SMALL_MODEL = 8192
"""Units of a model times evaluations of a pruning that are always allowed: models of few units are cheap."""
WORTH = 1e-3
"""How much closer to the model's a faithfulness has to be for an exchange at the same size."""
ROUNDING = 1e-6
"""What a faithfulness has to be above the target, or above another one, to count as such."""


def evaluations(total: int) -> int:
    """The most circuits that one pruning measures on the discovery prompts, in a model of ``total`` units."""
    return max(FEWEST_EVALUATIONS, SMALL_MODEL // total)


Seen = dict[tuple[int, ...], float]


@dataclass(frozen=True)
class Pruned:
    """What pruning made of a circuit.

    Attributes:
        mask: The circuit, [units] of 0 and 1.
        evaluations: Circuits that were measured.
        whole: Whether it ended because nothing was left to try, not because of the bound on its evaluations.
    """

    mask: Tensor
    evaluations: int
    whole: bool


def pruned(
    bench: Bench,
    metric: str,
    mask: Tensor,
    order: Tensor,
    *,
    target: float = math.inf,
    size: int = 0,
    limit: int | None = None,
    seen: Seen | None = None,
    save: Callable[[Seen], None] | None = None,
    title: str = "pruning",
) -> Pruned:
    """Removes units, the least needed first, and exchanges some for dropped ones, until neither helps.

    With a ``target``, units go while the circuit's faithfulness reaches it, so a circuit that does not reach it is
    left alone. With a ``size`` they go until so many are left. A unit is exchanged where that lets another one go, or
    makes the circuit of the same size more like the model. Where all subsets of one unit fewer are no more than the
    evaluations that are left, they are all tried in the end.

    Args:
        bench: The discovery prompts.
        metric: What the circuit preserves, of :data:`mechint.circuit.METRICS`.
        mask: The circuit, [units] of 0 and 1.
        order: Scores [units]: dropped ones with high scores are tried in exchange first.
        target: Faithfulness on the bench, without a unit.
        size: Units to keep, where there is no target.
        limit: The most circuits to measure; of :func:`evaluations` by default.
        seen: What a killed run had measured.
        save: Called with all that is measured, every now and then.
        title: For the progress bar.
    """
    limit = evaluations(bench.units.total) if limit is None else limit
    with Progress(title, limit) as progress:
        work = Pruning(bench, metric, mask, order, target, size, limit, {} if seen is None else seen, save, progress)
        whole = work.run()
    return Pruned(work.mask, len(work.seen), whole)


class Spent(Exception):
    """As many circuits as are allowed have been measured."""


class Pruning:
    """The work of :func:`pruned`, with its arguments.

    What is measured is kept by the circuit's units, so that a run that goes on after a kill takes the same way
    without measuring anything again.
    """

    def __init__(
        self, bench: Bench, metric: str, mask: Tensor, order: Tensor, target: float, size: int, limit: int, seen: Seen,
        save: Callable[[Seen], None] | None, progress: Progress,
    ) -> None:  # fmt: skip
        self.bench, self.metric, self.mask, self.order = bench, metric, mask, order
        self.target, self.size, self.limit = target, size, limit
        self.seen, self.save, self.progress = dict(seen), save, progress
        self.window = max(4, limit // 32)
        """Units whose removal, or return, is measured at once, the most promising first."""
        progress.skip_to(len(seen))
        self.column, self.read = METRICS[metric].column, METRICS[metric].read
        self.full, self.empty = (self.read(float(end[self.column].mean())) for end in bench.ends)

    def run(self) -> bool:
        """Prunes :attr:`mask`; whether nothing is left to try."""
        try:
            if math.isinf(self.target) or self.faithful([self.mask])[0] >= self.target:
                self.mask = self.shrunk(self.mask)
                while self.exchange() or self.exhaust():
                    pass
        except Spent:
            return False
        return True

    # ---- measuring ----------------------------------------------------------------------------------------------

    def faithful(self, masks: list[Tensor]) -> list[float]:
        """Faithfulness of each circuit."""
        return self.measured(masks, self.by_edits)

    def without(self, mask: Tensor, units: list[int]) -> list[float]:
        """Faithfulness of a circuit without each of these units in turn."""
        masks = [mask.index_fill(0, torch.tensor([unit], device=mask.device), 0.0) for unit in units]

        def values(new: list[int]) -> Tensor:
            return removed(self.bench, mask, [units[k] for k in new], self.column)

        return self.measured(masks, lambda new, _: values(new))

    def measured(self, masks: list[Tensor], values: Callable[[list[int], list[Tensor]], Tensor]) -> list[float]:
        """What is known of these circuits, once those that are new are measured: ``values`` gives [prompts, new]."""
        keys = [tuple(mask.nonzero().flatten().tolist()) for mask in masks]
        new = [k for k, key in enumerate(keys) if key not in self.seen and key not in keys[:k]]
        new, short = new[: self.limit - len(self.seen)], len(new) > self.limit - len(self.seen)
        if new:
            means = values(new, [masks[k] for k in new]).mean(0).tolist()
            for k, mean in zip(new, means, strict=True):
                self.seen[keys[k]] = float(faithfulness(self.read(mean), self.full, self.empty))
            self.progress.step(f"{int(self.mask.sum())} units kept", len(new))
            if self.save is not None:
                self.save(self.seen)
        if short:
            raise Spent
        return [self.seen[key] for key in keys]

    def by_edits(self, new: list[int], masks: list[Tensor]) -> Tensor:
        """The metric's column of each circuit, [prompts, masks]."""
        bench, parts = self.bench, []
        for batch, fills, answers in zip(bench.batches, bench.fills, bench.answers, strict=True):
            cells = [bench.units.edits(mask, fills) for mask in masks]
            metric = functools.partial(read, answers, self.column)
            found = sweep(bench.model, batch.tokens, cells, metric, logits_at=batch.positions, by_head=True)
            parts.append(found.T.double())
        return torch.cat(parts)

    def like(self, faithful: float) -> float:
        """How close a faithfulness is to the model's: a circuit that overshoots the model is not it."""
        return -abs(1 - faithful)

    # ---- moves --------------------------------------------------------------------------------------------------

    def allowed(self, faithful: float, size: int) -> bool:
        """Whether a circuit of this faithfulness and size may be what comes out."""
        return size >= self.size if math.isinf(self.target) else faithful >= self.target + ROUNDING

    def shrunk(self, mask: Tensor, held: int = -1) -> Tensor:
        """A circuit without all units that can go one after another, the least needed first.

        Args:
            mask: The circuit.
            held: A unit that stays.
        """
        known: dict[int, float] = {}
        while True:
            size = int(mask.sum())
            if size <= max(1, self.size):
                return mask
            kept = [unit for unit in mask.nonzero().flatten().tolist() if unit != held]
            unit = self.least_needed(mask, kept, size - 1, known)
            if unit is None:
                return mask
            mask = mask.index_fill(0, torch.tensor([unit], device=mask.device), 0.0)
            if held < 0:
                self.mask = mask

    def least_needed(self, mask: Tensor, kept: list[int], size: int, known: dict[int, float]) -> int | None:
        """The unit whose removal costs least of the first window that has one that may go; None where no unit may."""
        kept = sorted(kept, key=lambda unit: (-known.get(unit, -math.inf), float(self.order[unit]), unit))
        for window in windows(kept, self.window):
            found = self.without(mask, window)
            known |= {unit: self.like(faithful) for unit, faithful in zip(window, found, strict=True)}
            may = [k for k, faithful in enumerate(found) if self.allowed(faithful, size)]
            if may:
                return window[max(may, key=lambda k: known[window[k]])]
        return None

    def exchange(self) -> bool:
        """Takes the first dropped unit with which fewer units do, or as many do better; whether there is one."""
        dropped = (self.mask == 0).nonzero().flatten()
        first = dropped[torch.sort(self.order[dropped], descending=True, stable=True).indices[: self.window]]
        larger = [self.mask.index_fill(0, unit, 1.0) for unit in first]
        if not larger:
            return False
        gains = [self.like(faithful) for faithful in self.faithful(larger)]
        for k in sorted(range(len(gains)), key=lambda k: (-gains[k], k)):
            other = self.shrunk(larger[k], held=int(first[k]))
            if self.better(other):
                self.mask = self.shrunk(other)
                return True
        return False

    def better(self, other: Tensor) -> bool:
        """Whether a circuit is smaller than the one at hand, or as large and closer to the model."""
        size, now = int(other.sum()), int(self.mask.sum())
        if size != now:
            return size < now
        theirs, own = map(self.like, self.faithful([other, self.mask]))
        return theirs > own + WORTH

    def exhaust(self) -> bool:
        """Takes the best of all circuits of one unit fewer, or of as many, where these are few; whether one is so."""
        total, now = self.bench.units.total, int(self.mask.sum())
        size = now if math.isinf(self.target) else now - 1
        if size < 1 or math.comb(total, size) > self.limit - len(self.seen):
            return False
        own = self.faithful([self.mask])[0]
        masks = [torch.zeros_like(self.mask).index_fill(0, torch.tensor(c, device=self.mask.device), 1.0)
                 for c in itertools.combinations(range(total), size)]  # fmt: skip
        found = self.faithful(masks)
        best = max(range(len(found)), key=lambda k: (self.allowed(found[k], size), self.like(found[k])))
        if not self.allowed(found[best], size) or (size == now and self.like(found[best]) <= self.like(own) + ROUNDING):
            return False
        self.mask = masks[best]
        return True


def windows(units: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(units), size):
        yield units[start : start + size]
