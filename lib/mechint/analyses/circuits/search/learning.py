"""The search for a circuit: gates on every unit, learned under a budget that falls to the size that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....utils.errors import MechintError
from ....utils.program import suited
from ....utils.progress import Progress
from ...adam import Adam
from ..bench import Bench, cost, loss_of
from .gates import CLAMPED, GATES, HOLD, Temperature, budget_at, ramp_at


@dataclass(frozen=True)
class SearchOptions:
    """Options of the training of a search's gates.

    Attributes:
        gate: Kind of gate, of :data:`mechint.analyses.circuits.search.gates.GATES`.
        steps: Optimiser steps.
        lr: Learning rate of the gates' logits.
        schedule: Schedule of the falling budget, from :data:`mechint.analyses.circuits.search.gates.BUDGETS`.
        temperature: Divisor of the logits at each step; None for 1 throughout.
        hold: Share of the steps, the last ones, for which the budget is the target.
        penalty: Instead of a budget, what every open gate costs: its expected L1 norm times this is added to the loss
            (Louizos, Welling & Kingma 2018, equation 12), rising from 0 as ``schedule`` says. The circuit is then the
            units whose gates end up open.
    """

    gate: str = "hard_concrete"
    steps: int = 100
    lr: float = 0.1
    schedule: str = "exponential"
    temperature: Temperature | None = None
    hold: float = HOLD
    penalty: float | None = None


class NotFinite(MechintError):
    """The loss or the gradient of a search, or a score of a method, is not finite."""


class Search:
    """One learned circuit: gates on every unit, trained under a budget that falls from all units to ``target``.

    Args:
        bench: The discovery prompts; one batch is used for each step, in a new order each round.
        metric: Metric to preserve.
        scores: Attribution scores [units]; the gates start in their order or in that of their sizes, whichever has the
            better circuits (:meth:`way_cost`). To *preserve* a metric, units that lower it can be needed as much as
            those that raise it, and where the KL of partial circuits exceeds that of the empty one, units of the
            circuit have negative scores.
        options: Options of the search.
        seed: Seed of the gates' noise and of the order of the batches.
        target: Units to keep in the end; with a penalty, only the size at which the start is chosen.
        others: Further scores [units] whose orders it may start in: :func:`.starting_orders.further_orders`.
    """

    def __init__(
        self, bench: Bench, metric: str, scores: Tensor, options: SearchOptions, seed: int, target: int,
        others: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        self.bench, self.metric, self.options, self.seed, self.target = bench, metric, options, seed, target
        self.gate, self.steps = GATES[options.gate], options.steps
        # of equally good ones the first, which is the signed order
        starts = [start_logits(order) for order in (scores, scores.abs(), *others)]
        self.start = min(starts, key=self.way_cost)
        self.began_elsewhere = not any(self.start is own for own in starts[:2])
        """True if it starts in the order of one of ``others``."""
        if options.penalty is not None:  # almost all open, in the same order
            self.start = MOSTLY_OPEN + 0.25 * self.start
        self.logits = self.start.clone().requires_grad_()
        self.adam = Adam(self.logits, options.lr, (0.9, 0.99))
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.masks: dict[int, Tensor] = {}
        """Circuits of other sizes, kept at the step when the budget passed them."""
        self.went_back = False
        """True if the search ended with nothing better than the order it began with."""

    def state(self) -> dict[str, Any]:
        """All that is needed to go on after a kill."""
        return {
            "step": self.step,
            "logits": self.logits.detach().clone(),
            "adam": self.adam.state(),
            "history": list(self.history),
            "masks": dict(self.masks),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.history, self.masks = state["step"], list(state["history"]), dict(state["masks"])
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.adam.restore(state["adam"])

    def advance(self) -> float:
        """One step; returns its loss. Randomness is a function of the seed and the step alone."""
        index, temperature = self._batch(), self.options.temperature
        warmth = temperature.at(self.step, self.steps) if temperature else 1.0
        wanted, price, budget = self._pressure(self.logits / warmth)
        gates = self.gate(
            self.logits / warmth, wanted, torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        )
        with suited(self.bench.model.work(self.bench.batches[index].tokens.numel())):
            loss, metric = loss_of(self.bench, self.metric, index, gates, self.options.gate in CLAMPED)
            loss = loss + price
            (slope,) = torch.autograd.grad(loss, self.logits)
        if not (torch.isfinite(loss) and torch.isfinite(slope).all()):
            raise NotFinite(
                f"the search's loss or its gradient is not finite at step {self.step}; lower the learning rate "
                f"{self.options.lr:g}, or look at the size of the model's logits"
            )
        self.adam.step(slope)
        self.history.append(
            {
                "step": self.step,
                "loss": float(loss.detach()),
                "metric": metric,
                "budget": budget,
                "kept": int((gates.detach() > 0).sum()),
                **({"temperature": warmth} if temperature else {}),
            }
        )
        self.step += 1
        return float(loss.detach())

    def _pressure(self, logits: Tensor) -> tuple[float | None, Tensor | float, float]:
        """Returns the pressure towards a small circuit at this step: a budget, or a price to add; and how many gates
        are expected open.

        Without a penalty yet, all are open: step 0 is the model to the bit.
        """
        total, c = self.bench.units.total, self.options
        if c.penalty is None:
            budget = self._budget(self.step)
            return budget, 0.0, budget
        ramp = ramp_at(self.step, self.steps, total, c.schedule, c.hold)
        expected = torch.sigmoid(logits).sum()
        return total if ramp == 0 else None, c.penalty * ramp * expected, float(expected.detach())

    def _budget(self, step: int) -> float:
        """Units that are expected open at a step of a search without a penalty."""
        c = self.options
        return budget_at(step, self.steps, self.bench.units.total, self.target, c.schedule, c.hold)

    def _batch(self) -> int:
        """Batches in a fresh order each round, so that every prompt is used before any is used again."""
        count = len(self.bench.batches)
        generator = torch.Generator().manual_seed(self.seed * 7919 + self.step // count)
        return int(torch.randperm(count, generator=generator)[self.step % count])

    def mask(self, count: int | None = None) -> Tensor:
        """The exact circuit of the target size, or of another one, as the logits rank the units now."""
        return self.bench.units.top(self.logits.detach(), count or self.target)

    @torch.no_grad()
    def settle(self) -> bool:
        """Goes back to the order that the search began with, if its circuit is the better one on all prompts.

        A search whose sampled circuits are mostly worse than the empty circuit learns to close gates that it should
        keep open.

        Returns:
            True if it went back.
        """
        back = self.start_cost(self.start) < cost(self.bench, self.metric, self.mask())
        if back:
            self.logits.copy_(self.start)
        return back

    def start_cost(self, logits: Tensor, times: int = 1) -> float:
        """The cost of the circuit of the target size, or of some times that, that an order begins with."""
        units = self.bench.units
        return cost(self.bench, self.metric, units.top(logits, min(times * self.target, units.total)))

    def way_cost(self, logits: Tensor) -> float:
        """The mean cost of an order's circuits where the choice is made: of once, twice and four times the target size.

        An order that narrowly misses a unit has it in the next larger circuit; an order that ranks the unit last does
        not.
        """
        return sum(self.start_cost(logits, times) for times in (1, 2, 4)) / 3

    def run(
        self, title: str, snapshots: list[int] | None = None, save: Callable[[], None] | None = None,
        in_passing: bool = False,
    ) -> dict[int, Tensor]:  # fmt: skip
        """Trains to the end, and settles.

        Args:
            title: For the progress bar.
            snapshots: Sizes whose circuit is wanted from the moment when the budget passed them.
            save: Called after every step.
            in_passing: True ends once every snapshot is taken: the circuit of the target size is not wanted.

        Returns:
            The mask [units] of each snapshot size and of the target.
        """
        wanted = sorted(snapshots or [], reverse=True)
        steps = self.steps
        if in_passing:
            steps = next((step + 1 for step in range(steps) if self._budget(step) <= wanted[-1] * 1.0001), steps)
        with Progress(title, steps) as progress:
            progress.skip_to(self.step)
            while self.step < steps:
                loss = self.advance()
                budget = self.history[-1]["budget"]
                for size in wanted:
                    if size not in self.masks and budget <= size * 1.0001:
                        self.masks[size] = self.mask(size)
                progress.step(f"loss {loss:.4g}, budget {budget:.0f} of {self.bench.units.total}")
                if save is not None:
                    save()
        if in_passing:
            return dict(self.masks)
        if self.options.penalty is not None:
            self.target = max(1, int((self.logits.detach() > 0).sum()))
        self.went_back = self.settle()
        return {**self.masks, self.target: self.mask()}


MOSTLY_OPEN = 3.0
"""Logits at which gates without a budget begin: σ(3) = 0.95."""


def start_logits(scores: Tensor) -> Tensor:
    """Logits in the order of the scores, spread as a standard normal sample: their ranks through its quantiles."""
    ranks = torch.empty_like(scores)
    ranks[torch.sort(scores, stable=True).indices] = torch.arange(len(scores), device=scores.device, dtype=scores.dtype)
    return torch.special.ndtri((ranks + 0.5) / len(scores))
