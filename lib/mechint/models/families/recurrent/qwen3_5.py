"""Qwen3-Next and the text part of Qwen3.5: gated delta rules, and in some layers attention with an output gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....utils.errors import MechintError
from ...family import Fused, Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer
from ...parts.delta import GatedDelta
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...stack import Stack, StackConfig

KINDS = {"linear_attention": "delta", "full_attention": "attention"}


@dataclass(frozen=True, kw_only=True)
class Qwen35Config(StackConfig):
    """Sizes and switches of a Qwen3-Next, or of the text part of a Qwen3.5."""

    kinds: Sequence[str]
    """``delta`` or ``attention``, for each layer."""
    n_head: int
    n_kv_head: int
    d_head: int
    attention_bias: bool
    rotation: Rotation
    d_mlp: int
    activation: str
    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    d_conv: int
    norm_eps: float
    family = "qwen3_5"


@dataclass(frozen=True, kw_only=True)
class Qwen3NextConfig(Qwen35Config):
    """Sizes and switches of a Qwen3-Next."""

    family = "qwen3_next"


def read(raw: ConfigReader) -> Qwen35Config:
    """The configuration of a ``config.json``; of a published one its ``text_config``."""
    if isinstance(text := raw.raw.get("text_config"), dict):
        raw.inside("text_config", text, "vision_config image_token_id video_token_id vision_start_token_id "
                   "vision_end_token_id")  # fmt: skip
    raw.ignore("mtp_num_hidden_layers mamba_ssm_dtype mtp_use_dedicated_embeddings")
    raw.only("attn_output_gate", True)
    return Qwen35Config(**sizes(raw))


def read_next(raw: ConfigReader) -> Qwen3NextConfig:
    """The configuration of a ``config.json`` of Qwen3-Next."""
    raw.ignore("router_aux_loss_coef moe_intermediate_size shared_expert_intermediate_size num_experts_per_tok "
               "norm_topk_prob")  # fmt: skip
    dense_only(raw, raw.size("num_hidden_layers"))
    return Qwen3NextConfig(**sizes(raw))


def dense_only(raw: ConfigReader, n_layer: int) -> None:
    """Refuses a configuration that has a mixture of experts in some layer."""
    dense, every = raw.raw.get("mlp_only_layers") or [], raw.size("decoder_sparse_step", 1)
    raw.ignore("mlp_only_layers")
    mixed = [i for i in range(n_layer) if i not in dense and (i + 1) % every == 0]
    if mixed:
        raw.only("num_experts", 0)
        if raw.raw.get("num_experts") is None:
            raise MechintError(f"{raw.where}: layer {mixed[0]} has a mixture of experts; not supported")
    raw.ignore("num_experts")


def sizes(raw: ConfigReader) -> dict[str, Any]:
    """The fields that both families have, from the keys that both have."""
    raw.ignore("max_position_embeddings")
    heads, n_layer = raw.size("num_attention_heads"), raw.size("num_hidden_layers")
    every = raw.size("full_attention_interval", 4)
    default = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(n_layer)]
    d_head = raw.size("head_dim", 256)
    kinds = tuple(raw.kinds("layer_types", KINDS, n_layer, default))
    if "delta" in kinds:
        raw.only("hidden_act", "silu", "swish")  # it is the activation behind the convolution, too
    key_heads, value_heads = raw.size("linear_num_key_heads"), raw.size("linear_num_value_heads")
    if value_heads % key_heads:
        raise MechintError(
            f"{raw.where}: linear_num_value_heads = {value_heads} is no multiple of linear_num_key_heads = {key_heads}"
        )
    return dict(
        vocab_size=raw.size("vocab_size"),
        d_model=raw.size("hidden_size"),
        n_layer=n_layer,
        tied=raw.switch("tie_word_embeddings", False),
        kinds=kinds,
        n_head=heads,
        n_kv_head=raw.size("num_key_value_heads", heads),
        d_head=d_head,
        attention_bias=raw.switch("attention_bias", False),
        rotation=raw.rotation(d_head, fraction=0.25),
        d_mlp=raw.size("intermediate_size"),
        activation=raw.activation("hidden_act"),
        key_heads=key_heads,
        value_heads=value_heads,
        key_size=raw.size("linear_key_head_dim"),
        value_size=raw.size("linear_value_head_dim"),
        d_conv=raw.size("linear_conv_kernel_dim", 4),
        norm_eps=raw.number("rms_norm_eps", 1e-6),
    )


def layer(c: Qwen35Config, i: int) -> Layer:
    """A delta rule or attention, then a gated feed-forward part."""
    norm = lambda size: RMSNorm(size, c.norm_eps, plus=1.0)
    mixer: dict[str, Any]
    if c.kinds[i] == "delta":
        mixer = {
            "linear_attn": GatedDelta(
                c.d_model, c.key_heads, c.value_heads, c.key_size, c.value_size, c.d_conv, c.norm_eps
            )
        }
    else:
        attention = Attention(
            c.d_model, c.n_head, c.n_kv_head, c.d_head, bias=c.attention_bias, out_bias=c.attention_bias,
            rotation=c.rotation, norms=(norm(c.d_head), norm(c.d_head)), gated=True,
        )  # fmt: skip
        mixer = {"self_attn": attention}
    modules = {
        "input_layernorm": norm(c.d_model), **mixer, "post_attention_layernorm": norm(c.d_model),
        "mlp": GatedMLP(c.d_model, c.d_mlp, c.activation),
    }  # fmt: skip
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", tuple(mixer))],
        [Branch("post_attention_layernorm", "ln_2", ("mlp",))],
    )


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {ours: theirs for theirs, ours in KINDS.items()}
    return {
        "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "layer_types": [names[kind] for kind in c.kinds], "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head, "head_dim": c.d_head, "attention_bias": c.attention_bias,
        "rope_parameters": c.rotation.written(c.d_head), "intermediate_size": c.d_mlp, "hidden_act": c.activation,
        "linear_num_key_heads": c.key_heads, "linear_num_value_heads": c.value_heads,
        "linear_key_head_dim": c.key_size, "linear_value_head_dim": c.value_size,
        "linear_conv_kernel_dim": c.d_conv, "rms_norm_eps": c.norm_eps,
    }  # fmt: skip


def write_next(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json`` of Qwen3-Next."""
    names = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}
    return {**write(model), **names, "num_experts": 0}


def join_heads(parts: Sequence[Tensor], c: Qwen35Config, widths: Sequence[int]) -> Tensor:
    """Rows of several projections, of which each key head has so many, ordered by key head."""
    each = [part.unflatten(0, (c.key_heads, width)) for part, width in zip(parts, widths, strict=True)]
    return torch.cat(each, 1).flatten(0, 1)


def split_heads(whole: Tensor, c: Qwen35Config, widths: Sequence[int]) -> list[Tensor]:
    """The projections of rows that are ordered by key head."""
    return [part.flatten(0, 1) for part in whole.unflatten(0, (c.key_heads, -1)).split(list(widths), 1)]


def widths(c: Qwen35Config) -> list[int]:
    """Rows of queries, keys, values and output gates for each key head."""
    values = c.value_heads // c.key_heads * c.value_size
    return [c.key_size, c.key_size, values, values]


def join_qkvz(parts: Sequence[Tensor], c: Qwen35Config) -> Tensor:
    qkv, z = parts
    keys = c.key_heads * c.key_size
    return join_heads([*qkv.split([keys, keys, c.value_heads * c.value_size]), z], c, widths(c))


def split_qkvz(whole: Tensor, c: Qwen35Config) -> list[Tensor]:
    *qkv, z = split_heads(whole, c, widths(c))
    return [torch.cat(qkv), z]


IN_PROJECTIONS = (
    Fused(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz", split_qkvz, join_qkvz),
    Fused(("in_proj_b", "in_proj_a"), "in_proj_ba", lambda whole, c: split_heads(whole, c, shares(c)),
          lambda parts, c: join_heads(parts, c, shares(c))),
)  # fmt: skip
"""Qwen3-Next's projections, in which the rows of every key head stand together."""


def shares(c: Qwen35Config) -> list[int]:
    """Write strengths and decays for each key head."""
    return [c.value_heads // c.key_heads] * 2


FAMILIES = [
    StackFamily(
        "qwen3_next", "Qwen3-Next", read_next, layer, lambda c: RMSNorm(c.d_model, c.norm_eps, plus=1.0), write_next,
        Names(fused=IN_PROJECTIONS, left_out=r"mtp\."),
    ),
    StackFamily(
        "qwen3_5", "Qwen3.5", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps, plus=1.0), write,
        Names(("model.", "model.language_model."), left_out=r"(model\.)?(visual|mtp)\."), ("qwen3_5_text",),
    )
]  # fmt: skip
