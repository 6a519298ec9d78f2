"""Matryoshka BatchTopK: nested dictionaries, each of which must reconstruct alone (Bussmann et al. 2025).

The first ``groups[0]`` latents are a dictionary, the first ``groups[1]`` another one, and so on: general features
stay in the first, where a wide dictionary would absorb them into special ones.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..utils.errors import MechintError
from .base import Loss, SAEConfig, Step
from .batch_topk import BatchTopK


def nested(d_sae: int, levels: int = 5) -> tuple[int, ...]:
    """Widths d_sae / 16, / 8, / 4, / 2 and d_sae: the default groups."""
    return tuple(sorted({max(1, d_sae >> (levels - 1 - level)) for level in range(levels)}))


class Matryoshka(BatchTopK):
    """As :class:`BatchTopK`; the error is the mean of the errors of all nested dictionaries."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.groups = config.groups or nested(config.d_sae)
        if any(a >= b for a, b in itertools.pairwise((0, *self.groups))) or self.groups[-1] != config.d_sae:
            raise MechintError(
                f"dictionary: groups are {list(self.groups)}; they must ascend and end in the width {config.d_sae}"
            )

    def loss(self, x: Tensor, step: Step) -> Loss:
        pre = self.pre_activations(x)
        f, least = self.select(pre)
        reconstruction, errors = self.b_dec.expand_as(x), []
        for low, high in itertools.pairwise((0, *self.groups)):
            reconstruction = reconstruction + f[:, low:high] @ self.W_dec[low:high]
            errors.append((x - reconstruction).square().sum(-1).mean())
        terms = {"mse": torch.stack(errors).mean(), **self.auxiliary(x, x - reconstruction, step.dead)}
        fired = (f > 0).sum(0)
        return Loss(terms, fired, fired.sum() / len(x), {"threshold": least, "mse": errors[-1].detach()})
