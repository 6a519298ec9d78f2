"""Zamba 2 (Glorioso et al. 2024): Mamba-2 in every layer, and in some of them before it a block that several share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....interventions.taps import Tap
from ....utils.errors import MechintError, an
from ...family import Names, StackFamily
from ...loading.config_reader import ConfigReader
from ...parts.base import Branch, Layer
from ...parts.mamba2 import Mamba2Mixer
from ...parts.norms import RMSNorm
from ...parts.rotation import Rotation
from ...parts.shared import (
    BesideEmbeddings,
    BlockThenMamba,
    SharedAttention,
    SharedBlock,
    SharedFeedForward,
    StreamNorm,
)
from ...sizes import Asked, Trained
from ...stack import Stack, StackConfig

KINDS = {"linear_attention": "mamba", "mamba": "mamba", "hybrid": "hybrid"}


@dataclass(frozen=True, kw_only=True)
class Zamba2Config(StackConfig):
    """Sizes and switches of a Zamba 2."""

    kinds: Sequence[str]
    """``mamba``, or ``hybrid`` where a shared block stands before the mixer, for each layer."""
    blocks: int
    """Blocks that are used in turn."""
    n_head: int
    n_kv_head: int
    rotation: Rotation | None
    rank: int
    """Rank of what each use adds to a block's projections."""
    attention_adapted: bool
    """True if each use adds something to queries, keys and values, too."""
    d_mlp: int
    activation: str
    bias: bool
    """True if the mixers' projections and the feed-forward parts have biases."""
    ssm_heads: int
    ssm_head_size: int
    d_state: int
    n_groups: int
    d_conv: int
    least_dt: float
    """The least step size; there is no largest."""
    norm_eps: float
    family = "zamba2"

    @property
    def d_head(self) -> int:
        return 2 * self.d_model // self.n_head

    @property
    def hybrids(self) -> list[int]:
        """The layers with a shared block."""
        return [i for i, kind in enumerate(self.kinds) if kind == "hybrid"]


def read(raw: ConfigReader) -> Zamba2Config:
    """The configuration of a ``config.json``."""
    raw.ignore(
        "max_position_embeddings time_step_max time_step_floor use_mamba_kernels chunk_size use_mem_eff_path "
        "num_logits_to_keep"
    )
    d_model, heads, n_layer = raw.size("hidden_size"), raw.size("num_attention_heads"), raw.size("num_hidden_layers")
    ssm_heads, inner = raw.size("n_mamba_heads"), raw.size("mamba_expand", 2) * d_model
    if inner % ssm_heads or 2 * d_model % heads:
        raise MechintError(
            f"{raw.where}: {ssm_heads} heads of mixers (n_mamba_heads) of the width {inner}, or {heads} of attention "
            f"(num_attention_heads) of the width {2 * d_model}, are not equal; correct it"
        )
    name, other = "layers_block_type", "layer_types"
    if raw.raw.get(name) is None:
        name, other = other, name
    raw.only(other, raw.raw.get(name))
    kinds = tuple(raw.kinds(name, KINDS, n_layer))
    kv, d_head = raw.size("num_key_value_heads", heads), 2 * d_model // heads
    same: dict[str, object] = {  # what transformers makes of other keys, or does whatever stands here
        "attention_hidden_size": 2 * d_model, "attention_head_dim": d_head, "head_dim": d_head,
        "mamba_headdim": inner // ssm_heads, "kv_channels": d_model // heads, "num_query_groups": heads,
        "hybrid_layer_ids": [i for i, kind in enumerate(kinds) if kind == "hybrid"], "use_conv_bias": True,
        "use_long_context": False, "use_shared_mlp_adapter": True,
    }  # fmt: skip
    for key, value in same.items():
        raw.only(key, value)
    raw.only("tie_word_embeddings", True)  # else transformers shares neither head nor blocks
    adapted = raw.switch("use_shared_attention_adapter", False)
    if adapted and kv != heads:
        raise MechintError(
            f"{raw.where}: use_shared_attention_adapter needs as many heads of keys and values as of queries, and "
            f"num_key_value_heads is {kv}; correct it"
        )
    rotation = None
    if raw.switch("use_mem_rope", False):
        rotation = raw.rotation(d_head)
        if rotation.size:
            raise MechintError(f"{raw.where}: partial_rotary_factor is not 1, and {an(raw.title)} turns whole heads")
    else:
        raw.ignore("rope_parameters rope_scaling rope_theta partial_rotary_factor")
    return Zamba2Config(
        vocab_size=raw.size("vocab_size"),
        d_model=d_model,
        n_layer=n_layer,
        tied=True,
        kinds=kinds,
        blocks=raw.size("num_mem_blocks", 1),
        n_head=heads,
        n_kv_head=kv,
        rotation=rotation,
        rank=raw.size("adapter_rank", 128),
        attention_adapted=adapted,
        d_mlp=raw.size("intermediate_size", None) or 4 * d_model,
        activation=raw.activation("hidden_act", "gelu"),
        bias=raw.switch("add_bias_linear", False),
        ssm_heads=ssm_heads,
        ssm_head_size=inner // ssm_heads,
        d_state=raw.size("mamba_d_state", 64),
        n_groups=raw.size("mamba_ngroups", 1),
        d_conv=raw.size("mamba_d_conv", 4),
        least_dt=raw.number("time_step_min", 0.001),
        norm_eps=raw.number("rms_norm_eps", 1e-5),
    )


def layer(c: Zamba2Config, i: int) -> Layer:
    """Mamba-2, and in a hybrid layer a shared block before it; the block's first user holds it."""
    mamba = Mamba2Mixer(
        c.d_model, c.ssm_heads, c.ssm_head_size, c.d_state, c.n_groups, c.d_conv, proj_bias=c.bias, eps=1e-5,
        norm_groups=c.n_groups, limits=(c.least_dt, math.inf),
    )  # fmt: skip
    if c.kinds[i] == "mamba":
        modules = {"input_layernorm": RMSNorm(c.d_model, c.norm_eps), "mamba": mamba}
        return BesideEmbeddings(modules, [Branch("input_layernorm", "normed", ("mamba",))])
    use = c.hybrids.index(i)
    block = None
    if use < c.blocks:
        uses = range(use, len(c.hybrids), c.blocks)
        rank = c.rank if c.attention_adapted else 0
        attention = SharedAttention(c.d_model, c.n_head, c.n_kv_head, c.d_head, uses, rank, c.rotation)
        feed_forward = SharedFeedForward(c.d_model, c.d_mlp, c.activation, c.bias, uses, c.rank)
        block = SharedBlock(attention, feed_forward, c.d_model, c.norm_eps)
    part = BlockThenMamba(c.d_model, c.norm_eps, mamba, use, block)
    return BesideEmbeddings({"mixer": part}, [Branch("", "", ("mixer",))])


class Zamba2(Stack):
    """A stack whose stream has the embeddings behind it, [B, L, 2 D], for the layers that read them again."""

    placeable = False  # layers share blocks

    def __init__(self, config: Any, layer: Callable[[int], Layer], norm: nn.Module) -> None:
        super().__init__(config, layer, norm)
        users: list[BlockThenMamba] = [self.layers[i].parts["mixer"] for i in config.hybrids]
        for user in users[config.blocks :]:
            user.elsewhere.append(users[user.use % config.blocks].block)

    def begin(self, tokens: Tensor, at: Tap) -> Tensor:
        rows = super().begin(tokens, at)
        return torch.cat([rows, rows], -1)

    def at_stream(self, at: Tap, name: str, r: Tensor) -> Tensor:
        stream, embeddings = r.chunk(2, -1)
        return torch.cat([super().at_stream(at, name, stream.contiguous()), embeddings], -1)

    def into_stream(self, i: int, kind: str, change: Tensor, units: Sequence[int] | None) -> Tensor:
        return F.pad(super().into_stream(i, kind, change, units), (0, self.config.d_model))


def asked(a: Asked) -> Zamba2Config:
    """The configuration of a model to train: one shared block, whose heads read the stream beside the embeddings."""
    used = a.has("hybrid")
    heads, mixer = a.attention(used, 2 * a.d_model), a.mamba2()
    if used and heads["d_head"] * heads["n_head"] != 2 * a.d_model:
        raise a.wrong("d_head", f", and the heads of {a.title} share twice the stream's width; set it to 0")
    del heads["d_head"], mixer["conv_bias"], mixer["proj_bias"]
    return Zamba2Config(
        **a.stream(), kinds=a.kinds, blocks=1, **heads, rank=8, attention_adapted=False,
        rotation=a.rotation(2 * a.d_model // heads["n_head"], used=used), d_mlp=a.d_mlp(2, used),
        activation="gelu", bias=False, **mixer, least_dt=1e-3, norm_eps=1e-5,
    )  # fmt: skip


def write(model: Stack) -> dict[str, Any]:
    """The contents of a ``config.json``."""
    c = model.config
    names = {"mamba": "linear_attention", "hybrid": "hybrid"}
    return {
        "architectures": ["Zamba2ForCausalLM"], "model_type": "zamba2", "vocab_size": c.vocab_size,
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layer, "tie_word_embeddings": True,
        "layers_block_type": [names[kind] for kind in c.kinds], "num_mem_blocks": c.blocks,
        "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head,
        "use_mem_rope": c.rotation is not None, "adapter_rank": c.rank,
        "use_shared_attention_adapter": c.attention_adapted, "intermediate_size": c.d_mlp,
        "hidden_act": c.activation, "add_bias_linear": c.bias, "n_mamba_heads": c.ssm_heads,
        "mamba_expand": c.ssm_heads * c.ssm_head_size // c.d_model, "mamba_d_state": c.d_state,
        "mamba_ngroups": c.n_groups, "mamba_d_conv": c.d_conv, "time_step_min": c.least_dt,
        "rms_norm_eps": c.norm_eps,
        **({} if c.rotation is None else {"rope_parameters": c.rotation.written(c.d_head)}),
    }  # fmt: skip


FAMILIES = [
    StackFamily(
        "zamba2", "Zamba 2", read, layer, lambda c: StreamNorm(c.d_model, c.norm_eps), write,
        Names(
            renamed={
                r"^norm\.": "final_layernorm.", r"\.mixer\.mamba\.": ".mamba_decoder.mamba.",
                r"\.mixer\.norm\.": ".mamba_decoder.input_layernorm.",
                r"\.mixer\.(linear|shared_transformer)\.": r".\1.",
            },
        ),
        model=Zamba2, trained=Trained({"mamba2": "mamba", "shared": "hybrid"}, "mamba2 shared", asked),
    )
]  # fmt: skip
