"""Gemma (Google 2024), Gemma 2 (2024) and the text part of Gemma 3 (2025): the weights of their norms are 1 + w.

Gemma 2 and 3 have a norm behind every part, too. Gemma 2 caps its scores and logits; Gemma 3 norms queries and keys,
and turns them otherwise where there is a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import NEEDED, ConfigReader
from ...parts.base import Branch, Layer
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...stack import Stack
from .common import (
    TransformerConfig,
    attention,
    pre_norm,
    read_cap,
    read_rotation,
    read_sizes,
    read_window,
    read_windows,
    written,
)

ACTIVATION = "hidden_activation"
SIDES = "vision_config boi_token_index eoi_token_index image_token_index mm_tokens_per_image"


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(TransformerConfig):
    """Sizes and switches of a Gemma."""

    embed_scale_rounded: bool = True
    family = "gemma"


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(TransformerConfig):
    """Sizes and switches of a Gemma 2."""

    query_size: float
    """Scores are multiplied by its square root's inverse; the size of a head in most models."""
    window: int
    """Sliding window of the layers that have one."""
    score_cap: float = 0.0
    """Scores are cap · tanh(score / cap); 0 leaves them as they are."""
    embed_scale_rounded: bool = True
    family = "gemma2"


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """Sizes and switches of the text part of a Gemma 3; the rotation is that of layers without a window."""

    window_rotation: Rotation
    """The rotation in layers with a window."""
    family = "gemma3_text"


def read_gemma1(raw: ConfigReader) -> GemmaConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("hidden_activation")  # transformers reads hidden_act alone
    raw.only("use_bidirectional_attention", False)
    if raw.raw.get("hidden_act") == "gelu":  # the published files' word for the approximation
        raw.raw["hidden_act"] = "gelu_pytorch_tanh"
    found = read_sizes(raw, tied=True, activation="hidden_act", vocabulary=256000)
    heads, bias = raw.heads(256, count=16, with_keys=16), raw.switch("attention_bias", False)
    return GemmaConfig(
        **found, **heads, attention_bias=bias, out_bias=bias, embed_scale=math.sqrt(found["d_model"]),
        rotation=read_rotation(raw, heads["d_head"]), windows=(0,) * found["n_layer"],
    )  # fmt: skip


def gemma1_layer(c: GemmaConfig, i: int) -> Layer:
    """Attention and a gated feed-forward part, a norm in front of each."""
    return pre_norm(c, i, norm=lambda size: RMSNorm(size, c.norm_eps, plus=1.0))


def write_gemma1(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {**written(c, "GemmaForCausalLM"), "attention_bias": c.attention_bias}


def read_gemma(raw: ConfigReader, every: int, **defaults: Any) -> dict[str, Any]:
    """The fields of Gemma 2 and 3.

    Args:
        every: Every how manieth layer has no window, where the layers' kinds are not said.
    """
    raw.ignore("hidden_act")  # transformers reads hidden_activation alone
    raw.only("use_bidirectional_attention", False)
    found = read_sizes(raw, tied=True, activation=ACTIVATION, vocabulary=defaults.pop("vocabulary"))
    window, bias = read_window(raw, 4096), raw.switch("attention_bias", False)
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(found["n_layer"])]
    return {
        **found, **raw.heads(256, **defaults),
        "attention_bias": bias, "out_bias": bias, "embed_scale": math.sqrt(found["d_model"]), "window": window,
        "windows": read_windows(raw, found["n_layer"], kinds, window),
        "query_size": raw.number("query_pre_attn_scalar", 256.0),
    }  # fmt: skip


def read_gemma2(raw: ConfigReader) -> Gemma2Config:
    """The configuration of a ``config.json``."""
    found = read_gemma(raw, 2, vocabulary=NEEDED, count=NEEDED, with_keys=4)
    return Gemma2Config(
        **found, rotation=read_rotation(raw, found["d_head"]),
        score_cap=read_cap(raw, "attn_logit_softcapping", 50.0),
        logit_cap=read_cap(raw, "final_logit_softcapping", 30.0),
    )  # fmt: skip


def read_gemma3(raw: ConfigReader) -> Gemma3Config:
    """The configuration of a ``config.json``; of a model that sees, its ``text_config``, which leaves defaults out."""
    if isinstance(text := raw.raw.get("text_config"), dict):
        raw.inside("text_config", text, SIDES)
    raw.ignore("_sliding_window_pattern")  # what layer_types was made of
    raw.only("attn_logit_softcapping", None)  # transformers has the key and caps no score
    found = read_gemma(raw, raw.size("sliding_window_pattern", 6), vocabulary=262208, count=8, with_keys=4)
    return Gemma3Config(
        **found, logit_cap=read_cap(raw, "final_logit_softcapping", 0.0),
        rotation=read_rotation(raw, found["d_head"], 1e6, "full_attention"),
        window_rotation=read_rotation(raw, found["d_head"], 1e4, "sliding_attention"),
    )  # fmt: skip


def layer(c: Gemma2Config, i: int) -> Layer:
    """Attention and a gated feed-forward part, each between two norms."""
    norm = lambda size=c.d_model: RMSNorm(size, c.norm_eps, plus=1.0)
    norms = rotation = None
    if isinstance(c, Gemma3Config):
        norms, rotation = (norm(c.d_head), norm(c.d_head)), c.window_rotation if c.windows[i] else c.rotation
    modules = {
        "input_layernorm": norm(),
        "self_attn": attention(c, i, norms, rotation=rotation, scale=c.query_size**-0.5, cap=c.score_cap),
        "post_attention_layernorm": norm(),
        "pre_feedforward_layernorm": norm(),
        "mlp": GatedMLP(c.d_model, c.d_mlp, c.activation),
        "post_feedforward_layernorm": norm(),
    }
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", ("self_attn",), {"self_attn": "post_attention_layernorm"})],
        [Branch("pre_feedforward_layernorm", "ln_2", ("mlp",), {"mlp": "post_feedforward_layernorm"})],
    )


def write_gemma(c: Gemma2Config, architecture: str) -> dict[str, Any]:
    """The entries of a ``config.json`` that both have."""
    found = written(c, architecture)
    return {
        **found, ACTIVATION: found.pop("hidden_act"), "attention_bias": c.attention_bias, "layer_types": c.kinds,
        "sliding_window": c.window or None, "query_pre_attn_scalar": int(c.query_size),
        "final_logit_softcapping": c.logit_cap or None,
    }  # fmt: skip


def write_gemma2(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {**write_gemma(c, "Gemma2ForCausalLM"), "attn_logit_softcapping": c.score_cap or None}


def write_gemma3(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``: that of a model of text alone."""
    c = model.config
    turns = {"full_attention": c.rotation, "sliding_attention": c.window_rotation}
    rotations = {kind: rotation.written(c.d_head) for kind, rotation in turns.items()}
    return {**write_gemma(c, "Gemma3ForCausalLM"), "rope_parameters": rotations}


def last_norm(c: TransformerConfig) -> RMSNorm:
    """The norm behind the last layer."""
    return RMSNorm(c.d_model, c.norm_eps, plus=1.0)


SEEING = Names(
    ("model.", "language_model.model.", "model.language_model."),
    left_out=r"(model\.)?(vision_tower|multi_modal_projector)\.",
    heads=("lm_head.", "language_model.lm_head."),
)
FAMILIES = [
    StackFamily("gemma", "Gemma", read_gemma1, gemma1_layer, last_norm, write_gemma1),
    StackFamily("gemma2", "Gemma 2", read_gemma2, layer, last_norm, write_gemma2),
    StackFamily("gemma3_text", "Gemma 3", read_gemma3, layer, last_norm, write_gemma3, SEEING, ("gemma3",)),
]
