"""One site: the direction there, and what adding it and taking it out do to held-out prompts and unrelated text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.steering import Direction, between, project_out, shuffled, steering_curve
from ...interventions.sweep import sweep
from ...tasks import Prompts
from ..metrics import answer_metric
from .contrasts import Rows, values_at
from .options import SteerConfig


@dataclass(frozen=True)
class Found:
    """A direction with the directions beside it.

    Attributes:
        direction: As it is added at a strength of 1.
        others: Directions of the same length.
        size: Mean length of the site's values among the contrast prompts; NaN for a direction of a file.
    """

    direction: Direction
    others: list[Direction]
    size: float


def find(model: Model, site: str, sides: tuple[Rows, Rows], paired: bool, config: SteerConfig, seed: int) -> Found:
    """The direction of a contrast at a site.

    Args:
        sides: Prompts with the property, and without.
        paired: True if they are pairs.
    """
    ends = [values_at(model, rows, site) for rows in sides]
    direction = between(site, ends[0], ends[1], config.method)
    size = float(torch.cat(ends).flatten(1).double().norm(dim=1).mean())
    if config.control == "shuffled" and config.random:
        others = shuffled(direction, ends[0], ends[1], config.method, paired, config.random, seed)
    else:
        others = direction.randoms(config.random, seed)
    return Found(direction, others, size)


def parts_of(prompts: Prompts, where: str) -> Iterator[tuple[Tensor, Prompts, list[int] | None]]:
    """The prompts of a batch whose answers are at the same positions: their rows, themselves, and what is steered."""
    every, group = prompts.positions.unique(dim=0, return_inverse=True)
    for k in range(len(every)):
        rows = (group == k).nonzero().squeeze(1)
        first, last = int(every[k, 0]), int(every[k, -1])
        yield rows, prompts[rows], None if where == "all" else list(range(first, last + 1))


def in_order(model: Model, batches: Sequence[Prompts], where: str, measure: Callable[..., Tensor]) -> Tensor:
    """A measure of every prompt, [..., prompt], from that of each part of :func:`parts_of`."""
    found = []
    for batch in batches:
        whole: Tensor | None = None
        for rows, part, positions in parts_of(batch, where):
            values = measure(part, positions)
            if whole is None:
                whole = values.new_empty(*values.shape[:-1], len(batch))
            whole[..., rows.cpu()] = values
        assert whole is not None
        found.append(whole)
    return torch.cat(found, -1)


def unsteered(model: Model, batches: Sequence[Prompts], metric: str) -> Tensor:
    """The metric of the prompts as they are, [prompt]."""
    return under(model, batches, [lambda positions: []], metric, "answer", 1024.0, "prompts")[0]


Cells = Sequence[Callable[[list[int] | None], list[Edit]]]
"""Makes the edits of each cell, from the positions that are steered."""


@torch.no_grad()
def under(
    model: Model, batches: Sequence[Prompts], cells: Cells, metric: str, where: str, memory_mib: float, title: str
) -> Tensor:
    """The metric of all prompts in each cell, [cell, prompt]."""

    def measure(part: Prompts, positions: list[int] | None) -> Tensor:
        edits = [cell(positions) for cell in cells]
        score = answer_metric(metric, part)
        found = sweep(model, part.tokens, edits, score, logits_at=part.positions, memory_mib=memory_mib, title=title)
        return found.double().cpu()

    return in_order(model, batches, where, measure)


def pushed(
    model: Model,
    found: Found,
    lacking: Sequence[Prompts],
    strengths: Sequence[float],
    config: SteerConfig,
    text: Tensor | None,
) -> dict[str, Tensor]:
    """The metric of prompts that lack the property while the direction is added, and KL on unrelated text.

    Returns:
        ``pushed`` [strength, prompt], ``others`` [draw, strength, prompt]; with text ``kl`` [strength, row] and
        ``others kl`` [draw, strength, row].
    """
    sides: dict[str, Tensor] = {}

    def measure(part: Prompts, positions: list[int] | None) -> Tensor:
        curve = steering_curve(
            model, part.tokens, answer_metric(config.metric, part), found.direction, strengths,
            text=None if sides else text, randoms=found.others, positions=positions, logits_at=part.positions,
            memory_mib=config.memory_mib,
        )  # fmt: skip
        if curve.kl is not None and curve.random_kl is not None:
            sides.update({"kl": curve.kl, "others kl": curve.random_kl})
        return torch.cat([curve.effect[None], curve.random_effect])

    every = in_order(model, lacking, config.where, measure)
    return {"pushed": every[0], "others": every[1:], **sides}


def removed(model: Model, found: Found, having: Sequence[Prompts], config: SteerConfig) -> dict[str, Tensor]:
    """The metric of prompts that have the property while the direction is projected out.

    Returns:
        ``removed`` [prompt], and ``others removed`` [draw, prompt].
    """
    cells = [functools.partial(project_out, one) for one in (found.direction, *found.others)]
    every = under(model, having, cells, config.metric, config.where, config.memory_mib, "without the direction")
    return {"removed": every[0], "others removed": every[1:]}
