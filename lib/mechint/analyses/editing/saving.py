"""Edited models as checkpoints that :func:`mechint.load` and, of a family that it knows, transformers open."""

from __future__ import annotations

from pathlib import Path

from ...interventions.model import Model
from ...models.loading.load import hf_config, to_hf_state_dict
from ...models.loading.tokenizer import FILE
from ...training.files import FIRST, plain, write_directory
from ...utils import files
from ...utils.errors import MechintError

DIRECTORY = "edited"
"""The edited checkpoint, below the run directory."""


def save_model(model: Model, directory: str | Path) -> list[Path]:
    """Writes a model as transformers has it: config.json, model.safetensors and its tokenizer.json.

    The words of its own checkpoint about its task stay beside the weights.

    Raises:
        MechintError: a model is in the directory already.
    """
    place = Path(directory)
    if (place / FIRST).exists():
        raise MechintError(f"{place} holds a model already; nothing was overwritten. Name another directory")
    described = hf_config(model)
    if model.tokenizer is not None:
        files.write_text(place / FILE, model.tokenizer.to_str())
    told = {name: value for name, value in model.metadata.items() if name not in described}
    checkpoint = {"model": to_hf_state_dict(model), "config": plain(described), **plain(told)}
    write_directory(place, checkpoint, described)
    names = ("config.json", FIRST, *([FILE] if model.tokenizer is not None else []))
    return [place / name for name in names]
