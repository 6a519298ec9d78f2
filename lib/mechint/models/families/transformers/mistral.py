"""Mistral (Jiang et al. 2023) and Mixtral (Jiang et al. 2024): gated transformers whose attention may have a window.

In every layer of a Mixtral a router chooses among feed-forward experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.experts import MixtureOfExperts, Routing
from ...stack import Stack
from .common import (
    TransformerConfig,
    last_norm,
    pre_norm,
    read_experts,
    read_rotation,
    read_sizes,
    read_window,
    written,
)


@dataclass(frozen=True, kw_only=True)
class MistralConfig(TransformerConfig):
    """Sizes and switches of a Mistral."""

    family = "mistral"


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(TransformerConfig):
    """Sizes and switches of a Mixtral; ``d_mlp`` are the neurons of an expert."""

    experts: int
    routing: Routing
    family = "mixtral"


def read(raw: ConfigReader) -> MistralConfig:
    """The configuration of a ``config.json``: one window for every layer, or none."""
    sizes, heads = read_sizes(raw), raw.heads()
    windows = (read_window(raw, 4096),) * sizes["n_layer"]
    return MistralConfig(**sizes, **heads, rotation=read_rotation(raw, heads["d_head"]), windows=windows)


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {**written(c, "MistralForCausalLM"), "sliding_window": c.windows[0] or None}


def read_mixtral(raw: ConfigReader) -> MixtralConfig:
    """The configuration of a ``config.json``: one window for every layer, or none; weights of experts add up to 1."""
    raw.ignore("output_router_logits router_aux_loss_coef router_jitter_noise")
    sizes, heads = read_sizes(raw, eps=1e-5), raw.heads(with_keys=8)
    experts, routing = read_experts(raw), Routing(raw.size("num_experts_per_tok", 2), normalised=True)
    routing.check(experts, raw.where)
    return MixtralConfig(
        **sizes, **heads, rotation=read_rotation(raw, heads["d_head"], 1e6), experts=experts, routing=routing,
        windows=(read_window(raw, 0),) * sizes["n_layer"],
    )  # fmt: skip


def mixtral_layer(c: MixtralConfig, i: int) -> Layer:
    """Attention and experts, a norm in front of each."""
    return pre_norm(c, i, feed=MixtureOfExperts(c.d_model, c.d_mlp, c.experts, c.routing, c.activation))


def write_mixtral(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        **written(c, "MixtralForCausalLM"), "sliding_window": c.windows[0] or None, "num_local_experts": c.experts,
        "num_experts_per_tok": c.routing.chosen,
    }  # fmt: skip


MIXTRAL = Names(
    renamed={
        r"\.mlp\.router\.": ".block_sparse_moe.gate.",
        r"\.mlp\.experts\.(\d+)\.gate_proj\.": r".block_sparse_moe.experts.\1.w1.",
        r"\.mlp\.experts\.(\d+)\.up_proj\.": r".block_sparse_moe.experts.\1.w3.",
        r"\.mlp\.experts\.(\d+)\.down_proj\.": r".block_sparse_moe.experts.\1.w2.",
    }
)
FAMILIES = [
    StackFamily("mistral", "Mistral", read, pre_norm, last_norm, write),
    StackFamily("mixtral", "Mixtral", read_mixtral, mixtral_layer, last_norm, write_mixtral, MIXTRAL),
]
