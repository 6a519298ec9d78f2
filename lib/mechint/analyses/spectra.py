"""Summaries of covariance matrices: similarity of two representations, and how many dimensions one has."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alignment(cross: Tensor, first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment (CKA) of two representations, ‖C_ab‖² / (‖C_aa‖ ‖C_bb‖), Frobenius norms.

    Kornblith et al. 2019, equations 3 and 4.

    Args:
        cross: Their cross-covariance, or a multiple of it, [unit, other unit].
        first, second: Their covariances, or the same multiple of these.

    Returns:
        From 0 to 1; NaN where one of the two does not vary.
    """
    both = float(first.norm()) * float(second.norm())
    return float(cross.square().sum()) / both if both > 0 else math.nan


def effective_rank(covariance: Tensor) -> float:
    """exp(entropy of the normalised eigenvalues) / width (Roy & Vetterli 2007); 0 where nothing varies."""
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    if not float(values.sum()) > 0:
        return 0.0
    p = values / values.sum()
    return math.exp(-float(torch.xlogy(p, p).sum())) / len(values)


def participation_ratio(eigenvalues: Tensor) -> float:
    """(Σ λ)² / Σ λ²: how many directions the variance is spread over; 0 where nothing varies."""
    squares = float(eigenvalues.square().sum())
    return float(eigenvalues.sum().square()) / squares if squares > 0 else 0.0
