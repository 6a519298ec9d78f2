"""Phi (Li et al. 2023, "Textbooks Are All You Need II"; Phi-2) and Phi-3 (Abdin et al. 2024).

A Phi has attention and a plain feed-forward part behind one norm, and biases everywhere, in the head too. Files of
Phi-3 hold queries, keys and values as one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...family import Fused, Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Layer
from ...parts.feed_forward import MLP
from ...parts.norms import LayerNorm
from ...stack import Stack
from .common import TransformerConfig, check_shares, last_norm, parallel, pre_norm, read_sizes, written


@dataclass(frozen=True, kw_only=True)
class PhiConfig(TransformerConfig):
    """Sizes and switches of a Phi."""

    qk_norm: bool
    """True if each head's queries and keys are normed."""
    family = "phi"


@dataclass(frozen=True, kw_only=True)
class Phi3Config(TransformerConfig):
    """Sizes and switches of a Phi-3."""

    family = "phi3"


def read_phi(raw: ConfigReader) -> PhiConfig:
    """The configuration of a ``config.json``."""
    raw.ignore("resid_pdrop embd_pdrop")
    sizes, heads = read_sizes(raw, eps=1e-5, activation="hidden_act", eps_name="layer_norm_eps"), raw.heads()
    check_shares(raw, sizes["d_model"], heads["n_head"])
    return PhiConfig(
        **sizes, **heads, head_bias=True, attention_bias=True, out_bias=True, mlp_bias=True,
        rotation=raw.rotation(heads["d_head"], fraction=0.5), windows=(0,) * sizes["n_layer"],
        qk_norm=raw.switch("qk_layernorm", False),
    )  # fmt: skip


def phi_layer(c: PhiConfig, i: int) -> Layer:
    """Attention and a plain feed-forward part behind one norm."""
    norm = lambda size: LayerNorm(size, c.norm_eps, bias=True)
    feed = MLP(c.d_model, c.d_mlp, c.activation, bias=True)
    return parallel(c, i, norm(c.d_model), feed, (norm(c.d_head), norm(c.d_head)) if c.qk_norm else None)


def write_phi(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    said = {key: value for key, value in written(c, "PhiForCausalLM", "layer_norm_eps").items() if key != "head_dim"}
    # transformers turns half of each head where no part is said, and not the whole
    turned = {"partial_rotary_factor": 1.0, **c.rotation.written(c.d_head)}
    return {**said, "qk_layernorm": c.qk_norm, "rope_parameters": turned}


def read_phi3(raw: ConfigReader) -> Phi3Config:
    """The configuration of a ``config.json``: one window for every layer, or none."""
    raw.ignore("resid_pdrop embd_pdrop")
    raw.only("attention_bias", False)
    raw.only("interpolate_factor", 1)  # of Phi-4-mini's files, as the next one
    raw.only("full_attn_mod", 1)
    sizes, heads = read_sizes(raw, eps=1e-5), raw.heads()
    window, original = raw.size("sliding_window", 0), raw.size("original_max_position_embeddings", 4096, 2)
    rotation = raw.rotation(heads["d_head"], original=original)
    return Phi3Config(**sizes, **heads, rotation=rotation, windows=(window,) * sizes["n_layer"])


def write_phi3(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    # transformers' own padding token is none of a small vocabulary
    said = {**written(c, "Phi3ForCausalLM"), "sliding_window": c.windows[0] or None, "pad_token_id": None}
    return {**said, "original_max_position_embeddings": c.rotation.original} if c.rotation.long is not None else said


def split(fused: Tensor, c: Phi3Config) -> Sequence[Tensor]:
    """Queries, keys and values, one behind the other."""
    return fused.split([c.n_head * c.d_head, c.n_kv_head * c.d_head, c.n_kv_head * c.d_head])


PHI_NAMES = Names(
    renamed={
        r"^norm\.": "final_layernorm.",
        r"\.o_proj\.": ".dense.",
        r"\.up_proj\.": ".fc1.",
        r"\.down_proj\.": ".fc2.",
        r"\.([qk])_norm\.": r".\1_layernorm.",
    }
)
GATED = Fused(
    ("gate_proj", "up_proj"), "gate_up_proj", lambda fused, c: fused.chunk(2), lambda ours, c: torch.cat(list(ours))
)
"""Gates and values of neurons, one behind the other."""
FUSED = (Fused(("q_proj", "k_proj", "v_proj"), "qkv_proj", split, lambda ours, c: torch.cat(list(ours))), GATED)
FAMILIES = [
    StackFamily(
        "phi", "Phi", read_phi, phi_layer, lambda c: LayerNorm(c.d_model, c.norm_eps, bias=True), write_phi, PHI_NAMES
    ),
    StackFamily("phi3", "Phi-3", read_phi3, pre_norm, last_norm, write_phi3, Names(fused=FUSED)),
]
