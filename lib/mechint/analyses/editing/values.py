"""The values that edits write: what a map should give at the subject's last token, found by gradient descent.

1. Catch what the map reads (k) and gives (v) at the subject's last token of the prompt, alone and behind each prefix.
   The key of the edit is the mean of k.
2. Find the shift δ of v, added in all of these runs, that makes
   −log P(new answer) + kl · KL(before ‖ after, at the subject's last token) + decay · ‖δ‖² / ‖v‖²
   small (Meng et al. 2022, section 3.1, step 2), by Adam. ‖δ‖ is kept below ``clamp`` · ‖v‖.

The facts of a batch are found side by side: δ of one fact is in its own rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.prefix import divergence
from ...interventions.run import run
from ..adam import Adam
from .maps import WeightMap, watching
from .requests import Request

BETAS = (0.9, 0.999)


class Descent(Protocol):
    """The options of the descent; see :class:`~.options.EditConfig`."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def kl(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def clamp(self) -> float: ...


@dataclass(frozen=True)
class Rows:
    """Prompts side by side, filled up on the right: what causal models read does not depend on what follows.

    Attributes:
        tokens: [row, position].
        subject: The position of the subject's last token, [row].
        at: The position behind which the answer stands, [row, 1].
        new: The new answer, [row].
        fact: The number of the row's fact, [row].
    """

    tokens: Tensor
    subject: Tensor
    at: Tensor
    new: Tensor
    fact: Tensor


def rows_of(requests: Sequence[Request], device: torch.device) -> Rows:
    """Every request's prompt, alone and behind each of its prefixes."""
    lists, subject, at, new, fact = [], [], [], [], []
    for number, request in enumerate(requests):
        for tokens in request.variants:
            more = len(tokens) - len(request.tokens)
            lists.append(tokens)
            subject.append(request.subject + more)
            at.append(request.at + more)
            new.append(request.new)
            fact.append(number)
    put = lambda values: torch.tensor(values, device=device)
    return Rows(padded(lists).to(device), put(subject), put(at).unsqueeze(1), put(new), put(fact))


def padded(lists: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of any lengths, filled up with token 0 on the right, [row, position]."""
    length = max(map(len, lists))
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in lists])


def mean_by(values: Tensor, fact: Tensor, count: int) -> Tensor:
    """Means over the rows of each fact, [row, …] -> [fact, …]."""
    total = values.new_zeros(count, *values.shape[1:]).index_add_(0, fact, values)
    rows = torch.bincount(fact, minlength=count).to(values)
    return total / rows.view(-1, *[1] * (values.dim() - 1))


@dataclass(frozen=True)
class Values:
    """Keys and wanted changes of some facts, in float64.

    Attributes:
        keys: [fact, in].
        shifts: δ, [fact, out].
        chance: The probability of the new answer with the shift, a geometric mean over the fact's rows, [fact].
    """

    keys: Tensor
    shifts: Tensor
    chance: Tensor


def values(model: Model, one: WeightMap, requests: Sequence[Request], descent: Descent) -> Values:
    """Keys and shifts of some facts at one map; see the top of this file."""
    rows, count = rows_of(requests, model.device), len(requests)
    each = torch.arange(len(rows.tokens), device=model.device)
    both = torch.cat([rows.at, rows.subject[:, None]], 1)
    with torch.no_grad(), watching(one) as caught:
        before = run(model, rows.tokens, logits_at=both).logits[:, 1].float().log_softmax(-1)
    keys = caught.inputs[each, rows.subject].double()
    given = caught.outputs[each, rows.subject].float()
    size = mean_by(given.norm(dim=-1), rows.fact, count).clamp(min=1e-6)  # [fact]
    step = (size / given.shape[-1] ** 0.5)[:, None]  # the root mean square of v
    moved = torch.zeros(count, given.shape[-1], device=model.device)
    mover = Adam(moved, descent.lr, BETAS)
    # below the map a leaf keeps the forward that gradients pass through
    leaf = torch.zeros((), device=model.device, requires_grad=True)
    lead = [Edit("embed", "add", leaf)]
    chance = torch.zeros(count)
    for k in range(descent.steps + 1):
        shift = moved.detach().requires_grad_()
        with torch.enable_grad(), watching(one, (shift * step)[rows.fact], rows.subject):
            logits = run(model, rows.tokens, edits=lead, logits_at=both).logits.float()
            says = logits[:, 0].log_softmax(-1).gather(1, rows.new[:, None])[:, 0]
            apart = divergence(before, logits[:, 1].log_softmax(-1), before.exp())
            by_fact = mean_by(descent.kl * apart - says, rows.fact, count) + descent.decay * (shift**2).mean(-1)
        chance = mean_by(says.detach(), rows.fact, count).exp().cpu()
        if k == descent.steps:
            break
        [slope] = torch.autograd.grad(by_fact.sum(), [shift])
        mover.step(slope)
        norm = moved.norm(dim=-1, keepdim=True) / moved.shape[-1] ** 0.5  # of δ, in norms of v
        moved.mul_(descent.clamp / norm.clamp(min=descent.clamp))
    shifts = moved * step
    return Values(mean_by(keys, rows.fact, count).cpu(), shifts.double().cpu(), chance.double())
