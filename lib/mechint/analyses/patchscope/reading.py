"""Puts representations into target prompts and reads what the model says: scores, likeliest tokens, continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.run import run
from ...interventions.sweep import sweep
from ...tasks import pooled
from ...tasks.answers import accepted_by
from ...utils.errors import MechintError
from ..lens.reading import ROOM, float_logits, logits_of, ranks
from ..options import layer_list
from .targets import Target

MEASURES = ("right", "surprisal", "rank")
"""Numbers of a reading: 1 where the likeliest token is the one looked for, −log of its probability in nats, and the
logarithm of its rank."""


@dataclass(frozen=True)
class Place:
    """A site that a representation is taken from, and the sites that it is put into."""

    site: str
    into: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.site.rpartition(".")[2]


def places(model: Model, sites: Sequence[str], into: str, where: str) -> list[Place]:
    """Each site with those of the layers that it is put into, which have the same kind of site of the same shape.

    Raises:
        MechintError: no such layer, or none of them fits any site.
    """
    same = into.strip() == "same"
    layers = [] if same else layer_list(into, model.num_layers, f"{where}: into")
    found = []
    for site in sites:
        kind = site.rpartition(".")[2]
        each = [site] if same else [f"layers.{layer}.{kind}" for layer in layers]
        fit = tuple(s for s in each if s in model.sites and model.sites[s].units == model.sites[site].units)
        if fit:
            found.append(Place(site, fit))
    if not found:
        raise MechintError(
            f"{where}: layers {', '.join(map(str, layers))} have none of the sites {', '.join(sites)} in the same "
            f"shape; choose other layers to put them into"
        )
    return found


def scores(logits: Tensor, ids: Tensor) -> Tensor:
    """:data:`MEASURES` of logits [n, V] for the ids [n, A] that are looked for, -1 is none; [n, measure]."""
    return scores_of(logits.double().log_softmax(-1), ids)


def scores_of(logs: Tensor, ids: Tensor) -> Tensor:
    """:func:`scores` of log-probabilities [n, V]."""
    columns = [
        accepted_by(logs.argmax(-1), ids).double(),
        -pooled(logs[:, None], ids[:, None]).squeeze(-1),
        ranks(logs[:, None], ids[:, None]).squeeze(-1).double().log(),
    ]
    return torch.stack(columns, -1).cpu()


@torch.no_grad()
def scores_of_reads(model: Model, reads: Tensor, looks: Tensor, ids: Tensor) -> Tensor:
    """:func:`scores` where several look at the same reading, whose logits are made once.

    Args:
        reads: Input of the head at the end of target prompts, [m, model].
        looks: Number of the reading that each looks at, [look, n].
        ids: Tokens that are looked for, [n, A]; -1 is none.

    Returns:
        [look, n, measure].
    """
    found, size = torch.empty(*looks.shape, len(MEASURES), dtype=torch.float64), max(1, ROOM // len(model.embeddings))
    for start in range(0, len(reads), size):
        logs = logits_of(model, reads[start : start + size].to(model.device)).double().log_softmax(-1)
        for k, look in enumerate(looks):
            here = ((look >= start) & (look < start + size)).nonzero().squeeze(1)
            for some in here.split(size):
                found[k, some] = scores_of(logs[(look[some] - start).to(logs.device)], ids[some].to(logs.device))
    return found


def read_at_end(
    model: Model, tokens: Tensor, cells: Sequence[Sequence[Edit]], memory_mib: float, **named: Any
) -> Tensor:
    """Gives what the head reads at the end of prompts [m, position] under the edits of each cell, [cell, m, model].

    Args:
        named: More for :func:`~mechint.interventions.sweep.sweep`.
    """
    last = torch.full_like(tokens[:, :1], tokens.shape[1] - 1)
    keep = lambda reads: reads[..., 0, :]
    return sweep(model, tokens, cells, keep, logits_at=last, memory_mib=memory_mib, by_head=True, **named)


@torch.no_grad()
def lens_scores(model: Model, values: Tensor, ids: Tensor) -> Tensor:
    """:func:`scores` of the logit lens at a site of the residual stream [n, 1, model], [n, measure]."""
    rows = max(1, ROOM // len(model.embeddings))
    device = model.device
    parts = [
        scores(float_logits(model, values[some].to(device))[:, 0], ids[some].to(device))
        for some in torch.arange(len(values)).split(rows)
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class Seen:
    """The likeliest tokens at the end of a target prompt, for one token of a source prompt.

    Attributes:
        top: The likeliest tokens.
        probability: Their probabilities.
        answer: The probability of the token that is looked for.
        rank: Its rank.
    """

    top: list[int]
    probability: list[float]
    answer: float
    rank: int


@torch.no_grad()
def seen(logits: Tensor, ids: Tensor, top: int) -> list[Seen]:
    """The readings of logits [m, V], row by row."""
    logs = logits.double().log_softmax(-1)
    best = logs.topk(min(top, logs.shape[-1]), -1)
    chance = pooled(logs[:, None], ids[:, None]).exp()[:, 0].tolist()
    rank = ranks(logs[:, None], ids[:, None])[:, 0].tolist()
    rows = zip(best.indices.tolist(), best.values.exp().tolist(), chance, rank, strict=True)
    return [Seen(*row) for row in rows]


@torch.no_grad()
def said_at_end(model: Model, target: Target) -> Tensor:
    """The logits at the end of target prompts as they are, [m, V]."""
    last = torch.full_like(target.tokens[:, :1], target.tokens.shape[1] - 1)
    return run(model, target.tokens, logits_at=last).logits[:, 0]
