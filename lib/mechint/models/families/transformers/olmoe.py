"""OLMo (Groeneveld et al. 2024), whose norms have no weight, and OLMoE (Muennighoff et al. 2024), a mixture of experts.

Both may bound queries, keys and values; an OLMoE norms whole queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.norms import RMSNorm, WeightlessLayerNorm
from ...stack import Stack
from ..recurrent.qwen3_5 import ROUTER, STACKED
from .common import (
    TransformerConfig,
    check_shares,
    last_norm,
    pre_norm,
    read_cap,
    read_experts,
    read_rotation,
    read_sizes,
    written,
)


@dataclass(frozen=True, kw_only=True)
class OlmoConfig(TransformerConfig):
    """Sizes and switches of an OLMo."""

    clip: float
    """The largest size of entries of queries, keys and values; 0 for any."""
    family = "olmo"


@dataclass(frozen=True, kw_only=True)
class OlmoeConfig(OlmoConfig):
    """Sizes and switches of an OLMoE; ``d_mlp`` are the neurons of an expert."""

    experts: int
    routing: Routing
    family = "olmoe"


def read_both(raw: ConfigReader, eps_name: str) -> dict[str, Any]:
    """The fields of both."""
    sizes, heads, bias = read_sizes(raw, eps=1e-5, eps_name=eps_name), raw.heads(), raw.switch("attention_bias", False)
    return {
        **sizes, **heads, "attention_bias": bias, "out_bias": bias, "rotation": read_rotation(raw, heads["d_head"]),
        "windows": (0,) * sizes["n_layer"], "clip": read_cap(raw, "clip_qkv", 0.0),
    }  # fmt: skip


def read_olmo(raw: ConfigReader) -> OlmoConfig:
    """The configuration of a ``config.json``; all norms add 1e-5 to the variance."""
    raw.ignore("pretraining_tp")
    return OlmoConfig(**read_both(raw, ""))


def read_olmoe(raw: ConfigReader) -> OlmoeConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("output_router_logits router_aux_loss_coef")
    found, experts = read_both(raw, "rms_norm_eps"), read_experts(raw)
    check_shares(raw, found["d_model"], found["n_head"])
    routing = Routing(raw.size("num_experts_per_tok"), normalised=raw.switch("norm_topk_prob", False))
    routing.check(experts, raw.where)
    return OlmoeConfig(**found, experts=experts, routing=routing)


def olmo_layer(c: OlmoConfig, i: int) -> Layer:
    """Attention and a gated feed-forward part, a norm without a weight in front of each."""
    return pre_norm(c, i, norm=lambda size: WeightlessLayerNorm(c.norm_eps), clip=c.clip)


def olmoe_layer(c: OlmoeConfig, i: int) -> Layer:
    """Attention with norms of whole queries and keys, and experts."""
    norms = RMSNorm(c.n_head * c.d_head, c.norm_eps), RMSNorm(c.n_kv_head * c.d_head, c.norm_eps)
    experts = MixtureOfExperts(c.d_model, c.d_mlp, c.experts, c.routing, c.activation)
    return pre_norm(c, i, norms, whole_norms=True, clip=c.clip, feed=experts)


def write_olmo(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    said = {key: value for key, value in written(c, "OlmoForCausalLM").items() if key != "rms_norm_eps"}
    return {**said, "attention_bias": c.attention_bias, "clip_qkv": c.clip or None}


def write_olmoe(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        **written(c, "OlmoeForCausalLM"), "attention_bias": c.attention_bias, "clip_qkv": c.clip or None,
        "num_experts": c.experts, "num_experts_per_tok": c.routing.chosen, "norm_topk_prob": c.routing.normalised,
    }  # fmt: skip


FAMILIES = [
    StackFamily("olmo", "OLMo", read_olmo, olmo_layer, lambda c: WeightlessLayerNorm(c.norm_eps), write_olmo),
    StackFamily(
        "olmoe", "OLMoE", read_olmoe, olmoe_layer, last_norm, write_olmoe, Names(renamed=ROUTER, fused=STACKED)
    ),
]
