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
from ...utils.statistics import Array, auroc_over_clusters, cluster_shuffles, ranks

FEWEST = 5
"""Prompts of a class, and of all others, below which no AUROC is given."""
ENOUGH = 12
"""Clusters from which intervals and q-values are known to be right; reports say where there are fewer."""
DRAWS = 1000
"""Shuffles of whole clusters behind a p-value."""


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
    seed: int = 0, names: dict[int, str] | None = None, clusters: tuple[Tensor, Tensor] | None = None,
    over: str = "prompts",
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
        clusters: The clusters (templates) of the prompts of both sets, [prompt] each; None where every prompt is
            independent.
        over: Name of the clusters.

    Returns:
        ``{"classes": [{"label", "name", "prompts", "features": [{"id", "auroc": Number on the held-out prompts,
        "discovery", "q"}], "shuffled": {"median", "high"}, "significant"}]}``. The interval is over clusters
        (:func:`mechint.utils.statistics.auroc_over_clusters`). ``q`` is the Benjamini–Hochberg adjusted p-value over
        all latents of the class on the discovery prompts (:func:`p_values`); ``shuffled`` is the largest AUROC over the
        latents under shuffled labels, those of whole clusters together, its median and 95 % point; ``significant``
        counts latents with q ≤ 0.05.

    Raises:
        MechintError: sizes that do not fit, or fewer than two classes with at least :data:`FEWEST` prompts.
    """
    places = clusters or (torch.arange(len(discovery)), torch.arange(len(evaluation)))
    for part, latents in zip(places, (discovery, evaluation), strict=True):
        if len(part) != len(latents):
            raise MechintError(f"{len(latents)} prompts have {len(part)} clusters; give one for each")
    for f, y, where in ((discovery, labels, "discovery"), (evaluation, held_out, "evaluation")):
        if len(f) != len(y):
            raise MechintError(f"{len(f)} {where} prompts have {len(y)} labels; give one for each")
    if discovery.shape[1:] != evaluation.shape[1:]:
        raise MechintError("the discovery and evaluation prompts have latents of different dictionaries")
    counts = lambda y, c: min(int((y == c).sum()), int((y != c).sum()))
    classes = [int(c) for c in labels.unique() if min(counts(labels, c), counts(held_out, c)) >= FEWEST]
    if not classes:
        raise MechintError(f"no class has {FEWEST} prompts and {FEWEST} others in both halves; use more prompts")
    own, other = (np.asarray(part.cpu().numpy()) for part in places)
    told, exchanged = [], None if single(own) else cluster_shuffles(own, max(DRAWS, shuffles), seed)
    random = torch.Generator().manual_seed(seed)
    alone = [torch.randperm(len(own), generator=random) for _ in range(shuffles)]
    orders = alone if exchanged is None else list(torch.from_numpy(exchanged[:shuffles]))
    for label in classes:
        positive = (labels == label).cpu()
        found = auroc(discovery, positive)
        q = benjamini_hochberg(p_values(discovery, positive, exchanged))
        chosen = torch.sort((found - 0.5).abs(), descending=True, stable=True).indices[:best].tolist()
        shuffled = np.array([largest(discovery, positive[order]) for order in orders])
        mine = (held_out == label).cpu().numpy()
        features = [
            {"id": i, "discovery": float(found[i]), "q": float(q[i]),
             "auroc": auroc_over_clusters(evaluation[:, i].double().cpu().numpy(), mine, other, over)}
            for i in chosen
        ]  # fmt: skip
        control = {
            "median": float(np.median(shuffled)),
            "high": float(np.quantile(shuffled, 0.95)),
            "shuffles": len(orders),
        }
        told.append(
            {"label": label, "name": (names or {}).get(label, str(label)), "prompts": int(positive.sum()),
             "features": features, "shuffled": control, "significant": int((q <= 0.05).sum())}
        )  # fmt: skip
    return {"classes": told}


def single(clusters: NDArray[np.int64]) -> bool:
    """True if every prompt is a cluster of its own."""
    return len(np.unique(clusters)) == len(clusters)


def largest(f: Tensor, positive: Tensor) -> float:
    """The largest AUROC over the latents, of either sign, from ½; ½ where the class has none or all of the prompts."""
    if positive.all() or not positive.any():
        return 0.5
    return float((auroc(f, positive) - 0.5).abs().max()) + 0.5


def p_values(f: Tensor, positive: Tensor, exchanged: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Two-sided p-values of AUROC = ½ for each column, [latent].

    Independent prompts have Mann and Whitney's (:func:`mann_whitney`). Prompts in clusters have the same statistic with
    the variance that exchanges of the labels of whole clusters give it, but never less than the share of exchanges with
    an AUROC as far from ½.

    Args:
        f: [prompt, latent].
        positive: [prompt] bool.
        exchanged: The prompt whose label each gets, [draw, prompt], from
            :func:`mechint.utils.statistics.cluster_shuffles`; None where prompts are independent.
    """
    if exchanged is None:
        return mann_whitney(f, positive)
    n = len(f)
    joint = ranks(f.double().cpu().numpy(), axis=0)
    labels = positive.numpy()[exchanged].astype(np.float64)  # [draw, prompt]
    labels = labels[(labels.any(1)) & ~labels.all(1)]
    found = from_ranks(positive.numpy()[None].astype(np.float64), joint, n)[0]
    drawn = from_ranks(labels, joint, n)
    error = np.sqrt((drawn**2).mean(0))
    z = np.divide(found, error, out=np.zeros_like(found), where=error > 0)
    return np.maximum(2 * scipy.special.ndtr(-np.abs(z)), (np.abs(drawn) >= np.abs(found) - 1e-12).mean(0))


def from_ranks(labels: Array, joint: Array, n: int) -> Array:
    """AUROC − ½ of every column under several labellings, [draw, latent], from labels [draw, n] and ranks [n, latent].

    With m prompts of the class it is (Σ ranks - m (m + 1) / 2) / (m (n - m)) - ½.
    """
    size = labels.sum(1, keepdims=True)
    return np.asarray((labels @ joint - size * (size + 1) / 2) / (size * (n - size)) - 0.5)


def mann_whitney(f: Tensor, positive: Tensor) -> NDArray[np.float64]:
    """Two-sided p-values of AUROC = ½ for each column, normal approximation corrected for ties, [latent]."""
    sides = (f[positive].double().cpu().numpy(), f[~positive].double().cpu().numpy())
    found = scipy.stats.mannwhitneyu(*sides, axis=0, use_continuity=False, method="asymptotic")
    return np.nan_to_num(np.asarray(found.pvalue), nan=1.0)  # a column of one value has no z
