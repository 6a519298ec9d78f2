"""Olmo-Hybrid: gated delta rules with a norm before each part, and attention with a norm behind each part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError
from ...family import Names, Pieces, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer
from ...parts.delta import GatedDelta
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig

KINDS = {"linear_attention": "delta", "full_attention": "attention"}
GATED_EPS = 1e-5
"""The constant of the read-out's norm, whatever the configuration says of the other norms."""


@dataclass(frozen=True, kw_only=True)
class OlmoHybridConfig(StackConfig):
    """Sizes and switches of an Olmo-Hybrid."""

    kinds: Sequence[str]
    """``delta`` or ``attention``, for each layer."""
    n_head: int
    n_kv_head: int
    d_head: int
    attention_bias: bool
    rotation: Rotation | None
    """None for none, as in the published models."""
    d_mlp: int
    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    d_conv: int
    doubled: bool
    """True if write strengths are up to 2, so that a write may turn a direction over."""
    norm_eps: float
    family = "olmo_hybrid"


def read(raw: ConfigReader) -> OlmoHybridConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("max_position_embeddings linear_a_log_min linear_a_log_max linear_dt_min linear_dt_max "
               "linear_dt_init_floor")  # fmt: skip
    raw.only("hidden_act", "silu", "swish")  # it is the activation behind the convolution, too
    d_model, n_layer = raw.size("hidden_size"), raw.size("num_hidden_layers")
    heads = raw.size("num_attention_heads")
    d_head = raw.size("head_dim", None) or d_model // heads
    key_heads, value_heads = raw.size("linear_num_key_heads", heads), raw.size("linear_num_value_heads", heads)
    if value_heads % key_heads:
        raise MechintError(
            f"{raw.where}: linear_num_value_heads = {value_heads} is no multiple of linear_num_key_heads = {key_heads}"
        )
    key_size = raw.size("linear_key_head_dim", int(0.75 * d_model / key_heads))
    default = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(n_layer)]
    if "full_attention" not in default:
        default[-1] = "full_attention"
    return OlmoHybridConfig(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        n_layer=n_layer,
        tied=raw.switch("tie_word_embeddings", False),
        kinds=tuple(raw.kinds("layer_types", KINDS, n_layer, default)),
        n_head=heads,
        n_kv_head=raw.size("num_key_value_heads", heads),
        d_head=d_head,
        attention_bias=raw.switch("attention_bias", False),
        rotation=read_rotation(raw, d_head),
        d_mlp=raw.size("intermediate_size"),
        key_heads=key_heads,
        value_heads=value_heads,
        key_size=key_size,
        value_size=raw.size("linear_value_head_dim", 2 * key_size),
        d_conv=raw.size("linear_conv_kernel_dim", 4),
        doubled=raw.switch("linear_allow_neg_eigval", True),
        norm_eps=raw.number("rms_norm_eps", 1e-6),
    )


def read_rotation(raw: ConfigReader, d_head: int) -> Rotation | None:
    """The rotation, or none where rope_theta is said to be null; raises :class:`MechintError` where nothing is said."""
    said = raw.raw.get("rope_parameters")
    inside = said if isinstance(said, dict) else {}
    if inside.get("rope_theta", raw.raw.get("rope_theta")) is not None:
        rotation = raw.rotation(d_head)
        if rotation.size:
            raise MechintError(f"{raw.where}: the rotation has a partial_rotary_factor, which an Olmo-Hybrid ignores")
        return rotation
    if "rope_theta" not in inside and "rope_theta" not in raw.raw:
        raise MechintError(
            f"{raw.where}: the configuration does not say whether attention rotates (transformers would rotate, "
            'the published models do not); add "rope_parameters": {"rope_theta": null} for none, or a number'
        )
    raw.ignore("rope_parameters rope_theta")
    return None


def layer(c: OlmoHybridConfig, i: int) -> Layer:
    """A delta rule or attention, then a gated feed-forward part."""
    norm = lambda size: RMSNorm(size, c.norm_eps)
    mlp = GatedMLP(c.d_model, c.d_mlp)
    if c.kinds[i] == "delta":
        delta = GatedDelta(
            c.d_model, c.key_heads, c.value_heads, c.key_size, c.value_size, c.d_conv, GATED_EPS, c.doubled
        )
        modules = {"input_layernorm": norm(c.d_model), "linear_attn": delta,
                   "post_attention_layernorm": norm(c.d_model), "mlp": mlp}  # fmt: skip
        return Layer(
            modules,
            [Branch("input_layernorm", "ln_1", ("linear_attn",))],
            [Branch("post_attention_layernorm", "ln_2", ("mlp",))],
        )
    attention = Attention(
        c.d_model, c.n_head, c.n_kv_head, c.d_head, bias=c.attention_bias, out_bias=c.attention_bias,
        rotation=c.rotation, norms=(norm(c.n_head * c.d_head), norm(c.n_kv_head * c.d_head)), whole_norms=True,
    )  # fmt: skip
    modules = {"self_attn": attention, "post_attention_layernorm": norm(c.d_model), "mlp": mlp,
               "post_feedforward_layernorm": norm(c.d_model)}  # fmt: skip
    return Layer(
        modules,
        [Branch("", "", ("self_attn",), {"self_attn": "post_attention_layernorm"})],
        [Branch("", "", ("mlp",), {"mlp": "post_feedforward_layernorm"})],
    )


def asked(a: Asked) -> OlmoHybridConfig:
    """The configuration of a model to train: no rotation, and write strengths of up to 2, as published."""
    return OlmoHybridConfig(
        **a.stream(), kinds=a.kinds, **a.attention(a.has("attention")), attention_bias=False, rotation=None,
        d_mlp=a.d_mlp(), **a.delta(a.has("delta")), doubled=True, norm_eps=1e-6,
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {ours: theirs for theirs, ours in KINDS.items()}
    rotation = {"rope_theta": None, "rope_type": "default"} if c.rotation is None else c.rotation.written(c.d_head)
    own_head = {} if c.d_head == c.d_model // c.n_head else {"head_dim": c.d_head}
    return {
        "architectures": ["OlmoHybridForCausalLM"], "model_type": "olmo_hybrid", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "layer_types": [names[kind] for kind in c.kinds], "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head, "attention_bias": c.attention_bias, "rope_parameters": rotation,
        "intermediate_size": c.d_mlp, "linear_num_key_heads": c.key_heads, "linear_num_value_heads": c.value_heads,
        "linear_key_head_dim": c.key_size, "linear_value_head_dim": c.value_size,
        "linear_conv_kernel_dim": c.d_conv, "linear_allow_neg_eigval": c.doubled, "rms_norm_eps": c.norm_eps,
        "pad_token_id": None, "eos_token_id": None, **own_head,
    }  # fmt: skip


def rows(c: OlmoHybridConfig) -> list[int]:
    """Queries, keys and values."""
    return [c.key_heads * c.key_size, c.key_heads * c.key_size, c.value_heads * c.value_size]


FAMILIES = [
    StackFamily(
        "olmo_hybrid", "Olmo-Hybrid", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(
            renamed={
                r"\.input_layernorm\.": ".attention_layer_norm.",
                r"\.post_attention_layernorm\.": ".feedforward_layer_norm.",
                r"linear_attn\.in_proj_z\.": "linear_attn.g_proj.", r"linear_attn\.in_proj_": "linear_attn.",
                r"linear_attn\.([ab])\.": r"linear_attn.\1_proj.", r"linear_attn\.norm\.": "linear_attn.o_norm.",
                r"linear_attn\.out_proj\.": "linear_attn.o_proj.",
            },
            pieces=(
                Pieces("linear_attn.in_proj_qkv.weight",
                       tuple(f"linear_attn.{one}_proj.weight" for one in "qkv"), rows),
                # transformers writes these in three pieces of equal size, whatever the sizes of keys and values
                Pieces("linear_attn.conv1d.weight",
                       tuple(f"linear_attn.{one}_conv1d.weight" for one in "qkv"), rows, anywhere=True),
            ),
            others={r"\.input_layernorm\.": ".attention_layer_norm.",
                    r"\.post_attention_layernorm\.": ".feedforward_layer_norm."},
            left_out=r"mtp\.",
        ),
        trained=Trained({"delta": "delta", "attention": "attention"}, "delta attention", asked),
    )
]  # fmt: skip
