"""JumpReLU: f = pre where pre exceeds the latent's threshold (Rajamanoharan et al. 2024, "Jumping Ahead")."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import workers
from .base import Loss, SAEConfig, SparseAutoencoder, Step, squared_error

BANDWIDTH = 0.1
"""Width of the kernel around a threshold, in units of an input coordinate's root mean square (1 after scaling).

Theirs is 0.001 with E‖x‖² = 1, that is 0.001 √d here; 0.1 is that of d = 10⁴ and learns faster at small d."""
FIRST_THRESHOLD = 0.1


class Jump(torch.autograd.Function):
    """pre · H(pre − θ); the gradient of θ is −θ/ε times a rectangle around the threshold (their equation 11)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < BANDWIDTH / 2
        return grads[0] * (pre > threshold), (-(threshold / BANDWIDTH) * near * grads[0]).sum(0)


class Heaviside(torch.autograd.Function):
    """H(pre − θ); the gradient of θ is −1/ε times a rectangle around the threshold (their equation 12)."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < BANDWIDTH / 2
        return torch.zeros_like(pre), (-(1 / BANDWIDTH) * near * grads[0]).sum(0)


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
        pre = self.pre_activations(x)
        threshold = self.threshold.clamp_min(0)
        f = Jump.apply(torch.relu(pre), threshold)
        reconstruction = self.decode(f)
        l0 = Heaviside.apply(pre, threshold).sum(-1).mean()
        distance = c.d_in * (workers.mean_over(l0) / c.k - 1).square() if c.k else l0
        terms = {
            "mse": squared_error(x, reconstruction),
            "l0": c.penalty * step.warmth * distance,
            **self.auxiliary(pre, x - reconstruction, step.dead),
        }
        return Loss(terms, (f > 0).sum(0), l0.detach())
