"""Transplants: a run that goes on with the memory of another one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..utils.errors import MechintError
from .edits import Edit
from .model import Model
from .run import run

MEMORY = ("state", "conv_state")


@torch.no_grad()
def transplant_state(
    model: Model,
    from_tokens: Tensor,
    to_tokens: Tensor,
    layers: Iterable[int] | None = None,
    position: int = -1,
    from_position: int | None = None,
    memory: Iterable[str] = MEMORY,
) -> Tensor:
    """The receiver's logits when its memory behind one position is that of another run.

    With the memory of all layers the receiver goes on as the donor would: nothing else is carried from position to
    position. With some of it, the rest is the receiver's own, and layers above compute on the mixture.

    Args:
        model: A Mamba from :func:`mechint.load`.
        from_tokens: The donor's prompts, [batch, position].
        to_tokens: The receiver's prompts, [batch, position], of any length.
        layers: Layers whose memory is taken; None for all.
        position: The receiver's memory is replaced behind this position of its own; negative from its end.
        from_position: Position of the donor that the memory is taken from; None for the same number.
        memory: ``state`` (the recurrence's), ``conv_state`` (the inputs that the convolution remembers) or both.

    Returns:
        Logits, [batch, position, vocabulary]. The transplant shows in those behind ``position`` and, through what C
        reads there, in its own.

    Raises:
        MechintError: a layer, position or kind of memory that does not exist; a model that keeps no state.
    """
    kinds = list(memory)
    wanted = list(range(model.config.n_layer)) if layers is None else list(layers)
    for kind in kinds:
        if kind not in MEMORY or f"layers.0.{kind}" not in model.sites:
            raise MechintError(
                f"transplant: a {model.config.family} model keeps no memory {kind!r}; a Mamba keeps "
                f"{' and '.join(MEMORY)}, a transformer the k and v of every position, which edits replace"
            )
    if bad := [layer for layer in wanted if not 0 <= layer < model.config.n_layer]:
        raise MechintError(f"transplant: layer {bad[0]} does not exist; there are {model.config.n_layer}")
    if len(from_tokens) not in (1, len(to_tokens)):
        raise MechintError(
            f"transplant: {len(from_tokens)} donors for {len(to_tokens)} receivers; give one, or as many"
        )
    at = position if from_position is None else from_position
    if not -from_tokens.shape[1] <= at < from_tokens.shape[1]:
        raise MechintError(f"transplant: position {at} does not exist in the donor; it has {from_tokens.shape[1]}")
    sites = [f"layers.{layer}.{kind}" for layer in wanted for kind in kinds]
    donor = run(model, from_tokens[:, : at % from_tokens.shape[1] + 1], sites).values
    edits = [Edit(site, "replace", donor[site][:, -1:], positions=[position]) for site in sites]
    return run(model, to_tokens, edits=edits).logits
