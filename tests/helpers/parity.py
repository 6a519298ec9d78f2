"""Gradients of all parameters."""

from __future__ import annotations

import torch
from torch import Tensor


def gradients(model: torch.nn.Module, logits: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Gradients of a random mixture of log-probabilities, by parameter name."""
    model.zero_grad()
    (logits.log_softmax(-1) * weights).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
