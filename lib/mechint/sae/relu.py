"""ReLU with an L1 penalty: the baseline (Bricken et al. 2023, "Towards Monosemanticity")."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Loss, SparseAutoencoder, Step, squared_error


class ReLU(SparseAutoencoder):
    """f = ReLU(pre); the penalty is Σ f, whose unit is that of the input because rows of W_dec have norm 1."""

    saved_as = "standard"

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)

    def loss(self, x: Tensor, step: Step) -> Loss:
        pre = self.pre_activations(x)
        f = torch.relu(pre)
        reconstruction = self.decode(f)
        terms = {
            "mse": squared_error(x, reconstruction),
            "l1": self.config.penalty * step.warmth * f.sum(-1).mean(),
            **self.auxiliary(pre, x - reconstruction, step.dead),
        }
        fired = (f > 0).sum(0)
        return Loss(terms, fired, fired.sum() / len(x))
