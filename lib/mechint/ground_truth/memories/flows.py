"""Edges of the compiled newer memories: which position reads which, through a convolution, a state or a head.

A flow is needed when the answer is wrong once it is cut. A write that only erases, or turns the state over, gives its
readers nothing: it is needed as what its own convolution reads, not as a source of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...tasks.answers import Prompts
from ...tasks.base import Task
from ..edge_masks import Cell, Flows, itself, query, reads
from ..truth import Where

Cells = list[Cell]
"""The ways of reading that the circuit has, from its first layer on: of a recurrence ``conv`` and ``state``, a head."""


def _rewritten(task: Any, prompts: Prompts, cells: Cells) -> Flows:
    """The convolution at the value reads it and the key before it; the query reads the value's write."""
    (conv, state), asked = cells, query(prompts)
    value = Where(pairs=True).of(prompts)
    return {conv: itself(value | asked) | itself(value, 1), state: reads(asked, value)}


def _latch(task: Any, prompts: Prompts, cells: Cells) -> Flows:
    (conv, state), asked = cells, query(prompts)
    kept = Where((task.marker,), back=1, last=True).of(prompts)
    return {conv: itself(asked | kept) | itself(kept, 1), state: reads(asked, kept)}


def _switches(task: Any, prompts: Prompts, cells: Cells) -> Flows:
    """The query reads what the start wrote; every flip of its switch must have a key, and writes nothing."""
    (conv, state), asked = cells, query(prompts)
    start = torch.arange(prompts.tokens.shape[1]) == 0
    switch = prompts.tokens.gather(1, prompts.positions[:, -1:])
    flips = (prompts.tokens == switch) & (torch.arange(prompts.tokens.shape[1]) <= prompts.positions[:, -1:])
    return {conv: itself(start | flips), state: reads(asked, start.expand_as(asked))}


def _last_of_role(task: Any, prompts: Prompts, cells: Cells) -> Flows:
    (conv, state), asked = cells, query(prompts)
    ours = tuple(range(task.role * task.symbols, (task.role + 1) * task.symbols))
    kept = Where(ours, last=True).of(prompts)
    return {conv: itself(asked | kept), state: reads(asked, kept)}


def _sections(task: Any, prompts: Prompts, cells: Cells) -> Flows:
    """The symbol reads the tag of its section, and the query the symbol; the next tag overwrites the section's."""
    conv, state, head = cells
    tokens, at = prompts.tokens, torch.arange(prompts.tokens.shape[1])
    symbol = tokens == prompts.answers
    opens = tokens - task.tag == tokens.gather(1, prompts.positions) - task.query
    tags = (tokens >= task.tag) & (tokens < task.query)
    behind = tags & (at > opens.int().argmax(1, keepdim=True))
    closes = behind & (behind.cumsum(1) == 1)
    return {conv: itself(opens | symbol | closes), state: reads(symbol, opens), head: reads(query(prompts), symbol)}


NEEDED: dict[str, Callable[[Task, Prompts, Cells], Flows]] = {
    "rewritten": _rewritten,
    "latch": _latch,
    "switches": _switches,
    "last_of_role": _last_of_role,
    "sections": _sections,
}
"""Edges of the compiled newer memories, by the task's name."""
MODELS = (
    *("mamba2_recall", "mamba2_latch"),
    *("delta_recall", "delta_parity", "delta_letters", "delta_digits", "hybrid_sections"),
)
"""Names of the models that do these tasks."""


def one_way(task: Any, prompts: Prompts) -> Tensor:
    """True for the prompts whose last answer has one way only, [n] bool."""
    if task.name == "latch":  # both marked symbols
        marked = Where((task.marker,), back=1).of(prompts)
        return (marked & (prompts.tokens == prompts.answers)).sum(1) == 1
    if task.name == "last_of_role":  # the one before says the same
        ours = prompts.tokens // task.symbols == task.role
        before = ours & (ours.sum(1, keepdim=True) - ours.cumsum(1) == 1)
        return ~(before & (prompts.tokens == prompts.answers)).any(1)
    return torch.ones(len(prompts), dtype=torch.bool)
