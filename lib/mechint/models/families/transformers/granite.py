"""Granite 3 (IBM 2024): a gated transformer with multipliers of embeddings, scores, parts and logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...stack import Stack
from .common import TransformerConfig, last_norm, pre_norm, read_rotation, read_sizes, written


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(TransformerConfig):
    """Sizes, switches and multipliers of a Granite 3."""

    residual_scale: float
    """Multiplies what every part adds to the stream."""
    attention_scale: float
    """Multiplies the products of queries and keys."""
    logit_divisor: float
    family = "granite"


def read(raw: ConfigReader) -> GraniteConfig:
    """The configuration of a ``config.json``."""
    sizes, heads, bias = read_sizes(raw), raw.heads(), raw.switch("attention_bias", False)
    divisor = raw.number("logits_scaling", 1.0)
    return GraniteConfig(
        **sizes, **heads, attention_bias=bias, out_bias=bias, mlp_bias=raw.switch("mlp_bias", False),
        rotation=read_rotation(raw, heads["d_head"]), windows=(0,) * sizes["n_layer"],
        embed_scale=raw.number("embedding_multiplier", 1.0, positive=False), logit_scale=1 / divisor,
        logit_divisor=divisor, residual_scale=raw.number("residual_multiplier", 1.0, positive=False),
        attention_scale=raw.number("attention_multiplier", 1.0, positive=False),
    )  # fmt: skip


def layer(c: GraniteConfig, i: int) -> Layer:
    """Attention and a gated feed-forward part, a norm in front of each."""
    return pre_norm(c, i, scale=c.attention_scale, added=c.residual_scale)


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        **written(c, "GraniteForCausalLM"), "attention_bias": c.attention_bias, "mlp_bias": c.mlp_bias,
        "embedding_multiplier": c.embed_scale, "logits_scaling": c.logit_divisor,
        "residual_multiplier": c.residual_scale, "attention_multiplier": c.attention_scale,
    }  # fmt: skip


FAMILIES = [StackFamily("granite", "Granite 3", read, layer, last_norm, write)]
