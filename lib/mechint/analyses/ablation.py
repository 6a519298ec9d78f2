"""Ablations: what stands in for a dropped unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.units import Units
from ..tasks import Prompts
from ..utils.errors import MechintError

ABLATIONS = ("mean", "resample", "counterfactual", "zero")


def in_words(method: str, by_position: bool) -> str:
    """Says what a dropped unit is replaced by: what :class:`Ablation` does with these arguments."""
    if method == "mean":
        return f"its mean over {'the discovery prompts, by position' if by_position else 'all tokens of discovery'}"
    return {
        "resample": "its value on another prompt",
        "counterfactual": "its value on the counterfactual twin",
        "zero": "zero",
    }[method]


class Ablation:
    """Gives, for each batch of prompts, the values that dropped units take.

    Args:
        model: The model under study.
        units: Whose sites are replaced.
        method: One of :data:`ABLATIONS`.
        reference: Batches of discovery prompts, for the means.
        by_position: Whether the prompts of the task share a layout, so that a mean of one position makes sense.
    """

    def __init__(self, model: Model, units: Units, method: str, reference: list[Prompts], by_position: bool) -> None:
        if method == "counterfactual" and any(batch.twins is None for batch in reference):
            raise MechintError(
                "the counterfactual ablation needs prompts with counterfactual twins, and this task has none; "
                "choose mean, resample or zero"
            )
        self.model, self.units, self.method = model, units, method
        self.means = self._means(reference, by_position) if method == "mean" else {}

    @torch.no_grad()
    def _means(self, reference: list[Prompts], by_position: bool) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in reference:
            values = self._values(batch.tokens, batch.positions)
            for name, value in values.items():
                total = value.double().sum(0) if by_position else value.double().sum((0, 1), keepdim=True)[0]
                sums[name] = sums.get(name, torch.zeros_like(total)) + total
            count += len(batch) if by_position else batch.tokens.numel()
        return {name: (total / count).to(next(self.model.parameters()).dtype) for name, total in sums.items()}

    @torch.no_grad()
    def fills(self, prompts: Prompts) -> dict[str, Any]:
        """For each site of the units, what replaces them on these prompts; broadcasts to [batch, position, unit].

        ``resample`` takes the value of the prompt before in the batch: batches are drawn at random to begin with.
        """
        if self.method == "zero":
            return dict.fromkeys(self.units.sites, 0.0)
        if self.method == "mean":
            return dict(self.means)
        if self.method == "resample":
            if len(prompts) < 2:
                raise MechintError("the resample ablation needs at least two prompts in a batch; raise the batch size")
            other = prompts.tokens.roll(1, 0)
        else:
            assert prompts.twins is not None  # checked for the reference batches of the same task
            other = prompts.twins
        return self._values(other, prompts.positions)

    def _values(self, tokens: Tensor, positions: Tensor) -> dict[str, Tensor]:
        found = run(self.model, tokens, record=self.units.sites, logits_at=positions[:, :0]).values
        return self.units.read(dict(found))
