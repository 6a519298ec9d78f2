"""Measures of sparsity, all fixed beforehand.

For a token's activations a [unit] at one site (Hurley & Rickard 2009 compare such measures):

================== ============================================================================ =======
measure            definition                                                                   sparser
================== ============================================================================ =======
gini               Σ_k (2k - n - 1) |a|_(k) / (n Σ|a|), of the sorted sizes: 0 even, 1 one unit   higher
hoyer              (√n - ‖a‖₁/‖a‖₂) / (√n - 1): 0 even, 1 one unit (Hoyer 2004)                   higher
entropy            -Σ p log p / log n with p = |a| / Σ|a|: 1 even, 0 one unit                     lower
participation      (Σ a²)² / (n Σ a⁴): the share of units that take part                         lower
below_rms          share of units with |a_e| < ε · RMS_e, RMS_e of that unit on other prompts    higher
below_optimal      share with |a| < τ, where τ reaches the target share on other prompts          higher
below_fixed        share with |a| < the documented constant: 0.01 for a Mamba, 1e-5 for others   higher
================== ============================================================================ =======

The first five do not change when all activations are multiplied by a number; the last two do. The documented constants
differ between families by a factor of a thousand, so below_fixed must not be compared between families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """The values that thresholds are relative to, from other prompts than those measured."""

    rms: Tensor  # [unit]
    optimal: float
    fixed: float
    epsilon: float


def gini(a: Tensor, scale: Scale | None = None) -> Tensor:
    """The Gini index over the last axis."""
    x, n = a.abs().sort(-1).values, a.shape[-1]
    weight = 2 * torch.arange(1, n + 1, dtype=x.dtype, device=x.device) - n - 1
    return (x * weight).sum(-1) / (n * x.sum(-1)).clamp(min=torch.finfo(x.dtype).tiny)


def hoyer(a: Tensor, scale: Scale) -> Tensor:
    root = a.shape[-1] ** 0.5
    length = a.norm(dim=-1)
    ratio = torch.where(length > 0, a.abs().sum(-1) / length, torch.full_like(length, root))
    return (root - ratio) / max(root - 1, torch.finfo(a.dtype).tiny)


def entropy(a: Tensor, scale: Scale) -> Tensor:
    total = a.abs().sum(-1, keepdim=True)
    p = torch.where(total > 0, a.abs() / total, torch.full_like(a, 1 / a.shape[-1]))
    return -torch.xlogy(p, p).sum(-1) / max(float(np.log(a.shape[-1])), 1e-300)


def participation(a: Tensor, scale: Scale) -> Tensor:
    square = (a / a.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)).square()
    fourth = square.square().sum(-1) * a.shape[-1]
    return torch.where(fourth > 0, square.sum(-1).square() / fourth, torch.ones_like(fourth))


def below_rms(a: Tensor, scale: Scale) -> Tensor:
    return (a.abs() < scale.epsilon * scale.rms).to(a.dtype).mean(-1)


def below_optimal(a: Tensor, scale: Scale) -> Tensor:
    return (a.abs() < scale.optimal).to(a.dtype).mean(-1)


def below_fixed(a: Tensor, scale: Scale) -> Tensor:
    return (a.abs() < scale.fixed).to(a.dtype).mean(-1)


MEASURES: dict[str, Callable[[Tensor, Scale], Tensor]] = {
    measure.__name__: measure
    for measure in (gini, hoyer, entropy, participation, below_rms, below_optimal, below_fixed)
}
"""A token's activations [..., unit] in float64 to a number in 0 … 1, [...]. All zero counts as even."""


FALLING = ("entropy", "participation")
"""Measures that are lower where activations are sparser."""


SCALE_FREE = ("gini", "hoyer", "entropy", "participation", "below_rms")
