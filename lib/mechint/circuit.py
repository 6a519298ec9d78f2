"""Circuits of any family: attribution, search under a budget, and evaluation. Analyses say what their units are."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .ablation import Ablation
from .answers import Answers
from .errors import MechintError
from .gates import GATES, budget_at, ramp_at
from .progress import Progress
from .run import read_by_head
from .schedules import Temperature
from .tasks import Prompts
from .units import Units


@dataclass(frozen=True)
class Metric:
    """What a circuit must preserve.

    Attributes:
        meaning: One sentence for reports.
        column: The value of a prompt whose mean over prompts is the metric.
        learn: The value that gates are trained on and attributed by, where the column has no gradient of use.
        read: From the mean to the metric.
    """

    meaning: str
    column: str
    learn: str
    read: Callable[[Any], Any] = lambda mean: mean


METRICS = {
    "kl": Metric(
        "KL divergence from the full model's next-token distribution, in nats; 0 is the full model", "kl", "kl"
    ),
    "logit_diff": Metric("logit of the answer minus logit of the twin's answer", "logit_diff", "logit_diff"),
    "answer_logprob": Metric("log-probability of the answer, in nats", "answer_logprob", "answer_logprob"),
    "loss": Metric("cross-entropy of the answer, in nats", "loss", "loss"),
    "perplexity": Metric("exp of the mean cross-entropy of the answers", "loss", "loss", np.exp),
    "accuracy": Metric("share of answers that are right; gates learn from the loss", "accuracy", "loss"),
}


@dataclass(frozen=True)
class CircuitPlan:
    """What an analysis of circuits is to do; an analysis whose options have these very names needs none."""

    unit: str
    ablation: str
    metric: str
    search: str
    """``smallest`` that reaches the target faithfulness, ``budget``: exactly that many units, or ``penalty``: all that
    are worth :attr:`penalty`."""
    budget: int
    target_faithfulness: float
    gate: str
    steps: int
    lr: float
    seeds: int
    random_circuits: int
    removed_units: int
    bootstrap: int
    min_accuracy: float
    budgets: str = "exponential"
    temperature: Temperature | None = None
    penalty: float = 0.0
    """What an open gate costs, in units of the metric."""
    precision: str = "float32"
    """Arithmetic of the search: ``float32``, or ``bfloat16`` by autocast."""


KEPT_LOGITS = 1 << 28
"""Bytes of the full model's logits that are kept; more are made again, a few positions at a time."""


class Bench:
    """A set of prompts to measure masks on, with the full model's predictions and the ablation's values kept.

    Args:
        model: The model under study.
        units: What masks are over.
        ablation: What dropped units become.
        batches: The prompts.
        half: Whether what gradients are taken of is computed in bfloat16 (torch's autocast); what is measured never is.
    """

    def __init__(
        self, model: Any, units: Units, ablation: Ablation, batches: list[Prompts], half: bool = False
    ) -> None:
        self.model, self.units, self.batches, self.half = model, units, batches, half
        with torch.no_grad():
            self.fills = [ablation.fills(batch) for batch in batches]
            full = [read_by_head(model, batch.tokens, (), batch.positions) for batch in batches]
        self.answers = [Answers(batch, read, model.ending[1]) for batch, read in zip(batches, full, strict=True)]
        if sum(answers.size for answers in self.answers) <= KEPT_LOGITS:
            for answers in self.answers:
                answers.keep_logits()

    def values(self, index: int, mask: Tensor | None, learn: str | None = None) -> dict[str, Tensor]:
        """The metrics of one batch under a mask [units], each [prompts]; None is the full model itself.

        Gradients flow to the mask from the metric ``learn``, of :data:`mechint.answers.LEARNT`.
        """
        batch = self.batches[index]
        if mask is None:
            return self.answers[index].metrics(None)
        edits = self.units.edits(mask, self.fills[index])
        half = self.half and learn is not None
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=half):
            return self.answers[index].metrics(read_by_head(self.model, batch.tokens, edits, batch.positions), learn)

    def half_cosine(self, metric: str) -> float:
        """How far bfloat16 turns the gradient of the mask: its cosine to float32's, on the first batch, half open."""
        learn, half, slopes = METRICS[metric].learn, self.half, list[Tensor]()
        for self.half in (False, True):
            mask = torch.full((self.units.total,), 0.5, device=self.batches[0].tokens.device, requires_grad=True)
            slopes += torch.autograd.grad(self.values(0, mask, learn)[learn].mean(), mask)
        self.half = half
        return float(torch.cosine_similarity(slopes[0], slopes[1], 0))

    @torch.no_grad()
    def measure(self, mask: Tensor | None) -> dict[str, Tensor]:
        """The metrics of every prompt under a mask [units], each [prompts]; None is the full model itself."""
        parts = [self.values(index, mask) for index in range(len(self.batches))]
        return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}

    @functools.cached_property
    def ends(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The metrics of the full model and of the one with every unit dropped."""
        nothing = torch.zeros(self.units.total, device=self.batches[0].tokens.device)
        return self.measure(None), self.measure(nothing)

    def faithful(self, mask: Tensor, metric: str) -> float:
        """Faithfulness of a mask over all prompts, without an interval."""
        values = [float(part[METRICS[metric].column].mean()) for part in (self.measure(mask), *self.ends)]
        return float(faithfulness(*map(METRICS[metric].read, values)))

    def likeness(self, mask: Tensor, metric: str) -> float:
        """How close the faithfulness of a mask is to 1, at most 0: a circuit that overshoots the model is not it."""
        return -abs(1 - self.faithful(mask, metric))


def check_bfloat16(device: torch.device) -> None:
    """Raises :class:`MechintError` where bfloat16 has no arithmetic of its own and would only be slower."""
    able = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else cpu_bfloat16()
    if not able:
        raise MechintError(
            "this processor has no arithmetic for bfloat16 (AMX or AVX-512 BF16), where it is slower than float32; set "
            "PRECISION to float32"
        )


def cpu_bfloat16() -> bool:
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def faithfulness(circuit: Any, full: Any, empty: Any) -> Any:
    """(m(circuit) − m(empty)) / (m(full) − m(empty)): 1 is the full model, 0 the model with every unit dropped."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a bootstrap may draw prompts without an effect
        return (circuit - empty) / (full - empty)


def check_effect(ends: tuple[dict[str, Tensor], dict[str, Tensor]], metric: str) -> None:
    """Raises :class:`MechintError` when dropping every unit changes nothing, so that no share of it can be told."""
    full, empty = (float(METRICS[metric].read(float(end[METRICS[metric].column].mean()))) for end in ends)
    if not abs(full - empty) > 1e-6:
        raise MechintError(
            f"dropping every unit changes the metric {metric} by {abs(full - empty):.1e} only; there is no effect to "
            f"explain. Choose another ablation, unit or metric"
        )


def attribute(bench: Bench, metric: str, points: int = 5) -> Tensor:
    """Integrated gradients of a metric over the mask, from every unit dropped to the full model, [units].

    score_i = ∫₀¹ ∂m/∂mask_i (all masks = α) dα (Sundararajan et al. 2017, equation 1, with the ablation as its
    baseline), by the midpoint rule. The scores add up to m(full) − m(empty) as ``points`` grows. Signed so that a
    unit that helps is positive. Of accuracy and perplexity it is the loss that is attributed.
    """
    column = METRICS[metric].learn
    sign = -1.0 if column in ("kl", "loss") else 1.0
    total = torch.zeros(bench.units.total, device=next(bench.model.parameters()).device)
    prompts = sum(len(batch) for batch in bench.batches)
    with Progress("attribution", points * len(bench.batches)) as progress:
        for point in range(points):
            for index, batch in enumerate(bench.batches):
                mask = torch.full_like(total, (point + 0.5) / points, requires_grad=True)
                value = bench.values(index, mask, column)[column].mean()
                (gradient,) = torch.autograd.grad(value, mask)
                total += sign * gradient * (len(batch) / (prompts * points))
                progress.step()
    return total


def loss_of(bench: Bench, metric: str, index: int, gates: Tensor) -> tuple[Tensor, float]:
    """What gates are trained on: KL itself, or the squared distance to the full model's value; and the metric."""
    column = METRICS[metric].learn
    values = bench.values(index, gates, column if gates.requires_grad else None)
    if column == "kl":
        loss = values["kl"].mean()
    else:
        full = bench.values(index, None)
        loss = (values[column] - full[column]).square().mean()
    mean = float(values[METRICS[metric].column].mean().detach())
    return loss, float(METRICS[metric].read(mean))


@torch.no_grad()
def cost(bench: Bench, metric: str, mask: Tensor) -> float:
    """What gates are trained on, for a mask [units], over all prompts."""
    losses = [float(loss_of(bench, metric, index, mask)[0]) * len(batch) for index, batch in enumerate(bench.batches)]
    return sum(losses) / sum(len(batch) for batch in bench.batches)


class Search:
    """One learned circuit: gates on every unit, trained under a budget that falls from all units to ``target``.

    Args:
        bench: The discovery prompts; one batch is used for each step, in a new order each round.
        metric: What to preserve.
        scores: Attribution scores [units]; the gates start in their order or in that of their sizes, whichever has the
            better circuits (:meth:`way_cost`). To *preserve* a metric, units that lower it can be needed as much as
            those that raise it, and where the KL of partial circuits exceeds that of the empty one, units of the
            circuit have negative scores.
        gate, steps, lr, seed: As the options of the analysis say.
        target: Units to keep in the end.
        budgets: How the budget falls, of :data:`mechint.gates.BUDGETS`.
        temperature: Of the gates over the steps.
        penalty: In place of a budget, what every open gate costs: its expected L1 norm times this is added to the loss
            (Louizos, Welling & Kingma 2018, equation 12), rising from 0 as ``budgets`` says. The circuit is then the
            units whose gates end up open, and ``target`` only the size at which the start is chosen.
    """

    def __init__(
        self, bench: Bench, metric: str, scores: Tensor, gate: str, steps: int, lr: float, seed: int, target: int,
        budgets: str = "exponential", temperature: Temperature | None = None, penalty: float | None = None,
    ) -> None:  # fmt: skip
        self.bench, self.metric, self.steps, self.lr, self.seed, self.target = bench, metric, steps, lr, seed, target
        self.gate, self.budgets, self.temperature, self.penalty = GATES[gate], budgets, temperature, penalty
        # of equally good ones the first, which is the signed order
        self.start = min((start_logits(order) for order in (scores, scores.abs())), key=self.way_cost)
        if penalty is not None:  # almost all open, in the same order
            self.start = MOSTLY_OPEN + 0.25 * self.start
        self.logits = self.start.clone().requires_grad_()
        self.optimiser = torch.optim.Adam([self.logits], lr=lr, betas=(0.9, 0.99))
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.masks: dict[int, Tensor] = {}
        """Circuits of other sizes, kept at the step when the budget passed them."""
        self.went_back = False
        """Whether the search ended with nothing better than the order it began with."""

    def state(self) -> dict[str, Any]:
        """All that is needed to go on after a kill."""
        return {
            "step": self.step,
            "logits": self.logits.detach().clone(),
            "optimiser": copy.deepcopy(self.optimiser.state_dict()),
            "history": list(self.history),
            "masks": dict(self.masks),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.history, self.masks = state["step"], list(state["history"]), dict(state["masks"])
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.optimiser.load_state_dict(state["optimiser"])

    def advance(self) -> float:
        """One step; returns its loss. Randomness is a function of the seed and the step alone."""
        index, warmth = self._batch(), self.temperature.at(self.step, self.steps) if self.temperature else 1.0
        wanted, price, budget = self._pressure(self.logits / warmth)
        gates = self.gate(
            self.logits / warmth, wanted, torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        )
        loss, metric = loss_of(self.bench, self.metric, index, gates)
        loss = loss + price
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        assert self.logits.grad is not None  # of the backward before
        if not (torch.isfinite(loss) and torch.isfinite(self.logits.grad).all()):
            raise MechintError(
                f"the search's loss or its gradient is not finite at step {self.step}; lower the learning rate "
                f"{self.lr:g}, or look at the size of the model's logits"
            )
        self.optimiser.step()
        self.history.append(
            {
                "step": self.step,
                "loss": float(loss.detach()),
                "metric": metric,
                "budget": budget,
                "kept": int((gates.detach() > 0).sum()),
                **({"temperature": warmth} if self.temperature else {}),
            }
        )
        self.step += 1
        return float(loss.detach())

    def _pressure(self, logits: Tensor) -> tuple[float | None, Tensor | float, float]:
        """What makes the circuit small at this step: a budget, or a price to add; and how many gates are expected open.

        Without a penalty yet, all are open: step 0 is the model to the bit.
        """
        total = self.bench.units.total
        if self.penalty is None:
            budget = budget_at(self.step, self.steps, total, self.target, self.budgets)
            return budget, 0.0, budget
        ramp = ramp_at(self.step, self.steps, total, self.budgets)
        expected = torch.sigmoid(logits).sum()
        return total if ramp == 0 else None, self.penalty * ramp * expected, float(expected.detach())

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

        A search whose sampled circuits are mostly worse than none at all learns to shut what it should keep.

        Returns:
            Whether it went back.
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

        An order that misses a unit of the target's circuit by little has it in the next one; one that has it last of
        all does not.
        """
        return sum(self.start_cost(logits, times) for times in (1, 2, 4)) / 3

    def run(
        self, title: str, snapshots: list[int] | None = None, save: Callable[[], None] | None = None
    ) -> dict[int, Tensor]:
        """Trains to the end, and settles.

        Args:
            title: For the progress bar.
            snapshots: Sizes whose circuit is wanted from the moment when the budget passed them.
            save: Called after every step.

        Returns:
            The mask [units] of each snapshot size and of the target.
        """
        wanted = sorted(snapshots or [], reverse=True)
        with Progress(title, self.steps) as progress:
            progress.skip_to(self.step)
            while self.step < self.steps:
                loss = self.advance()
                budget = self.history[-1]["budget"]
                for size in wanted:
                    if size not in self.masks and budget <= size * 1.0001:
                        self.masks[size] = self.mask(size)
                progress.step(f"loss {loss:.4g}, budget {budget:.0f} of {self.bench.units.total}")
                if save is not None:
                    save()
        if self.penalty is not None:
            self.target = max(1, int((self.logits.detach() > 0).sum()))
        self.went_back = self.settle()
        return {**self.masks, self.target: self.mask()}


MOSTLY_OPEN = 3.0
"""Where logits of gates without a budget begin: σ(3) = 0.95."""


def start_logits(scores: Tensor) -> Tensor:
    """Logits in the order of the scores, spread as a standard normal sample: their ranks through its quantiles."""
    ranks = torch.empty_like(scores)
    ranks[torch.sort(scores, stable=True).indices] = torch.arange(len(scores), device=scores.device, dtype=scores.dtype)
    return torch.special.ndtri((ranks + 0.5) / len(scores))
