"""Deletion curves: a good ranking lowers the metric when its first units are deleted, and not when its last ones are.

Each ranking has two curves over the share of a layer's units that is ablated: MoRF (most relevant first, Samek et al.
2017) and LeRF (least relevant first; read from its end, the insertion curve of the most relevant). The area between
them, LeRF - MoRF, is 0 for an uninformative ranking and larger for a better one, in units of the metric.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...tasks import Prompts
from ..unit_effects import Effects, Group

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


def curves(
    effects: Effects, prompts: Prompts, groups: list[Group], orders: dict[str, Tensor], fills: dict[str, Any]
) -> dict[str, Tensor]:
    """The metric along both curves of every ranking.

    Args:
        orders: Units from the most to the least relevant, by ``{site} {ranking}``.

    Returns:
        ``curve {site} {ranking}`` [2 (MoRF, LeRF), share, prompt].
    """
    found = {}
    for group in groups:
        rankings = [name for name in orders if name.startswith(f"{group.site} ")]
        counts = [round(share * group.units) for share in SHARES]
        cells, keys = [], []
        for name in rankings:
            for least, order in enumerate((orders[name], orders[name].flip(0))):
                for k, count in enumerate(counts):
                    if 0 < count < group.units:
                        cells.append([effects.mask(group, order[count:], fills[group.site])])
                        keys.append((name, least, k))
        ends = [[], [effects.mask(group, [], fills[group.site])]]
        values = effects.sweep(prompts, [*cells, *ends], f"deletion at {group.site}")
        for name in rankings:
            curve = torch.empty(2, len(SHARES), len(prompts), dtype=torch.float64)
            for k, count in enumerate(counts):
                curve[:, k] = values[-2] if count == 0 else values[-1]
            found[f"curve {name}"] = curve
        for (name, least, k), value in zip(keys, values, strict=False):
            found[f"curve {name}"][least, k] = value
    return found


def areas(curve: Tensor) -> Tensor:
    """LeRF - MoRF, [2, share, prompt] -> the area between the curves, by trapezoids over the shares, [prompt]."""
    gap = curve[1] - curve[0]
    steps = torch.tensor(SHARES, dtype=gap.dtype).diff()
    return ((gap[1:] + gap[:-1]) / 2 * steps[:, None]).sum(0)
