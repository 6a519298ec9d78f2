"""Qwen2 of experts (Yang et al. 2024; Qwen1.5-MoE) and Qwen3 of experts (Yang et al. 2025).

They are a Qwen2 and a Qwen3 in most of whose layers a router chooses among feed-forward experts. In a Qwen2 every token
goes through one more, whose output a sigmoid of the token multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...stack import Stack
from ..recurrent.qwen3_5 import NO_CHOICE, ROUTER, STACKED
from ..recurrent.qwen3_next import mixed_layers
from .common import (
    TransformerConfig,
    last_norm,
    pre_norm,
    read_experts,
    read_rotation,
    read_sizes,
    read_window,
    read_windows,
    written,
)
from .qwen import windows_written


@dataclass(frozen=True, kw_only=True)
class QwenMoeConfig(TransformerConfig):
    """Sizes and switches that both have."""

    mixed: tuple[bool, ...]
    """For each layer whether it has experts."""
    experts: int = 0
    routing: Routing = NO_CHOICE
    d_expert: int = 0


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(QwenMoeConfig):
    """Sizes and switches of a Qwen2 of experts."""

    d_shared: int = 0
    """Neurons of the expert that every token goes through."""
    family = "qwen2_moe"


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(QwenMoeConfig):
    """Sizes and switches of a Qwen3 of experts."""

    family = "qwen3_moe"


def read_mixture(raw: ConfigReader, n_layer: int, shared: str = "") -> dict[str, Any]:
    """The fields of experts; ``shared`` is the key of the size of one that every token goes through."""
    raw.ignore("output_router_logits router_aux_loss_coef")
    experts = read_experts(raw, least=0)
    mixed, normalised = mixed_layers(raw, n_layer, experts), raw.switch("norm_topk_prob", False)
    if not any(mixed):
        raw.ignore(f"num_experts_per_tok moe_intermediate_size {shared}")
        return {"mixed": mixed}
    routing = Routing(raw.size("num_experts_per_tok"), normalised=normalised)
    routing.check(experts, raw.where)
    found = {"mixed": mixed, "experts": experts, "routing": routing, "d_expert": raw.size("moe_intermediate_size")}
    return {**found, "d_shared": raw.size(shared)} if shared else found


def read_switched(raw: ConfigReader) -> int:
    """The window where windows are switched on, else 0, whatever the configuration has as their length."""
    window = read_window(raw, 4096) if raw.switch("use_sliding_window", False) else 0
    raw.ignore("sliding_window")
    return window


def read_qwen2(raw: ConfigReader) -> Qwen2MoeConfig:
    """The configuration of a ``config.json``: every other of the first layers has a window, if any."""
    sizes, heads = read_sizes(raw), raw.heads(with_keys=16)
    n_layer, window, last = sizes["n_layer"], read_switched(raw), raw.size("max_window_layers", 28, 0)
    kinds = ["sliding_attention" if window and i < last and i % 2 == 0 else "full_attention" for i in range(n_layer)]
    return Qwen2MoeConfig(
        **sizes, **heads, attention_bias=raw.switch("qkv_bias", True), rotation=read_rotation(raw, heads["d_head"]),
        windows=read_windows(raw, n_layer, kinds, window),
        **read_mixture(raw, n_layer, "shared_expert_intermediate_size"),
    )  # fmt: skip


def read_qwen3(raw: ConfigReader) -> Qwen3MoeConfig:
    """The configuration of a ``config.json``: one window for every layer, or none."""
    raw.ignore("max_window_layers")
    sizes, heads = read_sizes(raw), raw.heads(with_keys=4)
    window, bias = read_switched(raw), raw.switch("attention_bias", False)
    return Qwen3MoeConfig(
        **sizes, **heads, attention_bias=bias, out_bias=bias, rotation=read_rotation(raw, heads["d_head"]),
        windows=(window,) * sizes["n_layer"], **read_mixture(raw, sizes["n_layer"]),
    )  # fmt: skip


def qwen2_layer(c: Qwen2MoeConfig, i: int) -> Layer:
    """Attention, and experts with one that every token goes through, or a gated feed-forward part."""
    if not c.mixed[i]:
        return pre_norm(c, i)
    shared = GatedMLP(c.d_model, c.d_shared, c.activation)
    experts = MixtureOfExperts(
        c.d_model, c.d_expert, c.experts, c.routing, c.activation, shared=shared, shared_gate=True
    )  # fmt: skip
    return pre_norm(c, i, feed=experts)


def qwen3_layer(c: Qwen3MoeConfig, i: int) -> Layer:
    """Attention with a norm of each head's queries and keys, and experts or a gated feed-forward part."""
    experts = MixtureOfExperts(c.d_model, c.d_expert, c.experts, c.routing, c.activation) if c.mixed[i] else None
    return pre_norm(c, i, (RMSNorm(c.d_head, c.norm_eps), RMSNorm(c.d_head, c.norm_eps)), feed=experts)


def mixture_written(c: QwenMoeConfig) -> dict[str, Any]:
    """The keys of experts."""
    if not c.experts:
        return {"num_experts": 0}
    return {
        "num_experts": c.experts, "num_experts_per_tok": c.routing.chosen, "moe_intermediate_size": c.d_expert,
        "norm_topk_prob": c.routing.normalised, "mlp_only_layers": [i for i in range(c.n_layer) if not c.mixed[i]],
    }  # fmt: skip


def write_qwen2(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    shared = {"shared_expert_intermediate_size": c.d_shared} if c.experts else {}
    said = {**written(c, "Qwen2MoeForCausalLM"), "qkv_bias": c.attention_bias}
    return {**said, **mixture_written(c), **shared, **windows_written(c)}


def write_qwen3(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        **written(c, "Qwen3MoeForCausalLM"), "attention_bias": c.attention_bias, **mixture_written(c),
        "use_sliding_window": c.windows[0] > 0, "sliding_window": c.windows[0] or None,
    }  # fmt: skip


NAMES = Names(renamed=ROUTER, fused=STACKED)
FAMILIES = [
    StackFamily("qwen2_moe", "Qwen2 of experts", read_qwen2, qwen2_layer, last_norm, write_qwen2, NAMES),
    StackFamily("qwen3_moe", "Qwen3 of experts", read_qwen3, qwen3_layer, last_norm, write_qwen3, NAMES),
]
