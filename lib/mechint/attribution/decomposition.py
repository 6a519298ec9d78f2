"""Splits a recurrent block's output exactly into the contributions of each token of the prompt.

With Δ, B, C and the gate g = SiLU(z) as they are in the run, the block is linear in what its convolution gives, so

    resid_post_i = Σ_j sources[i, j] + skip_i + bias_i + residual_i,
    sources[i, j] = W_out (g_i ⊙ Σ_t α[i, t] ⊙ φ_t(j)),         skip_i = W_out (g_i ⊙ D ⊙ u_i),
    bias_i        = W_out (g_i ⊙ Σ_t α[i, t] ⊙ φ_t(∅)) + b_out,  residual_i = resid_pre_i,

where α is the scan as attention (:mod:`mechint.scan.attention_weights`) and φ_t(j) what token j has in
u_t = SiLU(c_t). The convolution c_t is a sum over K taps, and SiLU of a sum is split by Shapley's value (1953) over the
2^K coalitions of taps; the empty one, φ_t(∅), is what SiLU makes of the biases. So Σ_j φ_t(j) + φ_t(∅) = u_t to
rounding, where SiLU of each token alone would miss a quarter of it and more.

A matrix memory (Mamba-2, delta rules) is taken apart in the same way: its α[i, t] is one number for each head, the
exact weight of :func:`mechint.attribution.attention.memory_weights`, erasing included, and g also holds the weight and
the scale of the norm behind the read-out. Queries, keys, decays and β are as they are in the run. Where other parts add
to the same stream residual_i has what they add, and a multiplier or a norm of the output is held as in the run.

The scan is linear in u: the part of token j is the scan of φ(j) alone, from j on. The computation streams over j and
never holds [position, position, channel].
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..interventions.model import Model
from ..interventions.run import run
from ..models.parts.base import Layer as StackLayer
from ..models.parts.mamba2 import Mamba2Mixer
from ..models.parts.recurrence import Recurrence
from ..models.parts.shared import BlockThenMamba
from ..models.placement import near
from ..scan.checks import accumulate
from ..scan.selective import selective_scan
from ..utils.errors import MechintError, did_you_mean
from ..utils.progress import Progress
from .attention import memory_needs, memory_weights, scans

REDUCE = {"norm": "‖·‖₂ of each term", "direction": "each term along a direction", "vectors": "the terms themselves"}


@dataclass(frozen=True)
class Decomposition:
    """The terms of one block's output, reduced: […] is [] for norms and along a direction, [model] for vectors.

    Attributes:
        sources: [batch, position i, source j, …]; zero for j > i.
        skip, bias, residual: [batch, position, …]: D u, the biases of convolution and projections, the stream itself.
        output: resid_post, reduced in the same way, [batch, position, …].
        error: Largest |Σ terms - resid_post| over the largest |resid_post|, of the vectors, whatever was asked for.
    """

    sources: Tensor
    skip: Tensor
    bias: Tensor
    residual: Tensor
    output: Tensor
    error: float

    def total(self) -> Tensor:
        """The sum of all terms: the output, but for norms, which do not add up."""
        return self.sources.sum(2) + self.skip + self.bias + self.residual


@torch.no_grad()
def decompose(
    model: Model,
    tokens: Tensor,
    layer: int,
    reduce: str = "norm",
    direction: Tensor | None = None,
    memory_mib: float = 512,
) -> Decomposition:
    """The exact token-to-token decomposition of one recurrent block, see the top of this file.

    Args:
        model: From :func:`mechint.load`, in float32 or float64.
        tokens: [batch, position].
        layer: Number of the block.
        reduce: A key of :data:`REDUCE`. Norms of vectors in the residual stream, or their products with ``direction``.
        direction: [model], for ``direction``: for a logit, its row of the unembedding times the final norm's weight.
        memory_mib: Memory for the parts of some tokens at once, beside the run and the result.

    Raises:
        MechintError: a layer without one recurrence, half precision, no such layer or reduction, a direction that does
            not fit, or a result or memory that is too small for one token.
    """
    if not 0 <= layer < model.num_layers:
        raise MechintError(
            f"decompose: no layer {layer}; this model has {model.num_layers} (0 to {model.num_layers - 1})"
        )
    places = recurrences(model, layer)
    if len(places) != 1:
        raise MechintError(
            f"decompose: layer {layer} of this {model.config.family} model has no recurrence to take apart; where it "
            "has attention, the site pattern already is the map of tokens"
        )
    if reduce not in REDUCE:
        raise MechintError(f"decompose: no reduce {reduce!r}{did_you_mean(reduce, REDUCE)}; take {', '.join(REDUCE)}")
    if next(model.parameters()).dtype.itemsize < 4:
        raise MechintError("decompose: rounding of half precision would be the largest term; load in float32")
    width = model.config.d_model
    if (reduce == "direction") != (direction is not None) or (direction is not None and direction.shape != (width,)):
        shape = "none" if direction is None else list(direction.shape)
        raise MechintError(
            f"decompose: reduce={reduce!r} and direction of shape {shape}; 'direction' takes one [{width}]"
        )
    [place] = places
    of_memory = isinstance(place.part, Recurrence)
    block = (MemoryBlock if of_memory else Block)(model, tokens, layer, place)
    return block.decompose(reduce, direction, memory_mib)


@dataclass(frozen=True)
class Place:
    """A recurrence within its layer.

    Attributes:
        part: The recurrence.
        before, after: Sites of the residual stream before and behind its step.
        others: Sites of what else its step adds.
        scale: Multiplies its output.
        norm: The norm of its output; None for none.
    """

    part: Any
    before: str = "resid_pre"
    after: str = "resid_post"
    others: tuple[str, ...] = ()
    scale: float = 1.0
    norm: Any = None


def recurrences(model: Model, layer: int) -> list[Place]:
    """The recurrences of a layer, each with its place in it."""
    there = scans(model, layer)
    if not isinstance(module := model.layers[layer], StackLayer):
        return [Place(part) for part in there]
    found, before = [], "resid_pre"
    for number, step in enumerate(module.steps):
        after = module.behind_step(number)
        every = [(branch, name) for branch in step for name in branch.parts]
        for branch, name in every:
            part = module.parts[name]
            part = part.mamba if isinstance(part, BlockThenMamba) else part
            if part in there:
                others = tuple(module.parts[other].out for _, other in every if other != name)
                norm = module[branch.behind[name]] if name in branch.behind else None
                found.append(Place(part, before, after, others, branch.scale, norm))
        before = after
    return found


class Block:
    """One block's tensors of one run, and its terms."""

    sites: tuple[str, ...] = ("x", "u", "dt", "B", "C", "gate")
    layer: Any
    """The recurrence."""

    def __init__(self, model: Model, tokens: Tensor, layer: int, place: Place | None = None) -> None:
        place = recurrences(model, layer)[0] if place is None else place
        own = (place.before, *place.others, place.after, *self.sites)
        names = [f"layers.{layer}.{site}" for site in own]
        found = run(model, tokens, names, logits_at=tokens.new_zeros(len(tokens), 0))
        self.at = dict(zip(own, (found[name] for name in names), strict=True))
        norm = place.norm and near(place.norm, model.device)
        self.layer, self.place = near(place.part, model.device), dataclasses.replace(place, norm=norm)
        self.length = tokens.shape[1]
        self.behind: Tensor | None = None
        """The factor of a norm of the output, [batch, position, model]; None for none."""
        self.prepare()

    def prepare(self) -> None:
        """Makes the tensors that all terms share."""
        self.A = -torch.exp(accumulate(self.layer.A_log))

    @property
    def skip(self) -> Tensor | None:
        """D u, beside the recurrence, [batch, position, channel]; None for nothing."""
        return cast(Tensor, self.layer.D * self.at["u"])

    @property
    def residual(self) -> Tensor:
        """The stream and what other parts of the step add."""
        return sum((self.at[site] for site in self.place.others), self.at[self.place.before])

    def split(self) -> tuple[Tensor, Tensor]:
        """φ_t(j) by tap and φ_t(∅): [tap, batch, position t, channel], the last tap is token t itself; and the rest."""
        weight, bias = self.layer.conv1d.weight[:, 0], self.layer.conv1d.bias  # [E, K], [E]
        E = len(weight)
        inner = self.layer.in_proj.bias[:E] if self.layer.in_proj.bias is not None else weight.new_zeros(E)
        return taps_of(self.at["x"], weight, bias, inner, F.silu)

    def out(self, inner: Tensor, begin: int = 0) -> Tensor:
        """W_out (g ⊙ inner) of positions from ``begin`` on, [..., position, channel] -> [..., position, model]."""
        return self.placed(F.linear(self.at["gate"][:, begin:] * inner, self.layer.out_proj.weight), begin)

    def placed(self, out: Tensor, begin: int = 0) -> Tensor:
        """An output, times what its place multiplies it by."""
        return out * self.place.scale if self.place.scale != 1.0 else out

    def scan(self, part: Tensor, begin: int, copies: int = 1) -> Tensor:
        """The scan of a part of u from a position on, [copies · batch, position, channel], in a copied batch."""
        dt, B, C = (self.at[name][:, begin:].repeat(copies, 1, 1) for name in ("dt", "B", "C"))
        return selective_scan(part, dt, self.A, B, C)[0]

    def decompose(self, reduce: str, direction: Tensor | None, memory_mib: float) -> Decomposition:
        def reduced(vectors: Tensor) -> Tensor:
            if reduce == "norm":
                return torch.linalg.vector_norm(vectors, dim=-1)
            return vectors @ direction.to(vectors) if direction is not None else vectors

        taps, empty = self.split()
        bias = self.out(self.scan(empty, 0))
        skip = torch.zeros_like(bias) if self.skip is None else self.out(self.skip)
        if self.layer.out_proj.bias is not None:
            bias = bias + self.placed(self.layer.out_proj.bias.expand_as(bias))
        residual, output = self.residual, self.at[self.place.after]
        total = skip + bias + residual
        like = reduced(output)
        sources = like.new_zeros(*like.shape[:2], self.length, *like.shape[2:])
        count = self.at_once(memory_mib)
        with Progress("decomposition", self.length) as progress:
            for first, vectors in self.parts(taps, count):  # [source, batch, position from first on, model]
                total[:, first:] += vectors.sum(0)
                sources[:, first:, first : first + len(vectors)] = reduced(vectors).movedim(0, 2)
                progress.step(count=len(vectors))
        error = float((total - output).abs().max() / output.abs().max())
        return Decomposition(sources, reduced(skip), reduced(bias), reduced(residual), like, error)

    def at_once(self, memory_mib: float) -> int:
        """Tokens whose parts are held together: inputs and outputs of a scan, and vectors."""
        D, E = self.layer.out_proj.weight.shape
        N = self.A.shape[1]
        one = self.at["u"][..., 0].numel() * (6 * E + 2 * N + 2 * D) * self.A.element_size()
        count = int(memory_mib * 2**20 // one)
        if count < 1:
            raise MechintError(
                f"decompose: one token's part needs memory_mib of {math.ceil(one / 2**20)}, not {memory_mib:g}"
            )
        return min(count, self.length)

    def parts(self, taps: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
        """(first token, vectors of up to ``count`` tokens from there on [source, batch, position ≥ first, model])."""
        K, rows = len(taps), len(self.at["u"])
        for first in range(0, self.length, count):
            chunk = range(first, min(first + count, self.length))
            part = taps.new_zeros(len(chunk), rows, self.length - first, taps.shape[-1])
            for k, j in enumerate(chunk):
                for t in range(j, min(j + K, self.length)):
                    part[k, :, t - first] = taps[K - 1 - (t - j), :, t]
            read = self.scan(part.flatten(0, 1), first, len(chunk)).unflatten(0, part.shape[:2])
            yield first, self.out(read, first)


class MemoryBlock(Block):
    """The same of a matrix memory: weights of heads instead of a scan, and a gate that holds the norm's scale."""

    def __init__(self, model: Model, tokens: Tensor, layer: int, place: Place | None = None) -> None:
        place = recurrences(model, layer)[0] if place is None else place
        self.sites = tuple(dict.fromkeys(("x", *memory_needs(place.part), "y", "gate", "gated")))
        super().__init__(model, tokens, layer, place)

    def prepare(self) -> None:
        part = self.layer
        self.weights = memory_weights(part, 0, {f"layers.0.{site}": value for site, value in self.at.items()})
        gate = read_out_factor(part, self.at["y"], self.at["gate"])  # [batch, position, head · value]
        out = F.linear(self.at["gated"].flatten(2), part.out_proj.weight, part.out_proj.bias)
        self.scale = getattr(part, "out_scale", 1.0)
        self.at["gate"] = gate
        if self.place.norm is not None:
            norm = self.place.norm
            rms = torch.rsqrt(accumulate(out * self.scale).square().mean(-1, keepdim=True) + norm.eps)
            self.behind = rms * (norm.weight + norm.plus)

    @property
    def skip(self) -> Tensor | None:
        if not hasattr(self.layer, "D"):
            return None
        return (accumulate(self.layer.D)[:, None] * self.at["u"]).flatten(2)

    def placed(self, out: Tensor, begin: int = 0) -> Tensor:
        out = out * self.scale
        return super().placed(out if self.behind is None else out * self.behind[:, begin:])

    def split(self) -> tuple[Tensor, Tensor]:
        rows, inner, activation = value_channels(self.layer)
        weight = self.layer.conv1d.weight[rows, 0]
        bias = None if self.layer.conv1d.bias is None else self.layer.conv1d.bias[rows]
        return taps_of(self.at["x"][..., rows], weight, bias, inner, activation)

    def scan(self, part: Tensor, begin: int, copies: int = 1) -> Tensor:
        heads = part.expand(*self.at["u"].shape[:2], -1).unflatten(-1, (self.layer.heads, -1))
        return torch.einsum("bhij,bjhv->bihv", self.weights, heads).flatten(2)

    def at_once(self, memory_mib: float) -> int:
        one = self.at["u"][..., 0, 0].numel() * 4 * sum(self.layer.out_proj.weight.shape) * self.weights.element_size()
        count = int(memory_mib * 2**20 // one)
        if count < 1:
            raise MechintError(
                f"decompose: one token's part needs memory_mib of {math.ceil(one / 2**20)}, not {memory_mib:g}"
            )
        return min(count, self.length)

    def parts(self, taps: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
        K, taps = len(taps), taps.unflatten(-1, (self.layer.heads, -1))  # [tap, batch, position, head, value]
        for first in range(0, self.length, count):
            vectors = []
            for j in range(first, min(first + count, self.length)):
                read = torch.zeros_like(self.at["u"][:, first:])
                for t in range(j, min(j + K, self.length)):
                    weight = self.weights[:, :, first:, t].transpose(1, 2).unsqueeze(-1)  # [batch, i, head, 1]
                    read += weight * taps[K - 1 - (t - j), :, t].unsqueeze(1)
                vectors.append(self.out(read.flatten(2), first))
            yield first, torch.stack(vectors)


def read_out_factor(part: Any, y: Tensor, gate: Tensor) -> Tensor:
    """The number that each entry of a read-out is multiplied by on its way to the output projection, the scale of the
    norm held: [batch, position, head · value]."""
    if part.norm is None:
        return gate.flatten(2)
    if isinstance(part, Mamba2Mixer):  # the norm is of all heads, or of groups of them
        y, gate = y.flatten(2), gate.flatten(2)
    wide = accumulate(y) if part.norm.norm_first else accumulate(y) * gate
    groups = wide.unflatten(-1, (part.norm.groups, -1))
    scale = torch.rsqrt(groups.square().mean(-1, keepdim=True) + part.norm.eps).expand_as(groups).flatten(-2)
    factor = scale * part.norm.weight * gate
    return factor if factor.dim() == 3 else factor.flatten(2)


def value_channels(part: Any) -> tuple[slice, Tensor, Callable[[Tensor], Tensor]]:
    """The channels of the convolution that become values, the projection's bias in them, and the activation."""
    if isinstance(part, Mamba2Mixer):
        rows, bias = slice(0, part.inner), dict(part.in_proj.named_parameters()).get("bias")
        if bias is None:
            return rows, part.in_proj.weight.new_zeros(part.inner), part.activation
        scale = 1.0 if part.scales is None else part.scales[1][0]
        return rows, bias[part.inner : 2 * part.inner] * scale, part.activation
    size = part.sizes[-1]
    rows = slice(sum(part.sizes) - size, sum(part.sizes))
    return rows, part.in_proj_qkv.weight.new_zeros(size), F.silu


def taps_of(
    x: Tensor, weight: Tensor, bias: Tensor | None, inner: Tensor, activation: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """φ_t(j) by tap and φ_t(∅), see :meth:`Block.split`.

    Args:
        x: The convolution's input, [batch, position, channel].
        weight, bias: The convolution's, [channel, tap] and [channel].
        inner: The projection's bias, which is in x, [channel].
    """
    K, length = weight.shape[1], x.shape[1]
    padded = F.pad(x - inner, (0, 0, K - 1, 0))
    players = torch.stack([padded[:, k : k + length] * weight[:, k] for k in range(K)])  # [K, B, L, E]
    there = torch.arange(length, device=padded.device)[:, None] + torch.arange(K).to(padded.device) >= K - 1
    # positions before the first token have no input, so the projection's bias is missing there too
    empty = there.to(weight) @ (weight * inner[:, None]).T + (0 if bias is None else bias)  # [L, E]
    return shapley(players, empty.expand_as(players[0]), activation)


def shapley(players: Tensor, empty: Tensor, activation: Callable[[Tensor], Tensor] = F.silu) -> tuple[Tensor, Tensor]:
    """Shapley's value of each player in the game activation(empty + Σ of a coalition's players).

    Args:
        players: [K, …].
        empty: The value without any of them, […].

    Returns:
        (values [K, …], activation(empty)), which add up to activation(empty + Σ players).
    """
    K = len(players)
    values = torch.zeros_like(players)
    for size in range(K + 1):
        for coalition in itertools.combinations(range(K), size):
            worth = activation(empty + players[list(coalition)].sum(0))
            # each coalition ends the joining of its members and starts that of the others
            if size:
                values[list(coalition)] += worth / (K * math.comb(K - 1, size - 1))
            if size < K:
                others = [k for k in range(K) if k not in coalition]
                values[others] -= worth / (K * math.comb(K - 1, size))
    return values, activation(empty)
