"""Shared by the formats of other libraries: the encoder's bias with and without b_dec, and strict reading."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.loading.checkpoints import CONFIG_LIMIT
from ...utils.errors import MechintError, short
from ...utils.files import read_json
from ..base import SAEConfig, SparseAutoencoder
from .saelens import check_matrices, from_tensors


def plain(tensor: Tensor) -> Tensor:
    """For a file: on the CPU, float32, its own memory."""
    return tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)


def biases(sae: SparseAutoencoder, subtracted: bool) -> dict[str, Tensor]:
    """The biases before the activation function, for a library that subtracts b_dec from its input, or does not.

    (x − b) W + c = x W + (c − b W): a constant moves between the two, computed in float64. A gated dictionary's
    magnitude sees x W through exp(r_mag), and so does the constant.
    """
    names = [name for name in ("b_enc", "b_mag") if hasattr(sae, name)]
    found = {name: getattr(sae, name).detach().double() for name in names}
    shift = (sae.b_dec.detach().double() @ sae.W_enc.detach().double()) * (
        int(subtracted) - int(sae.config.apply_b_dec_to_input)
    )
    found["b_enc"] = found["b_enc"] + shift
    if "b_mag" in found:
        found["b_mag"] = found["b_mag"] + shift * torch.exp(sae.r_mag.detach().double())  # type: ignore[operator]
    return {name: plain(value) for name, value in found.items()}


def take(
    tensors: Mapping[str, Any], names: Mapping[str, str], ignored: Collection[str], where: str
) -> dict[str, Tensor]:
    """The tensors of a file under SAELens' names; strict in both directions.

    Args:
        tensors: As the file has them.
        names: For each of the file's names, SAELens' name; a name that ends in ``.T`` is read transposed.
        ignored: Names in the file that say nothing about the dictionary.
        where: The file, for the message.

    Raises:
        MechintError: tensors are missing or unknown; all of them are named.
    """
    there = {name.removesuffix(".T"): ours for name, ours in names.items()}
    missing, extra = (
        sorted(set(there) - set(tensors)),
        sorted(short(str(name)) for name in set(tensors) - set(there) - set(ignored)),
    )
    if missing or extra:
        what = [f"lacks {', '.join(missing)}"] if missing else []
        what += [f"has {', '.join(extra)}, which nothing here would use"] if extra else []
        raise MechintError(f"{where} {' and '.join(what)}; is it the dictionary that its configuration says?")
    bad = [name for name in there if not isinstance(tensors[name], Tensor) or tensors[name].dim() not in (1, 2)]
    if bad:
        raise MechintError(f"{where}: {', '.join(bad)} is not a vector or matrix; copy the file again")
    found = {}
    for name, ours in names.items():
        tensor = tensors[name.removesuffix(".T")]
        found[ours] = tensor.T if name.endswith(".T") else tensor
    return found


def rebuild(config: SAEConfig, tensors: dict[str, Tensor], where: str) -> SparseAutoencoder:
    """A frozen dictionary; the shapes in the file must be those of the configuration."""
    check_matrices(config, tensors, where)
    return from_tensors(config, {name: tensor.contiguous() for name, tensor in tensors.items()}, where)


def configuration(directory: Path, name: str, weights: str) -> dict[str, Any]:
    """The JSON object of a dictionary's directory.

    Raises:
        MechintError: either file is missing, or the JSON is none.
    """
    for file in (name, weights):
        if not (directory / file).is_file():
            raise MechintError(f"{directory} is not a dictionary: {file} is missing")
    raw = read_json(directory / name, "copy it again", CONFIG_LIMIT)
    if not isinstance(raw, dict):
        raise MechintError(f"{directory / name} is not the configuration of a dictionary")
    return raw
