"""Layers on several devices, in order: how many each gets, and how a model is put there.

Embeddings, final norm and head are on the first device, its *home*: prompts come from there, and the stream behind the
last layer goes back there, which is less than its logits. Recorded values and the values of edits are at home, too.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from ..interventions.model import Model
from ..utils.errors import MechintError, an
from .base import LanguageModel

M = TypeVar("M", bound=nn.Module)


def shares(layers: Sequence[int], rest: int, devices: int) -> list[int]:
    """The number of layers of each device, so that the fullest one holds as little as can be.

    Args:
        layers: Bytes of each layer.
        rest: Bytes beside the layers, on the first device, which may have no layer.
        devices: At least one, and at most one for each layer.
    """
    upto = [0, *itertools.accumulate(layers)]
    best = {n: (rest + upto[n], [n]) for n in range(len(upto))}  # the first n layers on one device
    for _ in range(devices - 1):
        best = {
            n: min(
                (max(fullest, upto[n] - upto[m]), [*counts, n - m]) for m, (fullest, counts) in best.items() if m < n
            )
            for n in range(min(best) + 1, len(upto))
        }
    return best[len(layers)][1]


def size_of(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def place(model: LanguageModel, devices: Sequence[torch.device]) -> None:
    """Puts a model on a device, or its layers on several in order, by their bytes.

    Raises:
        MechintError: there are more devices than layers, or layers use each other's weights.
    """
    if len(devices) == 1:
        model.to(devices[0])
        return
    names = ", ".join(map(str, devices))
    if len(devices) > model.num_layers:
        raise MechintError(
            f"{model.source} has {model.num_layers} layers, and {len(devices)} devices are given ({names}); each needs "
            "a layer, so name fewer"
        )
    if not model.placeable:
        raise MechintError(
            f"the layers of {an(model.config.family)} model use each other's weights or are not told where they lie, "
            f"so they cannot be placed on {names}; name one device"
        )
    each = [size_of(layer) for layer in model.layers]
    counts = shares(each, size_of(model) - sum(each), len(devices))
    placement = [device for device, count in zip(devices, counts, strict=True) for _ in range(count)]
    for layer, device in zip(model.layers, placement, strict=True):
        layer.load_state_dict({name: tensor.to(device) for name, tensor in layer.state_dict().items()}, assign=True)
    others = {name: t.to(devices[0]) for name, t in model.state_dict().items() if not name.startswith("layers.")}
    model.load_state_dict(others, strict=False, assign=True)
    model.placement = placement


def near(module: M, device: torch.device) -> M:
    """The module, or where it is on another device a copy of it: for what reads weights beside recorded values."""
    there = next(module.parameters(), None)
    return module if there is None or there.device == device else copy.deepcopy(module).to(device)


def need_one_device(model: Model, what: str) -> None:
    """Raises :class:`MechintError` where layers are on several devices; ``what`` is that which cannot be done then."""
    if reason := apart(model, what):
        raise MechintError(reason)


def apart(model: Model, what: str) -> str | None:
    """Says why something that reads all layers' weights cannot be done; None where they are on one device."""
    if not model.placement:
        return None
    return (
        f"{what} reads the weights of all layers side by side, and {model.source} is on several devices "
        f"({devices_of(model)}); name one device"
    )


def devices_of(model: Model) -> str:
    """The devices of a model, in words: ``cuda:0 (layers 0-11), cuda:1 (layers 12-23)``."""
    if not model.placement:
        return str(model.device)
    found = {model.device: ""}
    for device, group in itertools.groupby(range(model.num_layers), key=lambda i: model.placement[i]):
        numbers = list(group)
        found[device] = f" (layers {numbers[0]}-{numbers[-1]})" if len(numbers) > 1 else f" (layer {numbers[0]})"
    return ", ".join(f"{device}{layers}" for device, layers in found.items())
