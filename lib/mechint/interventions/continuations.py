"""Continuations: what a model says behind prompts under many small interventions, for less than a generation each.

A cell is a list of edits, as in a sweep. Exact savings: the positions before the first edit and the layers below it run
once, for all cells; the cells of one batch go on together, token by token, behind memories of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError
from ..utils.memory import mib, peak_bytes
from ..utils.program import suited
from ..utils.progress import Progress
from .edits import Edit, check_edits
from .model import Cache, Model
from .run import check_tokens
from .sweep_cells import Cell, RowTap
from .taps import Tap

TOGETHER = 256
"""Rows that go on together: more make no matrix product faster."""


@torch.no_grad()
def continuations(
    model: Model,
    tokens: Tensor,
    cells: Sequence[Sequence[Edit]],
    count: int,
    *,
    memory_mib: float = 1024.0,
    title: str = "continuations",
) -> Tensor:
    """The likeliest tokens behind prompts under the edits of each cell, one after the other.

    The same tokens as one :func:`mechint.generate` for each cell.

    Args:
        model: From :func:`mechint.load`.
        tokens: Prompts of one length, [row, position].
        cells: The edits of each cell; negative positions count from the end of the generated text.
        count: Tokens to generate.
        memory_mib: MiB that one batch of cells may take, weights not counted; a measured trial says how many fit.
        title: Begins the progress line.

    Returns:
        [cell, row, count], on the CPU.

    Raises:
        MechintError: an edit that does not fit the model or contradicts another of its cell; a count below 1, more
            positions than the model can have, or a budget too small for one cell.
    """
    check_tokens(model, tokens)
    if count < 1:
        raise MechintError(f"continuations: count is {count}; it must be at least 1")
    rows, length = tokens.shape
    model.check_length(length + count - 1)
    model.check_behind(length, length + count - 1)
    plan = [Cell.of(k, check_edits(model.sites, edits, rows, length + count), model) for k, edits in enumerate(cells)]
    plan.sort(key=lambda cell: cell.layer)  # those of one batch share the layers below
    found = torch.empty(len(plan), rows, count, dtype=torch.long)
    if not plan:
        return found
    start = min([length - 1, *(cell.position for cell in plan if cell.edits)])
    start = 0 if start <= model.border < length else start  # a long prompt turns its first positions otherwise
    base = Prompts(model, tokens, start)
    # memories grow in proportion to positions, so two tokens tell of all
    needed = peak_bytes(base.behind, plan[:1], min(count, 2)) * (length + count) / (length + min(count, 2))
    if needed > memory_mib * 2**20:
        raise MechintError(
            f"continuations: {memory_mib:g} MiB are too few for one cell of {rows} rows, which needs {mib(needed)} MiB;"
            " give more, or go on behind fewer rows at a time"
        )
    at_once = max(1, min(int(memory_mib * 2**20 // needed), TOGETHER // rows))
    with Progress(title, len(plan)) as progress:
        for first in range(0, len(plan), at_once):
            some = plan[first : first + at_once]
            found[[cell.number for cell in some]] = base.behind(some, count).cpu()
            progress.step(count=len(some))
    return found


@dataclass
class Prompts:
    """Prompts without edits: their residual stream before each layer, and what each layer remembers.

    Attributes:
        start: Position from which cells run; those before it are the same for all.
        residual: The stream before each layer from ``start`` on, [row, position, model]; behind the last one, too.
        before, after: Each layer's memory of the positions before ``start``, and of all.
    """

    model: Model
    tokens: Tensor
    start: int
    residual: list[Tensor] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)
    after: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        model, rows, tap = self.model, len(self.tokens), Tap(())
        self.before = [model.empty_cache(i, rows) for i in range(model.num_layers)]
        if self.start:
            _, cache = model.trace(self.tokens[:, : self.start], tap, None, self.tokens[:, :0])
            self.before = cache.layers
        r = model.begin(self.tokens[:, self.start :], Tap((), (), self.start))
        for i in range(model.num_layers):
            self.residual.append(r)
            r, memory = model.block(i, r, self.before[i], Tap((), (), self.start))
            self.after.append(memory)
        self.residual.append(r)

    def behind(self, cells: Sequence[Cell], count: int) -> Tensor:
        """The tokens that follow under each cell's edits, [cell, row, count]."""
        model, times, (rows, length) = self.model, len(cells), self.tokens.shape
        edits = [cell.edits for cell in cells]
        lowest, tap = min(cell.layer for cell in cells), RowTap(edits, rows, self.start)
        memories = [memory.repeat(times) for memory in self.after[:lowest]]
        if lowest:
            # the residual behind the layer below is the first edited
            r = self.residual[lowest].repeat(times, 1, 1)
            r = model.at_stream(tap, f"layers.{lowest - 1}.resid_post", r)
        else:
            r = model.begin(self.tokens[:, self.start :].repeat(times, 1), tap)
        with suited(model.work(r.shape[0] * r.shape[1])):
            for i in range(lowest, model.num_layers):
                r, memory = model.block(i, r, self.before[i].repeat(times), tap)
                memories.append(memory)
        said = [model.finish(r[:, -1:], RowTap(edits, rows, length - 1))[:, -1].argmax(-1, keepdim=True)]
        cache = Cache(memories, length)
        for _ in range(count - 1):
            logits, cache = model.trace(said[-1], RowTap(edits, rows, cache.position), cache)
            said.append(logits[:, -1].argmax(-1, keepdim=True))
        return torch.cat(said, 1).unflatten(0, (times, rows))
