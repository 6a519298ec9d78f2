"""Gated: one path decides which latents are active, another how much (Rajamanoharan et al. 2024, "Improving ...")."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Loss, SAEConfig, SparseAutoencoder, Step, squared_error


class Gated(SparseAutoencoder):
    """f = H(pre) ⊙ ReLU(pre ⊙ exp(r_mag) + ...): ``b_enc`` is the gate's bias, ``b_mag`` the magnitude's.

    The penalty is on ReLU of the gate, which has to reconstruct alone with a frozen decoder (their equation 8), so
    magnitudes do not shrink.
    """

    tensors: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"W_enc": "W_enc", "b_enc": "b_gate", "b_mag": "b_mag", "r_mag": "r_mag", "W_dec": "W_dec", "b_dec": "b_dec"}
    )
    in_input_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_mag", "b_dec")

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))

    def activate(self, pre: Tensor) -> Tensor:
        magnitude = torch.relu((pre - self.b_enc) * torch.exp(self.r_mag) + self.b_mag)
        return (pre > 0) * magnitude

    def loss(self, x: Tensor, step: Step) -> Loss:
        pre = self.pre_activations(x)
        f = self.activate(pre)
        gate = torch.relu(pre)
        reconstruction = self.decode(f)
        terms = {
            "mse": squared_error(x, reconstruction),
            "l1": self.config.penalty * step.warmth * gate.sum(-1).mean(),
            "gate": squared_error(x, gate @ self.W_dec.detach() + self.b_dec.detach()),
            **self.auxiliary(x, x - reconstruction, step.dead),
        }
        fired = (f > 0).sum(0)
        return Loss(terms, fired, fired.sum() / len(x))
