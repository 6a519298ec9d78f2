"""ReLU with an L1 penalty: the baseline (Bricken et al. 2023, "Towards Monosemanticity")."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dense
from .base import Loss, SparseAutoencoder, Step, squared_error


class ReLU(SparseAutoencoder):
    """f = ReLU(pre); the penalty is Σ f, whose unit is that of the input because rows of W_dec have norm 1."""

    saved_as = "standard"

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre)

    def loss(self, x: Tensor, step: Step) -> Loss:
        self.check_input(x)
        centred = (x - self.b_dec).detach()
        reconstruction, total, _, fired = dense.Reconstruct.apply(
            centred, self.W_enc, self.b_enc, self.W_dec, self.b_dec, None, 0.0
        )
        terms = {
            "mse": squared_error(x, reconstruction),
            "l1": self.config.penalty * step.warmth * total / len(x),
            **self.auxiliary(x, x - reconstruction, step.dead),
        }
        return Loss(terms, fired, fired.sum() / len(x))
