"""StableLM (Bellagente et al. 2024): a gated transformer with layer norms, of whose heads a part is turned.

Both parts of a layer may read one norm, and each head's queries and keys may have a norm with weights of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.feed_forward import GatedMLP
from ...parts.norms import LayerNorm
from ...stack import Stack
from .common import TransformerConfig, check_shares, head_norms, parallel, pre_norm, read_sizes, written

EPS = "layer_norm_eps"


@dataclass(frozen=True, kw_only=True)
class StableLmConfig(TransformerConfig):
    """Sizes and switches of a StableLM."""

    qk_norm: bool
    """True if each head's queries and keys are normed."""
    parallel: bool
    """True if both parts of a layer read one norm of the stream before it."""
    norm_bias: bool = True
    """True if the norms in front of parts and behind the last layer have biases."""
    family = "stablelm"


def read(raw: ConfigReader) -> StableLmConfig:
    """The configuration of a ``config.json``: a quarter of each head is turned where nothing is said."""
    sizes, heads = read_sizes(raw, eps=1e-5, eps_name=EPS), raw.heads(with_keys=32)
    check_shares(raw, sizes["d_model"], heads["n_head"])
    raw.only("rotary_scaling_factor", 1.0)  # of published files; transformers does not read it
    return StableLmConfig(
        **sizes, **heads, attention_bias=raw.switch("use_qkv_bias", False),
        rotation=raw.rotation(heads["d_head"], fraction=0.25), windows=(0,) * sizes["n_layer"],
        qk_norm=raw.switch("qk_layernorm", False), parallel=raw.switch("use_parallel_residual", False),
        norm_bias=raw.switch("use_norm_bias", True),
    )  # fmt: skip


def last_norm(c: StableLmConfig) -> LayerNorm:
    """The norm behind the last layer."""
    return LayerNorm(c.d_model, c.norm_eps, c.norm_bias)


def layer(c: StableLmConfig, i: int) -> Layer:
    """Attention and a gated feed-forward part, behind one norm or a norm in front of each."""
    norms = head_norms(c) if c.qk_norm else None
    if c.parallel:
        return parallel(c, i, last_norm(c), GatedMLP(c.d_model, c.d_mlp, c.activation), norms)
    return pre_norm(c, i, norms, norm=lambda size: last_norm(c))


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    # transformers turns a quarter of each head where no part is said, and not the whole
    turned = {"partial_rotary_factor": 1.0, **c.rotation.written(c.d_head)}
    said = {key: value for key, value in written(c, "StableLmForCausalLM", EPS).items() if key != "head_dim"}
    return {
        **said, "use_qkv_bias": c.attention_bias, "qk_layernorm": c.qk_norm, "use_parallel_residual": c.parallel,
        "rope_parameters": turned, **({} if c.norm_bias else {"use_norm_bias": False}),
    }  # fmt: skip


NAMES = Names(renamed={r"\.([qk])_norm\.": r".\1_layernorm."})
FAMILIES = [StackFamily("stablelm", "StableLM", read, layer, last_norm, write, NAMES)]
