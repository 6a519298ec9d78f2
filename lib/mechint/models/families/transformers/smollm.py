"""SmolLM3 (Hugging Face 2025): a gated transformer, some of whose layers have no rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError, shown
from ...family import StackFamily
from ...loading.config_reader import ConfigReader
from ...stack import Stack
from .common import (
    TransformerConfig,
    last_norm,
    pre_norm,
    read_rotation,
    read_sizes,
    read_window,
    read_windows,
    written,
)


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(TransformerConfig):
    """Sizes and switches of a SmolLM3."""

    family = "smollm3"


def read_turned(raw: ConfigReader, n_layer: int) -> list[bool]:
    """For each layer whether its attention has a rotation: as ``no_rope_layers`` says, or all but every so manieth."""
    every, said = raw.size("no_rope_layer_interval", 4), raw.raw.get("no_rope_layers")
    raw.ignore("no_rope_layers")
    if said is None:
        return [bool((i + 1) % every) for i in range(n_layer)]
    if not isinstance(said, (list, tuple)) or len(said) < n_layer or not all(x in (0, 1) for x in said):
        raise MechintError(
            f"{raw.where}: no_rope_layers is {shown(said)}; it must have a 1 (rotation) or a 0 (none) for each of the "
            f"{n_layer} layers"
        )
    return [bool(x) for x in said[:n_layer]]


def read(raw: ConfigReader) -> SmolLM3Config:
    """The configuration of a ``config.json``."""
    raw.ignore("max_window_layers pretraining_tp")
    sizes, bias = read_sizes(raw, tied=True), raw.switch("attention_bias", False)
    heads = raw.heads(with_keys=4)
    window = read_window(raw, 0) if raw.switch("use_sliding_window", False) else 0
    raw.ignore("sliding_window")
    turned = read_turned(raw, sizes["n_layer"])
    kinds = ["sliding_attention" if window and not turns else "full_attention" for turns in turned]
    return SmolLM3Config(
        **sizes, **heads, attention_bias=bias, out_bias=bias, mlp_bias=raw.switch("mlp_bias", False),
        rotation=read_rotation(raw, heads["d_head"], 2e6), windows=read_windows(raw, sizes["n_layer"], kinds, window),
        unturned=tuple(i for i, turns in enumerate(turned) if not turns),
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c, window = model.config, max(model.config.windows)
    # transformers' own padding token is none of a small vocabulary
    return {
        **written(c, "SmolLM3ForCausalLM"), "attention_bias": c.attention_bias, "mlp_bias": c.mlp_bias,
        "no_rope_layers": [int(i not in c.unturned) for i in range(c.n_layer)], "layer_types": c.kinds,
        "use_sliding_window": window > 0, "sliding_window": window or None, "pad_token_id": None,
    }  # fmt: skip


FAMILIES = [StackFamily("smollm3", "SmolLM3", read, pre_norm, last_norm, write)]
