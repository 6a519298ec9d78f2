"""LFM2 (Liquid AI): gated short convolutions, and in some layers attention; with experts behind dense layers, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError
from ...family import Names, StackFamily, stacked
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer, Part
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...parts.short_conv import ShortConv
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig

KINDS = {"conv": "conv", "full_attention": "attention"}


@dataclass(frozen=True, kw_only=True)
class Lfm2Config(StackConfig):
    """Sizes and switches of an LFM2."""

    kinds: Sequence[str]
    """``conv`` or ``attention``, for each layer."""
    n_head: int
    n_kv_head: int
    d_head: int
    rotation: Rotation
    d_mlp: int
    d_conv: int
    conv_bias: bool
    """True if the convolution and the projections around it have biases."""
    norm_eps: float
    family = "lfm2"


@dataclass(frozen=True, kw_only=True)
class Lfm2MoeConfig(Lfm2Config):
    """Sizes and switches of an LFM2 with a mixture of experts in its later layers."""

    dense: int
    """The first layers, whose feed-forward part is no mixture."""
    experts: int
    routing: Routing
    d_expert: int
    """Neurons of an expert."""
    family = "lfm2_moe"


def read(raw: ConfigReader) -> Lfm2Config:
    """The configuration of a ``config.json``."""
    raw.ignore("max_position_embeddings block_mlp_init_scale block_out_init_scale block_use_xavier_init "
               "conv_use_xavier_init")  # fmt: skip
    return Lfm2Config(**read_sizes(raw), d_mlp=read_width(raw))


def read_moe(raw: ConfigReader) -> Lfm2MoeConfig:
    """The configuration of a ``config.json`` of a model with experts; widths are as they are said."""
    raw.ignore("max_position_embeddings")
    sizes, experts, chosen = read_sizes(raw), raw.size("num_experts", 32), raw.size("num_experts_per_tok", 4)
    if chosen > experts:
        raise MechintError(f"{raw.where}: num_experts_per_tok = {chosen}, and there are {experts} experts; correct it")
    routing = Routing(
        chosen, "sigmoid", raw.switch("norm_topk_prob", True), raw.number("routed_scaling_factor", 1.0),
        raw.switch("use_expert_bias", True), floor=1e-6,
    )  # fmt: skip
    return Lfm2MoeConfig(
        **sizes, d_mlp=raw.size("intermediate_size"), dense=raw.size("num_dense_layers", 2, 0), experts=experts,
        routing=routing, d_expert=raw.size("moe_intermediate_size"),
    )  # fmt: skip


def read_sizes(raw: ConfigReader) -> dict[str, Any]:
    """The fields that both kinds of LFM2 have, but for the width of the feed-forward part."""
    d_model, n_layer = raw.size("hidden_size"), raw.size("num_hidden_layers")
    heads, eps = raw.size("num_attention_heads"), raw.number("norm_eps", 1e-5)
    # older files say some things twice
    for name, value in {"block_dim": d_model, "conv_dim": d_model, "conv_dim_out": d_model, "num_heads": heads,
                        "block_norm_eps": eps, "block_use_swiglu": True, "use_pos_enc": True}.items():  # fmt: skip
        raw.only(name, value)
    d_head = raw.size("head_dim", None) or d_model // heads
    attending = raw.raw.get("full_attn_idxs")
    raw.ignore("full_attn_idxs")
    default = ["full_attention" if attending is None or i in attending else "conv" for i in range(n_layer)]
    rotation = raw.rotation(d_head, default_theta=1e6)
    if rotation.size:
        raise MechintError(f"{raw.where}: the rotation has a partial_rotary_factor, which an LFM2 ignores")
    return {
        "vocab_size": raw.size("vocab_size"), "d_model": d_model, "n_layer": n_layer, "tied": read_tied(raw),
        "kinds": tuple(raw.kinds("layer_types", KINDS, n_layer, default)), "n_head": heads,
        "n_kv_head": raw.size("num_key_value_heads", heads), "d_head": d_head, "rotation": rotation,
        "d_conv": raw.size("conv_L_cache", 3), "conv_bias": raw.switch("conv_bias", False), "norm_eps": eps,
    }  # fmt: skip


def read_tied(raw: ConfigReader) -> bool:
    """True if the head is the embedding, by today's key or the earlier one."""
    today = raw.switch("tie_word_embeddings", raw.raw.get("tie_embedding", True))
    if raw.switch("tie_embedding", today) != today:
        raise MechintError(f"{raw.where}: tie_word_embeddings = {today}, and tie_embedding says the contrary; which?")
    return today


def read_width(raw: ConfigReader) -> int:
    """The neurons of the feed-forward part: as said, or two thirds of it, stretched and rounded up."""
    wide: int = raw.size("intermediate_size", raw.raw.get("block_ff_dim"))
    if raw.size("block_ff_dim", wide) != wide:
        raise MechintError(f"{raw.where}: intermediate_size = {wide}, and block_ff_dim says otherwise; which?")
    adjusts, multiple = raw.switch("block_auto_adjust_ff_dim", True), raw.size("block_multiple_of", 256)
    times = raw.number("block_ffn_dim_multiplier", 1.0)
    return multiple * -(-int(times * int(2 * wide / 3)) // multiple) if adjusts else wide


def layer(c: Lfm2Config, i: int) -> Layer:
    """A short convolution or attention, then a gated feed-forward part or a mixture of such."""
    norm = lambda size: RMSNorm(size, c.norm_eps)
    mixer: dict[str, Any]
    if c.kinds[i] == "conv":
        mixer = {"conv": ShortConv(c.d_model, c.d_conv, c.conv_bias)}
    else:
        attention = Attention(c.d_model, c.n_head, c.n_kv_head, c.d_head, rotation=c.rotation,
                              norms=(norm(c.d_head), norm(c.d_head)))  # fmt: skip
        mixer = {"self_attn": attention}
    modules = {"operator_norm": norm(c.d_model), **mixer, "ffn_norm": norm(c.d_model),
               "feed_forward": feed_forward(c, i)}  # fmt: skip
    return Layer(
        modules,
        [Branch("operator_norm", "ln_1", tuple(mixer))],
        [Branch("ffn_norm", "ln_2", ("feed_forward",))],
    )


def feed_forward(c: Lfm2Config, i: int) -> Part:
    """The feed-forward part of a layer."""
    if isinstance(c, Lfm2MoeConfig) and i >= c.dense:
        return MixtureOfExperts(c.d_model, c.d_expert, c.experts, c.routing)
    return GatedMLP(c.d_model, c.d_mlp)


def asked(a: Asked) -> Lfm2Config:
    """The configuration of a model to train."""
    return Lfm2Config(**asked_sizes(a))


def asked_moe(a: Asked) -> Lfm2MoeConfig:
    """The configuration of a model of experts to train; its first layer has none."""
    experts, chosen, d_expert = a.experts(4)
    routing = Routing(chosen, "sigmoid", True, 1.0, True, floor=1e-6)
    return Lfm2MoeConfig(**asked_sizes(a), dense=1, experts=experts, routing=routing, d_expert=d_expert)


def asked_sizes(a: Asked) -> dict[str, Any]:
    """The sizes that both have."""
    heads = a.attention(a.has("attention"))
    return {
        **a.stream(), "kinds": a.kinds, **heads, "rotation": a.rotation(heads["d_head"], used=a.has("attention")),
        "d_mlp": a.d_mlp(), "d_conv": a.size("d_conv", 3, a.has("conv")), "conv_bias": False, "norm_eps": 1e-5,
    }  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {ours: theirs for theirs, ours in KINDS.items()}
    own_head = {} if c.d_head == c.d_model // c.n_head else {"head_dim": c.d_head}
    said = {
        "architectures": ["Lfm2ForCausalLM"], "model_type": c.family, "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "layer_types": [names[kind] for kind in c.kinds], "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head, "rope_parameters": c.rotation.written(c.d_head),
        "intermediate_size": c.d_mlp, "conv_L_cache": c.d_conv, "conv_bias": c.conv_bias, "norm_eps": c.norm_eps,
        **own_head,
    }  # fmt: skip
    if not isinstance(c, Lfm2MoeConfig):
        return {**said, "block_auto_adjust_ff_dim": False}
    return {
        **said, "architectures": ["Lfm2MoeForCausalLM"], "num_dense_layers": c.dense, "num_experts": c.experts,
        "num_experts_per_tok": c.routing.chosen, "norm_topk_prob": c.routing.normalised,
        "routed_scaling_factor": c.routing.scale, "use_expert_bias": c.routing.corrected,
        "moe_intermediate_size": c.d_expert,
    }  # fmt: skip


RENAMED = {
    r"^norm\.": "embedding_norm.", r"self_attn\.o_proj\.": "self_attn.out_proj.",
    r"self_attn\.([qk])_norm\.": r"self_attn.\1_layernorm.", r"(feed_forward|experts\.\d+)\.gate_proj\.": r"\1.w1.",
    r"(feed_forward|experts\.\d+)\.down_proj\.": r"\1.w2.", r"(feed_forward|experts\.\d+)\.up_proj\.": r"\1.w3.",
    r"feed_forward\.router\.e_score_correction_bias": "feed_forward.expert_bias",
    r"feed_forward\.router\.": "feed_forward.gate.",
}  # fmt: skip
FAMILIES = [
    StackFamily(
        "lfm2", "LFM2", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(renamed=RENAMED),
        trained=Trained({"conv": "conv", "attention": "attention"}, "conv attention", asked),
    ),
    StackFamily(
        "lfm2_moe", "LFM2 of experts", read_moe, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(
            renamed=RENAMED,
            fused=(
                stacked(["experts.*.gate_proj", "experts.*.up_proj"], "experts.gate_up_proj", True, True),
                stacked(["experts.*.down_proj"], "experts.down_proj", True, True),
            ),
        ),
        trained=Trained({"conv": "conv", "attention": "attention"}, "conv attention", asked_moe),
    ),
]  # fmt: skip
