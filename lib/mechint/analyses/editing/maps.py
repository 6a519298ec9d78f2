"""Linear maps of a layer that can be edited: their weights, and what they read and give in a run.

A map is named in the field's words: ``down_proj`` (of a feed-forward part), ``out_proj`` (of a recurrence), ``in_x``
and ``in_z`` (the rows of the input projection that give x and the gate), ``value`` (the rows that give the values of a
matrix memory), ``x_proj`` and ``dt_proj`` (of Mamba-1). A layer's parts say which of them it has.

Some of what these maps read and give passes no site (the low rank of Δ), and scales and norms may follow them before
the next one, so inputs and outputs are caught at the map itself.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...interventions.model import Model
from ...models import gpt2, llama
from ...models.parts.base import Layer
from ...models.parts.delta import GatedDelta
from ...models.parts.experts import MixtureOfExperts
from ...models.parts.feed_forward import MLP, GatedMLP
from ...models.parts.mamba1 import Mamba1Mixer
from ...models.parts.mamba2 import Mamba2Mixer
from ...models.parts.shared import BlockThenMamba
from ...models.placement import need_one_device
from ...utils.errors import MechintError, an, did_you_mean
from ...utils.options import listed

NAMES = ("down_proj", "out_proj", "in_x", "in_z", "value", "x_proj", "dt_proj")
"""Every name of a map."""
WRITING = ("down_proj", "out_proj")
"""Maps that give what is added to the residual stream."""
USUAL = (*WRITING, "in_x", "value")
"""Maps that are usually edited: those, and what a recurrence's memory is written from."""


@dataclass(frozen=True)
class Place:
    """A map within a part.

    Attributes:
        module: The linear map's name within the part.
        out: The site that the part adds to the residual stream.
        begin, end: Rows of the map's weight; None for all.
        plain: True if what it gives is the part's output, with nothing behind it.
    """

    module: str
    out: str
    begin: int | None = None
    end: int | None = None
    plain: bool = False


@dataclass(frozen=True, eq=False)
class WeightMap:
    """A linear map of one layer, or some of its rows.

    Attributes:
        name: One of :data:`NAMES`.
        layer: The layer's number.
        linear: The module.
        rows: The rows of its weight.
        site: The site that its part adds to the residual stream, such as ``layers.3.mlp_out``.
        added: True if what it gives is added to the residual stream as it is.
    """

    name: str
    layer: int
    linear: nn.Linear
    rows: slice
    site: str
    added: bool
    stream: str = ""
    """The residual stream behind that, such as ``layers.3.resid_post``."""

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.name}"

    @property
    def weight(self) -> Tensor:
        """Its rows of the weight, [out, in]; a view."""
        return self.linear.weight[self.rows]

    @property
    def width(self) -> int:
        """Size of what it reads."""
        return self.linear.in_features


# ---- the maps of each part ---------------------------------------------------------------------------------------


@functools.singledispatch
def places(part: nn.Module) -> Mapping[str, Place]:
    """The maps of a part by name; none of a part without a rule here."""
    return {}


@places.register
def _(part: gpt2.MLP) -> Mapping[str, Place]:
    return {"down_proj": Place("c_proj", "mlp_out", plain=True)}


@places.register
def _(part: llama.MLP) -> Mapping[str, Place]:
    return {"down_proj": Place("down_proj", "mlp_out", plain=True)}


@places.register
def _(part: MLP) -> Mapping[str, Place]:
    return {"down_proj": Place("down_proj", part.out, plain=True)}


@places.register
def _(part: GatedMLP) -> Mapping[str, Place]:
    return {"down_proj": Place("down_proj", part.out, plain=part.out_scale == 1.0)}


@places.register
def _(part: MixtureOfExperts) -> Mapping[str, Place]:
    """The shared expert, which reads every token; of the others each reads only what its router gives it."""
    if part.shared_expert is None:
        return {}
    inside = places(part.shared_expert)
    return {name: Place(f"shared_expert.{place.module}", part.out) for name, place in inside.items()}


@places.register
def _(part: Mamba1Mixer) -> Mapping[str, Place]:
    inner = part.A_log.shape[0]
    return {
        "out_proj": Place("out_proj", part.out, plain=True),
        "in_x": Place("in_proj", part.out, 0, inner),
        "in_z": Place("in_proj", part.out, inner, 2 * inner),
        "x_proj": Place("x_proj", part.out),
        "dt_proj": Place("dt_proj", part.out),
    }


@places.register
def _(part: Mamba2Mixer) -> Mapping[str, Place]:
    return {
        "out_proj": Place("out_proj", part.out, plain=part.out_scale == 1.0),
        "in_z": Place("in_proj", part.out, 0, part.inner),
        "value": Place("in_proj", part.out, part.inner, 2 * part.inner),
    }


@places.register
def _(part: GatedDelta) -> Mapping[str, Place]:
    keys = 2 * part.key_heads * part.key_size
    return {
        "out_proj": Place("out_proj", part.out, plain=True),
        "value": Place("in_proj_qkv", part.out, keys, keys + part.heads * part.value_size),
    }


@places.register
def _(part: BlockThenMamba) -> Mapping[str, Place]:
    """The layer's own mixer; the block before it is other layers', too."""
    inside = places(part.mamba)
    return {
        name: Place(f"mamba.{place.module}", place.out, place.begin, place.end, place.plain)
        for name, place in inside.items()
    }


# ---- the maps of a model -----------------------------------------------------------------------------------------


def maps_of(model: Model, layer: int) -> dict[str, WeightMap]:
    """The maps of a layer, by name. Where two parts have one of the same name, the later part's counts."""
    found = {}
    for name, part in model.parts_of(layer).items():
        for what, place in places(part).items():
            linear = cast(nn.Linear, part.get_submodule(place.module))
            rows = slice(place.begin or 0, linear.out_features if place.end is None else place.end)
            added, stream = into_stream(model.layers[layer], name)
            site, behind = (f"layers.{layer}.{kind}" for kind in (place.out, stream))
            found[what] = WeightMap(what, layer, linear, rows, site, added and place.plain, behind)
    return found


def into_stream(layer: Any, part: str) -> tuple[bool, str]:
    """True if a part's output is added to the residual stream as it is, and the site of the stream behind that."""
    if not isinstance(layer, Layer):
        return True, "resid_post"  # families with files of their own: the maps' parts are the last of a layer
    for number, step in enumerate(layer.steps):
        for branch in step:
            if part in branch.parts:
                return branch.scale == 1.0 and part not in branch.behind, layer.behind_step(number)
    raise ValueError(f"the layer has no part {part}")


def chosen_maps(
    model: Model, said: str, layers: Sequence[int], where: str, ordinary: Sequence[str] = USUAL
) -> dict[str, list[WeightMap]]:
    """The maps that an option names, each in every chosen layer that has it, bottom up.

    Args:
        said: Names with commas or spaces, or ``usual`` for those of ``ordinary`` that the model has.
        where: The option's name in messages.

    Raises:
        MechintError: no such map, or none of the layers has it.
    """
    need_one_device(model, "editing")
    every = {layer: maps_of(model, layer) for layer in range(model.num_layers)}
    there = [name for name in NAMES if any(name in maps for maps in every.values())]
    if not there:
        raise MechintError(
            f"{where}: no layer of {an(model.config.family)} model has a map that reads every token (an expert reads "
            "those that its router gives it), and no other is edited here"
        )
    usual = said.strip() == "usual"
    names = [name for name in ordinary if name in there] if usual else list(dict.fromkeys(listed(said, where)))
    if not names:
        raise MechintError(f"{where}: no map is named; leave it at 'usual', or choose from {', '.join(there)}")
    found: dict[str, list[WeightMap]] = {}
    for name in names:
        if name not in there:
            raise MechintError(
                f"{where}: {an(model.config.family)} model has no map {name!r}{did_you_mean(name, there)}; its layers "
                f"have {', '.join(there)}"
            )
        found[name] = [every[layer][name] for layer in layers if name in every[layer]]
        if not found[name] and not usual:
            having = [str(layer) for layer, maps in every.items() if name in maps]
            raise MechintError(
                f"{where}: none of the layers {', '.join(map(str, layers))} has {name}; it is in the layers "
                f"{', '.join(having)}"
            )
    return {name: maps for name, maps in found.items() if maps}


# ---- runs --------------------------------------------------------------------------------------------------------


@dataclass
class Caught:
    """The inputs and outputs of a map in the latest run, [row, position, in or out]."""

    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))


@contextlib.contextmanager
def watching(one: WeightMap, shift: Tensor | None = None, positions: Tensor | None = None) -> Iterator[Caught]:
    """Catches what a map reads and gives in the runs inside, and shifts what it gives.

    Args:
        shift: Added to what it gives, [row, out].
        positions: The position where, [row].
    """
    caught = Caught()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        caught.inputs, caught.outputs = inputs[0].detach(), output[..., one.rows].detach()
        if shift is None or positions is None:
            return output
        at = torch.arange(output.shape[1], device=output.device) == positions[:, None]  # [row, position]
        added = torch.zeros_like(output)
        added[..., one.rows] = at[..., None] * shift[:, None].to(output)
        return output + added

    handle = one.linear.register_forward_hook(hook)
    try:
        yield caught
    finally:
        handle.remove()


@contextlib.contextmanager
def changed(updates: Sequence[tuple[WeightMap, Tensor]]) -> Iterator[None]:
    """Adds updates [out, in] to weights for the time inside; then the weights are what they were, to the bit."""
    kept = [(one, one.weight.detach().clone()) for one, _ in updates]
    try:
        with torch.no_grad():
            for one, update in updates:
                one.weight.add_(update.to(one.weight))
        yield
    finally:
        with torch.no_grad():
            for one, before in reversed(kept):
                one.weight.copy_(before)
