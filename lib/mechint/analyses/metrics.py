"""Metrics at the answers: accuracy, log-probability, logit difference, KL, and the accuracy that chance would give.

:meth:`mechint.tasks.Prompts.right` says which answers are right, :func:`answer_metric` what the logits are worth; every
analysis uses these two. Where a task accepts several ids, the answer is any of them: its probability is the sum
of theirs, and the logit difference is the logarithm of that sum over the sum of the rejected ids.

:class:`Answers` has the same without the logits of all positions: a few positions at a time, gradients included.
Logits are as wide as the vocabulary and are read once. Here each part of them is made, read and forgotten; what a
backward needs, the gradient at what the head reads, is made with them (Wijmans et al. 2025, "Cut your losses", has the
same for the cross-entropy alone). All is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..interventions.model import Model
from ..interventions.prefix import blocks, divergence
from ..interventions.taps import Tap
from ..tasks import Prompts, Task, pooled
from ..tasks.answers import accepted_by
from ..utils.errors import MechintError, did_you_mean
from ..utils.options import named
from .loader import PromptLoader

PART = 1 << 25
"""Bytes of one part of the logits."""
NAMES = ("kl", "answer_logprob", "accuracy", "logit_diff")
"""The values of :class:`Reading`, in order; the last only where answers have wrong ones to compare with."""
LEARNT = ("kl", "loss", "answer_logprob", "logit_diff")
"""Metrics that have a gradient."""
METRICS = ("logit_diff", "answer_logprob", "answer_prob", "loss")
"""Metrics that need no other model's predictions; see :func:`answer_metric`."""


def remedy(model: Model, task: Task) -> str:
    """Advises what to do about a model that fails a task, as the beginning of a sentence.

    A model that was trained on this task may need more training. On text, the tokens may differ from those of the
    model's training. Any other model may never have seen the task.
    """
    said = (getattr(model, "metadata", None) or {}).get("task")
    if isinstance(said, dict) and said.get("name") == getattr(task, "name", None):
        return "Train it longer"
    if getattr(task, "tokenizer", None) is not None:
        options = ", ".join(named("task", field) for field in ("tokenizer", "bos", "space"))
        return (
            f"Check how prompts and answers become tokens ({options}: the tokens that the tokenizer puts in front, "
            f"and the space before an answer), or choose a task that the model knows"
        )
    return "Choose the task that it was trained on"


def answer_metric(name: str, prompts: Prompts) -> Callable[[Tensor], Tensor]:
    """The metric of logits [..., n, Q, vocabulary] at the answers of ``prompts``, as [..., n].

    Args:
        name: ``answer_logprob``, the log-probability that one of the right ids is said, in nats; ``answer_prob``, its
            exponential; ``logit_diff``, log Σ exp of the right ids' logits less that of the wrong ones', which of one
            id each is the difference of their logits; ``loss``, minus the log-probability of a token. Several answers
            of a prompt are averaged over; of a whole answer log-probabilities add up, by the chain rule.
        prompts: With the answers to measure.

    Raises:
        MechintError: there is no such metric, or no wrong answer to compare with.
    """
    if name not in METRICS:
        raise MechintError(f"no metric {name!r}{did_you_mean(name, METRICS)}; take {', '.join(METRICS)}")
    if name == "logit_diff" and prompts.whole:
        raise MechintError("the metric logit_diff is of one answer token; choose answer_logprob or answer_prob")
    if name == "logit_diff" and prompts.bad() is None:
        raise MechintError(
            "the metric logit_diff needs counterfactual twins with one answer token; choose answer_logprob or "
            "answer_prob"
        )

    def metric(logits: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if name == "logit_diff":
            return logit_differences(logits, prompts).mean(-1)
        each = logprobs(logits, prompts)
        if name == "loss":
            return -each.mean(-1)
        value = each.sum(-1) if prompts.whole else each.mean(-1)
        return value if name == "answer_logprob" else value.exp()

    return metric


def logprobs(logits: Tensor, prompts: Prompts) -> Tensor:
    """The log-probability that one of the right ids is said, in nats; logits [..., n, Q, vocabulary] -> [..., n, Q]."""
    return pooled(logits, prompts.good()) - logits.logsumexp(-1)


def logit_differences(logits: Tensor, prompts: Prompts) -> Tensor:
    """log Σ exp of the right ids' logits less that of the wrong ones'; logits [..., n, Q, vocabulary] -> [..., n, Q].

    Raises:
        ValueError: the prompts have no wrong answers.
    """
    bad = prompts.bad()
    if bad is None:
        raise ValueError("these prompts have no wrong answers")
    return pooled(logits, prompts.good()) - pooled(logits, bad)


class Answers:
    """The answers of some prompts, and the full model's predictions there.

    Args:
        prompts: n prompts of Q answers each.
        full: Input of the head in the full model there, [n, Q, D]; see :func:`mechint.run.read_by_head`.
        head: [V, D].
        scale, cap: The model's last step on the head's products: :attr:`~mechint.models.base.LanguageModel.logit_scale`
            and ``logit_cap``.
        bias: The head's bias, [V]; None for none.
    """

    def __init__(
        self,
        prompts: Prompts,
        full: Tensor,
        head: Tensor,
        scale: float = 1.0,
        cap: float = 0.0,
        bias: Tensor | None = None,
    ) -> None:
        self.shape, self.prompts = prompts.answers.shape, prompts
        bad = prompts.bad()
        self.answers = prompts.good().flatten(0, 1)  # [m, A] -1 is not an id
        self.wrong = None if bad is None else bad.flatten(0, 1)
        self.full, self.head = full.detach().flatten(0, 1), head.detach()
        self.scale, self.cap, self.bias = scale, cap, None if bias is None else bias.detach()
        self.rows = max(1, PART // (4 * len(head)))
        self.logs: list[Tensor] | None = None
        self.wanted: Answers | None = None  # whose predictions are asked for, if not the full model's
        self.order: Tensor | None = None  # id whose prediction each id gets, [V]

    def instead(self, wanted: Answers) -> Answers:
        """These answers of this model, with the full model's predictions replaced by those of another model.

        Args:
            wanted: The same prompts with the other model's predictions; its vocabulary is this model's.
        """
        other = copy.copy(self)
        other.wanted, other.logs = wanted, None
        return other

    def exchanged(self, order: Tensor) -> Answers:
        """The same with ids exchanged: the right answer ``order[id]`` for ``id``, and predictions to match.

        Args:
            order: The id that each id becomes, [V]; each id once.
        """
        other = copy.copy(self)
        other.wanted, other.logs, other.order = self, None, torch.argsort(order)
        become = lambda ids: torch.where(ids < 0, ids, order[ids.clamp(min=0)])
        other.answers, other.wrong = become(self.answers), None if self.wrong is None else become(self.wrong)
        return other

    def kept(self, number: int, at: slice) -> Tensor:
        """The log-probabilities that are asked for at one part of the answers, [m, V], before :meth:`renamed`: the full
        model's, or what replaces them."""
        if self.wanted is not None:
            return self.wanted.kept(number, at)
        return self.logs[number] if self.logs is not None else self.logits_of(self.full[at]).log_softmax(-1)

    def renamed(self, logs: Tensor) -> Tensor:
        """Some rows [m, V] of :meth:`kept` with ids exchanged, where they are."""
        logs = logs if self.wanted is None else self.wanted.renamed(logs)
        return logs if self.order is None else logs.index_select(-1, self.order)

    @property
    def size(self) -> int:
        """Bytes of the log-probabilities of all answers."""
        return 4 * len(self.answers) * len(self.head)

    def keep_logs(self) -> None:
        """Keeps the full model's log-probabilities, for answers that are read again and again."""
        self.logs = [self.logits_of(part).log_softmax(-1) for part in self.full.split(self.rows)]

    def logits_of(self, read: Tensor) -> Tensor:
        logits = F.linear(read, self.head, self.bias)
        logits = logits if self.scale == 1.0 else logits * self.scale
        return (self.cap * torch.tanh(logits / self.cap) if self.cap else logits).float()

    def before(self, up: Tensor, logits: Tensor) -> Tensor:
        """The gradient at the head's products, from that at the logits."""
        up = up * (1 - (logits / self.cap).square()) if self.cap else up
        return up if self.scale == 1.0 else up * self.scale

    def metrics(self, read: Tensor | None, learn: str | None = None) -> dict[str, Tensor]:
        """Every metric that the prompts allow, each [n]: the mean over a prompt's answers, as :func:`answer_metric`.

        Args:
            read: Input of the head in the model under test, [n, Q, D]; None is the model whose predictions are asked
                for.
            learn: The metric, of :data:`LEARNT`, that gradients come from; the others have none.
        """
        if read is None and self.wanted is not None:
            return self.wanted.metrics(None)
        flat = self.full if read is None else read.flatten(0, 1)
        # of the log-probability and the loss, one is the other's negative
        source = "answer_logprob" if learn == "loss" else learn
        found = dict(zip(NAMES, Reading.apply(flat, self, source), strict=False))
        found = {name: value.view(self.shape) for name, value in found.items()}
        metrics = {name: value.mean(-1) for name, value in found.items()}
        metrics["loss"] = -metrics["answer_logprob"]
        if self.prompts.whole:
            metrics["answer_logprob"] = found["answer_logprob"].sum(-1)
        metrics["accuracy"] = self.prompts.share_right(found["accuracy"] > 0).to(torch.float32)
        return metrics


class Reading(torch.autograd.Function):
    """Computes KL to the full model, log-probability, accuracy and logit difference [m] from its input [m, D]."""

    @staticmethod
    def forward(ctx: Any, read: Tensor, answers: Answers, learn: str | None) -> tuple[Tensor, ...]:
        slope = torch.empty_like(read) if learn is not None and ctx.needs_input_grad[0] else None
        parts: list[tuple[Tensor, ...]] = []
        for number, rows in enumerate(torch.arange(len(read)).split(answers.rows)):
            at = slice(int(rows[0]), int(rows[-1]) + 1)
            *values, up = read_part(read[at], answers, number, at, learn if slope is not None else None)
            parts.append(tuple(values))
            if slope is not None and up is not None:
                slope[at] = (up.to(answers.head.dtype) @ answers.head).to(slope.dtype)
        found = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        names = NAMES[: len(found)]
        ctx.learnt = names.index(learn) if slope is not None else None
        ctx.mark_non_differentiable(*(value for name, value in zip(names, found, strict=True) if name != learn))
        if slope is not None:
            ctx.save_for_backward(slope)
        return found

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, None, None]:
        if ctx.learnt is None:
            return None, None, None
        (slope,) = ctx.saved_tensors
        return above[ctx.learnt].unsqueeze(-1).to(slope.dtype) * slope, None, None


def read_part(read: Tensor, answers: Answers, number: int, at: slice, learn: str | None) -> tuple[Any, ...]:
    """The metrics of some positions, and the gradient of one of them at the head's products (None where none is
    wanted)."""
    logits, reference = answers.logits_of(read), answers.kept(number, at)  # [m, V] each
    right, wrong = answers.answers[at], None if answers.wrong is None else answers.wrong[at]
    parts = []
    for rows in blocks(logits):
        block, good, bad = logits[rows], right[rows], None if wrong is None else wrong[rows]
        values, logs, chances = compare(block, answers.renamed(reference[rows]), good, bad)
        parts.append(values)
        if learn is not None:  # in the place of the logits, which nothing reads again
            block.copy_(answers.before(slope_at(learn, logs, chances, good, bad), block))
    return *(torch.cat(column) for column in zip(*parts, strict=True)), None if learn is None else logits


def slope_at(learn: str, logs: Tensor, chances: Tensor, right: Tensor, wrong: Tensor | None) -> Tensor:
    """The gradient of a metric of :data:`LEARNT` at the logits [m, V]; arguments are those of :func:`compare`."""
    if learn == "kl":
        return logs.exp() - chances
    if learn == "answer_logprob":
        return (-logs.exp()).scatter_add_(-1, right.clamp(min=0), shares(logs, right))
    assert wrong is not None
    up = torch.zeros_like(logs).scatter_add_(-1, right.clamp(min=0), shares(logs, right))
    return up.scatter_add_(-1, wrong.clamp(min=0), -shares(logs, wrong))


def compare(
    logits: Tensor, reference: Tensor, right: Tensor, wrong: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """:data:`NAMES` of logits [m, V] beside the full model's log-probabilities [m, V], [m] each; log-probabilities of
    the logits; the full model's chances.

    ``right`` and ``wrong`` are ids [m, A], -1 where there are fewer.
    """
    accuracy = accepted_by(logits.argmax(-1), right).float()
    difference = [] if wrong is None else [pooled(logits, right) - pooled(logits, wrong)]
    logs, chances = logits.log_softmax(-1), reference.exp()
    return (divergence(reference, logs, chances), pooled(logs, right), accuracy, *difference), logs, chances


def shares(logits: Tensor, ids: Tensor) -> Tensor:
    """The gradient of :func:`mechint.tasks.pooled` at the ids, [m, A]: 1 where there is one."""
    if ids.shape[-1] == 1:
        return torch.ones_like(logits[:, :1])
    return logits.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).softmax(-1)


def answered(loader: PromptLoader, model: Model) -> tuple[Tensor, Tensor]:
    """1 where the model says a prompt's last answer, else 0, and the accuracy that chance would give; [prompt] each.

    Chance is the share of the other prompts whose answer is what the model says: the expected accuracy if the answers
    were assigned to the prompts at random. Both are over all prompts of the loader, whatever its batches.
    """
    said, accepted = [], []
    with torch.no_grad():
        for batch in loader:
            asked = batch.last()
            logits, _ = model.trace(batch.tokens, Tap(), logits_at=asked.positions)
            said.append(logits[:, 0].argmax(-1).cpu())
            accepted.append(asked.good()[:, 0].cpu())  # [prompt, accepted id]
    return by_chance(torch.cat(said), side_by_side(accepted))


def by_chance(said: Tensor, accepted: Tensor) -> tuple[Tensor, Tensor]:
    """1 where the said id [n] is accepted, else 0, and the share of the other prompts that accept it; [n] each.

    Args:
        said: The ids that a model says, [n].
        accepted: The accepted ids of each prompt, [n, A]; -1 is none, and each id counts once for a prompt.
    """
    size = int(max(said.max(), accepted.max())) + 1
    takes = torch.zeros(size + 1, dtype=torch.float64)
    for ids in accepted:
        takes[ids.unique()] += 1.0  # -1 indexes the last place, which no prompt uses
    right = accepted_by(said, accepted).double()
    others = max(len(said) - 1, 1)
    return right, (takes[said] - right) / others


def faithfulness(circuit: Any, full: Any, empty: Any) -> Any:
    """(m(circuit) − m(empty)) / (m(full) − m(empty)): 1 is the full model, 0 the model with every unit dropped."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a bootstrap may draw prompts without an effect
        return (circuit - empty) / (full - empty)


def side_by_side(columns: Sequence[Tensor]) -> Tensor:
    """Ids [n, A] of several batches as one, filled up with -1 where A differs."""
    width = max(column.shape[1] for column in columns)
    return torch.cat([torch.nn.functional.pad(column, (0, width - column.shape[1]), value=-1) for column in columns])
