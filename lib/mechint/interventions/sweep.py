"""Sweeps: many small interventions on the same prompts, for a fraction of one forward each.

A cell is a list of edits, the unit of a sweep. Exact savings, in the order they are made:

* cells that change nothing (an edit that puts there what is there already, or one whose effect no wanted logit can
  see) take the unedited answer;
* layers below a cell's first edit, and positions before it, come from one run of the base (convolution memory and
  recurrent state, or keys and values, carry it on);
* the cells that start at one position walk up the layers together and join where their first edit is, so that every
  matrix product is large.

All of it is without gradients; :func:`gradients` is the variant that needs one forward and backward for all sites.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..utils import files
from ..utils.errors import MechintError
from ..utils.progress import Progress
from ..utils.rundir import fingerprint, kept
from ..utils.workers import gather_parts, team
from .edits import Edit, check_edits
from .model import Model
from .run import check_tokens
from .sweep_cells import Cell
from .sweep_plan import Base

Metric = Callable[[Tensor], Tensor]


@torch.no_grad()
def sweep(
    model: Model,
    tokens: Tensor,
    cells: Sequence[Sequence[Edit]],
    metric: Metric | None = None,
    *,
    base: Sequence[Edit] = (),
    logits_at: Tensor | None = None,
    memory_mib: float = 1024.0,
    store: str | Path | None = None,
    key: str = "",
    title: str = "sweep",
    by_head: bool = False,
) -> Tensor:
    """The metric of every cell on every prompt: the same numbers as one :func:`mechint.run` for each cell.

    Args:
        model: From :func:`mechint.load`.
        tokens: Prompts of one length, [row, position]. Noise draws are rows of their own.
        cells: The edits of each cell, over the base.
        metric: Of logits [cell, row, wanted position, vocabulary], elementwise in cell and row, to [cell, row, …];
            None returns the logits.
        base: Edits that hold in every cell, before its own (a corruption, say).
        logits_at: Positions whose logits are wanted, [row, wanted]; None for all.
        memory_mib: What the base's memory and one batch of cells may take together, weights not counted. Batches
            are as large as fits, by a measured trial of each kind of cell.
        store: Directory that keeps finished batches, so that a killed sweep goes on. Not removed at the end.
        key: What the stored numbers depend on besides the tokens and the plan: weights, values, metric.
        title: Of the progress line.
        by_head: The metric gets what the head reads, [cell, row, wanted position, model], and makes logits itself, a
            few at a time: those of many positions and a large vocabulary would not fit.

    Returns:
        [cell, row, …], on the CPU, in the order of ``cells``. Within :func:`mechint.utils.workers.together`
        each process of a group (torchrun) does its share of the batches and all of them return everything.

    Raises:
        MechintError: an edit that does not fit the model or contradicts another of its cell; a budget too small
            for one cell (what it needs is said); numbers that are not finite.
    """
    check_tokens(model, tokens)
    if not len(cells):
        raise MechintError("a sweep needs at least one cell")
    rows, length = tokens.shape
    base = check_edits(model.sites, base, rows, length)
    plan = [Cell.of(k, check_edits(model.sites, edits, rows, length), model) for k, edits in enumerate(cells)]
    if by_head and any(edit.site == "logits" for edits in (base, *(cell.edits for cell in plan)) for edit in edits):
        raise MechintError("sweep: an edit of logits in a sweep that makes none; leave by_head out")
    metric = metric or (lambda logits: logits)
    wanted = logits_at if logits_at is not None else torch.arange(length).expand(rows, -1)
    wanted = wanted.to(tokens.device)

    unedited = Base(model, tokens, base, plan, wanted, memory_mib, by_head)
    answer = metric(unedited.logits.unsqueeze(0)).cpu()  # [1, row, …]
    check_finite(answer, "the base run")
    result = answer.repeat(len(plan), *[1] * (answer.dim() - 1))
    batches = list(unedited.batches(memory_mib, wanted))
    rank, world = team()
    directory = None if store is None else Path(store)
    plan_key = fingerprint([key, tokens.tolist(), wanted.tolist(), [[c.number for c in b.cells] for b in batches]])
    parts: dict[int, Tensor] = {}
    with Progress(title, sum(len(batch.cells) for batch in batches)) as progress:
        for k, batch in enumerate(batches):
            if k % world != rank:
                continue
            file = None if directory is None else directory / f"{plan_key[:16]}-{k}.pt"
            if file is not None and (found := kept(file)) is not None:
                [parts[k]] = found
            else:
                logits = unedited.run(batch, wanted)  # [cell · row, wanted, vocabulary]
                parts[k] = metric(logits.unflatten(0, (len(batch.cells), rows))).cpu()
                check_finite(parts[k], f"cell {batch.cells[0].number} or one of {len(batch.cells)} beside it")
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    files.write_sealed(file, parts[k])
            progress.step(count=len(batch.cells))
    for k, part in (gather_parts(parts) if world > 1 else parts).items():
        result[[cell.number for cell in batches[k].cells]] = part
    return result


def check_finite(values: Tensor, where: str) -> None:
    if not torch.isfinite(values).all():
        raise MechintError(
            f"sweep: {where} gives numbers that are NaN or infinite; look at that run with mechint.run, which names "
            "the first layer and position"
        )
