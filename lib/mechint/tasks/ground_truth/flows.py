"""Edges of the compiled models: which position reads which in each prompt, and which channel reads which.

*Flows* say that, for a prompt's last answer, a position's scan (``state``) or convolution (``conv``) must read another
position, or the same one. *Links* say that a channel of a later layer reads what one of an earlier layer writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import MechintError, did_you_mean
from ..base import Prompts, Task
from .blueprints import Compiled
from .truth import Where

Flows = dict[tuple[int, str], Tensor]
"""By (layer, ``conv`` or ``state``): whether position i must read position j, [n, i, j] bool."""


def flows(compiled: Compiled, prompts: Prompts) -> Flows:
    """What each prompt's last answer needs to be read, but for prompts that :func:`clear` leaves out.

    Raises:
        MechintError: no flows are declared for this model.
    """
    name = compiled.task.name
    if name not in NEEDED:
        raise MechintError(f"no flows are declared for {name!r}{did_you_mean(name, NEEDED)}; of {', '.join(NEEDED)}")
    last = prompts.last()
    layers = sorted(layer for layer, _ in compiled.truth.units("layer"))
    return NEEDED[name](compiled.task, last, layers)


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


def _shift(task: Any, prompts: Prompts, layers: list[int]) -> Flows:
    return {(layers[0], "conv"): itself(query(prompts), task.by)}


def _latch(task: Any, prompts: Prompts, layers: list[int]) -> Flows:
    (layer,), asked = layers, query(prompts)
    kept = Where((task.marker,), back=1, last=True).of(prompts)
    return {
        (layer, "conv"): itself(asked) | itself(kept) | itself(kept, 1),
        (layer, "state"): reads(asked, kept),
    }


def _most_recent(task: Any, prompts: Prompts, layers: list[int]) -> Flows:
    (layer,), asked = layers, query(prompts)
    seen = Where(tuple(range(task.symbols)), last=True).of(before(prompts))
    return {(layer, "conv"): itself(asked | seen), (layer, "state"): reads(asked, seen)}


def _count(task: Any, prompts: Prompts, layers: list[int]) -> Flows:
    (first, second), asked = layers, query(prompts)
    marker = Where((task.marker,), last=True).of(prompts)
    ticks = (prompts.tokens == task.tick) & (marker.cumsum(1) > 0) & (asked.cumsum(1) == 0)
    return {
        (first, "conv"): itself(asked | marker | ticks),  # ticks are read by the step, not by the answer
        (first, "state"): reads(asked, marker),
        (second, "conv"): itself(asked),
    }


def _modular_sum(task: Any, prompts: Prompts, layers: list[int]) -> Flows:
    (first, second), asked, numbers = layers, query(prompts), prompts.tokens > 0
    return {
        (first, "conv"): itself(asked | numbers),
        (first, "state"): reads(asked, numbers),
        (second, "conv"): itself(asked),
    }


def _selective_copy(task: Any, prompts: Prompts, layers: list[int]) -> Flows:
    (first, second), asked = layers, query(prompts)
    carried, markers = prompts.tokens < task.values, prompts.tokens == task.marker
    value = carried & (carried.cumsum(1) == carried.sum(1, keepdim=True))  # the last answer is the last one carried
    return {
        (first, "conv"): itself(carried | markers),
        (first, "state"): reads(value, carried) | reads(asked, markers),
        (second, "conv"): itself(value | asked),
        (second, "state"): reads(asked, value),
    }


def _induction(task: Any, prompts: Prompts, layers: list[int]) -> Flows:
    (first, second), asked = layers, query(prompts)
    value = Where(pairs=True).of(prompts)
    return {
        (first, "conv"): itself(value, 1),
        (second, "conv"): itself(value | asked),
        (second, "state"): reads(asked, value),
    }


def _recall(task: Any, prompts: Prompts, layers: list[int]) -> Flows:
    (layer,), asked = layers, query(prompts)
    value = Where(pairs=True).of(prompts)
    return {
        (layer, "conv"): itself(value | asked) | itself(value, 1),
        (layer, "state"): reads(asked, value),
    }


NEEDED: dict[str, Callable[[Task, Prompts, list[int]], Flows]] = {
    "shift": _shift,
    "latch": _latch,
    "most_recent": _most_recent,
    "count": _count,
    "modular_sum": _modular_sum,
    "selective_copy": _selective_copy,
    "induction": _induction,
    "recall": _recall,
}


def clear(compiled: Compiled, prompts: Prompts) -> Prompts:
    """The prompts whose last answer has one way only: where two lead to it by chance, no edge of either is needed."""
    last, name = prompts.last(), compiled.task.name
    task: Any = compiled.task
    tokens, answer = last.tokens, last.answers
    ways = torch.ones(len(last), dtype=torch.long)
    if name == "latch":  # both marked symbols
        ways = (Where((task.marker,), back=1).of(last) & (tokens == answer)).sum(1)
    elif name == "most_recent":  # the last symbol and the one before it
        seen = before(last).tokens
        symbols = (seen >= 0) & (seen < task.symbols)
        two = symbols & (symbols.sum(1, keepdim=True) - symbols.cumsum(1) < 2)
        ways = (two & (tokens == answer)).sum(1)
    elif name == "count":  # from the first marker on there are as many ticks
        marker = tokens == task.marker
        ways = 1 + ((tokens == task.tick) & (marker.cumsum(1) == 1)).any(1).logical_not().long()
    elif name == "modular_sum":  # what is said where nothing is read: 0, or the token itself
        ways = 1 + ((answer == 0) | (answer == tokens[:, -1:])).squeeze(1).long()
    elif name == "selective_copy":  # another slot with the same value
        ways = (tokens == answer).sum(1)
    elif name == "recall":  # a pair that was asked for before, and so written twice
        ways = Where(pairs=True).of(last).sum(1)
    return prompts[ways == 1]


def before(prompts: Prompts) -> Prompts:
    """The prompts with nothing behind their query: tokens there are -1."""
    behind = torch.arange(prompts.tokens.shape[1]) > prompts.positions[:, -1:]
    return prompts._map(lambda tensor: tensor.masked_fill(behind, -1) if tensor is prompts.tokens else tensor)


@torch.no_grad()
def links(compiled: Compiled) -> Tensor:
    """Which declared channel reads what which declared channel of an earlier layer writes, [layer, e, layer, f] bool.

    Drawn channels read and write named directions alone, so a link is a product of weights that is not zero.
    """
    model = compiled.model
    size, width = model.config.n_layer, model.config.d_inner
    found = torch.zeros(size, width, size, width, dtype=torch.bool)
    declared = compiled.truth.units("channel")
    for i, (e,) in declared:
        for j, (f,) in declared:
            if i < j:
                writes, read = model.layers[i].out_proj.weight[:, e], model.layers[j].in_proj.weight[f]
                found[i, e, j, f] = bool((writes * read).abs().max() > 0)
    return found
