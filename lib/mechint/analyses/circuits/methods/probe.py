"""Ranks units by a linear probe of the answer: what can be read from a unit, whether or not the model reads it."""

from __future__ import annotations

import torch
from torch import Tensor

from ....interventions.run import run
from .evaluator import Evaluator

PENALTIES = tuple(10.0**power for power in range(-3, 4))
"""Ridge penalties that are tried, in units of the mean variance explained by one column times their number."""


def probe(evaluator: Evaluator) -> Tensor:
    """Norms of the weights of a ridge regression of the answer on the units' values where it is asked for, [units].

    Alain & Bengio 2016. The answers' indicators are regressed on the values at all sites of all units together, each
    with mean 0 and variance 1; the penalty is the one of :data:`PENALTIES` with the least leave-one-out error.
    """
    units, columns, asked = evaluator.units, list[Tensor](), list[Tensor]()
    for batch in evaluator.batches:
        with torch.no_grad():
            values = run(evaluator.model, batch.tokens, record=units.sites, logits_at=batch.positions[:, :0]).values
        rows = torch.arange(len(batch), device=batch.tokens.device)[:, None]
        there = [values[site][rows, batch.positions].flatten(0, 1).flatten(1) for site in units.sites]
        columns.append(torch.cat(there, 1).double())
        asked.append(batch.answers.flatten())
    x, classes = torch.cat(columns), torch.cat(asked)
    y = (classes[:, None] == classes.unique()).double()
    weights = ridge(standard(x), y - y.mean(0))  # [column, class]
    squares = dict(zip(units.sites, weights.square().sum(1).split(sizes(evaluator)), strict=True))
    found = []
    for row in units.by_row:
        for block in row.blocks:
            count = row.size // len(row.blocks)
            parts = [squares[f"layers.{row.layer}.{site}"].view(count, -1).sum(1) for site in block.sites]
            found.append(torch.stack(parts).sum(0).sqrt())
    return torch.cat(found)


def sizes(evaluator: Evaluator) -> list[int]:
    """Numbers that each site of the units has at one position."""
    shapes = [evaluator.model.sites[site].units for site in evaluator.units.sites]
    return [int(torch.tensor(shape).prod()) for shape in shapes]


def standard(x: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1; those that do not vary are 0."""
    centred = x - x.mean(0)
    spread = centred.square().mean(0).sqrt()
    varies = spread > 1e-9 * x.abs().amax(0)
    return torch.where(varies, centred / spread.where(varies, 1.0), 0.0)


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Weights [column, class] with the least leave-one-out error, from the products of the rows of x."""
    values, vectors = torch.linalg.eigh(x @ x.T)
    best, weights = None, torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype, device=x.device)
    for penalty in PENALTIES:
        shrunk = 1 / (values.clamp(min=0) + penalty * x.shape[1])
        dual = vectors @ (shrunk[:, None] * (vectors.T @ y))
        inverse = (vectors.square() * shrunk).sum(1)  # the diagonal of (X Xᵀ + λ)⁻¹
        error = float((dual / inverse[:, None]).square().sum())  # of each row by all others
        if best is None or error < best:
            best, weights = error, x.T @ dual
    return weights
