"""Tuned lenses on disk, in the layout of the package tuned-lens: ``config.json`` and ``params.pt`` in one directory.

``params.pt`` holds ``0.weight`` [model, model] and ``0.bias`` [model], and so on for every layer. ``config.json`` says
the width, the number of layers and a hash of the unembedding, by which a lens of another model is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...interventions.model import Model
from ...utils import files
from ...utils.errors import MechintError, shown
from .tuned import TunedLens

CONFIG, PARAMS = "config.json", "params.pt"
KIND = "linear_tuned_lens"
REMEDY = "name the directory of a tuned lens"


def unembedding_hash(model: Model) -> str:
    """The package's hash of the unembedding: of the first and last entries, rounded to one digit."""
    with np.printoptions(edgeitems=3, threshold=1000, linewidth=75, suppress=False, legacy=False):
        text = np.array_str(model.ending[1].detach().float().cpu().numpy(), precision=1)
    return hashlib.sha256(text.encode()).hexdigest()


def save(lens: TunedLens, model: Model, directory: Path) -> list[Path]:
    """Writes a lens of a model."""
    config = {
        "base_model_name_or_path": model.source, "base_model_revision": None, "bias": True,
        "d_model": lens.weights.shape[-1], "lens_type": KIND, "num_hidden_layers": len(lens.weights),
        "unembed_hash": unembedding_hash(model),
    }  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    for i, (weight, bias) in enumerate(zip(lens.weights, lens.biases, strict=True)):
        tensors |= {f"{i}.weight": weight.clone(), f"{i}.bias": bias.clone()}
    return [files.write_json(directory / CONFIG, config), files.write_torch(directory / PARAMS, tensors)]


def load(directory: str | Path, model: Model) -> TunedLens:
    """Reads a lens and checks that it is of this model.

    Raises:
        MechintError: a file is missing or damaged, or the lens is of another kind, width, number of layers or
            unembedding.
    """
    place = Path(directory)
    if not place.is_dir():
        raise MechintError(f"tuned lens {place}: no such directory; {REMEDY}")
    config = files.read_json(place / CONFIG, REMEDY)
    if not isinstance(config, dict):
        raise MechintError(f"{place / CONFIG} is not a JSON object; {REMEDY}")
    if (kind := config.get("lens_type", KIND)) != KIND:
        raise MechintError(f"{place} holds a lens of the type {shown(kind)}; only {KIND} can be read")
    width, layers = model.config.d_model, model.num_layers
    for key, ours, what in (("d_model", width, "width"), ("num_hidden_layers", layers, "number of layers")):
        if config.get(key) != ours:
            raise MechintError(
                f"the tuned lens {place} is of another model: its {what} ({key}) is {shown(config.get(key))}, and that "
                f"of {model.source} is {ours}; name a lens of this model, or train one"
            )
    if config.get("unembed_hash") not in (None, unembedding_hash(model)):
        raise MechintError(
            f"the tuned lens {place} is of another model ({shown(config.get('base_model_name_or_path'))}): its hash of "
            f"the unembedding is not that of {model.source}; name a lens of this model, or train one"
        )
    biased = config.get("bias", True)
    return built(
        files.read_torch(place / PARAMS, "the parameters of a tuned lens", REMEDY), place, width, layers, biased
    )


def built(tensors: Any, place: Path, width: int, layers: int, biased: Any) -> TunedLens:
    """The lens of the tensors of ``params.pt``, each checked."""
    shapes: dict[str, tuple[int, ...]] = {f"{i}.weight": (width, width) for i in range(layers)}
    shapes |= {f"{i}.bias": (width,) for i in range(layers)} if biased is not False else {}
    if not isinstance(tensors, dict) or tensors.keys() != shapes.keys():
        raise MechintError(
            f"{place / PARAMS} does not hold the translators of {layers} layers (0.weight, 0.bias …); {REMEDY}"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise MechintError(f"{place / PARAMS}: {name} is not a tensor of numbers of the shape {shape}; {REMEDY}")
        if not torch.isfinite(tensor).all():
            raise MechintError(f"{place / PARAMS}: {name} has NaN or infinite entries; {REMEDY}")
    wide = lambda tensor: tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    weights = torch.stack([wide(tensors[f"{i}.weight"]) for i in range(layers)])
    if biased is False:
        return TunedLens(weights, weights.new_zeros(layers, width))
    return TunedLens(weights, torch.stack([wide(tensors[f"{i}.bias"]) for i in range(layers)]))
