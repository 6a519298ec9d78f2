"""Granite 4 (IBM 2025): Mamba-2 or attention, then a gated feed-forward part, beside which experts may stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError, an
from ...family import Names, StackFamily, chunked, stacked
from ...loading.config_reader import ConfigReader
from ...parts.attention import Reading
from ...parts.base import Branch, Layer, Part
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...sizes import Asked, Trained
from ...stack import Stack
from .bamba import WORDS, HybridConfig, asked_hybrid, mixer, read_hybrid, written

KINDS = {
    "linear_attention": "mamba", "full_attention": "attention", "mamba": "mamba", "attention": "attention"
}  # fmt: skip
"""The words of configurations, today's and earlier ones."""


@dataclass(frozen=True, kw_only=True)
class GraniteHConfig(HybridConfig):
    """Sizes, switches and multipliers of a Granite 4."""

    d_mlp: int
    """Neurons of the part that every token goes through."""
    experts: int
    """Experts beside it; 0 for none."""
    chosen: int
    d_expert: int
    residual_scale: float = 1.0
    """Multiplies what every part adds to the stream."""
    attention_scale: float = 1.0
    """Multiplies the products of queries and keys."""
    logit_divisor: float = 1.0
    family = "granitemoehybrid"


def read(raw: ConfigReader) -> GraniteHConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("output_router_logits router_aux_loss_coef")
    common = read_hybrid(raw, 1e-6)
    name, other = "layer_types", "layers_block_type"
    if raw.raw.get(name) is None:
        name, other = other, name
    raw.only(other, raw.raw.get(name))
    n_layer, heads = common["n_layer"], common["n_head"]
    experts = raw.size("num_local_experts", 8, least=0)
    chosen = raw.size("num_experts_per_tok", 2, least=0)
    if experts:
        Routing(chosen).check(experts, raw.where)
    rotation = None
    if raw.word("position_embedding_type", ("rope", "nope"), "nope") == "rope":
        rotation = raw.rotation(common["d_head"])
        if rotation.size:
            raise MechintError(f"{raw.where}: partial_rotary_factor is not 1, and {an(raw.title)} turns whole heads")
    else:
        raw.ignore("rope_parameters rope_scaling rope_theta partial_rotary_factor")
    divisor = raw.number("logits_scaling", 1.0)
    return GraniteHConfig(
        **common,
        kinds=tuple(raw.kinds(name, KINDS, n_layer, ["mamba"] * n_layer)),
        n_kv_head=raw.size("num_key_value_heads", heads),
        rotation=rotation,
        d_mlp=raw.size("shared_intermediate_size", 1024),
        experts=experts,
        chosen=chosen,
        d_expert=raw.size("intermediate_size", 11008),
        embed_scale=raw.number("embedding_multiplier", 1.0, positive=False),
        logit_scale=1 / divisor,
        logit_divisor=divisor,
        residual_scale=raw.number("residual_multiplier", 1.0, positive=False),
        attention_scale=raw.number("attention_multiplier", 1.0, positive=False),
    )


def layer(c: GraniteHConfig, i: int) -> Layer:
    """Mamba-2 or attention, then a gated feed-forward part, beside which experts may stand."""
    name, part = mixer(c, i, Reading(scale=c.attention_scale))
    second, feed = "shared_mlp", GatedMLP(c.d_model, c.d_mlp, c.activation)
    modules: dict[str, Part | RMSNorm] = {
        "input_layernorm": RMSNorm(c.d_model, c.norm_eps), name: part,
        "post_attention_layernorm": RMSNorm(c.d_model, c.norm_eps), second: feed,
    }  # fmt: skip
    if c.experts:
        del modules[second]
        second = "block_sparse_moe"
        modules[second] = MixtureOfExperts(
            c.d_model, c.d_expert, c.experts, Routing(c.chosen, "chosen"), c.activation, shared=feed
        )
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", (name,), scale=c.residual_scale)],
        [Branch("post_attention_layernorm", "ln_2", (second,), scale=c.residual_scale)],
    )


def asked(a: Asked) -> GraniteHConfig:
    """The configuration of a model to train, with multipliers of 1."""
    common = asked_hybrid(a)
    experts, chosen, d_expert = a.experts()
    return GraniteHConfig(
        **common, rotation=None, d_mlp=a.d_mlp(), experts=experts, chosen=chosen, d_expert=d_expert or a.d_model,
        attention_scale=common["d_head"] ** -0.5,
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {"mamba": "linear_attention", "attention": "full_attention"}
    return {
        "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid", **written(c),
        "layer_types": [names[kind] for kind in c.kinds],
        "position_embedding_type": "nope" if c.rotation is None else "rope", "shared_intermediate_size": c.d_mlp,
        "num_local_experts": c.experts, "num_experts_per_tok": c.chosen, "intermediate_size": c.d_expert,
        "embedding_multiplier": c.embed_scale, "logits_scaling": c.logit_divisor,
        "residual_multiplier": c.residual_scale, "attention_multiplier": c.attention_scale,
    }  # fmt: skip


SHARED = ("gate_proj", "up_proj")

FAMILIES = [
    StackFamily(
        "granitemoehybrid", "Granite 4", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(
            renamed={
                r"block_sparse_moe\.router\.": "block_sparse_moe.router.layer.",
                r"block_sparse_moe\.shared_expert\.": "shared_mlp.",
                r"shared_mlp\.down_proj\.": "shared_mlp.output_linear.",
            },
            fused=(
                stacked(["experts.*.gate_proj", "experts.*.up_proj"], "input_linear"),
                stacked(["experts.*.down_proj"], "output_linear"),
                chunked(tuple(f"shared_mlp.{name}" for name in SHARED), "shared_mlp.input_linear"),
                chunked(tuple(f"shared_expert.{name}" for name in SHARED), "shared_expert.input_linear"),
            ),
        ),
        trained=Trained(WORDS, "mamba2 attention", asked),
    )
]  # fmt: skip
