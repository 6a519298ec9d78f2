"""Gates with a budget: a differentiable choice of exactly so many units; or with a price, and then of as many as pay.

Each unit has a logit. One shift, common to all, is found so that the expected number of open gates *is* the budget
of the step; no penalty has to be tuned, and every search ends with exactly the requested number. The
shift's own dependence on the logits is differentiated (implicitly), so units compete: opening one closes others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ....utils.errors import MechintError, did_you_mean, shown
from ....utils.options import finite

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch of the hard-concrete distribution (Louizos, Welling & Kingma 2018, section 2.2)."""


def shift_to(logits: Tensor, budget: float) -> Tensor:
    """b with Σ σ(logits + b) = budget, differentiable in the logits.

    Args:
        logits: [units].
        budget: Expected number of open gates, above 0 and below the number of units.
    """
    with torch.no_grad():
        wide = logits.double()
        margin = 40.0 + float(wide.abs().max())
        low, high = -margin, margin
        for _ in range(60):
            middle = (low + high) / 2
            if float(torch.sigmoid(wide + middle).sum()) < budget:
                low = middle
            else:
                high = middle
        shift = torch.tensor((low + high) / 2, dtype=torch.float64, device=logits.device)
        open_ = torch.sigmoid(wide + shift)
        slope = open_ * (1 - open_)
        slope = (slope / slope.sum()).to(logits.dtype)
    # value: shift; gradient: -slope, from differentiating Σ σ(logits + b) = budget
    return shift.to(logits.dtype) - (slope * (logits - logits.detach())).sum()


def hard_concrete(logits: Tensor, budget: float | None, generator: torch.Generator) -> Tensor:
    """A sample of the gates [units] in [0, 1], exact zeros and ones included; Σ P(gate > 0) is the budget.

    Without a budget P(gate > 0) = σ(logit): as many are open as their logits say.
    """
    if budget is not None and budget >= len(logits):
        return torch.ones_like(logits) + 0 * logits
    shift = 0.0 if budget is None else shift_to(logits, budget)
    log_alpha = logits + shift + BETA * math.log(-GAMMA / ZETA)
    noise = torch.rand(logits.shape, generator=generator, dtype=torch.float32).to(logits).clamp(1e-6, 1 - 1e-6)
    sample = torch.sigmoid((torch.log(noise) - torch.log1p(-noise) + log_alpha) / BETA)
    return (sample * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def straight_through(logits: Tensor, budget: float | None, generator: torch.Generator) -> Tensor:
    """Exactly round(budget) gates open; the gradient is that of σ(logits + shift) (Bengio et al. 2013).

    Without a budget those with a positive logit are open.
    """
    if budget is None:
        soft = torch.sigmoid(logits)
        return (logits > 0).to(soft) + (soft - soft.detach())
    if budget >= len(logits):
        return torch.ones_like(logits) + 0 * logits
    soft = torch.sigmoid(logits + shift_to(logits, budget))
    order = torch.sort(logits.detach(), descending=True, stable=True).indices
    hard = torch.zeros_like(soft).index_fill_(0, order[: max(1, round(budget))], 1.0)
    return hard + (soft - soft.detach())


GATES = {"hard_concrete": hard_concrete, "straight_through": straight_through}
CLAMPED = ("hard_concrete",)
"""Gates that are 0 by a clamp, which passes no gradient on there."""


BUDGETS = ("exponential", "linear", "cubic")


HOLD = 0.25
"""Share of the steps, the last ones, that have the target as their budget."""


def budget_at(
    step: int, steps: int, total: int, target: int, schedule: str = "exponential", hold: float = HOLD
) -> float:
    """Budget of a step: from all units down to the target, then held for the last share of the steps.

    With ``hold`` 0 the progress is step / steps: a cubic to 95 % has dropped 11.9 % of the units at step 250 of 500.

    ``exponential`` goes in even steps on a log scale and spends as many steps from 1,000 to 500 units as from 10 to 5;
    a line would rush through the small sizes, where the choice is made. ``linear`` and ``cubic`` let the share of
    dropped units rise as p and p³ of the progress p (Zhu & Gupta 2017 have the cubic's mirror image).
    """
    moving = max(1, math.floor(steps * (1 - hold)))
    progress = min(1.0, step / moving)
    if schedule == "exponential":
        return float(math.exp(math.log(total) + progress * (math.log(target) - math.log(total))))
    return total - (total - target) * progress ** {"linear": 1, "cubic": 3}[schedule]


def ramp_at(step: int, steps: int, total: int, schedule: str, hold: float = HOLD) -> float:
    """Share of the penalty that holds at a step, 0 … 1: it rises like the sparsity under a budget that falls to one
    unit."""
    if step == 0:
        return 0.0  # exactly, so that the first step is the model's
    total = max(2, total)
    return (total - budget_at(step, steps, total, 1, schedule, hold)) / (total - 1)


KINDS = ("linear", "exponential", "cosine", "constant")


LOW, HIGH = 0.001, 100.0


@dataclass(frozen=True)
class Temperature:
    """Divisor of the gates' logits: below 1, gates are closer to open or shut and their gradient steeper.

    The number of open gates stays the budget at any temperature, and the circuit is the exact top of the logits, which
    no temperature reorders.
    """

    kind: str = "constant"
    start: float = 1.0
    end: float = 1.0

    @staticmethod
    def parse(text: str) -> Temperature:
        """``linear:1.0:0.1``, ``exponential:…``, ``cosine:…`` (from, to) or ``constant:1.0``.

        Raises:
            MechintError: the text is nothing of that.
        """
        kind, *values = (part.strip() for part in text.split(":"))
        how = f"write FROM:TO after one of {', '.join(KINDS[:3])}, as in linear:1.0:0.1, or constant:1.0"
        if kind not in KINDS:
            raise MechintError(
                f"the temperature schedule {shown(text)} does not parse{did_you_mean(kind, KINDS)}; {how}"
            )
        numbers = [number for number in map(finite, values) if number is not None]
        if len(numbers) < len(values):
            raise MechintError(f"the temperature schedule {shown(text)} does not parse; {how}")
        if len(numbers) != (1 if kind == "constant" else 2):
            raise MechintError(f"the temperature schedule {shown(text)} has {len(numbers)} temperatures; {how}")
        if not all(LOW <= number <= HIGH for number in numbers):
            raise MechintError(f"the temperature schedule {shown(text)}: a temperature is from {LOW} to {HIGH:g}")
        return Temperature(kind, numbers[0], numbers[-1])

    def at(self, step: int, steps: int) -> float:
        """The temperature of a step, 0 … steps - 1, whose progress is step / steps.

        Linearly from 1.0 to 0.1, step 450 of 500 has 0.19.
        """
        progress = min(1.0, step / max(1, steps))
        if self.kind == "exponential":
            return float(self.start * (self.end / self.start) ** progress)
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress
