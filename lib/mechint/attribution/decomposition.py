"""Splits a Mamba block's output exactly into the contributions of each token of the prompt.

With Δ, B, C and the gate g = SiLU(z) as they are in the run, the block is linear in what its convolution gives, so

    resid_post_i = Σ_j sources[i, j] + skip_i + bias_i + residual_i,
    sources[i, j] = W_out (g_i ⊙ Σ_t α[i, t] ⊙ φ_t(j)),         skip_i = W_out (g_i ⊙ D ⊙ u_i),
    bias_i        = W_out (g_i ⊙ Σ_t α[i, t] ⊙ φ_t(∅)) + b_out,  residual_i = resid_pre_i,

where α is the scan as attention (:mod:`mechint.scan.attention_weights`) and φ_t(j) what token j has in
u_t = SiLU(c_t). The convolution c_t is a sum over K taps, and SiLU of a sum is split by Shapley's value (1953) over the
2^K coalitions of taps; the empty one, φ_t(∅), is what SiLU makes of the biases. So Σ_j φ_t(j) + φ_t(∅) = u_t to
rounding, where SiLU of each token alone would miss a quarter of it and more.

The scan is linear in u: the part of token j is the scan of φ(j) alone, from j on. The computation streams over j and
never holds [position, position, channel].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..interventions.model import Model
from ..interventions.run import run
from ..models.mamba import Layer
from ..scan.checks import accumulate
from ..scan.selective import selective_scan
from ..utils.errors import MechintError, did_you_mean
from ..utils.progress import Progress

REDUCE = {"norm": "‖·‖₂ of each term", "direction": "each term along a direction", "vectors": "the terms themselves"}
SITES = ("resid_pre", "x", "u", "dt", "B", "C", "gate", "resid_post")


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
    """The exact token-to-token decomposition of one block of a Mamba, see the top of this file.

    Args:
        model: A Mamba in float32 or float64.
        tokens: [batch, position].
        layer: Number of the block.
        reduce: A key of :data:`REDUCE`. Norms of vectors in the residual stream, or their products with ``direction``.
        direction: [model], for ``direction``: for a logit, its row of the unembedding times the final norm's weight.
        memory_mib: Memory for the parts of some tokens at once, beside the run and the result.

    Raises:
        MechintError: another family, half precision, no such layer or reduction, a direction that does not fit, or a
            result or memory that is too small for one token.
    """
    if not 0 <= layer < model.num_layers:
        raise MechintError(
            f"decompose: no layer {layer}; this model has {model.num_layers} (0 to {model.num_layers - 1})"
        )
    if not isinstance(model.layers[layer], Layer):
        raise MechintError(
            f"decompose: a {model.config.family} model has no scan to take apart; its attention pattern (site "
            "layers.*.pattern) already is the map of tokens"
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
    return Block(model, tokens, layer).decompose(reduce, direction, memory_mib)


class Block:
    """One block's tensors of one run, and its terms."""

    def __init__(self, model: Model, tokens: Tensor, layer: int) -> None:
        names = [f"layers.{layer}.{site}" for site in SITES]
        found = run(model, tokens, names, logits_at=tokens.new_zeros(len(tokens), 0))
        self.at = dict(zip(SITES, (found[name] for name in names), strict=True))
        self.layer: Layer = model.layers[layer]
        self.length = tokens.shape[1]
        self.A = -torch.exp(accumulate(self.layer.A_log))

    def split(self) -> tuple[Tensor, Tensor]:
        """φ_t(j) by tap and φ_t(∅): [tap, batch, position t, channel], the last tap is token t itself; and the rest."""
        weight, bias = self.layer.conv1d.weight[:, 0], self.layer.conv1d.bias  # [E, K], [E]
        E, K = weight.shape
        inner = self.layer.in_proj.bias[:E] if self.layer.in_proj.bias is not None else weight.new_zeros(E)
        padded = F.pad(self.at["x"] - inner, (0, 0, K - 1, 0))
        players = torch.stack([padded[:, k : k + self.length] * weight[:, k] for k in range(K)])  # [K, B, L, E]
        there = torch.arange(self.length, device=padded.device)[:, None] + torch.arange(K).to(padded.device) >= K - 1
        # positions before the first token have no input, so the projection's bias is missing there too
        empty = there.to(weight) @ (weight * inner[:, None]).T + (0 if bias is None else bias)  # [L, E]
        return shapley(players, empty.expand_as(players[0]))

    def out(self, inner: Tensor, begin: int = 0) -> Tensor:
        """W_out (g ⊙ inner) of positions from ``begin`` on, [..., position, channel] -> [..., position, model]."""
        return F.linear(self.at["gate"][:, begin:] * inner, self.layer.out_proj.weight)

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
        skip = self.out(self.layer.D * self.at["u"])
        bias = self.out(self.scan(empty, 0))
        if self.layer.out_proj.bias is not None:
            bias = bias + self.layer.out_proj.bias
        residual, output = self.at["resid_pre"], self.at["resid_post"]
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
        E, D, N = *self.layer.out_proj.weight.T.shape, self.A.shape[1]
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


def shapley(players: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Shapley's value of each player in the game SiLU(empty + Σ of a coalition's players).

    Args:
        players: [K, …].
        empty: The value without any of them, […].

    Returns:
        (values [K, …], SiLU(empty)), which add up to SiLU(empty + Σ players).
    """
    K = len(players)
    values = torch.zeros_like(players)
    for size in range(K + 1):
        for coalition in itertools.combinations(range(K), size):
            worth = F.silu(empty + players[list(coalition)].sum(0))
            # each coalition ends the joining of its members and starts that of the others
            if size:
                values[list(coalition)] += worth / (K * math.comb(K - 1, size - 1))
            if size < K:
                others = [k for k in range(K) if k not in coalition]
                values[others] -= worth / (K * math.comb(K - 1, size))
    return values, F.silu(empty)
