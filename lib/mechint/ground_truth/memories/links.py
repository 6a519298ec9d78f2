"""Links of the compiled newer memories: which unit reads what a unit of a part before it writes.

Writers are the channels of a recurrence, the value channels of attention and gated neurons, as the output projection of
their part writes them; readers are the query, key and value channels of attention and gated neurons. Channels of a
recurrence are no readers: what they read is declared as flows, through its convolution.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...interventions.model import Model
from ...interventions.units import Units
from ...models.parts.attention import Attention
from ...models.parts.delta import GatedDelta
from ...models.parts.feed_forward import GatedMLP
from ...models.parts.mamba2 import Mamba2Mixer
from ...utils.errors import MechintError
from ..blueprint import Compiled


@dataclass(frozen=True)
class End:
    """The writers, or the readers, of one kind of one part.

    Attributes:
        kind: ``ssm_channel``, ``q``, ``k``, ``v`` or ``mlp``.
        sites: Where they can be read and replaced, by name within the layer.
        weights: The directions that the writers add to the stream for each 1 that they give, [model, unit]; or those
            that the readers take from it, norm weights included, [unit, model], once for each projection.
        layer, step: Where the part is.
        units: Their numbers among all writers, or all readers.
    """

    kind: str
    sites: tuple[str, ...]
    weights: tuple[Tensor, ...]
    layer: int = 0
    step: int = 0
    units: slice = field(default_factory=lambda: slice(0))

    @property
    def place(self) -> tuple[int, int]:
        return self.layer, self.step

    @property
    def names(self) -> list[str]:
        """The names of its sites."""
        return [f"layers.{self.layer}.{site}" for site in self.sites]


Ends = tuple[list[End], list[End]]


@functools.singledispatch
def ends_of(part: nn.Module, norm: Tensor) -> Ends:
    """The writers and the readers of a part behind a norm of these weights [model].

    Raises:
        MechintError: none are known of parts of this kind.
    """
    raise MechintError(f"no links are known of a {type(part).__name__}; leave its model out")


@ends_of.register(Mamba2Mixer)
@ends_of.register(GatedDelta)
def ends_of_memory(part: Any, norm: Tensor) -> Ends:
    return [End("ssm_channel", ("gated",), (part.out_proj.weight,))], []


@ends_of.register
def ends_of_attention(part: Attention, norm: Tensor) -> Ends:
    if part.n_kv_head != part.n_head:
        raise MechintError("no links are known of attention whose heads share keys and values; leave its model out")
    queries = part.q_proj.weight
    if part.gated:  # a head's gate stands behind its queries
        queries = queries.unflatten(0, (part.n_head, 2, part.d_head))[:, 0].flatten(0, 1)
    reads = {"q": queries, "k": part.k_proj.weight, "v": part.v_proj.weight}
    writers = [End("v", ("head_gated" if part.gated else "head_out",), (part.o_proj.weight,))]
    return writers, [End(kind, (kind,), (weight * norm,)) for kind, weight in reads.items()]


@ends_of.register
def ends_of_neurons(part: GatedMLP, norm: Tensor) -> Ends:
    reads = (part.gate_proj.weight * norm, part.up_proj.weight * norm)
    return [End("mlp", ("mlp_post",), (part.down_proj.weight,))], [End("mlp", ("mlp_pre", "mlp_up"), reads)]


@torch.no_grad()
def ends(model: Model) -> Ends:
    """All writers and all readers of a model, bottom up, numbered."""
    found: Ends = ([], [])
    for number, layer in enumerate(model.layers):
        for step, branches in enumerate(layer.steps):
            for branch in branches:
                norm = layer[branch.norm]
                weights = norm.weight + getattr(norm, "plus", 0.0)
                for name in branch.parts:
                    for every, own in zip(found, ends_of(layer.parts[name], weights), strict=True):
                        for end in own:
                            start = every[-1].units.stop if every else 0
                            count = end.weights[0].shape[1 if every is found[0] else 0]
                            every.append(replace(end, layer=number, step=step, units=slice(start, start + count)))
    return found


def width(side: list[End]) -> int:
    """The count of writers, or of readers."""
    return side[-1].units.stop if side else 0


def blocks(model: Model) -> list[tuple[int, slice, int, slice]]:
    """Pairs of the writers of one part and the readers of one kind of a part after it."""
    writers, readers = ends(model)
    return [(0, w.units, 0, r.units) for w in writers for r in readers if w.place < r.place]


def later(model: Model) -> Tensor:
    """True where a reader comes after a writer, [1, writer, 1, reader] bool."""
    writers, readers = ends(model)
    found = torch.zeros(1, width(writers), 1, width(readers), dtype=torch.bool)
    for place in blocks(model):
        found[place] = True
    return found


def laid_out(model: Model, side: list[End], values: dict[str, Tensor]) -> Tensor:
    """Numbers of the units of each kind (``ssm_channel``, ``q``, ``kv`` and ``mlp``, as they are counted), in the order
    of writers or readers."""
    found = []
    for end in side:
        kind = "kv" if end.kind in ("k", "v") else end.kind
        row = next(row for row in Units(model, model.unit_kinds[kind]).by_row if row.layer == end.layer)
        own = values[kind][row.start : row.start + row.size]
        found.append(own.chunk(2)[end.kind == "v"] if kind == "kv" else own)
    return torch.cat(found) if found else torch.zeros(0)


def seen(compiled: Compiled, writer: str = "zero", reader: str = "zero") -> tuple[Tensor, Tensor]:
    """The declared writers and readers that two ablations can see, [1, writer] and [1, reader] bool."""
    model = compiled.model
    kinds = [kind for kind in ("ssm_channel", "q", "kv", "mlp") if kind in model.unit_kinds]
    sides = zip(ends(model), (writer, reader), strict=True)
    masks = [laid_out(model, side, {k: compiled.truth.mask(model, k, name) for k in kinds}) for side, name in sides]
    return masks[0].bool()[None], masks[1].bool()[None]


@torch.no_grad()
def products(model: Model) -> Tensor:
    """|W of the reader · norm weights · W of the writer|, of a gated neuron the sum of both its projections, for
    readers after the writer, [1, writer, 1, reader]."""
    writers, readers = ends(model)
    found = torch.zeros(1, width(writers), 1, width(readers))
    for w in writers:
        for r in readers:
            if w.place < r.place:
                found[0, w.units, 0, r.units] = sum((reads @ w.weights[0]).T.abs() for reads in r.weights)
    return found


@torch.no_grad()
def links(compiled: Compiled) -> Tensor:
    """True where a declared reader reads a declared writer before it, [1, writer, 1, reader] bool.

    Drawn units read and write named directions alone, so a link is a product of weights that is not zero.
    """
    model = compiled.model
    (writers, readers), (first, second) = ends(model), seen(compiled)
    found = torch.zeros(1, width(writers), 1, width(readers), dtype=torch.bool)
    for w in writers:
        for r in readers:
            if w.place < r.place:
                each = [(reads.abs() @ w.weights[0].abs()).T > 0 for reads in r.weights]
                found[0, w.units, 0, r.units] = torch.stack(each).any(0)
    return found & first[:, :, None, None] & second[:, None]
