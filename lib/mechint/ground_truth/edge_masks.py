"""Masks of the edges between positions: which position reads which, one mask for each way of reading."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tasks.answers import Prompts

Cell = tuple[int, str]
"""(layer, way of reading): ``conv`` or ``state`` of a Mamba, a head of a transformer as ``h3``."""
Edge = tuple[int, str, int, int]
"""(layer, way of reading, reader i, source j)."""
Flows = dict[Cell, Tensor]
"""True where position i must read position j, [n, i, j] bool, by layer and way."""


def query(prompts: Prompts) -> Tensor:
    """The position of the last answer, [n, L] bool."""
    return torch.arange(prompts.tokens.shape[1]) == prompts.positions[:, -1:]


def reads(readers: Tensor, sources: Tensor) -> Tensor:
    """Every reader every source before or at it, [n, L] each -> [n, i, j]."""
    return (readers[:, :, None] & sources[:, None, :]).tril()


def itself(at: Tensor, back: int = 0) -> Tensor:
    """Each of these positions the one ``back`` before it, [n, L] -> [n, i, j]."""
    length = at.shape[1]
    return at[:, :, None] & torch.ones(length, length, dtype=torch.bool).tril(-back).triu(-back)


def before(prompts: Prompts) -> Prompts:
    """The prompts with nothing after their query: tokens there are -1."""
    behind = torch.arange(prompts.tokens.shape[1]) > prompts.positions[:, -1:]
    return prompts._map(lambda tensor: tensor.masked_fill(behind, -1) if tensor is prompts.tokens else tensor)


def last_two(prompts: Prompts, symbols: int) -> Tensor:
    """The last two positions before the query that hold a symbol, [n, L] bool."""
    seen = before(prompts).tokens
    there = (seen >= 0) & (seen < symbols)
    return there & (there.sum(1, keepdim=True) - there.cumsum(1) < 2)
