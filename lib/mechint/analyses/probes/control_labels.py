"""Control labels: a label for each token, drawn at random, which a probe can only get right by remembering tokens.

After Hewitt & Liang 2019 ("Designing and interpreting probes with control tasks"): every type has one label in all
prompts, dealt at random so that labels are as frequent as the real ones. A type is the token that the site belongs to;
where that token is the same in all prompts, the nearest one before it that differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...tasks import Prompts
from ...tasks.base import mix
from ...utils.errors import MechintError

Types = NDArray[np.int64]
TRIES = 100


def distance(batches: Sequence[Prompts]) -> int:
    """The least number of tokens before the one that is read at which prompts differ.

    Raises:
        MechintError: they do not differ anywhere.
    """
    shortest = min(int(batch.last().positions[:, 0].min()) for batch in batches)
    for back in range(shortest + 1):
        if len(np.unique(types(batches, back))) > 1:
            return back
    raise MechintError("probe: all prompts have the same tokens before the answer, so nothing can be told apart there")


def types(batches: Sequence[Prompts], back: int) -> Types:
    """The token that many places before the one that predicts the last answer, where sites are read, [prompt]."""
    asked = [batch.last() for batch in batches]
    found = [batch.tokens.gather(1, batch.positions[:, :1] - back)[:, 0].cpu().numpy() for batch in asked]
    return np.concatenate(found)


def labeling(train: Types, test: Types, labels: NDArray[Any], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Control labels of the prompts of both halves, as frequent among the types as the real labels among prompts.

    Args:
        train, test: Type of each prompt.
        labels: The real labels of ``train``.

    Raises:
        MechintError: one label is so frequent that the types of ``train`` have no other.
    """
    every = np.unique(np.concatenate([train, test]))
    at = ((np.arange(len(every)) + 0.5) / len(every) * len(labels)).astype(np.int64)
    for attempt in range(TRIES):
        dealt = np.random.default_rng(mix(seed, attempt)).permutation(np.sort(labels)[at])
        first, second = (dealt[np.searchsorted(every, side)] for side in (train, test))
        if len(np.unique(first)) > 1:
            return first, second
    raise MechintError("probe: one label is so frequent that no control labeling has two; choose another label")
