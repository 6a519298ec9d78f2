"""Circuits of any family: their metrics, attribution and evaluation. Analyses say what their units are."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import read_by_head
from ...interventions.sweep import sweep
from ...interventions.units import Units
from ...tasks import Prompts
from ...utils.errors import MechintError
from ...utils.program import suited
from ...utils.progress import Progress
from ..ablation import Ablation
from ..metrics import Answers, faithfulness


@dataclass(frozen=True)
class Metric:
    """The quantity that a circuit must preserve.

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


KEPT_PREDICTIONS = 1 << 28
"""Bytes of the full model's log-probabilities that are kept; more are made again, a few positions at a time."""


class Bench:
    """A set of prompts to measure masks on, with the full model's predictions and the ablation's values kept.

    Args:
        model: The model under study.
        units: Units that masks cover.
        ablation: Ablation of dropped units.
        batches: The prompts.
        half: True if what gradients are taken of is computed in bfloat16 (torch's autocast); what is measured never is.
    """

    def __init__(
        self, model: Model, units: Units, ablation: Ablation, batches: list[Prompts], half: bool = False
    ) -> None:
        self.model, self.units, self.batches, self.half = model, units, batches, half
        self.ablation = ablation
        with torch.no_grad():
            self.fills = [ablation.fills(batch) for batch in batches]
            full = [read_by_head(model, batch.tokens, (), batch.positions) for batch in batches]
        made = (model.ending[1], model.logit_scale, model.logit_cap, model.head_bias)
        self.answers = [Answers(batch, read, *made) for batch, read in zip(batches, full, strict=True)]
        if sum(answers.size for answers in self.answers) <= KEPT_PREDICTIONS:
            for answers in self.answers:
                answers.keep_logs()
        self.measurements: dict[tuple[int, bytes], dict[str, Tensor]] = {}  # by batch and mask
        self.order: Tensor | None = None  # what each id becomes where ids are exchanged, [V]
        self.scale: Bench | None = None  # whose full and empty models are the ends of the shares

    def asked_for(self, other: Bench) -> Bench:
        """This model, asked for another model's predictions; shares are of the way from that model without its units.

        Args:
            other: The same prompts with the other model.
        """
        bench = self.copied()
        bench.answers = [mine.instead(theirs) for mine, theirs in zip(self.answers, other.answers, strict=True)]
        bench.scale = other
        return bench

    def exchanged(self, order: Tensor) -> Bench:
        """This model, asked for its own predictions with ids exchanged; ``order`` [V] holds what each id becomes."""
        bench = self.copied()
        bench.answers, bench.order = [answers.exchanged(order) for answers in self.answers], order
        return bench

    def copied(self) -> Bench:
        """The same prompts and units without any measurement, for other answers."""
        bench = copy.copy(self)
        bench.__dict__.pop("ends", None)
        bench.measurements = {}
        return bench

    def __len__(self) -> int:
        """Prompts."""
        return sum(len(batch) for batch in self.batches)

    def values(
        self, index: int, mask: Tensor | None, learn: str | None = None, zeros_fixed: bool = False
    ) -> dict[str, Tensor]:
        """The metrics of one batch under a mask [units], each [prompts]; None is the full model itself.

        Gradients flow to the mask from the metric ``learn``, of :data:`mechint.analyses.metrics.LEARNT`, but where
        ``zeros_fixed`` not to entries that are 0. A circuit is measured once: searches of several seeds, prunings and
        curves ask for many a second time.
        """
        if mask is not None and (
            learn is not None or mask.requires_grad or not bool(((mask == 0) | (mask == 1)).all())
        ):
            return self.measured(index, mask, learn, zeros_fixed)
        key = index, b"" if mask is None else np.packbits(mask.cpu().numpy() > 0).tobytes()
        if key not in self.measurements:
            self.measurements[key] = self.measured(index, mask, None)
        return dict(self.measurements[key])

    def measured(
        self, index: int, mask: Tensor | None, learn: str | None, zeros_fixed: bool = False
    ) -> dict[str, Tensor]:
        """:meth:`values` from a forward, or from the full model's predictions."""
        if mask is None:
            return self.answers[index].metrics(None)
        batch = self.batches[index]
        edits = self.units.edits(mask, self.fills[index])
        if zeros_fixed:
            edits = [replace(edit, zeros_fixed=True) if edit.mode == "mask" else edit for edit in edits]
        half = self.half and learn is not None
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=half):
            return self.answers[index].metrics(read_by_head(self.model, batch.tokens, edits, batch.positions), learn)

    def half_cosine(self, metric: str) -> float:
        """Computes the cosine of the mask's gradient in bfloat16 to that in float32, on the first batch, half open."""
        learn, half, slopes = METRICS[metric].learn, self.half, list[Tensor]()
        for self.half in (False, True):
            mask = torch.full((self.units.total,), 0.5, device=self.batches[0].tokens.device, requires_grad=True)
            slopes += torch.autograd.grad(self.values(0, mask, learn)[learn].mean(), mask)
        self.half = half
        return float(torch.cosine_similarity(slopes[0], slopes[1], 0))

    def sample(self, count: int) -> Bench:
        """The same on about so many of the prompts, in one batch of each length, at least two of it."""
        sizes: dict[int, int] = {}
        for batch in self.batches:
            sizes[batch.tokens.shape[1]] = sizes.get(batch.tokens.shape[1], 0) + len(batch)
        first = {batch.tokens.shape[1]: batch for batch in reversed(self.batches)}
        share = count / sum(sizes.values())
        some = [first[length][torch.arange(min(len(first[length]), max(2, round(share * sizes[length]))))]
                for length in sizes]  # fmt: skip
        bench = Bench(self.model, self.units, self.ablation, some, self.half)
        if self.scale is not None:
            return bench.asked_for(self.scale.sample(count))
        return bench if self.order is None else bench.exchanged(self.order)

    @torch.no_grad()
    def measure(self, mask: Tensor | None) -> dict[str, Tensor]:
        """The metrics of every prompt under a mask [units], each [prompts]; None is the full model itself."""
        parts = [self.values(index, mask) for index in range(len(self.batches))]
        return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}

    @functools.cached_property
    def ends(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The metrics of the full model and of the one with every unit dropped."""
        if self.scale is not None:
            return self.scale.ends
        nothing = torch.zeros(self.units.total, device=self.batches[0].tokens.device)
        return self.measure(None), self.measure(nothing)

    def faithful(self, mask: Tensor, metric: str) -> float:
        """Faithfulness of a mask over all prompts, without an interval."""
        values = [float(part[METRICS[metric].column].mean()) for part in (self.measure(mask), *self.ends)]
        return float(faithfulness(*map(METRICS[metric].read, values)))

    def likeness(self, mask: Tensor, metric: str) -> float:
        """Returns minus the distance of a mask's faithfulness from 1: a circuit that overshoots the model is not
        faithful."""
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


def check_effect(ends: tuple[dict[str, Tensor], dict[str, Tensor]], metric: str) -> None:
    """Raises :class:`MechintError` when dropping every unit changes nothing, so that no share of the effect can be
    measured."""
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
    unit that helps is positive. For accuracy and perplexity the loss is attributed.
    """
    column = METRICS[metric].learn
    sign = -1.0 if column in ("kl", "loss") else 1.0
    total = torch.zeros(bench.units.total, device=next(bench.model.parameters()).device)
    prompts = sum(len(batch) for batch in bench.batches)
    with Progress("attribution", points * len(bench.batches)) as progress:
        for point in range(points):
            for index, batch in enumerate(bench.batches):
                mask = torch.full_like(total, (point + 0.5) / points, requires_grad=True)
                with suited(bench.model.work(batch.tokens.numel())):
                    value = bench.values(index, mask, column)[column].mean()
                    (gradient,) = torch.autograd.grad(value, mask)
                total += sign * gradient * (len(batch) / (prompts * points))
                progress.step()
    return total


def loss_of(bench: Bench, metric: str, index: int, gates: Tensor, zeros_fixed: bool = False) -> tuple[Tensor, float]:
    """Returns the training loss of gates: KL itself, or the squared distance to the full model's value; and the
    metric.

    Args:
        zeros_fixed: True if gates of 0 get no gradient, whatever the loss does there.
    """
    column = METRICS[metric].learn
    values = bench.values(index, gates, column if gates.requires_grad else None, zeros_fixed)
    if column == "kl":
        loss = values["kl"].mean()
    else:
        full = bench.values(index, None)
        loss = (values[column] - full[column]).square().mean()
    mean = float(values[METRICS[metric].column].mean().detach())
    return loss, float(METRICS[metric].read(mean))


@torch.no_grad()
def cost(bench: Bench, metric: str, mask: Tensor) -> float:
    """Returns the training loss of gates for a mask [units], over all prompts."""
    losses = [float(loss_of(bench, metric, index, mask)[0]) * len(batch) for index, batch in enumerate(bench.batches)]
    return sum(losses) / sum(len(batch) for batch in bench.batches)


@torch.no_grad()
def removed(bench: Bench, mask: Tensor, units: list[int], metric: str, memory_mib: float = 1024.0) -> Tensor:
    """A metric of the circuit without each of these units in turn.

    The circuit's own edits are the base of the sweep and a cell drops one unit more, so layers below a unit are those
    of the circuit and are not computed again.

    Args:
        bench: Prompts, and what dropped units become.
        mask: The circuit, [units] of 0 and 1.
        units: Numbers of units.
        metric: A metric of :meth:`mechint.analyses.metrics.Answers.metrics`.
        memory_mib: Memory of the sweep.

    Returns:
        [prompts, len(units)], float64 on the CPU.
    """
    parts = []
    for batch, fills, answers in zip(bench.batches, bench.fills, bench.answers, strict=True):
        base, cells = bench.units.removals(mask, units, fills)
        found = sweep(
            bench.model,
            batch.tokens,
            cells,
            functools.partial(read, answers, metric),
            base=base,
            logits_at=batch.positions,
            memory_mib=memory_mib,
            title="units removed",
            by_head=True,
        )
        parts.append(found.T.double())
    return torch.cat(parts)


def read(answers: Answers, metric: str, cells: Tensor) -> Tensor:
    """A metric of what the head reads in each cell, [cell, prompt, answer, model] -> [cell, prompt]."""
    return torch.stack([answers.metrics(cell)[metric] for cell in cells])
