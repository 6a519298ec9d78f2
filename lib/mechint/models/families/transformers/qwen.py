"""Qwen2 (Yang et al. 2024) and Qwen3 (Yang et al. 2025): gated transformers, Qwen3 with norms of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.norms import RMSNorm
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
class Qwen2Config(TransformerConfig):
    """Sizes and switches of a Qwen2."""

    family = "qwen2"


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(TransformerConfig):
    """Sizes and switches of a Qwen3."""

    family = "qwen3"


def read_layers(raw: ConfigReader) -> tuple[int, ...]:
    """The window of each layer: none unless it is switched on, and then in the later layers."""
    n_layer, window, first = raw.size("num_hidden_layers"), read_window(raw, 4096), raw.size("max_window_layers", 28, 0)
    window = window if raw.switch("use_sliding_window", False) else 0
    default = ["sliding_attention" if window and i >= first else "full_attention" for i in range(n_layer)]
    return read_windows(raw, n_layer, default, window)


def read_qwen2(raw: ConfigReader) -> Qwen2Config:
    """The configuration of a ``config.json``; Qwen2 always has biases of queries, keys and values alone."""
    heads = raw.heads()
    raw.only("attention_bias", True)
    return Qwen2Config(
        **read_sizes(raw), **heads, rotation=read_rotation(raw, heads["d_head"]), windows=read_layers(raw),
        attention_bias=True,
    )  # fmt: skip


def read_qwen3(raw: ConfigReader) -> Qwen3Config:
    """The configuration of a ``config.json``."""
    heads, bias = raw.heads(128), raw.switch("attention_bias", False)
    return Qwen3Config(
        **read_sizes(raw), **heads, rotation=read_rotation(raw, heads["d_head"]), windows=read_layers(raw),
        attention_bias=bias, out_bias=bias,
    )  # fmt: skip


def qwen3_layer(c: Qwen3Config, i: int) -> Layer:
    """Attention with a norm of each head's queries and keys, and a gated feed-forward part."""
    return pre_norm(c, i, (RMSNorm(c.d_head, c.norm_eps), RMSNorm(c.d_head, c.norm_eps)))


def windows_written(c: TransformerConfig) -> dict[str, Any]:
    window = max(c.windows)
    return {"layer_types": c.kinds, "use_sliding_window": window > 0, "sliding_window": window or None}


def write_qwen2(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    return {**written(model.config, "Qwen2ForCausalLM"), **windows_written(model.config)}


def write_qwen3(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {**written(c, "Qwen3ForCausalLM"), **windows_written(c), "attention_bias": c.attention_bias}


FAMILIES = [
    StackFamily("qwen2", "Qwen2", read_qwen2, pre_norm, last_norm, write_qwen2),
    StackFamily("qwen3", "Qwen3", read_qwen3, qwen3_layer, last_norm, write_qwen3),
]
