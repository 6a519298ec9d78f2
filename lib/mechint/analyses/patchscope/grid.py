"""The grid of a patchscope, sites × layers × source prompts, as one sweep of the target prompts.

1. Where all sources share a target prompt, that prompt is the sweep's only row, and each source a cell. One cell serves
   the source itself and all that draw it as another prompt: they look for different tokens in one reading.
2. Where each source has a target of its own, the targets are the rows, and each draw of representations a cell.
3. The sweep runs what precedes the replaced layer and position once for all cells, and gives what the head reads.
   Logits are made from that a few at a time (:func:`.reading.scores_of_reads`).
4. Continuations go on from the same cells (:mod:`mechint.interventions.continuations`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...interventions.continuations import continuations
from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.transplant import placed
from .reading import MEASURES, Place, read_at_end, scores_of_reads
from .targets import Source, Target

CELL = 4096
"""Bytes of a cell beside its values, about."""
SHARE = 4
"""One part in so many of the memory of a sweep holds representations and readings."""


@dataclass(frozen=True)
class Asked:
    """Target prompts of one length, and the source prompts whose representations are put into them.

    Attributes:
        target: The target prompts, [m, position].
        sources: Number of the source prompt that each row gets in each cell of a site, [cell, m].
        rows: Numbers of the source prompts that look for their token here, [n].
        looks: Number of the reading, of all cells' rows one after the other, that each of them looks at: its own, and
            then other prompts'; [1 + draws, n].
        own: Cells, the first ones, that hold own representations.
    """

    target: Target
    sources: Tensor
    rows: Tensor
    looks: Tensor
    own: int


def asked(parts: Sequence[Source], into: Sequence[Target], others: Tensor | None, shared: bool) -> list[Asked]:
    """The target prompts of the source prompts.

    Args:
        parts, into: Source prompts and their target prompts.
        others: Numbers of other prompts, [draw, n]; None where there are none.
        shared: True if all have one target prompt.
    """
    every = torch.arange(sum(len(part.rows) for part in parts))
    drawn = every[None] if others is None else torch.cat([every[None], others])
    if shared:
        one = Target(into[0].tokens[:1], into[0].position)
        return [Asked(one, every[:, None], every, drawn, len(every))]
    found = []
    for part, target in zip(parts, into, strict=True):
        sources = drawn[:, part.rows]
        found.append(Asked(target, sources, part.rows, torch.arange(sources.numel()).view_as(sources), 1))
    return found


def together(model: Model, places: Sequence[Place], sets: Sequence[Asked], memory_mib: float) -> Iterator[list[Place]]:
    """The places in runs whose representations and readings fit in memory; one place at least."""
    rows, room = sum(one.sources.numel() for one in sets), memory_mib * 2**20 / SHARE
    width, size = model.embeddings.shape[1], model.embeddings.element_size()
    some: list[Place] = []
    held = 0.0
    for place in places:
        unit = int(torch.tensor(model.sites[place.site].units).prod())
        needs = rows * (unit * size + len(place.into) * (width * size + CELL))
        if some and held + needs > room:
            yield some
            some, held = [], 0.0
        some.append(place)
        held += needs
    yield some


def cells_of(place: Place, one: Asked, values: Tensor, count: int | None = None) -> list[list[Edit]]:
    """The cells of a place, for each site that it is put into those of all sources, or of the first ``count``.

    Args:
        values: Representations of all source prompts, [n, 1, unit …].
    """
    pick = lambda rows: values[int(rows) :][:1] if len(rows) == 1 else values[rows.to(values.device)]
    each = [pick(rows) for rows in one.sources[:count]]
    return [placed({site: value}, one.target.position) for site in place.into for value in each]


def readings(
    model: Model, places: Sequence[Place], sets: Sequence[Asked], values: Mapping[str, Tensor], ids: Tensor,
    memory_mib: float, **named: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """The scores of every place, [1 + draws, into, n, measure] each.

    Args:
        values: Each place's site of all source prompts, [n, 1, unit …].
        ids: Tokens that they look for, [n, A]; -1 is none.
        named: More for :func:`~mechint.interventions.sweep.sweep`.
    """
    count = len(sets[0].looks)
    found = {
        place.site: torch.empty(count, len(place.into), len(ids), len(MEASURES), dtype=torch.float64)
        for place in places
    }
    for one in sets:
        cells = [cell for place in places for cell in cells_of(place, one, values[place.site])]
        reads = read_at_end(model, one.target.tokens, cells, memory_mib, title="readings", **named)
        start = 0
        for place in places:
            for k in range(len(place.into)):
                here = reads[start : start + len(one.sources)].flatten(0, 1)
                found[place.site][:, k, one.rows] = scores_of_reads(model, here, one.looks, ids[one.rows])
                start += len(one.sources)
    return found


def continued(
    model: Model, places: Sequence[Place], sets: Sequence[Asked], values: Mapping[str, Tensor], count: int,
    memory_mib: float,
) -> dict[str, Tensor]:  # fmt: skip
    """The likeliest tokens behind the target prompts with each source's own representation, [into, n, count] by site.

    Args:
        values: Each place's site of all source prompts, [n, 1, unit …].
    """
    found = {
        place.site: torch.empty(len(place.into), len(values[place.site]), count, dtype=torch.long) for place in places
    }
    for one in sets:
        cells = [cell for place in places for cell in cells_of(place, one, values[place.site], one.own)]
        said = continuations(model, one.target.tokens, cells, count, memory_mib=memory_mib)
        start = 0
        for place in places:
            here = said[start : start + len(place.into) * one.own].unflatten(0, (len(place.into), one.own))
            found[place.site][:, one.rows] = here.flatten(1, 2)
            start += len(place.into) * one.own
    return found
