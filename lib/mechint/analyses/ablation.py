"""Ablations: the values that replace a dropped unit, and the means that they are taken from.

1. :func:`means` averages sites over prompts in float64: over all tokens (:func:`of_all`), for each position
   (:func:`of_position`), or for each role of a token (:func:`of_role`).
2. :class:`Ablation` gives the replacement of every unit on a batch of prompts: zero, a mean, the value on another
   prompt, or the value on the counterfactual twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.units import Units
from ..tasks import Prompts
from ..utils.errors import MechintError

ABLATIONS = ("mean", "resample", "counterfactual", "zero")


def in_words(method: str, by_position: bool) -> str:
    """Says in words which value replaces a dropped unit, for these arguments of :class:`Ablation`."""
    if method == "mean":
        return f"its mean over {'the discovery prompts, by position' if by_position else 'all tokens of discovery'}"
    return {
        "resample": "its value on another prompt",
        "counterfactual": "its value on the counterfactual twin",
        "zero": "zero",
    }[method]


Sums = tuple[dict[str, Tensor], Tensor | int]
"""Sums of values by site, and how many of them are in each."""


def of_all(values: dict[str, Tensor], batch: Prompts) -> Sums:
    """Sums over prompts and tokens, by site [1, unit …]."""
    return {site: value.double().sum((0, 1), keepdim=True)[0] for site, value in values.items()}, batch.tokens.numel()


def of_position(values: dict[str, Tensor], batch: Prompts) -> Sums:
    """Sums over prompts, by site [position, unit …]."""
    return {site: value.double().sum(0) for site, value in values.items()}, len(batch)


def of_role(roles: Callable[[Prompts], Tensor], count: int) -> Callable[[dict[str, Tensor], Prompts], Sums]:
    """Sums over the tokens of each role, by site [role, unit …].

    Args:
        roles: Gives the role of each token [n, L]; -1 is none.
        count: Number of roles.
    """

    def sums(values: dict[str, Tensor], batch: Prompts) -> Sums:
        member = one_hot(roles(batch).to(batch.tokens.device) + 1, count + 1)[..., 1:].double()
        totals = {site: torch.einsum("nlr,nl...->r...", member, value.double()) for site, value in values.items()}
        return totals, member.sum((0, 1))

    return sums


@torch.no_grad()
def means(
    batches: Iterable[Prompts],
    read: Callable[[Prompts], dict[str, Tensor]],
    sums: Callable[[dict[str, Tensor], Prompts], Sums] = of_all,
) -> tuple[dict[str, Tensor], Tensor | int]:
    """Averages sites over prompts, in float64.

    Args:
        read: Gives the values of the sites on a batch, each [prompt, position, unit …].
        sums: Function that adds them up: :func:`of_all`, :func:`of_position` or :func:`of_role`.

    Returns:
        The means by site, and how many values each is a mean of; NaN where that is 0.
    """
    totals: dict[str, Tensor] = {}
    count: Tensor | int = 0
    for batch in batches:
        found, some = sums(read(batch), batch)
        totals = {site: total + totals[site] if totals else total for site, total in found.items()}
        count = count + some
    each = lambda total: count.view(-1, *[1] * (total.dim() - 1)) if isinstance(count, Tensor) else count
    return {site: total / each(total) for site, total in totals.items()}, count


class Ablation:
    """Gives, for each batch of prompts, the values that dropped units take.

    Args:
        model: The model under study.
        units: Units whose sites are replaced.
        method: One of :data:`ABLATIONS`.
        reference: Batches of discovery prompts, for the means.
        by_position: True if the prompts of the task share a layout, so that a mean of one position makes sense.
    """

    def __init__(self, model: Model, units: Units, method: str, reference: list[Prompts], by_position: bool) -> None:
        if method == "counterfactual" and any(batch.twins is None for batch in reference):
            raise MechintError(
                "the counterfactual ablation needs prompts with counterfactual twins, and this task has none; "
                "choose mean, resample or zero"
            )
        self.model, self.units, self.method = model, units, method
        self.means: dict[str, Tensor] = {}
        if method == "mean":
            read = lambda batch: self._values(batch.tokens, batch.positions)
            found, _ = means(reference, read, of_position if by_position else of_all)
            self.means = {name: value.to(next(model.parameters()).dtype) for name, value in found.items()}

    @torch.no_grad()
    def fills(self, prompts: Prompts) -> dict[str, Any]:
        """For each site of the units, what replaces them on these prompts; broadcasts to [batch, position, unit].

        ``resample`` takes the value of the nearest prompt before in the batch that differs: batches are drawn at random
        to begin with, and may hold a prompt twice, whose own value would ablate nothing.

        Raises:
            MechintError: ``resample`` has no other prompt to take values from.
        """
        if self.method == "zero":
            return dict.fromkeys(self.units.sites, 0.0)
        if self.method == "mean":
            return dict(self.means)
        if self.method == "resample":
            other = prompts.tokens[others(prompts.tokens)]
        else:
            assert prompts.twins is not None  # checked for the reference batches of the same task
            other = prompts.twins
        return self._values(other, prompts.positions)

    def _values(self, tokens: Tensor, positions: Tensor) -> dict[str, Tensor]:
        found = run(self.model, tokens, record=self.units.needs, logits_at=positions[:, :0]).values
        return self.units.read(dict(found))


def others(tokens: Tensor) -> Tensor:
    """For each prompt of a batch [prompt, position] the number of the nearest one before it that differs, [prompt].

    The search goes on from the end of the batch.

    Raises:
        MechintError: a prompt has no other one of its length beside it.
    """
    kinds = tokens.unique(dim=0, return_inverse=True)[1]
    numbers = torch.arange(len(tokens), device=tokens.device)
    steps = (numbers.unsqueeze(1) - numbers) % len(tokens)  # from each prompt back to each other one
    steps = steps.masked_fill(kinds.unsqueeze(1) == kinds, len(tokens))
    nearest, found = steps.min(1)
    if int(nearest.max()) == len(tokens):
        raise MechintError(
            "the resample ablation takes a unit's value from another prompt of the same length in the batch, and "
            f"one of {tokens.shape[1]} tokens is alone there; give more prompts of this length that differ, raise the "
            "batch size, or choose the ablation mean"
        )
    return found
