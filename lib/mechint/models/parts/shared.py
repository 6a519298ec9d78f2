"""A transformer block that several layers share, in front of each one's Mamba-2 mixer (Zamba 2, Glorioso et al. 2024).

The block reads the residual stream and the embeddings side by side, and the mixer reads the stream plus what the block
gives; the mixer's output alone is added to the stream. Each use of the block has low-rank additions of its own.

Axes: B batch, L position, D model, H heads, G heads with keys and values of their own, d dimension, M neuron.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...interventions.sites import RESIDUAL
from ...interventions.taps import Scope
from ...interventions.unit_kinds import ATTENTION_UNITS, MEMORY_UNITS, NEURON_UNITS
from .attention import NEURONS, Attention, LayerCache, Reading, read
from .base import Layer, LayerMemory, Part, PartSite
from .convolution import CHANNELS
from .feed_forward import ACTIVATIONS
from .mamba2 import Mamba2Mixer
from .norms import RMSNorm
from .recurrence import MemoryCache
from .rotation import Rotation


def low_rank(n_in: int, rank: int, n_out: int) -> nn.Sequential:
    """A map of low rank, added to a projection."""
    return nn.Sequential(nn.Linear(n_in, rank, bias=False), nn.Linear(rank, n_out, bias=False))


class SharedAttention(Attention):
    """Attention whose queries, keys and values may have an addition for each use.

    Args:
        uses: Numbers of the block's uses.
        rank: The additions' rank; 0 for none.
    """

    def __init__(self, d_model: int, n_head: int, n_kv_head: int, d_head: int, uses: Sequence[int], rank: int,
                 rotation: Rotation | None) -> None:  # fmt: skip
        how = Reading(scale=(d_head / 2) ** -0.5)
        super().__init__(d_model, n_head, n_kv_head, d_head, rotation=rotation, how=how, n_in=2 * d_model)
        if rank:
            for letter, heads in (("q", n_head), ("k", n_kv_head), ("v", n_kv_head)):
                each = {str(use): low_rank(2 * d_model, rank, heads * d_head) for use in uses}
                self.add_module(f"linear_{letter}_adapter_list", nn.ModuleDict(each))
        self.adapted = bool(rank)

    def used(self, n: Tensor, use: int, cache: LayerCache, at: Scope) -> tuple[Tensor, LayerCache]:
        """n [B, L, 2 D] -> what attention gives [B, L, D], and the memory behind these positions."""
        made = {}
        for letter in "qkv":
            x = self.get_submodule(f"{letter}_proj")(n)
            if self.adapted:
                x = x + self.get_submodule(f"linear_{letter}_adapter_list.{use}")(n)
            made[letter] = at(letter, x.unflatten(-1, (-1, self.d_head)).contiguous())
        q, k, v = made.values()  # [B, L, H, d], [B, L, G, d] twice
        if self.rotation is not None:
            q = at("q_rot", self.rotation.turn(q, at.positions(q)))
            k = at("k_rot", self.rotation.turn(k, at.positions(k)))
        head_out, cache = read(q, k, v, cache, at, self.how)
        return self.o_proj(head_out.flatten(2)), cache


class SharedFeedForward(nn.Module):
    """A gated feed-forward part that has an addition for each use; gate and values are one projection."""

    def __init__(self, d_model: int, d_mlp: int, activation: str, bias: bool, uses: Sequence[int], rank: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(d_model, 2 * d_mlp, bias=bias)
        self.down_proj = nn.Linear(d_mlp, d_model, bias=bias)
        self.gate_up_proj_adapter_list = nn.ModuleDict({str(use): low_rank(d_model, rank, 2 * d_mlp) for use in uses})
        self.activation = ACTIVATIONS[activation]

    def used(self, n: Tensor, use: int, at: Scope) -> Tensor:  # [B, L, D] -> [B, L, D]
        pre, up = (self.gate_up_proj(n) + self.gate_up_proj_adapter_list[str(use)](n)).chunk(2, -1)
        pre, up = at("mlp_pre", pre.contiguous()), at("mlp_up", up.contiguous())  # [B, L, M]
        return self.down_proj(at("mlp_post", self.activation(pre) * up))


class SharedBlock(nn.Module):
    """Norm and attention on [stream; embeddings], then norm and feed-forward part; nothing is added on the way."""

    def __init__(self, attention: SharedAttention, feed_forward: SharedFeedForward, d_model: int, eps: float) -> None:
        super().__init__()
        self.self_attn, self.feed_forward = attention, feed_forward
        self.input_layernorm = RMSNorm(2 * d_model, eps)
        self.pre_ff_layernorm = RMSNorm(d_model, eps)

    def sites(self) -> list[PartSite]:
        """Every site up to the block's output."""
        D, M = self.pre_ff_layernorm.weight.shape[0], self.feed_forward.down_proj.in_features
        stream = lambda name: PartSite(name, RESIDUAL, (D,))
        return [
            PartSite("ln_1", CHANNELS, (2 * D,)), *self.self_attn.sites(), stream("attn_out"), stream("ln_2"),
            *(PartSite(name, NEURONS, (M,)) for name in ("mlp_pre", "mlp_up", "mlp_post")), stream("mlp_out"),
        ]  # fmt: skip

    def used(self, both: Tensor, use: int, cache: LayerCache, at: Scope) -> tuple[Tensor, LayerCache]:
        """[stream; embeddings] [B, L, 2 D] -> the block's output [B, L, D], and the memory of its attention."""
        out, cache = self.self_attn.used(at("ln_1", self.input_layernorm(both)), use, cache, at)
        n = at("ln_2", self.pre_ff_layernorm(at("attn_out", out)))
        return at("mlp_out", self.feed_forward.used(n, use, at)), cache


@dataclass
class SharedCache:
    """The memory of attention and of the recurrence."""

    attention: LayerCache
    ssm: MemoryCache

    def taking(self, other: SharedCache, kinds: Collection[str]) -> SharedCache:
        """This memory with the keys or values of another one; kinds are their sites."""
        return SharedCache(self.attention.taking(other.attention, kinds), self.ssm)

    def repeat(self, times: int) -> SharedCache:
        """The same memory for that many copies of the batch, one copy after another."""
        return SharedCache(self.attention.repeat(times), self.ssm.repeat(times))


class BlockThenMamba(Part):
    """A use of a shared block, a linear map of what it gives, and the layer's own norm and mixer.

    Sites between the parts: ``block_out`` behind the map, and ``normed``, what the mixer reads. The block's output
    reaches the stream through the mixer alone, so that later positions see every edit of it in the same layer.

    Args:
        use: The number of this use of a block.
        block: The block, where this is its first use; else :attr:`block` is set to that one.
    """

    out = "ssm_out"
    mixes = True
    carried = Mamba2Mixer.carried
    local = Mamba2Mixer.local
    late = {"ssm_out": ("", "")}  # noqa: RUF012
    mediators = (*Mamba2Mixer.mediators, "q", "k", "v", "pattern", "head_out", "attn_out", "mlp_post", "mlp_out",
                 "block_out")  # fmt: skip
    paths = (*Mamba2Mixer.paths, "scores")
    patched = (*Mamba2Mixer.patched, "head_out")
    single = (*Mamba2Mixer.single, "head_out", "attn_out", "mlp_post", "mlp_out")
    ranked = Mamba2Mixer.ranked
    projected = Mamba2Mixer.projected
    unit_kinds = {**MEMORY_UNITS, **ATTENTION_UNITS, **NEURON_UNITS}  # noqa: RUF012

    def __init__(self, d_model: int, eps: float, mamba: Mamba2Mixer, use: int, block: SharedBlock | None) -> None:
        super().__init__()
        self.use = use
        self.shared_transformer = block
        self.linear = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(d_model, eps)
        self.mamba = mamba
        self.elsewhere: list[SharedBlock] = []  # in a list, so that torch does not register it again

    @property
    def block(self) -> SharedBlock:
        """The block that this layer uses."""
        return self.elsewhere[0] if self.shared_transformer is None else self.shared_transformer

    @property
    def memory(self) -> Sequence[str]:  # type: ignore[override]
        """Sites that hold what later positions read."""
        return (*self.mamba.memory, *self.block.self_attn.memory)

    def sites(self) -> list[PartSite]:
        stream = lambda name: PartSite(name, RESIDUAL, (self.linear.in_features,))
        return [*self.block.sites(), stream("block_out"), stream("normed"), *self.mamba.sites()]

    def empty_cache(self, rows: int) -> SharedCache:
        return SharedCache(LayerCache([], []), self.mamba.empty_cache(rows))

    def forward(self, n: Tensor, cache: SharedCache, at: Scope) -> tuple[Tensor, Any]:
        """n [B, L, 2 D], the stream and the embeddings -> what is added to the stream [B, L, D], and the memory."""
        given, attention = self.block.used(n, self.use, cache.attention, at)
        given = at("block_out", self.linear(given))
        normed = at("normed", self.norm(n[..., : given.shape[-1]] + given))
        out, ssm = self.mamba(normed, cache.ssm, at)
        return out, SharedCache(attention, ssm)


class BesideEmbeddings(Layer):
    """A layer of one part on a stream that has the embeddings behind it, [B, L, 2 D]; they pass it unchanged.

    A part without a norm reads both, the others the stream.
    """

    def forward(self, r: Tensor, cache: Any, at: Scope) -> tuple[Tensor, LayerMemory]:
        stream, embeddings = r.chunk(2, -1)
        stream = at("resid_pre", stream.contiguous())
        [[branch]] = self.steps
        [name] = branch.parts
        n = at(branch.site, self[branch.norm](stream)) if branch.norm else torch.cat([stream, embeddings], -1)
        out, memory = self.parts[name](n, cast(LayerMemory, cache)[name], at)
        stream = at("resid_post", stream + at(self.parts[name].out, out))
        return torch.cat([stream, embeddings], -1), LayerMemory({name: memory})


class StreamNorm(RMSNorm):
    """The norm of a stream that has the embeddings behind it: of the stream alone."""

    def forward(self, r: Tensor) -> Tensor:  # [..., 2 D] -> [..., D]
        return super().forward(r[..., : len(self.weight)])
