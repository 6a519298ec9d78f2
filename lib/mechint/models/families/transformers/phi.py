"""Phi-3 (Abdin et al. 2024): a gated transformer whose files hold queries, keys and values as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...family import Fused, Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...stack import Stack
from .common import TransformerConfig, last_norm, pre_norm, read_sizes, written


@dataclass(frozen=True, kw_only=True)
class Phi3Config(TransformerConfig):
    """Sizes and switches of a Phi-3."""

    family = "phi3"


def read(raw: ConfigReader) -> Phi3Config:
    """The configuration of a ``config.json``: one window for every layer, or none."""
    raw.ignore("original_max_position_embeddings resid_pdrop embd_pdrop")  # the first counts in a rotation of longrope
    raw.only("attention_bias", False)
    sizes, heads = read_sizes(raw, eps=1e-5), raw.heads()
    window = raw.size("sliding_window", 0)
    return Phi3Config(**sizes, **heads, rotation=raw.rotation(heads["d_head"]), windows=(window,) * sizes["n_layer"])


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    # transformers' own padding token is none of a small vocabulary
    return {**written(c, "Phi3ForCausalLM"), "sliding_window": c.windows[0] or None, "pad_token_id": None}


def split(fused: Tensor, c: Phi3Config) -> Sequence[Tensor]:
    """Queries, keys and values, one behind the other."""
    return fused.split([c.n_head * c.d_head, c.n_kv_head * c.d_head, c.n_kv_head * c.d_head])


FUSED = (
    Fused(("q_proj", "k_proj", "v_proj"), "qkv_proj", split, lambda ours, c: torch.cat(list(ours))),
    Fused(
        ("gate_proj", "up_proj"), "gate_up_proj", lambda fused, c: fused.chunk(2), lambda ours, c: torch.cat(list(ours))
    ),
)
FAMILIES = [StackFamily("phi3", "Phi-3", read, pre_norm, last_norm, write, Names(fused=FUSED))]
