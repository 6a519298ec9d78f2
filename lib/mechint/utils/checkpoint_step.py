"""The name of a checkpoint, and its training step: from the checkpoint itself, a file beside it, or its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import MechintError
from .files import read_json

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".gguf")
"""Endings of the names of checkpoint files."""
SAID = ("iter_num", "global_step", "step")
"""Entries of a trainer's checkpoint that hold its number of optimiser steps."""
NAMED = re.compile(r"(?:checkpoint|ckpt|step|iter)[-_]?(\d+)(?![^-_.])", re.IGNORECASE)
"""``checkpoint-500``, ``step000500.pt``, ``model_iter_500``; not the ``stepV1`` of an ablation study."""


def name_of(checkpoint: str | Path) -> str:
    """The name of a checkpoint: the last part of its path, of a file without its ending.

    A directory's name, or a hub id's, may hold a dot that ends nothing: ``Llama-3.2-1B`` is no ``Llama-3``.
    """
    path = Path(checkpoint)
    return path.stem if path.suffix in SUFFIXES else path.name


def training_step(metadata: Mapping[str, Any], checkpoint: str) -> int | None:
    """The optimiser steps of a checkpoint's training; None where nothing says them.

    Args:
        metadata: Content of the checkpoint's file besides weights.
        checkpoint: Its path or hub id; of a Trainer's directory, ``trainer_state.json`` is read.
    """
    for name in SAID:
        if is_step(metadata.get(name)):
            return int(metadata[name])
    state = Path(checkpoint) / "trainer_state.json"
    if state.is_file():
        try:
            found = read_json(state)
        except (MechintError, ValueError):  # a trainer's file, no part of the model: the name may still hold the step
            found = None
        if isinstance(found, dict) and is_step(found.get("global_step")):
            return int(found["global_step"])
    return named_step(checkpoint)


def named_step(checkpoint: str) -> int | None:
    """The step that the last part of a path names, of a file or of its directory's name."""
    found = NAMED.findall(Path(checkpoint).name)
    return int(found[-1]) if found else None


def is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
