"""Qwen3-Next: the layers of Qwen3.5, with the projections of each key head together and experts in most layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....utils.errors import MechintError, shown
from ...family import Fused, Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.norms import RMSNorm
from ...sizes import Asked, Trained
from ...stack import Stack
from .qwen3_5 import (
    ROUTER,
    STACKED,
    WORDS,
    Qwen35Config,
    asked_mixture,
    asked_sizes,
    layer,
    mixture,
    sizes,
    write,
    written_mixture,
)


@dataclass(frozen=True, kw_only=True)
class Qwen3NextConfig(Qwen35Config):
    """Sizes and switches of a Qwen3-Next."""

    family = "qwen3_next"


def mixed_layers(raw: ConfigReader, n_layer: int, experts: int) -> tuple[bool, ...]:
    """For each layer whether it has experts: every so manieth, without those that are said to have none."""
    every, dense = raw.size("decoder_sparse_step", 1), raw.raw.get("mlp_only_layers") or []
    raw.ignore("mlp_only_layers")
    if not isinstance(dense, (list, tuple)) or not all(type(i) is int for i in dense):
        raise MechintError(f"{raw.where}: mlp_only_layers is {shown(dense)}, which is no list of layers")
    return tuple(experts > 0 and i not in dense and (i + 1) % every == 0 for i in range(n_layer))


def read(raw: ConfigReader) -> Qwen3NextConfig:
    """The configuration of a ``config.json``."""
    said = sizes(raw)
    mixed = mixed_layers(raw, said["n_layer"], raw.size("num_experts", least=0))
    d_mlp, normalised = raw.size("intermediate_size"), raw.switch("norm_topk_prob", True)
    if not any(mixed):
        raw.ignore("num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size")
        return Qwen3NextConfig(d_mlp=d_mlp, **said)
    return Qwen3NextConfig(d_mlp=d_mlp, mixed=mixed, **said, **mixture(raw, normalised))


def asked(a: Asked) -> Qwen3NextConfig:
    """The configuration of a model to train."""
    mixture = asked_mixture(a, 0)
    return Qwen3NextConfig(**asked_sizes(a), **mixture, d_mlp=a.d_mlp(used=not mixture))


def write_next(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}
    dense = [i for i, mixed in enumerate(c.mixed) if not mixed]
    experts = {"mlp_only_layers": dense, "norm_topk_prob": c.routing.normalised, **written_mixture(c)}
    return {**write(model), **names, **(experts if c.mixed else {"num_experts": 0})}


def join_heads(parts: Sequence[Tensor], c: Qwen35Config, widths: Sequence[int]) -> Tensor:
    """Rows of several projections, of which each key head has so many, ordered by key head."""
    each = [part.unflatten(0, (c.key_heads, width)) for part, width in zip(parts, widths, strict=True)]
    return torch.cat(each, 1).flatten(0, 1)


def split_heads(whole: Tensor, c: Qwen35Config, widths: Sequence[int]) -> list[Tensor]:
    """The projections of rows that are ordered by key head."""
    return [part.flatten(0, 1) for part in whole.unflatten(0, (c.key_heads, -1)).split(list(widths), 1)]


def widths(c: Qwen35Config) -> list[int]:
    """Rows of queries, keys, values and output gates for each key head."""
    values = c.value_heads // c.key_heads * c.value_size
    return [c.key_size, c.key_size, values, values]


def join_qkvz(parts: Sequence[Tensor], c: Qwen35Config) -> Tensor:
    qkv, z = parts
    keys = c.key_heads * c.key_size
    return join_heads([*qkv.split([keys, keys, c.value_heads * c.value_size]), z], c, widths(c))


def split_qkvz(whole: Tensor, c: Qwen35Config) -> list[Tensor]:
    *qkv, z = split_heads(whole, c, widths(c))
    return [torch.cat(qkv), z]


IN_PROJECTIONS = (
    Fused(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz", split_qkvz, join_qkvz),
    Fused(("in_proj_b", "in_proj_a"), "in_proj_ba", lambda whole, c: split_heads(whole, c, shares(c)),
          lambda parts, c: join_heads(parts, c, shares(c))),
)  # fmt: skip
"""Qwen3-Next's projections, in which the rows of every key head stand together."""


def shares(c: Qwen35Config) -> list[int]:
    """Write strengths and decays for each key head."""
    return [c.value_heads // c.key_heads] * 2


FAMILIES = [
    StackFamily(
        "qwen3_next", "Qwen3-Next", read, layer, lambda c: RMSNorm(c.d_model, c.norm_eps, plus=1.0), write_next,
        Names(renamed=ROUTER, fused=(*IN_PROJECTIONS, *STACKED), left_out=r"mtp\."),
        trained=Trained(WORDS, "delta attention", asked),
    )
]  # fmt: skip
