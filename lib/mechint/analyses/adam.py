"""Adam on one tensor, for searches and fits that learn with the model held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Adam:
    """Adam (Kingma & Ba 2015) on one tensor, with the numbers of torch's own.

    The first use of torch's optimisers imports its compiler: seconds of every start.

    Args:
        values: A leaf, changed in place.
        lr: Learning rate.
        betas: Decay of the running means of the gradient and of its square.
    """

    def __init__(self, values: Tensor, lr: float, betas: tuple[float, float], eps: float = 1e-8) -> None:
        self.values, self.lr, self.betas, self.eps = values, lr, betas, eps
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Moves the values against the gradient."""
        self.steps += 1
        first, second = self.betas
        self.mean.lerp_(gradient, 1 - first)
        self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (self.square.sqrt() / (1 - second**self.steps) ** 0.5).add_(self.eps)
        self.values.addcdiv_(self.mean, spread, value=-self.lr / (1 - first**self.steps))

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "mean": self.mean.clone(), "square": self.square.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
