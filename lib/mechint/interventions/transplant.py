"""Transplants: a run that goes on with what another one had at a site, such as its memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..utils.errors import MechintError, an, did_you_mean
from .edits import Edit
from .model import Model
from .run import run


@torch.no_grad()
def taken(model: Model, tokens: Tensor, sites: Sequence[str], start: int, count: int = 1) -> dict[str, Tensor]:
    """Sites of a run at some positions from ``start`` on, [batch, count, unit …] each; what comes after is not read.

    Other positions are not recorded, so the states of long prompts need no more memory than those of short ones.
    """
    none = tokens[:, :0]
    if start <= model.border < tokens.shape[1]:  # what comes after changes what is read before
        return run(model, tokens, dict.fromkeys(sites, range(start, start + count)), logits_at=none).values
    before = run(model, tokens[:, :start], logits_at=none).cache if start else None
    return run(model, tokens[:, start : start + count], sites, cache=before, logits_at=none).values


def placed(values: Mapping[str, Tensor], position: int) -> list[Edit]:
    """The edits that put values [batch, 1, unit …] of other runs into one, at a position."""
    return [Edit(site, "replace", value, positions=[position]) for site, value in values.items()]


def placed_each(site: str, values: Tensor, positions: Sequence[int]) -> list[Edit]:
    """The edits that put values [row, unit …] of other runs into one, each at a position of its own."""
    rows = enumerate(zip(values, positions, strict=True))
    return [Edit(site, "replace", value[None, None], positions=[at], rows=[row]) for row, (value, at) in rows]


@torch.no_grad()
def transplant_state(
    model: Model,
    from_tokens: Tensor,
    to_tokens: Tensor,
    layers: Iterable[int] | None = None,
    position: int = -1,
    from_position: int | None = None,
    memory: Iterable[str] | None = None,
) -> Tensor:
    """The receiver's logits when its memory behind one position is that of another run.

    With the memory of all layers the receiver goes on as the donor would: nothing else is carried from position to
    position. With some of it, the rest is the receiver's own, and layers above compute on the mixture.

    Args:
        model: From :func:`mechint.load`.
        from_tokens: The donor's prompts, [batch, position].
        to_tokens: The receiver's prompts, [batch, position], of any length.
        layers: Numbers of the layers whose memory is moved; None for all.
        position: The position of the receiver behind which it is moved; negative from its end.
        from_position: Position of the donor that the memory is taken from; None for the same number. Keys and values
            know the position they were made at, so where they are moved it must be the same number.
        memory: Kinds of memory, of :attr:`Model.memory`; None for all. They are ``state`` (a recurrence's),
            ``conv_state`` (the inputs that a convolution remembers), and of attention ``v`` and ``k_rot`` (``k`` where
            there is no rotation): the values and keys of this position and of all before it.

    Returns:
        Logits, [batch, position, vocabulary]. The transplant shows in those behind ``position`` and, through what is
        read there, in its own.

    Raises:
        MechintError: a layer, position or kind of memory that does not exist; keys and values of other positions.
    """
    kinds = list(model.memory if memory is None else memory)
    wanted = list(range(model.num_layers)) if layers is None else list(layers)
    if bad := [layer for layer in wanted if not 0 <= layer < model.num_layers]:
        raise MechintError(f"transplant: layer {bad[0]} does not exist; there are {model.num_layers}")
    for kind in kinds:
        if kind not in model.memory:
            raise MechintError(
                f"transplant: {an(model.config.family)} model keeps no memory {kind!r}"
                f"{did_you_mean(kind, model.memory)}; it keeps {', '.join(model.memory)}"
            )
    sites = [site for layer in wanted for kind in kinds if (site := f"layers.{layer}.{kind}") in model.sites]
    if not sites:
        raise MechintError(f"transplant: layers {wanted} keep no memory {', '.join(kinds)}; choose other layers")
    if len(from_tokens) not in (1, len(to_tokens)):
        raise MechintError(
            f"transplant: {len(from_tokens)} donors for {len(to_tokens)} receivers; give one, or as many"
        )
    length = to_tokens.shape[1]
    at = position if from_position is None else from_position
    for number, tokens, of in ((at, from_tokens, "donor"), (position, to_tokens, "receiver")):
        if not -tokens.shape[1] <= number < tokens.shape[1]:
            raise MechintError(f"transplant: position {number} does not exist in the {of}; it has {tokens.shape[1]}")
    at, position = at % from_tokens.shape[1], position % length
    model.check_behind(at + 1, from_tokens.shape[1])
    model.check_behind(position, length)
    donor = run(model, from_tokens[:, : at + 1], sites)
    edits = placed({site: donor[site][:, -1:] for site in sites}, position)
    growing = [kind for kind in kinds if kind not in model.carried_sites]  # a state holds all positions before it
    if not any(site.rpartition(".")[2] in growing for site in sites):
        return run(model, to_tokens, edits=edits).logits
    if at != position:
        raise MechintError(
            f"transplant: {' and '.join(growing)} of positions 0 to {at} cannot stand at positions 0 to {position}; "
            "choose from_position equal to position, or memory without them"
        )
    if position == 0:
        return run(model, to_tokens, edits=edits).logits
    own = run(model, to_tokens[:, :position])
    mixed = [
        memory.taking(donor.cache.layers[layer], growing) if layer in wanted and hasattr(memory, "taking") else memory
        for layer, memory in enumerate(own.cache.layers)
    ]
    rest = run(model, to_tokens[:, position:], edits=edits, cache=replace(own.cache, layers=mixed))
    return torch.cat([own.logits, rest.logits], 1)
