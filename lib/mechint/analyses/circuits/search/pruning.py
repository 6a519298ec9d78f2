"""Makes a found circuit as small as removals and exchanges of units can, or as good as they can at its size."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....interventions.edits import Edit
from ....interventions.sweep import sweep
from ....interventions.units import Units
from ....utils.progress import Progress
from ...metrics import Answers, faithfulness
from ..bench import METRICS, Bench, loss_of

FEWEST_EVALUATIONS = 40
MOST_EVALUATIONS = 192
WORK = 32_768
"""Units of a model times evaluations of a pruning, between the fewest and the most."""
SMALL_MODEL = 16
SMALL_EVALUATIONS = 1024
"""Evaluations in a model of so few units that subsets can be tried out."""
BACKWARD = 3
"""Cost of a gradient at a circuit, in evaluations of a circuit."""
SAMPLE = 32
"""About this many discovery prompts decide the order of trials; all prompts decide whether a unit is removed."""
FEW = 16
"""Units that are ordered again, or removed alone, at once."""
SOME = 3
"""Units that are tried in exchange for one in a large circuit."""
TOGETHER = 8
"""So many circuits or more are measured in a sweep, which has a base to compute first."""
WORTH = 1e-3
"""Least gain in faithfulness for which units are exchanged at the same size."""
ROUNDING = 1e-6
"""Least difference by which a faithfulness counts as above the target, or above another one."""


def evaluations(total: int, steps: int = 100) -> int:
    """The most circuits that one pruning measures on the discovery prompts.

    Args:
        total: Units of the model.
        steps: Steps of the search before it: a pruning may not take longer than that.
    """
    if total <= SMALL_MODEL:
        return SMALL_EVALUATIONS
    return min(MOST_EVALUATIONS, 2 * steps, max(FEWEST_EVALUATIONS, WORK // total))


Seen = dict[tuple[int, ...], list[float]]
"""By a circuit's units, behind −1 where it was measured on the sample: its faithfulness, and what share of the prompts
it took to know it."""


@dataclass(frozen=True)
class Pruned:
    """The result of pruning a circuit.

    Attributes:
        mask: The circuit, [units] of 0 and 1.
        evaluations: Circuits that were measured; a gradient counts as :data:`BACKWARD`, a sample in part.
        exchanges: Dropped units that were tried in exchange for others.
        minimal: True if the target is missed without any single unit, each of which was tried.
        whole: True if it ended because nothing was left to try, not because of the bound on its evaluations.
    """

    mask: Tensor
    evaluations: int
    exchanges: int
    minimal: bool
    whole: bool


def pruned(
    bench: Bench,
    metrics: str | Sequence[str],
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

    Every unit is removed alone on a sample of the prompts, which says in which order to try them. Half of the longest
    run of least needed units without which the target is reached is removed at once; then the units are ordered again.
    A dropped unit is exchanged for kept ones if this lets another unit be removed, or makes the circuit of the same
    size more like the model; the gates' gradient says which to try. In the end every unit that is left is removed alone
    on all prompts. Where all subsets of one unit fewer are no more than the evaluations that are left, they are all
    tried as well.

    With a ``target``, units go while the circuit's faithfulness reaches it, so a circuit that does not reach it is
    left alone. With a ``size`` they go until so many are left.

    Args:
        bench: The discovery prompts.
        metrics: Metrics that the circuit preserves, from :data:`.bench.METRICS`; of several, the least faithfulness
            counts, and gradients are those of the first.
        mask: The circuit, [units] of 0 and 1.
        order: Scores [units]: dropped ones with high scores are tried in exchange first, beside those by gradient.
        target: Faithfulness on the bench, without a unit.
        size: Units to keep, where there is no target.
        limit: The most circuits to measure; of :func:`evaluations` by default.
        seen: Measurements of a killed run.
        save: Called with all that is measured, every now and then.
        title: For the progress bar.
    """
    limit = evaluations(bench.units.total) if limit is None else limit
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    with Progress(title, limit) as progress:
        work = Pruning(bench, names, mask, order, target, size, limit, {} if seen is None else seen, save, progress)
        whole = work.run()
    return Pruned(work.mask, round(work.spent), work.exchanges, work.minimal(), whole)


class Spent(Exception):
    """As many circuits as are allowed have been measured."""


class Pruning:
    """The work of :func:`pruned`, with its arguments.

    Measurements are kept by the circuit's units, so that a run that resumes after a kill takes the same steps without
    measuring anything again. A circuit that certainly misses the target is not measured to its end; what is kept of it
    is then an upper bound of its faithfulness, which misses the target too.
    """

    def __init__(
        self, bench: Bench, metrics: list[str], mask: Tensor, order: Tensor, target: float, size: int, limit: int,
        seen: Seen, save: Callable[[Seen], None] | None, progress: Progress,
    ) -> None:  # fmt: skip
        self.bench, self.metrics, self.mask, self.order = bench, metrics, mask, order.detach().cpu()
        self.target, self.size, self.limit = target, size, limit
        self.seen, self.save, self.progress = dict(seen), save, progress
        self.window = max(4, limit // 32)
        """Dropped units that are tried in exchange at once; a circuit of so many units loses one at a time."""
        self.whole = Shares(bench, metrics, target)
        self.used: set[tuple[int, ...]] = set()
        self.spent = 0.0
        """Evaluations of circuits on all prompts, or work worth as much."""
        self.exchanges = 0
        self.far: dict[int, float] = {}
        """Distance of the circuit from the model on the sample when it was last measured without a unit, by unit."""

    def run(self) -> bool:
        """Prunes :attr:`mask`; whether nothing is left to try."""
        try:
            if self.faithful([self.mask])[0] >= self.target or math.isinf(self.target):
                self.mask = self.shrunk(self.mask)
                while (self.affordable() and self.exchange()) or self.remove_one() or self.exhaust():
                    pass
            return self.affordable()
        except Spent:
            return False

    def affordable(self) -> bool:
        """True if enough evaluations remain after exchanges to remove every unit alone, if the limit allows that at
        all."""
        kept = int(self.mask.sum())
        return math.isinf(self.target) or kept >= self.limit or self.spent + kept <= self.limit

    def minimal(self) -> bool:
        """True if every unit of the circuit was removed alone and none may go."""
        keys = [key_of(less(self.mask, [unit])) for unit in key_of(self.mask)]
        known = [self.seen[key][0] for key in keys if key in self.used]
        return math.isfinite(self.target) and len(known) == len(keys) and not any(self.allowed(f, 0) for f in known)

    # ---- measuring ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def sample(self) -> Shares | None:
        """A part of the prompts, where there are enough of them."""
        some = self.bench.sample(SAMPLE)
        return Shares(some, self.metrics, math.inf) if 2 * len(some) <= len(self.bench) else None

    @functools.cached_property
    def slopes(self) -> dict[tuple[int, ...], Tensor]:
        """Gradients that were taken, by the circuit's units."""
        return {}

    def faithful(self, masks: list[Tensor]) -> list[float]:
        """Faithfulness of each circuit."""
        return self.measured(self.whole, masks, self.alone(masks))

    def alone(self, masks: list[Tensor]) -> Cells:
        return lambda new, units, fills: ([], [units.edits(masks[k], fills) for k in new])

    def without(self, shares: Shares, mask: Tensor, units: list[int]) -> list[float]:
        """Faithfulness of a circuit, on some prompts, without each of these units in turn."""
        masks = [less(mask, [unit]) for unit in units]
        return self.measured(shares, masks, lambda new, all, fills: all.removals(mask, [units[k] for k in new], fills))

    def measured(self, shares: Shares, masks: list[Tensor], cells: Cells) -> list[float]:
        """Measures those of these circuits that are new, and returns what is known of all."""
        own = () if shares is self.whole else (-1,)
        keys = [(*own, *key_of(mask)) for mask in masks]
        fresh = [k for k, key in enumerate(keys) if key not in self.used and key not in keys[:k]]
        price = shares.prompts / self.whole.prompts
        most = int((self.limit - self.spent) / price)
        fresh, short = fresh[:most], len(fresh) > most
        new = [k for k in fresh if keys[k] not in self.seen]
        if new:
            self.seen |= zip((keys[k] for k in new), shares.of(new, masks, cells), strict=True)
            if self.save is not None:
                self.save(self.seen)
        self.used |= {keys[k] for k in fresh}
        self.pay(sum(price * self.seen[keys[k]][1] for k in fresh))
        if short:
            raise Spent
        return [self.seen[key][0] for key in keys]

    def pay(self, price: float) -> None:
        before, self.spent = int(self.spent), self.spent + price
        if int(self.spent) > before:
            self.progress.step(f"{int(self.mask.sum())} units kept", int(self.spent) - before)

    def slope(self, mask: Tensor) -> Tensor:
        """The gradient of a circuit's cost (:func:`.bench.loss_of`) with respect to each unit's gate, [units]
        on the CPU: where it is negative, a dropped unit is expected to help."""
        key = key_of(mask)
        if key not in self.slopes:
            if self.spent + BACKWARD > self.limit:
                raise Spent
            gates, total = mask.detach().clone().requires_grad_(), torch.zeros_like(mask)
            for index, batch in enumerate(self.bench.batches):
                loss, _ = loss_of(self.bench, self.metrics[0], index, gates)
                total += torch.autograd.grad(loss, gates)[0] * (len(batch) / self.whole.prompts)
            self.slopes[key] = total.cpu()
            self.pay(BACKWARD)
        return self.slopes[key]

    def like(self, faithful: float) -> float:
        """Returns minus the distance of a faithfulness from the model's: a circuit that overshoots the model is not
        faithful."""
        return -abs(1 - faithful)

    # ---- moves --------------------------------------------------------------------------------------------------

    def allowed(self, faithful: float, size: int) -> bool:
        """True if a circuit of this faithfulness and size is acceptable as the result."""
        return size >= self.size if math.isinf(self.target) else faithful >= self.target + ROUNDING

    def shrunk(self, mask: Tensor, held: int = -1) -> Tensor:
        """A circuit without all units that can go in the order of a sample.

        Args:
            mask: The circuit.
            held: A unit that stays.
        """
        while (gone := self.least_needed(mask, held)) is not None:
            mask = less(mask, gone)
            if held < 0:
                self.mask = mask
        return mask

    def least_needed(self, mask: Tensor, held: int) -> list[int] | None:
        """Units that can go at once, or None: one by one where the circuit is no larger than a window."""
        kept = [unit for unit in key_of(mask) if unit != held]
        most = min(len(kept), int(mask.sum()) - max(1, self.size))
        if most < 1:
            return None
        if len(kept) <= self.window:
            return self.one_of(mask, kept)
        ranked = self.ranked(mask, kept)
        if most == 1 and math.isinf(self.target):
            return self.one_of(mask, ranked[: self.window])
        row = self.longest(mask, ranked, min(most, len(ranked)))
        return ranked[: (row + 1) // 2] if row else self.one_of(mask, ranked[1:SOME])

    def ranked(self, mask: Tensor, units: list[int]) -> list[int]:
        """Units of a circuit, those first without which it is nearest to the model on the sample.

        At first as many are looked at as a quarter of the limit pays for, those of low scores; then the first few.
        """
        shares = self.sample or self.whole
        room = int(self.limit / 4 * self.whole.prompts / shares.prompts)
        most = max(FEW, self.window) if self.far else max(room, self.window)
        units = sorted(units, key=self.needed)[:most]
        self.far |= {
            unit: -self.like(faithful) for unit, faithful in zip(units, self.without(shares, mask, units), strict=True)
        }
        return sorted(units, key=self.needed)

    def needed(self, unit: int) -> tuple[float, float, int]:
        """Sort key of a unit: the later, the larger."""
        return self.far.get(unit, math.inf), float(self.order[unit]), unit

    def longest(self, mask: Tensor, ranked: list[int], most: int) -> int:
        """Counts the first units that can go together, if more can never go where fewer can't."""
        if math.isinf(self.target):
            return most
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            [faithful] = self.faithful([less(mask, ranked[:middle])])
            low, high = (middle, high) if self.allowed(faithful, 0) else (low, middle)
        return low

    def one_of(self, mask: Tensor, units: list[int]) -> list[int] | None:
        """The unit of these whose removal costs least on all prompts, if any may go."""
        found, size = self.without(self.whole, mask, units), int(mask.sum()) - 1
        may = [k for k, faithful in enumerate(found) if self.allowed(faithful, size)]
        return [units[max(may, key=lambda k: self.like(found[k]))]] if may else None

    def remove_one(self) -> bool:
        """Removes one unit, and what then can go as well, if any single one can go; whether one can."""
        if math.isinf(self.target) or int(self.mask.sum()) < 2:
            return False
        for some in windows(sorted(key_of(self.mask), key=self.needed), FEW):
            if (gone := self.one_of(self.mask, some)) is not None:
                self.mask = less(self.mask, gone)
                self.mask = self.shrunk(self.mask)
                return True
        return False

    def exchange(self) -> bool:
        """Takes the first dropped unit with which fewer units do, or as many do better; whether there is one."""
        if math.isinf(self.target) and self.like(self.faithful([self.mask])[0]) >= -WORTH:
            return False
        first = self.promising()
        larger = [self.mask.index_fill(0, torch.tensor([unit], device=self.mask.device), 1.0) for unit in first]
        if not larger:
            return False
        gains = [self.like(faithful) for faithful in self.faithful(larger)]
        for k in sorted(range(len(gains)), key=lambda k: (-gains[k], k)):
            self.exchanges += 1
            other = self.traded(larger[k], first[k], gains[k])
            if self.better(other):
                self.mask = self.shrunk(other)
                return True
        return False

    def traded(self, larger: Tensor, held: int, gain: float) -> Tensor:
        """A circuit with one more unit, ``held``, without others for it: one, or two where there is a target.

        In a circuit larger than a window, these are of the few that are needed least, and are not tried where half of
        what each of them costs alone is too much.
        """
        kept = [unit for unit in sorted(key_of(larger), key=self.needed) if unit != held]
        if len(kept) <= self.window:
            return self.shrunk(larger, held)
        gone, size = 1 if math.isinf(self.target) else 2, int(larger.sum())
        if math.isfinite(self.target) and self.far:
            [own] = self.measured(self.sample or self.whole, [self.mask], self.alone([self.mask]))
            costs = [self.far.get(unit, math.inf) + self.like(own) for unit in kept[:gone]]
            if 1 + gain - 0.5 * sum(max(0.0, cost) for cost in costs) < self.target:
                return larger
        others = [less(larger, list(some)) for some in itertools.combinations(kept[:SOME], gone)]
        found = self.faithful(others)
        best = max(range(len(found)), key=lambda k: (self.allowed(found[k], size - gone), self.like(found[k])))
        return others[best] if self.allowed(found[best], size - gone) else larger

    def promising(self) -> list[int]:
        """A window of dropped units: those that the gradient and those that the order put first, in turn."""
        dropped = (self.mask == 0).nonzero().flatten().cpu()
        if not len(dropped):
            return []
        both = [dropped[torch.sort(each[dropped], stable=True).indices].tolist()
                for each in (self.slope(self.mask), -self.order)]  # fmt: skip
        return list(dict.fromkeys(itertools.chain.from_iterable(zip(*both, strict=True))))[: self.window]

    def better(self, other: Tensor) -> bool:
        """True if a circuit is smaller than the one at hand, or as large and closer to the model."""
        size, now = int(other.sum()), int(self.mask.sum())
        if size != now:
            return size < now
        theirs, own = map(self.like, self.faithful([other, self.mask]))
        return theirs > own + WORTH

    def exhaust(self) -> bool:
        """Takes the best of all circuits of one unit fewer, or of as many, where these are few; whether one is so."""
        total, now = self.bench.units.total, int(self.mask.sum())
        size = now if math.isinf(self.target) else now - 1
        if size < 1 or math.comb(total, size) > self.limit - self.spent:
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


Cells = Callable[[list[int], Units, dict[str, Any]], tuple[list[Edit], list[list[Edit]]]]
"""From numbers of masks and the ablation's values, the edits of a sweep: of its base and of each cell."""


class Shares:
    """Measures the faithfulness of circuits on some prompts: of several metrics, the least.

    Args:
        bench: The prompts.
        metrics: Metrics of :data:`mechint.analyses.circuits.bench.METRICS`.
        target: A circuit that certainly misses it is not measured to the end.
    """

    def __init__(self, bench: Bench, metrics: list[str], target: float) -> None:
        self.bench, self.metrics, self.target = bench, metrics, target
        self.columns = [METRICS[metric].column for metric in metrics]
        self.prompts = len(bench)
        self.ends = [
            [METRICS[metric].read(float(end[METRICS[metric].column].mean())) for end in bench.ends]
            for metric in metrics
        ]

    @torch.no_grad()
    def of(self, new: list[int], masks: list[Tensor], cells: Cells) -> list[list[float]]:
        """Measures the faithfulness of some of the masks, and the share of the prompts that this took; of those that
        have missed the target before the end, an upper bound that misses it."""
        bench, sums = self.bench, torch.zeros(len(new), len(self.columns), dtype=torch.float64)
        live, seen = list(range(len(new))), torch.zeros(len(new))
        for index, (batch, fills, answers) in enumerate(zip(bench.batches, bench.fills, bench.answers, strict=True)):
            if not live:
                break
            if len(new) < TOGETHER:
                found = [bench.values(index, masks[new[k]]) for k in live]
                values = torch.stack([torch.stack([each[name] for name in self.columns], -1) for each in found])
            else:
                base, edits = cells([new[k] for k in live], bench.units, fills)
                metric = functools.partial(read_columns, answers, self.columns)
                values = sweep(
                    bench.model, batch.tokens, edits, metric, base=base, logits_at=batch.positions, by_head=True
                )
            sums[live] += values.double().cpu().sum(1)
            seen[live] += len(batch)
            live = [k for k in live if not self.missed(sums[k])]
        return [[self.share(each), float(part) / self.prompts] for each, part in zip(sums, seen, strict=True)]

    def missed(self, sums: Tensor) -> bool:
        """True if a circuit misses the target whatever the prompts that are left give: KL is never negative."""
        if math.isinf(self.target) or "kl" not in self.metrics:
            return False
        k = self.metrics.index("kl")
        return float(faithfulness(float(sums[k]) / self.prompts, *self.ends[k])) < self.target

    def share(self, sums: Tensor) -> float:
        """The least faithfulness of the metrics whose columns add up to these sums over all prompts."""
        means = (float(each) / self.prompts for each in sums)
        reads = (METRICS[metric].read(mean) for metric, mean in zip(self.metrics, means, strict=True))
        return min(float(faithfulness(value, *ends)) for value, ends in zip(reads, self.ends, strict=True))


def less(mask: Tensor, units: list[int]) -> Tensor:
    """A circuit without some units."""
    return mask.index_fill(0, torch.tensor(units, device=mask.device), 0.0)


def key_of(mask: Tensor) -> tuple[int, ...]:
    """The numbers of a circuit's units."""
    return tuple(mask.nonzero().flatten().tolist())


def read_columns(answers: Answers, columns: list[str], cells: Tensor) -> Tensor:
    """Metrics of what the head reads in each cell, [cell, prompt, answer, model] -> [cell, prompt, column]."""
    found = (answers.metrics(cell) for cell in cells)
    return torch.stack([torch.stack([each[name] for name in columns], -1) for each in found])


def windows(units: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(units), size):
        yield units[start : start + size]
