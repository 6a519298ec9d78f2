"""StarCoder 2 (Lozhkov et al. 2024): attention that may have a window, and a plain feed-forward part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.feed_forward import MLP
from ...parts.norms import LayerNorm
from ...stack import Stack
from .common import TransformerConfig, pre_norm, read_rotation, read_sizes, read_window, written

EPS = "norm_epsilon"


@dataclass(frozen=True, kw_only=True)
class Starcoder2Config(TransformerConfig):
    """Sizes and switches of a StarCoder 2."""

    family = "starcoder2"


def read(raw: ConfigReader) -> Starcoder2Config:
    """The configuration of a ``config.json``: one window for every layer, or none."""
    raw.ignore("residual_dropout embedding_dropout attention_softmax_in_fp32 scale_attention_softmax_in_fp32")
    sizes = read_sizes(raw, eps=1e-5, tied=True, activation="hidden_act", eps_name=EPS)
    heads, bias = raw.heads(with_keys=2), raw.switch("use_bias", True)
    for name, value in (("layer_norm_epsilon", sizes["norm_eps"]), ("mlp_type", "default"),
                        ("norm_type", "layer_norm"), ("scale_attn_weights", True)):  # fmt: skip
        raw.only(name, value)  # keys of published files that transformers does not read
    return Starcoder2Config(
        **sizes, **heads, attention_bias=bias, out_bias=bias, mlp_bias=bias,
        rotation=read_rotation(raw, heads["d_head"]), windows=(read_window(raw, 0),) * sizes["n_layer"],
    )  # fmt: skip


def last_norm(c: Starcoder2Config) -> LayerNorm:
    """The norm behind the last layer."""
    return LayerNorm(c.d_model, c.norm_eps, bias=True)


def layer(c: Starcoder2Config, i: int) -> Layer:
    """Attention and a plain feed-forward part, a norm in front of each."""
    return pre_norm(c, i, norm=lambda size: last_norm(c), feed=MLP(c.d_model, c.d_mlp, c.activation, c.mlp_bias))


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    said = {**written(c, "Starcoder2ForCausalLM", EPS), "use_bias": c.mlp_bias}
    return {**said, "sliding_window": c.windows[0] or None}


NAMES = Names(renamed={r"\.mlp\.up_proj\.": ".mlp.c_fc.", r"\.mlp\.down_proj\.": ".mlp.c_proj."})
FAMILIES = [StackFamily("starcoder2", "StarCoder 2", read, layer, last_norm, write, NAMES)]
