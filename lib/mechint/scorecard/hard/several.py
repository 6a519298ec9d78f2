"""Scores of a ranking where *needed* has several meanings, and where units carry shares of the answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ground_truth import Compiled, score_units
from ...ground_truth.questions import QUESTIONS
from ...ground_truth.together import share_scores


def several_scores(compiled: Compiled, scores: Any, ablation: str) -> dict[str, Any]:
    """For each declared question its AUROC and whether the answer is exact; the rank correlation with shares.

    Where several sets are right answers, the best of them counts. Units that are the same under the method's ablation
    are left out of every set. A question that no unit answers, or that is not declared, is not asked.
    """
    found: dict[str, Any] = {}
    values = torch.as_tensor(scores).detach().double().cpu().flatten()
    truth = compiled.truth
    if truth.questions is not None:
        seen = truth.mask(compiled.model, truth.questions.kind, ablation)
        masks = truth.questions.masks(compiled.model)
        for question in QUESTIONS:
            sets = [mask * seen for mask in masks[question] if (mask * seen).any()]
            if sets:
                every = [score_units(mask, values, question) for mask in sets]
                best = max(every, key=lambda score: (score.exact, score.auroc))
                found[question] = {"auroc": best.auroc, "exact": best.exact}
    shares = share_scores(truth, compiled.model, compiled.unit).double()
    if shares.any():
        found["shares"] = rank_correlation(values[shares > 0], shares[shares > 0])
    return {"several": found} if found else {}


def rank_correlation(scores: Tensor, shares: Tensor) -> float:
    """Spearman's, equal numbers sharing their rank; 0 where all scores are the same."""
    first, second = (ranks(values) - ranks(values).mean() for values in (scores, shares))
    sizes = float(first.norm() * second.norm())
    return float(first @ second) / sizes if sizes else 0.0


def ranks(values: Tensor) -> Tensor:
    _, place, size = torch.unique(values, return_inverse=True, return_counts=True)
    return (size.cumsum(0).double() - (size - 1) / 2)[place]
