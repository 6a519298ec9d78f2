"""JumpReLU: f = pre where pre exceeds the latent's threshold (Rajamanoharan et al. 2024, "Jumping Ahead")."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..utils import workers
from . import dense
from .base import Loss, SAEConfig, SparseAutoencoder, Step, squared_error

BANDWIDTH = 0.1
"""Width ε of the rectangle around a threshold θ in which its gradient is estimated (their equations 11 and 12):
of f it is −θ/ε, of the number of active latents −1/ε. In units of an input
coordinate's root mean square (1 after scaling).

Theirs is 0.001 with E‖x‖² = 1, that is 0.001 √d here; 0.1 is that of d = 10⁴ and learns faster at small d."""
FIRST_THRESHOLD = 0.1


class JumpReLU(SparseAutoencoder):
    """One threshold for each latent, ``threshold`` [d_sae] > 0, learned by its logarithm."""

    tensors: ClassVar[Mapping[str, str]] = MappingProxyType({**SparseAutoencoder.tensors, "threshold": "threshold"})

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.threshold = nn.Parameter(torch.full((config.d_sae,), FIRST_THRESHOLD))

    in_input_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec", "threshold")

    def activate(self, pre: Tensor) -> Tensor:
        """pre where it is positive and above the threshold."""
        return torch.relu(pre) * (pre > self.threshold)

    def loss(self, x: Tensor, step: Step) -> Loss:
        c = self.config
        self.check_input(x)
        centred = (x - self.b_dec).detach()
        reconstruction, _, active, fired = dense.Reconstruct.apply(
            centred, self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.threshold.clamp_min(0), BANDWIDTH
        )
        l0 = active / len(x)
        distance = c.d_in * (workers.mean_over(l0) / c.k - 1).square() if c.k else l0
        terms = {
            "mse": squared_error(x, reconstruction),
            "l0": c.penalty * step.warmth * distance,
            **self.auxiliary(x, x - reconstruction, step.dead),
        }
        return Loss(terms, fired, l0.detach())
