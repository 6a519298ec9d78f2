"""GLM-4 (Zeng et al. 2024, ``glm``) and GLM-4-0414 (2025, ``glm4``): half of each head is turned, neighbours as pairs.

A ``glm4`` has a norm behind every part, too. Files hold the gates and values of neurons as one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Branch, Layer
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...stack import Stack
from .common import TransformerConfig, attention, last_norm, pre_norm, read_sizes, written
from .phi import GATED


@dataclass(frozen=True, kw_only=True)
class GlmConfig(TransformerConfig):
    """Sizes and switches of a GLM-4."""

    family = "glm"


@dataclass(frozen=True, kw_only=True)
class Glm4Config(TransformerConfig):
    """Sizes and switches of a GLM-4-0414."""

    family = "glm4"


def fields(raw: ConfigReader) -> dict[str, Any]:
    """The fields of both: queries, keys and values have biases where nothing is said."""
    sizes, heads = read_sizes(raw, eps=1.5625e-7), raw.heads(128, with_keys=2)
    return {
        **sizes, **heads, "attention_bias": raw.switch("attention_bias", True), "windows": (0,) * sizes["n_layer"],
        "rotation": replace(raw.rotation(heads["d_head"], fraction=0.5), interleaved=True),
    }  # fmt: skip


def glm4_layer(c: Glm4Config, i: int) -> Layer:
    """Attention and a gated feed-forward part, each between two norms."""
    norm = lambda: RMSNorm(c.d_model, c.norm_eps)
    modules = {
        "input_layernorm": norm(),
        "self_attn": attention(c, i),
        "post_self_attn_layernorm": norm(),
        "post_attention_layernorm": norm(),
        "mlp": GatedMLP(c.d_model, c.d_mlp, c.activation),
        "post_mlp_layernorm": norm(),
    }
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", ("self_attn",), {"self_attn": "post_self_attn_layernorm"})],
        [Branch("post_attention_layernorm", "ln_2", ("mlp",), {"mlp": "post_mlp_layernorm"})],
    )


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    said = written(c, "GlmForCausalLM" if c.family == "glm" else "Glm4ForCausalLM")
    # transformers turns half of each head where no part is said; its padding token is none of a small vocabulary
    turned = {"partial_rotary_factor": 1.0, **c.rotation.written(c.d_head)}
    return {**said, "attention_bias": c.attention_bias, "rope_parameters": turned, "pad_token_id": None}


NAMES = Names(fused=(GATED,))
FAMILIES = [
    StackFamily("glm", "GLM-4", lambda raw: GlmConfig(**fields(raw)), pre_norm, last_norm, write, NAMES),
    StackFamily("glm4", "GLM-4-0414", lambda raw: Glm4Config(**fields(raw)), glm4_layer, last_norm, write, NAMES),
]
