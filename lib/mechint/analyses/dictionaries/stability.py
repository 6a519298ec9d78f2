"""Stability across seeds: whether two dictionaries of the same activations hold the same directions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from ...utils.errors import MechintError
from ...utils.statistics import Number, number, spread
from .evaluation import largest_cosine

MATCHED_AT_MOST = 4096
"""Dictionaries larger than this are compared by largest cosines alone: the best matching takes latents³ steps."""
SAME = 0.9
"""Cosine from which two directions count as the same; what "shared" says."""


def agreement(a: Tensor, b: Tensor) -> dict[str, float]:
    """Similarity of two sets of directions [n, d] and [m, d].

    Returns:
        ``largest``: mean over both sets of the largest cosine with the other one; ``shared``: share of directions
        whose largest cosine is at least :data:`SAME`; ``matched``: mean cosine under the best one-to-one matching of
        the smaller set, absent for sets above :data:`MATCHED_AT_MOST`.
    """
    both = torch.cat([largest_cosine(a, b), largest_cosine(b, a)])
    found = {"largest": float(both.mean()), "shared": float((both >= SAME).double().mean())}
    if max(len(a), len(b)) <= MATCHED_AT_MOST:
        few, many = sorted((a, b), key=len)
        unit = [torch.nn.functional.normalize(side.detach().double(), dim=-1).cpu().numpy() for side in (few, many)]
        cosine = unit[0] @ unit[1].T
        found["matched"] = float(cosine[scipy.optimize.linear_sum_assignment(cosine, maximize=True)].mean())
    return found


def stability(dictionaries: Sequence[Any], alive: Sequence[Tensor] | None = None) -> dict[str, Any]:
    """Agreement of every pair of dictionaries that differ in their seed, and that of random directions.

    Args:
        dictionaries: With ``W_dec`` [d_sae, d_in] each.
        alive: For each, which latents count, [d_sae] bool; None counts all. Directions of dead latents are what the
            initialisation left.

    Returns:
        ``{"pairs", "same_above", "largest": Number, "shared": Number, "matched": Number, "random": {…}}``: the mean
        over pairs with the least and the most alike one, and the same for random directions of equal number.

    Raises:
        MechintError: fewer than two dictionaries, of different widths of activation, or one without living latents.
    """
    if len(dictionaries) < 2:
        raise MechintError("stability compares dictionaries of different seeds; train at least two")
    sides = [sae.W_dec.detach() for sae in dictionaries]
    if len({side.shape[1] for side in sides}) > 1:
        raise MechintError(
            f"dictionaries of widths {[side.shape[1] for side in sides]} can't be compared; take one site"
        )
    if alive is not None:
        sides = [side[living.to(side.device)] for side, living in zip(sides, alive, strict=True)]
    if not all(len(side) for side in sides):
        raise MechintError("a dictionary has no living latent; there is nothing to compare")
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(side.shape, generator=generator) for side in sides]
    return {"pairs": len(sides) * (len(sides) - 1) // 2, "same_above": SAME,
            **_over_pairs(sides), "random": _over_pairs(random)}  # fmt: skip


def _over_pairs(sides: Sequence[Tensor]) -> dict[str, Number]:
    found = [agreement(a, b) for a, b in itertools.combinations(sides, 2)]
    values = {name: [pair[name] for pair in found] for name in found[0]}
    return {
        name: number(float(np.mean(every)), min(every), max(every), len(every), "least and most alike pair of seeds")
        for name, every in values.items()
    }


def planted(directions: Tensor, learned: Tensor) -> dict[str, Number]:
    """Recovery of known directions [n, d] by learned ones [m, d]: the largest cosine of each known one."""
    best = largest_cosine(directions, learned)
    share = float((best >= SAME).double().mean())
    return {
        "best_cosine": spread(best.tolist(), "directions"),
        "recovered": number(share, share, share, len(best), f"exact share with a cosine of {SAME} or more"),
    }
