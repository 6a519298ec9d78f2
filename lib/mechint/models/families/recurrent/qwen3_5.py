"""Qwen3.5 (the text part): gated delta rules, and in some layers attention with an output gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError
from ...family import Names, StackFamily, stacked
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer, Part
from ...parts.delta import GatedDelta
from ...parts.experts import MixtureOfExperts, Routing
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig

NO_CHOICE = Routing(1)
"""The routing where there are no experts."""
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
    mixed: tuple[bool, ...] = ()
    """True for each layer whose feed-forward part is a mixture of experts; empty for no layer."""
    experts: int = 0
    routing: Routing = NO_CHOICE
    d_expert: int = 0
    """Neurons of an expert."""
    d_shared: int = 0
    """Neurons of the expert that every token goes through."""
    family = "qwen3_5"


@dataclass(frozen=True, kw_only=True)
class Qwen35MoeConfig(Qwen35Config):
    """Sizes and switches of the text part of a Qwen3.5 with a mixture of experts in every layer."""

    family = "qwen3_5_moe"


def read(raw: ConfigReader) -> Qwen35Config:
    """The configuration of a ``config.json``; of a published one its ``text_config``."""
    text_part(raw)
    return Qwen35Config(d_mlp=raw.size("intermediate_size"), **sizes(raw))


def read_moe(raw: ConfigReader) -> Qwen35MoeConfig:
    """The configuration of a ``config.json`` of a model of experts."""
    text_part(raw)
    raw.ignore("intermediate_size")
    said = sizes(raw)
    return Qwen35MoeConfig(d_mlp=0, mixed=(True,) * said["n_layer"], **said, **mixture(raw, normalised=True))


def mixture(raw: ConfigReader, normalised: bool) -> dict[str, Any]:
    """The fields of a mixture of experts."""
    experts, chosen = raw.size("num_experts"), raw.size("num_experts_per_tok")
    if chosen > experts:
        raise MechintError(f"{raw.where}: num_experts_per_tok = {chosen}, and there are {experts} experts; correct it")
    return {
        "experts": experts,
        "routing": Routing(chosen, normalised=normalised),
        "d_expert": raw.size("moe_intermediate_size"),
        "d_shared": raw.size("shared_expert_intermediate_size"),
    }


def text_part(raw: ConfigReader) -> None:
    """Goes to the ``text_config`` of a published configuration, and takes out what belongs to other parts."""
    if isinstance(text := raw.raw.get("text_config"), dict):
        raw.inside("text_config", text, "vision_config image_token_id video_token_id vision_start_token_id "
                   "vision_end_token_id")  # fmt: skip
    raw.ignore("mtp_num_hidden_layers mamba_ssm_dtype mtp_use_dedicated_embeddings")
    raw.only("attn_output_gate", True)


def sizes(raw: ConfigReader) -> dict[str, Any]:
    """The fields that all families here have, from the keys that all have."""
    raw.ignore("max_position_embeddings router_aux_loss_coef output_router_logits")
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
        "mlp": feed_forward(c, i),
    }  # fmt: skip
    return Layer(
        modules,
        [Branch("input_layernorm", "ln_1", tuple(mixer))],
        [Branch("post_attention_layernorm", "ln_2", ("mlp",))],
    )


def feed_forward(c: Qwen35Config, i: int) -> Part:
    """A gated part, or a mixture of them with one more that every token goes through."""
    if not (c.mixed and c.mixed[i]):
        return GatedMLP(c.d_model, c.d_mlp, c.activation)
    shared = GatedMLP(c.d_model, c.d_shared, c.activation)
    return MixtureOfExperts(
        c.d_model, c.d_expert, c.experts, c.routing, c.activation, shared=shared, shared_gate=True
    )  # fmt: skip


WORDS = {"delta": "delta", "attention": "attention"}
"""Words of a pattern of layers to train."""


def asked_sizes(a: Asked) -> dict[str, Any]:
    """The fields of a model to train that all families here have."""
    attends = a.has("attention")
    heads = a.attention(attends)
    return {
        **a.stream(), "kinds": a.kinds, **heads, "attention_bias": False,
        "rotation": a.rotation(heads["d_head"], 0.25, attends), "activation": "silu", **a.delta(a.has("delta")),
        "norm_eps": 1e-6,
    }  # fmt: skip


def asked_mixture(a: Asked, default: int) -> dict[str, Any]:
    """The fields of a mixture of experts in every layer; none where there are no experts."""
    experts, chosen, d_expert = a.experts(default)
    if not experts:
        return {}
    return {"mixed": (True,) * a.n_layer, "experts": experts, "routing": Routing(chosen, normalised=True),
            "d_expert": d_expert, "d_shared": d_expert}  # fmt: skip


def asked(a: Asked) -> Qwen35Config:
    """The configuration of a model to train."""
    return Qwen35Config(**asked_sizes(a), d_mlp=a.d_mlp())


def asked_moe(a: Asked) -> Qwen35MoeConfig:
    """The configuration of a model of experts to train."""
    return Qwen35MoeConfig(**asked_sizes(a), **asked_mixture(a, 4), d_mlp=0)


def write_moe(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json`` of a model of experts."""
    names = {"architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text"}
    said = {key: value for key, value in write(model).items() if key != "intermediate_size"}
    return {**said, **names, **written_mixture(model.config)}


def written_mixture(c: Qwen35Config) -> dict[str, Any]:
    """The keys of a mixture of experts."""
    return {
        "num_experts": c.experts, "num_experts_per_tok": c.routing.chosen, "moe_intermediate_size": c.d_expert,
        "shared_expert_intermediate_size": c.d_shared,
    }  # fmt: skip


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


ROUTER = {r"\.mlp\.router\.": ".mlp.gate."}
STACKED = (
    stacked(["experts.*.gate_proj", "experts.*.up_proj"], "experts.gate_up_proj", bare=True, sometimes=True),
    stacked(["experts.*.down_proj"], "experts.down_proj", bare=True, sometimes=True),
)
"""All experts as one tensor, as published files of Qwen3.5 have them and transformers writes them no more."""
BODIES = ("model.", "model.language_model.")
OTHERS = r"(model\.)?(visual|mtp)\."

FAMILIES = [
    StackFamily(
        "qwen3_5", "Qwen3.5", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps, plus=1.0), write,
        Names(BODIES, left_out=OTHERS), ("qwen3_5_text",), trained=Trained(WORDS, "delta attention", asked),
    ),
    StackFamily(
        "qwen3_5_moe", "Qwen3.5 of experts", read_moe, layer, lambda c: RMSNorm(c.d_model, c.norm_eps, plus=1.0),
        write_moe, Names(BODIES, ROUTER, STACKED, left_out=OTHERS), ("qwen3_5_moe_text",),
        trained=Trained(WORDS, "delta attention", asked_moe),
    ),
]  # fmt: skip
