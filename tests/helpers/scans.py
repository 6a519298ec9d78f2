"""Inputs of scans, scans in plain torch, and their gradients."""

from __future__ import annotations

from typing import Any

import torch

from mechint.scan import recurrence


def inputs(batch: int, length: int, channels: int, states: int, seed: int, dtype: torch.dtype) -> Inputs:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return (
        rand(batch, length, channels),
        torch.nn.functional.softplus(rand(batch, length, channels)),
        -torch.exp(rand(channels, states)),
        rand(batch, length, states),
        rand(batch, length, states),
        rand(batch, channels, states),
    )


def plain(
    u: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, h: torch.Tensor
) -> Inputs:
    states = recurrence(torch.exp(dt[..., None] * A), (dt * u)[..., None] * B[:, :, None], h)
    return (states * C[:, :, None]).sum(-1), states[:, -1]


def with_gradients(function: Any, args: Inputs, weights: Inputs) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in args]
    out = function(*leaves)
    torch.autograd.backward(out, weights)
    return [*(o.detach() for o in out), *(x.grad for x in leaves if x.grad is not None)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Inputs = tuple[torch.Tensor, ...]
