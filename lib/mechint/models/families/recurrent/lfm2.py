"""LFM2 (Liquid AI): gated short convolutions, and in some layers attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....utils.errors import MechintError
from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.attention import Attention
from ...parts.base import Branch, Layer
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


def read(raw: ConfigReader) -> Lfm2Config:
    """The configuration of a ``config.json``."""
    raw.ignore("max_position_embeddings block_mlp_init_scale block_out_init_scale block_use_xavier_init "
               "conv_use_xavier_init")  # fmt: skip
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
    return Lfm2Config(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        n_layer=n_layer,
        tied=read_tied(raw),
        kinds=tuple(raw.kinds("layer_types", KINDS, n_layer, default)),
        n_head=heads,
        n_kv_head=raw.size("num_key_value_heads", heads),
        d_head=d_head,
        rotation=rotation,
        d_mlp=read_width(raw),
        d_conv=raw.size("conv_L_cache", 3),
        conv_bias=raw.switch("conv_bias", False),
        norm_eps=eps,
    )


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
    """A short convolution or attention, then a gated feed-forward part."""
    norm = lambda size: RMSNorm(size, c.norm_eps)
    mixer: dict[str, Any]
    if c.kinds[i] == "conv":
        mixer = {"conv": ShortConv(c.d_model, c.d_conv, c.conv_bias)}
    else:
        attention = Attention(c.d_model, c.n_head, c.n_kv_head, c.d_head, rotation=c.rotation,
                              norms=(norm(c.d_head), norm(c.d_head)))  # fmt: skip
        mixer = {"self_attn": attention}
    modules = {"operator_norm": norm(c.d_model), **mixer, "ffn_norm": norm(c.d_model),
               "feed_forward": GatedMLP(c.d_model, c.d_mlp)}  # fmt: skip
    return Layer(
        modules,
        [Branch("operator_norm", "ln_1", tuple(mixer))],
        [Branch("ffn_norm", "ln_2", ("feed_forward",))],
    )


def asked(a: Asked) -> Lfm2Config:
    """The configuration of a model to train."""
    heads = a.attention(a.has("attention"))
    return Lfm2Config(
        **a.stream(), kinds=a.kinds, **heads, rotation=a.rotation(heads["d_head"], used=a.has("attention")),
        d_mlp=a.d_mlp(), d_conv=a.size("d_conv", 3, a.has("conv")), conv_bias=False, norm_eps=1e-5,
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {ours: theirs for theirs, ours in KINDS.items()}
    own_head = {} if c.d_head == c.d_model // c.n_head else {"head_dim": c.d_head}
    return {
        "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": c.tied,
        "layer_types": [names[kind] for kind in c.kinds], "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head, "rope_parameters": c.rotation.written(c.d_head),
        "intermediate_size": c.d_mlp, "block_auto_adjust_ff_dim": False, "conv_L_cache": c.d_conv,
        "conv_bias": c.conv_bias, "norm_eps": c.norm_eps, **own_head,
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "lfm2", "LFM2", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps), write,
        Names(
            renamed={
                r"^norm\.": "embedding_norm.", r"self_attn\.o_proj\.": "self_attn.out_proj.",
                r"self_attn\.([qk])_norm\.": r"self_attn.\1_layernorm.", r"feed_forward\.gate_proj\.":
                "feed_forward.w1.", r"feed_forward\.down_proj\.": "feed_forward.w2.",
                r"feed_forward\.up_proj\.": "feed_forward.w3.",
            },
        ),
        trained=Trained({"conv": "conv", "attention": "attention"}, "conv attention", asked),
    )
]  # fmt: skip
