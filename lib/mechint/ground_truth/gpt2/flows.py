"""Edges of the compiled GPT-2s: which position reads which through which head, and which unit reads which.

A flow is needed when the answer is wrong once it is cut at ``scores``, where the reader's attention is shared among its
other sources. Some sources matter by the share alone that they take from others; those are told apart by
:data:`SHARES`, since what only looks at what a source gives can't see them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...tasks.answers import Prompts
from ...tasks.base import Task
from ..blueprint import Compiled
from ..edge_masks import Cell, Flows, itself, last_two, query, reads
from ..truth import Where
from .counting import heavy

FAMILY = "gpt2"


def key_of(compiled: Compiled) -> str:
    """Under which name the flows of a model are declared: the blueprint's."""
    return f"{FAMILY}_{compiled.task.name}"


def heads_of(compiled: Compiled) -> list[Cell]:
    """The heads of the circuit, from the first layer on."""
    return sorted((layer, f"h{number}") for layer, (number,) in compiled.truth.units("head"))


# ---- flows -------------------------------------------------------------------------------------------------------


def _shift(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    return {heads[0]: itself(query(prompts), task.by)}


def _latch(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    first, second = heads
    kept = Where((task.marker,), back=1, last=True).of(prompts)
    return {first: itself(kept, 1), second: reads(query(prompts), kept)}


def _most_recent(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    seen = last_two(prompts, task.symbols)
    return {heads[0]: reads(query(prompts), seen & (seen.cumsum(1) == seen.sum(1, keepdim=True)))}


def _count(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    """The query and the ticks after the last marker read that; the query reads these, and what they weigh against."""
    since, counts = heads
    asked, marker = query(prompts), Where((task.marker,), last=True).of(prompts)
    ticks = (prompts.tokens == task.tick) & (marker.cumsum(1) > 0) & (asked.cumsum(1) == 0)
    early = (prompts.tokens == task.tick) & first_position(prompts)  # takes back that it is a tick
    return {
        since: reads(asked | ticks, marker) | itself(early),
        counts: reads(asked, ticks) | _share_of_the_first(task, prompts, heads)[counts],
    }


def _share_of_the_first(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    return {heads[-1]: reads(query(prompts), first_position(prompts))}


def _modular_sum(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    return {heads[0]: reads(query(prompts), prompts.tokens > 0)}


def first_position(prompts: Prompts) -> Tensor:
    first = torch.zeros_like(prompts.tokens, dtype=torch.bool)
    first[:, 0] = True
    return first


def _selective_copy(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    """The last slot reads the last carried token, whose count is of all of them; no other count may be as high."""
    counts, copies = heads
    carried = prompts.tokens < task.values
    value = carried & (carried.cumsum(1) == carried.sum(1, keepdim=True))  # the last answer is the last one carried
    return {
        counts: reads(value, carried) | _shares_of_the_count(task, prompts, heads)[counts],
        copies: reads(query(prompts), value),
    }


def _shares_of_the_count(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    """The first position: without it what carried tokens weigh is all of a reader's attention, a count past any.

    Only the last carried token may count too high: it is the one to be read.
    """
    carried = prompts.tokens < task.values
    counting = (carried.cumsum(1) > 0) & ~(carried & (carried.cumsum(1) == carried.sum(1, keepdim=True)))
    counting &= query(prompts).flip(1).cumsum(1).flip(1) > 0  # up to the query
    return {heads[0]: reads(counting, first_position(prompts))}


def _induction(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    first, second = heads
    value = Where(pairs=True).of(prompts)
    return {first: itself(value, 1), second: reads(query(prompts), value)}


def _recall(task: Any, prompts: Prompts, heads: list[Cell]) -> Flows:
    """Only the pairs have a key that is written down; a pair that is asked for twice is not a second way."""
    first, second = heads
    value = Where(pairs=True).of(prompts)
    value[:, 2 * task.pairs :] = False
    return {first: itself(value, 1), second: reads(query(prompts), value)}


Declared = Callable[[Task, Prompts, list[Cell]], Flows]
"""(task, prompts with their last answer, heads of the circuit from the first layer on) -> flows."""
NEEDED: dict[str, Declared] = {
    "gpt2_shift": _shift,
    "gpt2_latch": _latch,
    "gpt2_most_recent": _most_recent,
    "gpt2_count": _count,
    "gpt2_modular_sum": _modular_sum,
    "gpt2_selective_copy": _selective_copy,
    "gpt2_induction": _induction,
    "gpt2_recall": _recall,
}
SHARES: dict[str, Declared] = {"gpt2_count": _share_of_the_first, "gpt2_selective_copy": _shares_of_the_count}
"""The flows whose source gives nothing and matters only by its share of attention."""


# ---- prompts with one way only -----------------------------------------------------------------------------------


def _one_way_shift(task: Any, last: Prompts) -> Tensor:
    """Not where the token itself is the answer, nor what even attention says: the symbol seen most often elsewhere."""
    own, answer = last.tokens.gather(1, last.positions), last.answers
    read = itself(query(last), task.by).any(1)
    counts = torch.nn.functional.one_hot(last.tokens, task.symbols).masked_fill(read.unsqueeze(-1), 0).sum(1)
    most = counts.scatter(1, answer, -1).amax(1, keepdim=True)
    return ((own != answer) & (counts.gather(1, answer) <= most)).squeeze(1)


def _one_way_latch(task: Any, last: Prompts) -> Tensor:
    """Not where what is read in its place is the same: what follows the first marker, or else the first position.

    Markers at the first two places have no code, so what follows them is not marked as much as the sink scores.
    """
    first = (last.tokens == task.marker).int().argmax(1, keepdim=True)
    return (last.tokens.gather(1, torch.where(first < 2, 0, first + 1)) != last.answers).squeeze(1)


def _one_way_most_recent(task: Any, last: Prompts) -> Tensor:
    """Not where the symbol before the last one is the same."""
    return (last_two(last, task.symbols) & (last.tokens == last.answers)).sum(1) == 1


def _one_way_count(task: Any, last: Prompts) -> Tensor:
    """Not where nothing or the largest count is the answer, nor where as many ticks follow the first marker."""
    answer, markers = last.answers[:, 0], (last.tokens == task.marker).cumsum(1)
    behind_first = ((last.tokens == task.tick) & (markers == 1)).sum(1)
    return (answer > 0) & (answer < task.symbols - 1) & (behind_first != answer)


def _one_way_modular_sum(task: Any, last: Prompts) -> Tensor:
    """Not where the level without a number is read as a sum of the same remainder, nor where the largest sum has it.

    Cut with the other weights as they are, a number v leaves the level of W (sum - v) / (W + v), which is read as the
    nearest level of a sum; cut from the others' share too, the first one leaves a level above all.
    """
    W, total, modulus = heavy(task), last.tokens.sum(1, keepdim=True), task.symbols
    left = W * (total - last.tokens) / (W + last.tokens)  # [n, L]
    level = lambda count: W * count / (W + count)
    nearest = left.floor() + (level(left) > (level(left.floor()) + level(left.ceil())) / 2)
    same = (nearest % modulus == total % modulus) & (last.tokens > 0)
    return ~same.any(1) & (last.answers[:, 0] != task.most % modulus)


def _one_way_selective_copy(task: Any, last: Prompts) -> Tensor:
    """Not where another slot has the same value, nor where the first position, whose share is known, is carried too."""
    return ((last.tokens == last.answers).sum(1) == 1) & (last.tokens[:, 0] >= task.values)


ONE_WAY: dict[str, Callable[[Task, Prompts], Tensor]] = {
    "gpt2_shift": _one_way_shift,
    "gpt2_latch": _one_way_latch,
    "gpt2_most_recent": _one_way_most_recent,
    "gpt2_count": _one_way_count,
    "gpt2_modular_sum": _one_way_modular_sum,
    "gpt2_selective_copy": _one_way_selective_copy,
}
"""(task, prompts with their last answer) -> whether a cut flow leaves no other way to the answer, [n]; else always."""
