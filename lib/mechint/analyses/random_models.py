"""Models with random weights beside the studied one: what is read in both is no finding about training.

Half of them have the studied model's entries in another order (:func:`.subspaces.shuffled_weights`), half have
weight matrices drawn anew at its scale (:func:`.subspaces.reinitialised`). Null hypothesis: the studied model is
one more of them. Models differ among each other, and prompts do too; both are in the interval of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..interventions.model import Model
from ..tasks.base import mix
from ..utils.statistics import Number, number, t_quantile
from .random_weights import reinitialised, shuffled_weights

Array = NDArray[np.float64]
MODELS = 6
"""Random models that each study compares with."""
MAKERS: dict[str, Callable[[Any, int], Any]] = {"shuffled": shuffled_weights, "drawn anew": reinitialised}


def random_models(model: Model, seed: int, count: int = MODELS) -> Iterator[tuple[str, Any]]:
    """(how it was made, model), the two ways in turn."""
    for k in range(count):
        name = list(MAKERS)[k % len(MAKERS)]
        yield name, MAKERS[name](model, mix(seed, "random model", k))


def beside(own: Array, random: Array, clusters: NDArray[np.int64]) -> dict[str, Any]:
    """How much better the studied model's score is than those of random models, on the same prompts.

    The difference from their mean has the variance s² (1 + 1/K) + e²: s² that of K random models' scores, as of one
    more such model, and e² that of the difference over the prompts' templates. Student's t with K - 1 degrees of
    freedom; s² has some of e² in it, so the interval is rather too wide than too narrow.

    Args:
        own: What each prompt adds to the studied model's score, [prompt].
        random: The same of random models, [model, prompt]; at least two models.
        clusters: The template of each prompt, [prompt].

    Returns:
        ``score``, ``random`` (the scores), ``difference`` (95 %), ``error`` and ``freedom`` of its t.
    """
    scores = random.mean(1)
    apart = own - random.mean(0)
    value = float(apart.mean())
    _, cluster = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster, weights=apart - value)
    count = len(sums)
    within = count / max(count - 1, 1) * float((sums**2).sum()) / len(own) ** 2
    error = math.sqrt(float(scores.var(ddof=1)) * (1 + 1 / len(scores)) + within)
    half = t_quantile(len(scores) - 1) * error
    what = f"95 % by Student's t over {len(scores)} models with random weights and {count} templates"
    return {
        "score": float(own.mean()),
        "random": [float(score) for score in scores],
        "difference": number(value, value - half, value + half, len(own), what),
        "error": error,
        "freedom": len(scores) - 1,
    }


def spread_about_mean(scores: list[float]) -> Number:
    """Random models' scores as distances from their mean: the control in the units of the difference."""
    mean = float(np.mean(scores))
    return number(
        0.0, min(scores) - mean, max(scores) - mean, len(scores), "least and most of models with random weights"
    )
