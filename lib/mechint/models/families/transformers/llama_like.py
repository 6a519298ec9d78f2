"""ERNIE 4.5 (Baidu 2025) and Seed-OSS (ByteDance 2025): a Llama with biases of their own.

In an ERNIE 4.5 neighbouring dimensions of a head are turned as pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...family import StackFamily
from ...loading.config_reader import ConfigReader
from ...stack import Stack
from .common import TransformerConfig, last_norm, pre_norm, read_rotation, read_sizes, written


@dataclass(frozen=True, kw_only=True)
class ErnieConfig(TransformerConfig):
    """Sizes and switches of an ERNIE 4.5."""

    family = "ernie4_5"


@dataclass(frozen=True, kw_only=True)
class SeedOssConfig(TransformerConfig):
    """Sizes and switches of a Seed-OSS."""

    family = "seed_oss"


def read_heads(raw: ConfigReader, with_keys: int) -> dict[str, Any]:
    """The heads, of 128 dimensions where nothing is said and of an equal share of the stream where that is null."""
    return raw.heads(0 if raw.null("head_dim") else 128, with_keys=with_keys)


def read_ernie(raw: ConfigReader) -> ErnieConfig:
    """The configuration of a ``config.json``: one switch for all biases."""
    sizes, heads, bias = read_sizes(raw, eps=1e-5, tied=True), read_heads(raw, 2), raw.switch("use_bias", False)
    return ErnieConfig(
        **sizes, **heads, attention_bias=bias, out_bias=bias, mlp_bias=bias, windows=(0,) * sizes["n_layer"],
        rotation=read_rotation(raw, heads["d_head"], 5e5, interleaved=True),
    )  # fmt: skip


def read_seed(raw: ConfigReader) -> SeedOssConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("residual_dropout pretraining_tp")
    sizes, heads = read_sizes(raw), read_heads(raw, 8)
    return SeedOssConfig(
        **sizes, **heads, attention_bias=raw.switch("attention_bias", True),
        out_bias=raw.switch("attention_out_bias", False), mlp_bias=raw.switch("mlp_bias", False),
        rotation=read_rotation(raw, heads["d_head"]), windows=(0,) * sizes["n_layer"],
    )  # fmt: skip


def write_ernie(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    return {**written(model.config, "Ernie4_5ForCausalLM"), "use_bias": model.config.mlp_bias}


def write_seed(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    return {
        **written(c, "SeedOssForCausalLM"), "attention_bias": c.attention_bias, "attention_out_bias": c.out_bias,
        "mlp_bias": c.mlp_bias,
    }  # fmt: skip


FAMILIES = [
    StackFamily("ernie4_5", "ERNIE 4.5", read_ernie, pre_norm, last_norm, write_ernie),
    StackFamily("seed_oss", "Seed-OSS", read_seed, pre_norm, last_norm, write_seed),
]
