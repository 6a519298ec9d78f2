"""Qwen3 of experts (Yang et al. 2025): a Qwen3 in most of whose layers a router chooses among feed-forward experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.norms import RMSNorm
from ...stack import Stack
from ..recurrent.qwen3_5 import NO_CHOICE, ROUTER, STACKED
from ..recurrent.qwen3_next import mixed_layers
from .common import TransformerConfig, last_norm, pre_norm, read_rotation, read_sizes, read_window, written


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(TransformerConfig):
    """Sizes and switches of a Qwen3 of experts."""

    mixed: tuple[bool, ...]
    """For each layer whether it has experts."""
    experts: int = 0
    routing: Routing = NO_CHOICE
    d_expert: int = 0
    family = "qwen3_moe"


def read(raw: ConfigReader) -> Qwen3MoeConfig:
    """The configuration of a ``config.json``: one window for every layer, or none."""
    raw.ignore("output_router_logits router_aux_loss_coef max_window_layers")
    sizes, heads = read_sizes(raw), raw.heads(with_keys=4)
    window = read_window(raw, 4096) if raw.switch("use_sliding_window", False) else 0
    bias = raw.switch("attention_bias", False)
    raw.ignore("sliding_window")
    name, other = "num_experts", "num_local_experts"  # published files, and those that transformers writes
    name, other = (other, name) if other in raw.raw and name not in raw.raw else (name, other)
    experts = raw.size(name, least=0)
    raw.only(other, experts)
    mixed, normalised = mixed_layers(raw, sizes["n_layer"], experts), raw.switch("norm_topk_prob", False)
    found = {
        **sizes, **heads, "attention_bias": bias, "out_bias": bias, "rotation": read_rotation(raw, heads["d_head"]),
        "windows": (window,) * sizes["n_layer"], "mixed": mixed,
    }  # fmt: skip
    if not any(mixed):
        raw.ignore("num_experts_per_tok moe_intermediate_size")
        return Qwen3MoeConfig(**found)
    routing = Routing(raw.size("num_experts_per_tok"), normalised=normalised)
    routing.check(experts, raw.where)
    return Qwen3MoeConfig(**found, experts=experts, routing=routing, d_expert=raw.size("moe_intermediate_size"))


def layer(c: Qwen3MoeConfig, i: int) -> Layer:
    """Attention with a norm of each head's queries and keys, and experts or a gated feed-forward part."""
    experts = MixtureOfExperts(c.d_model, c.d_expert, c.experts, c.routing, c.activation) if c.mixed[i] else None
    return pre_norm(c, i, (RMSNorm(c.d_head, c.norm_eps), RMSNorm(c.d_head, c.norm_eps)), feed=experts)


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    experts: dict[str, Any] = {"num_experts": c.experts}
    if c.experts:
        experts |= {
            "num_experts_per_tok": c.routing.chosen, "moe_intermediate_size": c.d_expert,
            "norm_topk_prob": c.routing.normalised, "mlp_only_layers": [i for i in range(c.n_layer) if not c.mixed[i]],
        }  # fmt: skip
    return {
        **written(c, "Qwen3MoeForCausalLM"), "attention_bias": c.attention_bias, **experts,
        "use_sliding_window": c.windows[0] > 0, "sliding_window": c.windows[0] or None,
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "qwen3_moe", "Qwen3 of experts", read, layer, last_norm, write, Names(renamed=ROUTER, fused=STACKED)
    )
]  # fmt: skip
