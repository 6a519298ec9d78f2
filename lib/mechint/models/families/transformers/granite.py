"""Granite 3 (IBM 2024): a gated transformer with multipliers of embeddings, scores, parts and logits.

In every layer of a ``granitemoe`` a router chooses among feed-forward experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily, stacked
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.experts import MixtureOfExperts, Routing
from ...stack import Stack
from .common import TransformerConfig, last_norm, pre_norm, read_experts, read_rotation, read_sizes, written


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(TransformerConfig):
    """Sizes, switches and multipliers of a Granite 3."""

    residual_scale: float
    """Multiplies what every part adds to the stream."""
    attention_scale: float
    """Multiplies the products of queries and keys."""
    logit_divisor: float
    family = "granite"


@dataclass(frozen=True, kw_only=True)
class GraniteMoeConfig(GraniteConfig):
    """Sizes, switches and multipliers of a Granite 3 of experts; ``d_mlp`` are the neurons of an expert."""

    experts: int
    routing: Routing
    family = "granitemoe"


def read_both(raw: ConfigReader) -> dict[str, Any]:
    """The fields of both."""
    sizes, heads, bias = read_sizes(raw), raw.heads(), raw.switch("attention_bias", False)
    divisor = raw.number("logits_scaling", 1.0)
    number = lambda name: raw.number(name, 1.0, positive=False)
    return {
        **sizes, **heads, "attention_bias": bias, "out_bias": bias, "rotation": read_rotation(raw, heads["d_head"]),
        "windows": (0,) * sizes["n_layer"], "embed_scale": number("embedding_multiplier"), "logit_scale": 1 / divisor,
        "logit_divisor": divisor, "residual_scale": number("residual_multiplier"),
        "attention_scale": number("attention_multiplier"),
    }  # fmt: skip


def read(raw: ConfigReader) -> GraniteConfig:
    """The configuration of a ``config.json``."""
    return GraniteConfig(**read_both(raw), mlp_bias=raw.switch("mlp_bias", False))


def read_moe(raw: ConfigReader) -> GraniteMoeConfig:
    """The configuration of a ``config.json``: the weights of experts are probabilities among the chosen ones."""
    raw.ignore("output_router_logits router_aux_loss_coef")
    experts, routing = read_experts(raw), Routing(raw.size("num_experts_per_tok", 2), "chosen")
    routing.check(experts, raw.where)
    return GraniteMoeConfig(**read_both(raw), experts=experts, routing=routing)


def layer(c: GraniteConfig, i: int) -> Layer:
    """Attention and a gated feed-forward part, a norm in front of each."""
    return pre_norm(c, i, scale=c.attention_scale, added=c.residual_scale)


def moe_layer(c: GraniteMoeConfig, i: int) -> Layer:
    """Attention and experts, a norm in front of each."""
    experts = MixtureOfExperts(c.d_model, c.d_mlp, c.experts, c.routing, c.activation)
    return pre_norm(c, i, scale=c.attention_scale, added=c.residual_scale, feed=experts)


def write_both(c: GraniteConfig, architecture: str) -> dict[str, Any]:
    """The entries of a ``config.json`` that both have."""
    return {
        **written(c, architecture), "attention_bias": c.attention_bias, "embedding_multiplier": c.embed_scale,
        "logits_scaling": c.logit_divisor, "residual_multiplier": c.residual_scale,
        "attention_multiplier": c.attention_scale,
    }  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    return {**write_both(model.config, "GraniteForCausalLM"), "mlp_bias": model.config.mlp_bias}


def write_moe(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    experts = {"num_local_experts": c.experts, "num_experts_per_tok": c.routing.chosen}
    return {**write_both(c, "GraniteMoeForCausalLM"), **experts}


MOE = Names(
    renamed={r"\.mlp\.router\.": ".block_sparse_moe.router.layer.", r"\.mlp\.": ".block_sparse_moe."},
    fused=(
        stacked(["experts.*.gate_proj", "experts.*.up_proj"], "input_linear"),
        stacked(["experts.*.down_proj"], "output_linear"),
    ),
)
FAMILIES = [
    StackFamily("granite", "Granite 3", read, layer, last_norm, write),
    StackFamily("granitemoe", "Granite 3 of experts", read_moe, moe_layer, last_norm, write_moe, MOE),
]
