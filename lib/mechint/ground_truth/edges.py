"""Edges of the compiled models: which position reads which in each prompt, and which channel reads which.

*Flows* say that, for a prompt's last answer, a position's scan (``state``), convolution (``conv``) or head must read
another position, or the same one. *Links* say that a channel of a later layer reads what one of an earlier layer
writes. The compiled Mambas are here, the compiled GPT-2s in :mod:`.gpt2.flows` and :mod:`.gpt2.links`, newer memories
in :mod:`.memories.flows` and :mod:`.memories.links`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..tasks.answers import Prompts
from ..tasks.base import Task
from ..utils.errors import MechintError, did_you_mean
from .blueprint import Compiled
from .edge_masks import Flows, before, itself, last_two, query, reads
from .gpt2 import flows as gpt2
from .gpt2 import links as gpt2_links
from .memories import flows as memories
from .memories import links as memory_links
from .truth import Where


def flows(compiled: Compiled, prompts: Prompts) -> Flows:
    """The reads that each prompt's last answer needs, without the prompts that :func:`clear` leaves out.

    Raises:
        MechintError: no flows are declared for this model.
    """
    last = prompts.last()
    if is_gpt2(compiled):
        return gpt2.NEEDED[named(compiled, gpt2.NEEDED)](compiled.task, last, gpt2.heads_of(compiled))
    layers = sorted(layer for layer, _ in compiled.truth.units("layer"))
    if is_memory(compiled):
        heads = {layer: f"h{number}" for layer, (number,) in compiled.truth.units("head")}
        ways = [(layer, way) for layer in layers for way in ([heads[layer]] if layer in heads else ("conv", "state"))]
        return memories.NEEDED[named(compiled, memories.NEEDED)](compiled.task, last, ways)
    return NEEDED[named(compiled, NEEDED)](compiled.task, last, layers)


def shares(compiled: Compiled, prompts: Prompts) -> Flows:
    """The flows whose source gives nothing: it matters only by the attention that it takes from others."""
    declared = gpt2.SHARES.get(gpt2.key_of(compiled)) if is_gpt2(compiled) else None
    return declared(compiled.task, prompts.last(), gpt2.heads_of(compiled)) if declared else {}


def is_gpt2(compiled: Compiled) -> bool:
    return bool(compiled.model.config.family == gpt2.FAMILY)


def is_memory(compiled: Compiled) -> bool:
    """True of a model of matrix memories."""
    return not is_gpt2(compiled) and compiled.model.config.family != "mamba"


def named(compiled: Compiled, known: Iterable[str]) -> str:
    """The name that a model's flows are declared under; refused where there is none."""
    name = gpt2.key_of(compiled) if is_gpt2(compiled) else compiled.task.name
    if name not in known:
        raise MechintError(f"no flows are declared for {name!r}{did_you_mean(name, known)}; of {', '.join(known)}")
    return name


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
"""Edges of the compiled Mambas, by the task's name."""
DECLARED = {*NEEDED, *gpt2.NEEDED, *memories.MODELS}
"""Names of all models that have their edges."""


def clear(compiled: Compiled, prompts: Prompts) -> Prompts:
    """The prompts whose last answer has one way only: where two lead to it by chance, no edge of either is needed."""
    last, name = prompts.last(), compiled.task.name
    task: Any = compiled.task
    if is_gpt2(compiled):
        one_way = gpt2.ONE_WAY.get(gpt2.key_of(compiled))
        return prompts[one_way(task, last)] if one_way else prompts
    if is_memory(compiled):
        return prompts[memories.one_way(task, last)]
    tokens, answer = last.tokens, last.answers
    ways = torch.ones(len(last), dtype=torch.long)
    if name == "latch":  # both marked symbols
        ways = (Where((task.marker,), back=1).of(last) & (tokens == answer)).sum(1)
    elif name == "most_recent":  # the last symbol and the one before it
        ways = (last_two(last, task.symbols) & (tokens == answer)).sum(1)
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


@torch.no_grad()
def links(compiled: Compiled) -> Tensor:
    """True where a declared channel reads a declared channel of an earlier layer, [layer, e, layer, f] bool.

    For a GPT-2 its units, see :mod:`.gpt2.links`; for a newer memory [1, writer, 1, reader], see
    :mod:`.memories.links`. Drawn channels read and write named directions alone, so a link is a
    product of weights that is not zero.
    """
    model = compiled.model
    if is_gpt2(compiled):
        return gpt2_links.links(compiled)
    if is_memory(compiled):
        return memory_links.links(compiled)
    size, width = model.config.n_layer, model.config.d_inner
    found = torch.zeros(size, width, size, width, dtype=torch.bool)
    declared = compiled.truth.units("channel")
    for i, (e,) in declared:
        for j, (f,) in declared:
            if i < j:
                writes, read = model.layers[i].out_proj.weight[:, e], model.layers[j].in_proj.weight[f]
                found[i, e, j, f] = bool((writes * read).abs().max() > 0)
    return found


def link_ends(compiled: Compiled, writer: str, reader: str) -> tuple[Tensor, Tensor]:
    """The declared writers and readers that two ablations can see, [layer, e] and [layer, f] bool."""
    if is_gpt2(compiled):
        return gpt2_links.ends(compiled, writer, reader)
    if is_memory(compiled):
        return memory_links.seen(compiled, writer, reader)
    shape = (compiled.model.config.n_layer, -1)
    found = [compiled.truth.mask(compiled.model, "channel", name).view(shape).bool() for name in (writer, reader)]
    return found[0], found[1]


def link_pairs(compiled: Compiled) -> Tensor:
    """All pairs of a writer and a reader after it, [layer, e, layer, f] bool."""
    if is_gpt2(compiled):
        return gpt2_links.later(compiled.model)
    if is_memory(compiled):
        return memory_links.later(compiled.model)
    size, width = compiled.model.config.n_layer, compiled.model.config.d_inner
    behind = torch.ones(size, size, dtype=torch.bool).triu(1)
    return behind[:, None, :, None].expand(size, width, size, width)


def link_blocks(compiled: Compiled) -> list[tuple[int, slice, int, slice]]:
    """The pairs whose ends are of one kind and layer each: (layer, writers, layer, readers)."""
    if is_gpt2(compiled):
        return gpt2_links.blocks(compiled.model)
    if is_memory(compiled):
        return memory_links.blocks(compiled.model)
    layers, every = range(compiled.model.config.n_layer), slice(None)
    return [(i, every, j, every) for i in layers for j in layers if i < j]
