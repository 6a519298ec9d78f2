"""OLMo 2 and 3 (Ai2, 2025) and EXAONE 4 (LG 2025): parts read the stream itself and are normed behind.

An OLMo norms whole queries and keys, an EXAONE those of each head. OLMo 3 has windows, and may turn queries and keys
otherwise where there is one; an EXAONE with windows turns them there alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Branch, Layer
from ...parts.feed_forward import GatedMLP
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...stack import Stack
from .common import TransformerConfig, attention, last_norm, read_rotation, read_sizes, read_window, read_windows
from .common import written as written_sizes


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(TransformerConfig):
    """Sizes and switches of an OLMo 2."""

    family = "olmo2"


@dataclass(frozen=True, kw_only=True)
class Olmo3Config(TransformerConfig):
    """Sizes and switches of an OLMo 3; the rotation is that of layers without a window."""

    window: int
    """Sliding window of the layers that have one."""
    window_rotation: Rotation
    """The rotation in layers with a window."""
    family = "olmo3"


@dataclass(frozen=True, kw_only=True)
class Exaone4Config(TransformerConfig):
    """Sizes and switches of an EXAONE 4."""

    window: int
    """Sliding window of the layers that have one; layers without one have a rotation where this is 0."""
    family = "exaone4"


def read_olmo(raw: ConfigReader) -> dict[str, Any]:
    """The fields of both."""
    bias = raw.switch("attention_bias", False)
    return {**read_sizes(raw, eps=1e-5), **raw.heads(), "attention_bias": bias, "out_bias": bias}


def read_olmo2(raw: ConfigReader) -> Olmo2Config:
    """The configuration of a ``config.json``."""
    found = read_olmo(raw)
    return Olmo2Config(**found, rotation=read_rotation(raw, found["d_head"]), windows=(0,) * found["n_layer"])


def read_olmo3(raw: ConfigReader) -> Olmo3Config:
    """The configuration of a ``config.json``: three layers of four have a window where nothing is said."""
    found, window = read_olmo(raw), read_window(raw, 4096)
    raw.only("rope_theta", 5e5)  # of an earlier file transformers gives it to the layers without a window alone
    kinds = ["sliding_attention" if (i + 1) % 4 else "full_attention" for i in range(found["n_layer"])]
    return Olmo3Config(
        **found, window=window, windows=read_windows(raw, found["n_layer"], kinds, window),
        rotation=read_rotation(raw, found["d_head"], 5e5, "full_attention"),
        window_rotation=read_rotation(raw, found["d_head"], 5e5, "sliding_attention"),
    )  # fmt: skip


def read_exaone4(raw: ConfigReader) -> Exaone4Config:
    """The configuration of a ``config.json``: every so manieth layer has no window where the layers are not said."""
    sizes, heads, window = read_sizes(raw, eps=1e-5), raw.heads(with_keys=32), read_window(raw, 4096)
    every = raw.size("sliding_window_pattern", 4) if window and raw.raw.get("layer_types") is None else 1
    raw.ignore("sliding_window_pattern")  # what layer_types was made of
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(sizes["n_layer"])]
    windows = read_windows(raw, sizes["n_layer"], kinds, window)
    return Exaone4Config(
        **sizes, **heads, rotation=read_rotation(raw, heads["d_head"]), windows=windows, window=window,
        unturned=tuple(i for i, size in enumerate(windows) if window and not size),
    )  # fmt: skip


def layer(c: Olmo2Config | Olmo3Config | Exaone4Config, i: int) -> Layer:
    """Attention and a gated feed-forward part, a norm behind each."""
    rotation = c.window_rotation if isinstance(c, Olmo3Config) and c.windows[i] else c.rotation
    whole = not isinstance(c, Exaone4Config)
    queries, keys = (c.n_head * c.d_head, c.n_kv_head * c.d_head) if whole else (c.d_head, c.d_head)
    norms = RMSNorm(queries, c.norm_eps), RMSNorm(keys, c.norm_eps)
    modules = {
        "self_attn": attention(c, i, norms, rotation=rotation, whole_norms=whole),
        "post_attention_layernorm": RMSNorm(c.d_model, c.norm_eps),
        "mlp": GatedMLP(c.d_model, c.d_mlp, c.activation),
        "post_feedforward_layernorm": RMSNorm(c.d_model, c.norm_eps),
    }
    return Layer(
        modules,
        [Branch("", "", ("self_attn",), {"self_attn": "post_attention_layernorm"})],
        [Branch("", "", ("mlp",), {"mlp": "post_feedforward_layernorm"})],
    )


def write_olmo2(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    return {**written_sizes(model.config, "Olmo2ForCausalLM"), "attention_bias": model.config.attention_bias}


def write_olmo3(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    turns = {"full_attention": c.rotation, "sliding_attention": c.window_rotation}
    return {
        **written_sizes(c, "Olmo3ForCausalLM"), "attention_bias": c.attention_bias, "layer_types": c.kinds,
        "sliding_window": c.window or None,
        "rope_parameters": {kind: rotation.written(c.d_head) for kind, rotation in turns.items()},
    }  # fmt: skip


def write_exaone4(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    said = {**written_sizes(c, "Exaone4ForCausalLM"), "layer_types": c.kinds}
    return {**said, "sliding_window": c.window or None}


FAMILIES = [
    StackFamily("olmo2", "OLMo 2", read_olmo2, layer, last_norm, write_olmo2),
    StackFamily("olmo3", "OLMo 3", read_olmo3, layer, last_norm, write_olmo3),
    StackFamily("exaone4", "EXAONE 4", read_exaone4, layer, last_norm, write_exaone4),
]
