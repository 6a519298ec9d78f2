"""Jamba (Lieber et al. 2024): Mamba-1 with learned norms of B, C and Δ's low rank, and attention every few layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError
from ...family import Names, StackFamily, stacked
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.feed_forward import GatedMLP
from ...parts.mamba1 import Mamba1Mixer
from ...parts.norms import RMSNorm
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig

NO_CHOICE = Routing(1)
"""The routing where there are no experts."""


@dataclass(frozen=True, kw_only=True)
class JambaConfig(StackConfig):
    """Sizes and switches of a Jamba."""

    attention_every: tuple[int, int]
    """Layers from one attention to the next, and the first that has attention."""
    n_head: int
    n_kv_head: int
    d_head: int
    d_mlp: int
    activation: str
    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    conv_bias: bool
    proj_bias: bool
    norm_eps: float
    mixed: tuple[bool, ...] = ()
    """True for each layer whose feed-forward part is a mixture of experts."""
    experts_every: tuple[int, int] = (2, 1)
    """Layers from one mixture of experts to the next, and the first that has one."""
    experts: int = 1
    routing: Routing = NO_CHOICE
    family = "jamba"


def read(raw: ConfigReader) -> JambaConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("max_position_embeddings router_aux_loss_coef use_mamba_kernels use_mambapy use_associative_scan "
               "num_logits_to_keep calc_logits_for_entire_prompt n_ctx output_router_logits")  # fmt: skip
    raw.only("mamba_inner_layernorms", True)
    d_model, n_layer, heads = raw.size("hidden_size"), raw.size("num_hidden_layers"), raw.size("num_attention_heads")
    every = spaced(raw, "attn_layer", 8, 4)
    kinds = ["attention" if i % every[0] == every[1] else "mamba" for i in range(n_layer)]
    for name, words in (("layers_block_type", {"attention": "attention", "mamba": "mamba"}),
                        ("layer_types", {"full_attention": "attention", "linear_attention": "mamba"})):  # fmt: skip
        if raw.raw.get(name) is not None and raw.kinds(name, words, n_layer) != kinds:
            raise MechintError(f"{raw.where}: {name} says otherwise than attn_layer_period and attn_layer_offset")
    if "mamba" in kinds:
        raw.only("hidden_act", "silu", "swish")  # it is the activation behind the convolution, too
    return JambaConfig(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        n_layer=n_layer,
        tied=raw.switch("tie_word_embeddings", False),
        attention_every=every,
        n_head=heads,
        n_kv_head=raw.size("num_key_value_heads", heads),
        d_head=raw.size("head_dim", None) or d_model // heads,
        d_mlp=raw.size("intermediate_size"),
        activation=raw.activation("hidden_act"),
        d_inner=raw.size("mamba_expand", 2) * d_model,
        d_state=raw.size("mamba_d_state", 16),
        d_conv=raw.size("mamba_d_conv", 4),
        dt_rank=raw.rank("mamba_dt_rank", d_model),
        conv_bias=raw.switch("mamba_conv_bias", True),
        proj_bias=raw.switch("mamba_proj_bias", False),
        norm_eps=raw.number("rms_norm_eps", 1e-6),
        **read_experts(raw, n_layer),
    )


def spaced(raw: ConfigReader, name: str, period: int, offset: int) -> tuple[int, int]:
    """Layers from one of a kind to the next, and the first of the kind."""
    found = raw.size(f"{name}_period", period), raw.size(f"{name}_offset", offset, least=0)
    if found[1] >= found[0]:
        raise MechintError(
            f"{raw.where}: {name}_offset = {found[1]} must be less than {name}_period = {found[0]}; correct one of them"
        )
    return found


def read_experts(raw: ConfigReader, n_layer: int) -> dict[str, Any]:
    """The fields of the mixtures of experts, and the layers that have one."""
    every, experts, chosen = spaced(raw, "expert_layer", 2, 1), raw.size("num_experts", 16), 1
    mixed = tuple(experts > 1 and i % every[0] == every[1] for i in range(n_layer))
    if any(mixed):
        chosen = raw.size("num_experts_per_tok", 2)
    if chosen > experts:
        raise MechintError(f"{raw.where}: num_experts_per_tok = {chosen}, and there are {experts} experts; correct it")
    raw.ignore("num_experts_per_tok")
    return {"mixed": mixed, "experts_every": every, "experts": experts, "routing": Routing(chosen)}


def layer(c: JambaConfig, i: int) -> Layer:
    """Mamba-1 or attention, then a gated feed-forward part."""
    norm = lambda size: RMSNorm(size, c.norm_eps)
    mixer: dict[str, Any]
    if i % c.attention_every[0] == c.attention_every[1]:
        mixer = {"self_attn": Attention(c.d_model, c.n_head, c.n_kv_head, c.d_head)}
    else:
        mixer = {
            "mamba": Mamba1Mixer(
                c.d_model, c.d_inner, c.d_state, c.d_conv, c.dt_rank, conv_bias=c.conv_bias, proj_bias=c.proj_bias,
                inner_norm=norm, depth=c.n_layer,
            )
        }  # fmt: skip
    feed_forward = GatedMLP(c.d_model, c.d_mlp, c.activation) if not c.mixed[i] else MixtureOfExperts(
        c.d_model, c.d_mlp, c.experts, c.routing, c.activation
    )  # fmt: skip
    modules = {"input_layernorm": norm(c.d_model), **mixer, "pre_ff_layernorm": norm(c.d_model),
               "feed_forward": feed_forward}  # fmt: skip
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", tuple(mixer))],
        [Branch("pre_ff_layernorm", "ln_2", ("feed_forward",))],
    )


def asked(a: Asked) -> JambaConfig:
    """The configuration of a model to train; attention comes every so many layers, and experts in all or none."""
    there = [i for i, kind in enumerate(a.kinds) if kind == "attention"]
    spacings = ((every, first) for every in range(1, a.n_layer + 2) for first in range(every))
    spacing = next((s for s in spacings if list(range(s[1], a.n_layer, s[0])) == there), None)
    if spacing is None:
        raise MechintError(
            f"{a.called('layers')}: {a.title} has attention every so many layers, and here it is in the layers "
            f"{', '.join(map(str, there))}; space it evenly"
        )
    experts, chosen, d_expert = a.experts()
    if experts and a.wanted["d_mlp"]:
        raise a.wrong("d_mlp", f", and every layer has experts; set {a.called('d_expert')} in its place")
    return JambaConfig(
        **a.stream(), attention_every=spacing, **a.attention(bool(there)), d_mlp=d_expert if experts else a.d_mlp(),
        activation="silu", **a.mamba1(a.has("mamba")), norm_eps=1e-6, mixed=(experts > 1,) * a.n_layer,
        experts_every=(1, 0), experts=experts or 1, routing=Routing(chosen or 1),
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    own_head = {} if c.d_head == c.d_model // c.n_head else {"head_dim": c.d_head}
    return {
        "architectures": ["JambaForCausalLM"], "model_type": "jamba", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "attn_layer_period": c.attention_every[0], "attn_layer_offset": c.attention_every[1],
        "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head, "intermediate_size": c.d_mlp,
        "hidden_act": c.activation, "mamba_expand": c.d_inner // c.d_model, "mamba_d_state": c.d_state,
        "mamba_d_conv": c.d_conv, "mamba_dt_rank": c.dt_rank, "mamba_conv_bias": c.conv_bias,
        "mamba_proj_bias": c.proj_bias, "rms_norm_eps": c.norm_eps, "num_experts": c.experts,
        "num_experts_per_tok": c.routing.chosen, "expert_layer_period": c.experts_every[0],
        "expert_layer_offset": c.experts_every[1], **own_head,
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "jamba", "Jamba", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(
            renamed={r"^norm\.": "final_layernorm."},
            fused=(
                stacked(["experts.*.gate_proj", "experts.*.up_proj"], "experts.gate_up_proj", True, True),
                stacked(["experts.*.down_proj"], "experts.down_proj", True, True),
            ),
        ),
        trained=Trained({"mamba": "mamba", "attention": "attention"}, "mamba attention", asked),
    )
]  # fmt: skip
