"""Mistral (Jiang et al. 2023): a gated transformer whose attention may have a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import StackFamily
from ...loading.config_reader import ConfigReader
from ...stack import Stack
from .common import TransformerConfig, last_norm, pre_norm, read_rotation, read_sizes, read_window, written


@dataclass(frozen=True, kw_only=True)
class MistralConfig(TransformerConfig):
    """Sizes and switches of a Mistral."""

    family = "mistral"


def read(raw: ConfigReader) -> MistralConfig:
    """The configuration of a ``config.json``: one window for every layer, or none."""
    sizes, heads = read_sizes(raw), raw.heads()
    windows = (read_window(raw, 4096),) * sizes["n_layer"]
    return MistralConfig(**sizes, **heads, rotation=read_rotation(raw, heads["d_head"]), windows=windows)


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {**written(c, "MistralForCausalLM"), "sliding_window": c.windows[0] or None}


FAMILIES = [StackFamily("mistral", "Mistral", read, pre_norm, last_norm, write)]
