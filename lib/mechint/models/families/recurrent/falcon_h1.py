"""Falcon-H1 (Zuo et al. 2025): Mamba-2 and attention on one normed input; every product has a multiplier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer
from ...parts.feed_forward import GatedMLP
from ...parts.mamba2 import Mamba2Mixer
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig


@dataclass(frozen=True, kw_only=True)
class FalconH1Config(StackConfig):
    """Sizes, switches and multipliers of a Falcon-H1."""

    n_head: int
    n_kv_head: int
    d_head: int
    attention_bias: bool
    rotation: Rotation
    d_mlp: int
    mlp_bias: bool
    activation: str
    ssm_heads: int
    ssm_head_size: int
    d_state: int
    n_groups: int
    d_conv: int
    conv_bias: bool
    proj_bias: bool
    norm_eps: float
    gated_norm: str
    """``product`` norms the gated read-out, ``first`` gates the normed one, ``none`` has no norm."""
    dt_limits: tuple[float, float] = (0.0, math.inf)
    key_scale: float = 1.0
    attention_in: float = 1.0
    attention_out: float = 1.0
    ssm_in: float = 1.0
    ssm_out: float = 1.0
    ssm_scales: tuple[float, ...] = (1.0,) * 5
    """Multipliers of z, x, B, C and dt."""
    mlp_scales: tuple[float, ...] = (1.0, 1.0)
    """Multipliers of the gate and of the output of the feed-forward part."""
    family = "falcon_h1"


def read(raw: ConfigReader) -> FalconH1Config:
    """The configuration of a ``config.json``."""
    raw.ignore("num_logits_to_keep max_position_embeddings mamba_chunk_size mamba_use_mlp")
    d_model, heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    d_head = raw.size("head_dim", None) or d_model // heads
    ssm_heads, expand = raw.size("mamba_n_heads"), raw.number("mamba_expand", 2)
    inner = raw.size("mamba_d_ssm", None) or int(expand * d_model)
    raw.only("mamba_d_head", "auto", inner // ssm_heads)
    raw.only("projectors_bias", raw.switch("mamba_proj_bias", False), False)
    gated = raw.switch("mamba_rms_norm", False), raw.switch("mamba_norm_before_gate", True)
    return FalconH1Config(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        n_layer=raw.size("num_hidden_layers"),
        tied=raw.switch("tie_word_embeddings", False),
        embed_scale=raw.number("embedding_multiplier", 1.0, positive=False),
        logit_scale=raw.number("lm_head_multiplier", 1.0, positive=False),
        n_head=heads,
        n_kv_head=raw.size("num_key_value_heads", heads),
        d_head=d_head,
        attention_bias=raw.switch("attention_bias", False),
        rotation=raw.rotation(d_head),
        d_mlp=raw.size("intermediate_size"),
        mlp_bias=raw.switch("mlp_bias", False),
        activation=raw.activation("hidden_act"),
        ssm_heads=ssm_heads,
        ssm_head_size=inner // ssm_heads,
        d_state=raw.size("mamba_d_state"),
        n_groups=raw.size("mamba_n_groups", 1),
        d_conv=raw.size("mamba_d_conv", 4),
        conv_bias=raw.switch("mamba_conv_bias", True),
        proj_bias=raw.switch("mamba_proj_bias", False),
        norm_eps=raw.number("rms_norm_eps", 1e-5),
        gated_norm="none" if not gated[0] else "first" if gated[1] else "product",
        dt_limits=raw.limits("time_step_limit"),
        key_scale=raw.number("key_multiplier", 1.0, positive=False),
        attention_in=raw.number("attention_in_multiplier", 1.0, positive=False),
        attention_out=raw.number("attention_out_multiplier", 1.0, positive=False),
        ssm_in=raw.number("ssm_in_multiplier", 1.0, positive=False),
        ssm_out=raw.number("ssm_out_multiplier", 1.0, positive=False),
        ssm_scales=raw.numbers("ssm_multipliers", 5, [1.0] * 5),
        mlp_scales=raw.numbers("mlp_multipliers", 2, [1.0] * 2),
    )


def layer(c: FalconH1Config, i: int) -> Layer:
    """Mamba-2 and attention on one normed input, then a gated feed-forward part."""
    mamba = Mamba2Mixer(
        c.d_model, c.ssm_heads, c.ssm_head_size, c.d_state, c.n_groups, c.d_conv, conv_bias=c.conv_bias,
        proj_bias=c.proj_bias, eps=c.norm_eps, norm=c.gated_norm, norm_groups=c.n_groups, limits=c.dt_limits,
        in_scale=c.ssm_in, out_scale=c.ssm_out, scales=c.ssm_scales, activation=c.activation,
    )  # fmt: skip
    attention = Attention(
        c.d_model, c.n_head, c.n_kv_head, c.d_head, bias=c.attention_bias, out_bias=c.attention_bias,
        rotation=c.rotation, key_scale=c.key_scale, in_scale=c.attention_in, out_scale=c.attention_out,
    )  # fmt: skip
    modules = {
        "input_layernorm": RMSNorm(c.d_model, c.norm_eps),
        "mamba": mamba,
        "self_attn": attention,
        "pre_ff_layernorm": RMSNorm(c.d_model, c.norm_eps),
        "feed_forward": GatedMLP(c.d_model, c.d_mlp, c.activation, c.mlp_bias, *c.mlp_scales),
    }
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", ("mamba", "self_attn"))],
        [Branch("pre_ff_layernorm", "ln_2", ("feed_forward",))],
    )


def asked(a: Asked) -> FalconH1Config:
    """The configuration of a model to train, with multipliers of 1."""
    heads = a.attention()
    return FalconH1Config(
        **a.stream(), **heads, attention_bias=False, rotation=a.rotation(heads["d_head"]), d_mlp=a.d_mlp(),
        mlp_bias=False, activation="silu", **a.mamba2(), norm_eps=1e-5, gated_norm="none",
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        "architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head, "head_dim": c.d_head,
        "attention_bias": c.attention_bias, "rope_parameters": c.rotation.written(c.d_head),
        "intermediate_size": c.d_mlp,
        "mlp_bias": c.mlp_bias, "hidden_act": c.activation, "mamba_n_heads": c.ssm_heads,
        "mamba_d_head": c.ssm_head_size, "mamba_d_ssm": c.ssm_heads * c.ssm_head_size, "mamba_d_state": c.d_state,
        "mamba_n_groups": c.n_groups, "mamba_d_conv": c.d_conv, "mamba_conv_bias": c.conv_bias,
        "mamba_proj_bias": c.proj_bias, "projectors_bias": c.proj_bias, "rms_norm_eps": c.norm_eps,
        "mamba_rms_norm": c.gated_norm != "none", "mamba_norm_before_gate": c.gated_norm != "product",
        "time_step_limit": list(c.dt_limits), "embedding_multiplier": c.embed_scale,
        "lm_head_multiplier": c.logit_scale,
        "key_multiplier": c.key_scale, "attention_in_multiplier": c.attention_in,
        "attention_out_multiplier": c.attention_out, "ssm_in_multiplier": c.ssm_in, "ssm_out_multiplier": c.ssm_out,
        "ssm_multipliers": list(c.ssm_scales), "mlp_multipliers": list(c.mlp_scales),
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "falcon_h1", "Falcon-H1", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(renamed={r"^norm\.": "final_layernorm."}),
        trained=Trained({"parallel": "parallel"}, "parallel parallel", asked),
    )
]  # fmt: skip
