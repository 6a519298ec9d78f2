"""Features that tell a label: AUROC of every latent for every class, against shuffled labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...utils.errors import MechintError
from ...utils.multiple_tests import benjamini_hochberg
from ...utils.statistics import LEVEL, number

FEWEST = 5
"""Prompts of a class, and of all others, below which no AUROC is given."""


def auroc(f: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve of each column as a score for one class: P(f₊ > f₋) + ½ P(f₊ = f₋).

    Args:
        f: Latents, [prompt, latent].
        positive: True for prompts of the class, [prompt] bool.

    Returns:
        [latent], 0.5 for a column without information.
    """
    ours, others = f[positive].T.contiguous(), f[~positive].T.contiguous().sort(1).values
    below = torch.searchsorted(others, ours).double() + torch.searchsorted(others, ours, right=True).double()
    return below.mean(1) / (2 * others.shape[1])


def label_scores(
    discovery: Tensor, labels: Tensor, evaluation: Tensor, held_out: Tensor, *, shuffles: int = 200, best: int = 20,
    seed: int = 0, names: dict[int, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The features that tell each class best, chosen on one set of prompts and measured on another.

    Args:
        discovery: Latents of the prompts that features are chosen on, [prompt, latent].
        labels: Their classes, [prompt] whole numbers.
        evaluation: Latents of other prompts, [prompt, latent].
        held_out: Their classes.
        shuffles: Random orders of the labels: the largest |AUROC − ½| over all latents in each is what chance gives.
        best: Features told for each class.
        seed: Seed of the shuffles.
        names: Names of the classes, for reports.

    Returns:
        ``{"classes": [{"label", "name", "prompts", "features": [{"id", "auroc": Number on the held-out prompts,
        "discovery", "q"}], "shuffled": {"median", "high"}, "significant"}]}``. ``q`` is the Benjamini–Hochberg
        adjusted p-value over all latents of the class on the discovery prompts (Mann–Whitney, ties corrected);
        ``shuffled`` is the largest AUROC over the latents under shuffled labels, its median and 95 % point;
        ``significant`` counts latents with q ≤ 0.05.

    Raises:
        MechintError: sizes that do not fit, or fewer than two classes with at least :data:`FEWEST` prompts.
    """
    for f, y, where in ((discovery, labels, "discovery"), (evaluation, held_out, "evaluation")):
        if len(f) != len(y):
            raise MechintError(f"{len(f)} {where} prompts have {len(y)} labels; give one for each")
    if discovery.shape[1:] != evaluation.shape[1:]:
        raise MechintError("the discovery and evaluation prompts have latents of different dictionaries")
    counts = lambda y, c: min(int((y == c).sum()), int((y != c).sum()))
    classes = [int(c) for c in labels.unique() if min(counts(labels, c), counts(held_out, c)) >= FEWEST]
    if not classes:
        raise MechintError(f"no class has {FEWEST} prompts and {FEWEST} others in both halves; use more prompts")
    random = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(labels), generator=random) for _ in range(shuffles)]
    return {"classes": [_one(discovery, labels, evaluation, held_out, c, orders, best, names or {}) for c in classes]}


def _one(
    discovery: Tensor, labels: Tensor, evaluation: Tensor, held_out: Tensor, label: int, orders: list[Tensor],
    best: int, names: dict[int, str],
) -> dict[str, Any]:  # fmt: skip
    positive = labels == label
    found = auroc(discovery, positive)
    q = benjamini_hochberg(mann_whitney(discovery, positive))
    chosen = torch.sort((found - 0.5).abs(), descending=True, stable=True).indices[:best].tolist()
    shuffled = np.array([float((auroc(discovery, positive[order]) - 0.5).abs().max()) + 0.5 for order in orders])
    mine = held_out == label
    values = auroc(evaluation[:, chosen], mine)
    told = []
    for place, i in enumerate(chosen):
        value = float(values[place])
        half = 1.96 * _hanley_mcneil(value, int(mine.sum()), int((~mine).sum()))
        told.append({"id": i, "discovery": float(found[i]), "q": float(q[i]),
                     "auroc": number(value, max(0.0, value - half), min(1.0, value + half), len(mine),
                                     f"{LEVEL:.0%} of Hanley & McNeil (1982)")})  # fmt: skip
    control = {
        "median": float(np.median(shuffled)),
        "high": float(np.quantile(shuffled, 0.95)),
        "shuffles": len(orders),
    }
    return {"label": label, "name": names.get(label, str(label)), "prompts": int(positive.sum()), "features": told,
            "shuffled": control, "significant": int((q <= 0.05).sum())}  # fmt: skip


def mann_whitney(f: Tensor, positive: Tensor) -> NDArray[np.float64]:
    """Two-sided p-values of AUROC = ½ for each column, normal approximation corrected for ties, [latent]."""
    sides = (f[positive].double().cpu().numpy(), f[~positive].double().cpu().numpy())
    found = scipy.stats.mannwhitneyu(*sides, axis=0, use_continuity=False, method="asymptotic")
    return np.nan_to_num(np.asarray(found.pvalue), nan=1.0)  # a column of one value has no z


def _hanley_mcneil(area: float, positives: int, negatives: int) -> float:
    """Standard error of an AUROC (Hanley & McNeil 1982, equation 2)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    return float(max(variance, 0.0) / (positives * negatives)) ** 0.5
