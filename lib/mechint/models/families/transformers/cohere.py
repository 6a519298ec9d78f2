"""Command R (Cohere 2024) and Command R7B: attention and a gated feed-forward part behind one norm without a bias.

Neighbouring dimensions of a head are turned as pairs. In a Command R7B only layers with a window have a rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...family import Fused, Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.feed_forward import GatedMLP
from ...parts.norms import LayerNorm
from ...stack import Stack
from .common import (
    TransformerConfig,
    check_shares,
    head_norms,
    parallel,
    read_rotation,
    read_sizes,
    read_window,
    read_windows,
    written,
)

EPS = "layer_norm_eps"


@dataclass(frozen=True, kw_only=True)
class CohereConfig(TransformerConfig):
    """Sizes and switches of a Command R."""

    qk_norm: bool = False
    """True if each head's queries and keys are normed."""
    family = "cohere"


@dataclass(frozen=True, kw_only=True)
class Cohere2Config(CohereConfig):
    """Sizes and switches of a Command R7B."""

    family = "cohere2"


def read_both(raw: ConfigReader, theta: float) -> dict[str, Any]:
    """The fields of both."""
    sizes, heads = read_sizes(raw, eps=1e-5, tied=True, eps_name=EPS), raw.heads()
    bias = raw.switch("attention_bias", False)
    return {
        **sizes, **heads, "attention_bias": bias, "out_bias": bias, "logit_scale": raw.number("logit_scale", 0.0625),
        "rotation": read_rotation(raw, heads["d_head"], theta, interleaved=True),
    }  # fmt: skip


def read_cohere(raw: ConfigReader) -> CohereConfig:
    """The configuration of a ``config.json``."""
    found = read_both(raw, 5e5)
    return CohereConfig(**found, windows=(0,) * found["n_layer"], qk_norm=raw.switch("use_qk_norm", False))


def read_cohere2(raw: ConfigReader) -> Cohere2Config:
    """The configuration of a ``config.json``: three layers of four have a window where nothing is said."""
    found, window, every = read_both(raw, 1e4), read_window(raw, 4096), raw.size("sliding_window_pattern", 4)
    check_shares(raw, found["d_model"], found["n_head"])
    for name, value in (("layer_switch", every), ("order_of_interleaved_layers", "local_attn_first"),
                        ("position_embedding_type", "rope_gptj"), ("rotary_pct", 1.0), ("use_gated_activation", True),
                        ("use_embedding_sharing", found["tied"]), ("use_parallel_block", True)):  # fmt: skip
        raw.only(name, value)  # keys of published files that transformers does not read
    raw.ignore("use_parallel_embedding _sliding_window_pattern")
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(found["n_layer"])]
    windows = read_windows(raw, found["n_layer"], kinds, window)
    return Cohere2Config(**found, windows=windows, unturned=tuple(i for i, size in enumerate(windows) if not size))


def last_norm(c: CohereConfig) -> LayerNorm:
    """The norm behind the last layer."""
    return LayerNorm(c.d_model, c.norm_eps, bias=False)


def layer(c: CohereConfig, i: int) -> Layer:
    """Attention and a gated feed-forward part behind one norm."""
    norms = head_norms(c) if c.qk_norm else None
    return parallel(c, i, last_norm(c), GatedMLP(c.d_model, c.d_mlp, c.activation), norms)


def write_both(c: CohereConfig, architecture: str) -> dict[str, Any]:
    """The entries of a ``config.json`` that both have."""
    return {**written(c, architecture, EPS), "attention_bias": c.attention_bias, "logit_scale": c.logit_scale}


def write_cohere(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    return {**write_both(model.config, "CohereForCausalLM"), "use_qk_norm": model.config.qk_norm}


def write_cohere2(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    said = {**write_both(c, "Cohere2ForCausalLM"), "layer_types": c.kinds}
    return {**said, "sliding_window": max(c.windows) or None}


def split(weights: Tensor, c: CohereConfig) -> Sequence[Tensor]:
    """The weights of each head's norm, of the tensor [head, dimension] that a file holds."""
    return weights.unbind()


def join(weights: Sequence[Tensor], c: CohereConfig) -> Tensor:
    """The tensor [head, dimension] that a file holds."""
    return torch.stack(list(weights))


NAMES = Names(fused=tuple(Fused((f"{part}_norm.norms.*",), f"{part}_norm", split, join) for part in "qk"))
FAMILIES = [
    StackFamily("cohere", "Command R", read_cohere, layer, last_norm, write_cohere, NAMES),
    StackFamily("cohere2", "Command R7B", read_cohere2, layer, last_norm, write_cohere2),
]
