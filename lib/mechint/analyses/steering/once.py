"""A push of one moment: the state of a recurrent layer beside the residual stream behind that layer.

Both are pushed along their own direction, at one position k tokens before the answer, with the strengths that make
their effects at the answer itself (k = 0) equal on the discovery prompts. The effect k tokens later shows how long each
push lasts. The last layer is left out: no layer behind it could carry a push of the stream on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.steering import Direction, steer
from ...tasks import Prompts
from .measure import under
from .options import SteerConfig

STEPS = 32
"""Strengths between 0 and 1 at which the immediate effect is measured, to find equal ones."""
SITES = ("resid_post", "state")


def push(direction: Direction, strength: float, back: int, positions: list[int] | None) -> list[Edit]:
    """The edits of a push that many tokens before the first of these positions; none where the prompt is too short."""
    first = 0 if positions is None else positions[0]
    return steer(direction, strength, [first - back]) if first >= back else []


def immediate(
    model: Model, direction: Direction, lacking: Sequence[Prompts], config: SteerConfig, before: Tensor
) -> Tensor:
    """The mean effect of a push at the answer at each strength k / :data:`STEPS`, [1 + STEPS]; 0 at strength 0."""
    cells = [functools.partial(push, direction, k / STEPS, 0) for k in range(1, STEPS + 1)]
    found = under(model, lacking, cells, config.metric, "answer", config.memory_mib, f"strength at {direction.site}")
    effect = (found - before).mean(-1)
    return torch.cat([effect.new_zeros(1), effect])


def crossing(curve: Tensor, target: float) -> float:
    """The least strength at which a curve of :func:`immediate` reaches a target > 0, by straight lines."""
    at = int((curve >= target).nonzero()[0])
    low, high = float(curve[at - 1]), float(curve[at])
    return (at - 1 + (target - low) / (high - low)) / STEPS


def equal_strengths(curves: Sequence[Tensor]) -> list[float] | None:
    """The strengths at which all curves have the same effect, the largest that all reach; None where one has none."""
    target = min(float(curve.max()) for curve in curves)
    return None if target <= 0 else [crossing(curve, target) for curve in curves]


def lasting(
    model: Model, direction: Direction, strength: float, lacking: Sequence[Prompts], config: SteerConfig
) -> Tensor:
    """The metric of prompts that are pushed k = 0 … ``config.once`` tokens before the answer, [k, prompt].

    NaN where a prompt is too short.
    """
    cells = [functools.partial(push, direction, strength, k) for k in range(config.once + 1)]
    found = under(model, lacking, cells, config.metric, "answer", config.memory_mib, f"one push at {direction.site}")
    first = torch.cat([batch.positions[:, 0] for batch in lacking]).cpu()
    back = torch.arange(config.once + 1)[:, None]
    return found.masked_fill(back > first, torch.nan)
