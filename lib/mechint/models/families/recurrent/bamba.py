"""Bamba (IBM, Princeton, CMU & UIUC 2024): Mamba-2 and in some layers attention, each behind it a feed-forward part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError, shown
from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.attention import PLAIN, Attention, Reading
from ...parts.base import Branch, Layer, Part
from ...parts.feed_forward import GatedMLP
from ...parts.mamba2 import Mamba2Mixer
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig


@dataclass(frozen=True, kw_only=True)
class HybridConfig(StackConfig):
    """Sizes and switches of a hybrid of Mamba-2 and attention, as Bamba and Granite 4 have them."""

    kinds: Sequence[str]
    """``mamba`` or ``attention``, for each layer."""
    n_head: int
    n_kv_head: int
    d_head: int
    attention_bias: bool
    rotation: Rotation | None
    activation: str
    """Activation of the feed-forward parts, and behind the mixers' convolutions."""
    ssm_heads: int
    ssm_head_size: int
    d_state: int
    n_groups: int
    d_conv: int
    conv_bias: bool
    proj_bias: bool
    norm_eps: float
    dt_limits: tuple[float, float] = (0.0, math.inf)
    """The least and the largest step size."""


@dataclass(frozen=True, kw_only=True)
class BambaConfig(HybridConfig):
    """Sizes and switches of a Bamba."""

    d_mlp: int
    mlp_bias: bool
    family = "bamba"


def read_hybrid(raw: ConfigReader, default_eps: float) -> dict[str, Any]:
    """The fields of a hybrid's configuration that Bamba and Granite 4 call alike: all but kinds and rotation."""
    raw.ignore("max_position_embeddings mamba_chunk_size")
    d_model, heads = raw.size("hidden_size"), raw.size("num_attention_heads")
    ssm_heads, inner = raw.size("mamba_n_heads"), raw.size("mamba_expand", 2) * d_model
    if inner % ssm_heads:
        raise MechintError(
            f"{raw.where}: a mixer of the width {inner} (mamba_expand * hidden_size) has no {ssm_heads} equal heads "
            "(mamba_n_heads); correct it"
        )
    raw.only("mamba_d_head", "auto", inner // ssm_heads)
    return {
        "vocab_size": raw.size("vocab_size"),
        "d_model": d_model,
        "n_layer": raw.size("num_hidden_layers"),
        "tied": raw.switch("tie_word_embeddings", False),
        "n_head": heads,
        "d_head": raw.size("head_dim", None) or d_model // heads,
        "attention_bias": raw.switch("attention_bias", False),
        "activation": raw.activation("hidden_act"),
        "ssm_heads": ssm_heads,
        "ssm_head_size": inner // ssm_heads,
        "d_state": raw.size("mamba_d_state", 256),
        "n_groups": raw.size("mamba_n_groups", 1),
        "d_conv": raw.size("mamba_d_conv", 4),
        "conv_bias": raw.switch("mamba_conv_bias", True),
        "proj_bias": raw.switch("mamba_proj_bias", False),
        "norm_eps": raw.number("rms_norm_eps", default_eps),
        "dt_limits": raw.limits("time_step_limit"),
    }


def mixer(c: HybridConfig, i: int, how: Reading = PLAIN) -> tuple[str, Part]:
    """The attribute of a layer's mixer, and the mixer: Mamba-2 or attention."""
    if c.kinds[i] == "mamba":
        return "mamba", Mamba2Mixer(
            c.d_model, c.ssm_heads, c.ssm_head_size, c.d_state, c.n_groups, c.d_conv, conv_bias=c.conv_bias,
            proj_bias=c.proj_bias, eps=c.norm_eps, norm_groups=c.n_groups, limits=c.dt_limits,
            activation=c.activation,
        )  # fmt: skip
    return "self_attn", Attention(
        c.d_model, c.n_head, c.n_kv_head, c.d_head, bias=c.attention_bias, out_bias=c.attention_bias,
        rotation=c.rotation, how=how,
    )  # fmt: skip


def written(c: HybridConfig) -> dict[str, Any]:
    """The keys of a ``config.json`` that Bamba and Granite 4 call alike."""
    return {
        "vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layer,
        "tie_word_embeddings": c.tied, "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head,
        "attention_bias": c.attention_bias, "hidden_act": c.activation, "mamba_n_heads": c.ssm_heads,
        "mamba_d_head": c.ssm_head_size, "mamba_expand": c.ssm_heads * c.ssm_head_size // c.d_model,
        "mamba_d_state": c.d_state, "mamba_n_groups": c.n_groups, "mamba_d_conv": c.d_conv,
        "mamba_conv_bias": c.conv_bias, "mamba_proj_bias": c.proj_bias, "rms_norm_eps": c.norm_eps,
        "time_step_limit": list(c.dt_limits),
        **({} if c.d_head * c.n_head == c.d_model else {"head_dim": c.d_head}),
        **({} if c.rotation is None else {"rope_parameters": c.rotation.written(c.d_head)}),
    }  # fmt: skip


def read(raw: ConfigReader) -> BambaConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("num_logits_to_keep z_loss_coefficient")
    common = read_hybrid(raw, 1e-5)
    said = "num_key_value_heads" in raw.raw
    raw.only("partial_rotary_factor", 0.5)  # transformers takes half a head whatever stands here
    rotation = raw.rotation(common["d_head"], fraction=0.5)
    raw.only("attn_rotary_emb", rotation.size or common["d_head"])
    return BambaConfig(
        **common,
        kinds=kinds(raw, common["n_layer"]),
        n_kv_head=raw.size("num_key_value_heads", common["n_head"] if said else 8),
        rotation=rotation,
        d_mlp=raw.size("intermediate_size"),
        mlp_bias=raw.switch("mlp_bias", False),
    )


def kinds(raw: ConfigReader, n_layer: int) -> tuple[str, ...]:
    """The kind of each layer: ``attn_layer_indices`` lists those with attention."""
    listed = raw.raw.get("attn_layer_indices") or []
    raw.ignore("attn_layer_indices")
    if not isinstance(listed, (list, tuple)) or not all(type(i) is int and 0 <= i < n_layer for i in listed):
        raise MechintError(
            f"{raw.where}: attn_layer_indices is {shown(listed)}, which is no list of numbers of {n_layer} layers, "
            f"0 to {n_layer - 1}; correct it"
        )
    return tuple("attention" if i in listed else "mamba" for i in range(n_layer))


def layer(c: BambaConfig, i: int) -> Layer:
    """Mamba-2 or attention, then a gated feed-forward part."""
    name, part = mixer(c, i)
    modules = {
        "input_layernorm": RMSNorm(c.d_model, c.norm_eps), name: part,
        "pre_ff_layernorm": RMSNorm(c.d_model, c.norm_eps),
        "feed_forward": GatedMLP(c.d_model, c.d_mlp, c.activation, c.mlp_bias),
    }  # fmt: skip
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", (name,))],
        [Branch("pre_ff_layernorm", "ln_2", ("feed_forward",))],
    )


WORDS = {"mamba2": "mamba", "attention": "attention"}
"""Words of a pattern of layers to train."""


def asked_hybrid(a: Asked) -> dict[str, Any]:
    """The fields of a hybrid to train, as Bamba and Granite 4 have them: all but the rotation and the feed-forward."""
    return {
        **a.stream(), "kinds": a.kinds, **a.attention(a.has("attention")), **a.mamba2(a.has("mamba")),
        "attention_bias": False, "activation": "silu", "norm_eps": 1e-5,
    }  # fmt: skip


def asked(a: Asked) -> BambaConfig:
    """The configuration of a model to train."""
    common = asked_hybrid(a)
    rotation = a.rotation(common["d_head"], 0.5, a.has("attention"))
    return BambaConfig(**common, rotation=rotation, d_mlp=a.d_mlp(), mlp_bias=False)


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        "architectures": ["BambaForCausalLM"], "model_type": "bamba", **written(c), "intermediate_size": c.d_mlp,
        "mlp_bias": c.mlp_bias, "attn_layer_indices": [i for i, kind in enumerate(c.kinds) if kind == "attention"],
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "bamba", "Bamba", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(renamed={r"^norm\.": "final_layernorm."}),
        trained=Trained(WORDS, "mamba2 attention", asked),
    )
]  # fmt: skip
