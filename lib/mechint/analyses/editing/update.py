"""The closed forms of ROME and MEMIT: changes of a linear map that give some inputs other outputs, and others few.

A linear map W [out, in] stores pairs of a key k [in] and a value v [out] as W k = v. With the second moment C = E[k kᵀ]
of the keys that it reads, ‖Δ C^½‖² is the mean square change of its outputs on such keys.

1. ROME (Meng et al. 2022, section 3.1, appendix A): of all Δ with (W + Δ) k = v the one of the least ‖Δ C^½‖ is
   Δ = (v − W k) uᵀ / (uᵀ k) with u = C⁻¹ k.
2. MEMIT (Meng et al. 2023, section 4.2): for several pairs with keys K [in, n] and wanted changes R = V − W K [out, n],
   the Δ that makes weight · ‖Δ C^½‖² + ‖(W + Δ) K − V‖² least is R Kᵀ (weight · C + K Kᵀ)⁻¹.

Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...utils.errors import MechintError

Solver = Callable[[Tensor], Tensor]
"""Keys [in, n] -> C⁻¹ times them."""


def solver(moment: Tensor, what: str) -> Solver:
    """Solves with a second moment C [in, in], which is factored once.

    Args:
        what: The map, for the message.

    Raises:
        MechintError: C is singular, or has numbers that are not finite.
    """
    factor, failed = torch.linalg.cholesky_ex(moment.double())
    if int(failed) or not torch.isfinite(factor).all():
        raise MechintError(
            f"the second moment of the inputs of {what} is singular: some directions are never read; take more text, "
            "or a larger ridge"
        )
    return lambda keys: torch.cholesky_solve(keys.double(), factor)


def rome_direction(key: Tensor, solve: Solver) -> Tensor:
    """u / (uᵀ k) with u = C⁻¹ k, [in]: what a wanted change of the output is multiplied by."""
    u = solve(key[:, None])[:, 0]
    return u / (u @ key.double())


def rome_update(key: Tensor, change: Tensor, solve: Solver) -> Tensor:
    """ROME's Δ [out, in] of one pair, of rank one.

    Args:
        key: k, [in].
        change: v − W k, [out].
        solve: Solver of C, as :func:`solver` makes it.
    """
    return change.double()[:, None] * rome_direction(key, solve)[None]


def memit_update(keys: Tensor, changes: Tensor, moment: Tensor, weight: float) -> Tensor:
    """MEMIT's Δ [out, in] of several pairs at once.

    Args:
        keys: One in each row, [pair, in].
        changes: v − W k of each, [pair, out].
        moment: C, [in, in].
        weight: Keys that C stands for: how much an output on other keys counts beside one pair.
    """
    keys, changes = keys.double(), changes.double()
    left = weight * moment.double() + keys.T @ keys
    return torch.linalg.solve(left, keys.T @ changes).T
