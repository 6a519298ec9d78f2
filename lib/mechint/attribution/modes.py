"""Dynamics of a Mamba layer: its modes and their time scales, controllability and observability, and the error from
dropping modes.

A channel's recurrence is diagonal, so its eigenmodes are its (channel, state) entries, with eigenvalues exp(Δ_t A):
they depend on the data through Δ. Gramians are those of a linear time-varying system along the run (Silverman & Meadows
1967): for channel e, with Ā_t diagonal,

    controllability  W_t = Σ_{s≤t} (P_{t,s} b_s)(P_{t,s} b_s)ᵀ,  b_s = Δ_s B_s;  W_t = Ā_t W_{t-1} Ā_t + b_t b_tᵀ
    observability    M_t = Σ_{s≥t} (P_{s,t} C_s)(P_{s,t} C_s)ᵀ;  M_t = C_t C_tᵀ + Ā_{t+1} M_{t+1} Ā_{t+1}

The square roots of the eigenvalues of W_t M_t are the Hankel singular values at t: they count the directions of the
past that later outputs can distinguish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..scan import states
from ..utils.errors import MechintError
from ..utils.statistics import ClusterBootstrap, Number
from .jacobians import Linearised


@torch.no_grad()
def time_scales(local: Linearised, shares: tuple[float, ...] = (0.1, 0.5, 0.9)) -> dict[str, Tensor]:
    """τ = 1 / (Δ_t |A|), in tokens: how long a mode holds what was written into it, which depends on the data.

    Returns:
        ``mean`` (1 over the mean of Δ |A|: that of the mean decay), and ``quantiles`` over positions and prompts,
        [share, channel, state]; ``variation``, the quantile range over the median, [channel]: 0 is a fixed decay.
    """
    # τ[t, e, n] is a function of Δ[t, e] alone, so its quantiles are those of Δ, from the other end
    dt = local.dt.double().flatten(0, 1)  # [prompt · position, channel]
    rate = local.A.double().abs()
    quantiles = torch.quantile(dt, 1 - torch.tensor(shares, dtype=dt.dtype, device=dt.device), dim=0)
    tau = 1 / (quantiles.unsqueeze(-1) * rate)
    low, middle, high = (1 / torch.quantile(dt, share, dim=0) for share in (0.9, 0.5, 0.1))
    return {"mean": 1 / (dt.mean(0).unsqueeze(-1) * rate), "quantiles": tau, "variation": (high - low) / middle}


@dataclass(frozen=True)
class Gramians:
    """[row, channel, state, state] each, at position ``at`` of ``length``."""

    at: int
    length: int
    controllability: Tensor
    observability: Tensor

    def hankel(self) -> Tensor:
        """Hankel singular values, descending, [row, channel, state]; 0 for what cannot be told from rounding.

        No more can differ from 0 than there are positions before (``at`` included) or after, nor than there are states.
        As roots of eigenvalues they are known to the root of their rounding error only.
        """
        values, vectors = torch.linalg.eigh(self.controllability)
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)  # W = root rootᵀ
        squares = torch.linalg.eigvalsh(root.mT @ self.observability @ root).clamp(min=0).flip(-1)
        # the product's error is in units of the factors' norms, which may exceed its own
        size = values[..., -1:].clamp(min=0) * torch.linalg.matrix_norm(self.observability, 2).unsqueeze(-1)
        floor = squares.shape[-1] * torch.finfo(squares.dtype).eps * size
        possible = torch.arange(squares.shape[-1], device=squares.device) < min(self.at + 1, self.length - self.at)
        return torch.where((squares > floor) & possible, squares, 0.0).sqrt()


@torch.no_grad()
def gramians(local: Linearised, at: int) -> Gramians:
    """Gramians of every channel at one position, in float64: of the inputs up to it, and of the outputs from it on.

    Raises:
        MechintError: there is no such position.
    """
    if not 0 <= at < local.length:
        raise MechintError(f"position {at} does not exist; the prompts have {local.length} tokens")
    A = local.A.double()
    dt, B, C = local.dt.double(), local.B.double(), local.C.double()

    def outer(v: Tensor) -> Tensor:
        return v.unsqueeze(-1) * v.unsqueeze(-2)

    W = torch.zeros(*dt.shape[::2], A.shape[1], A.shape[1], dtype=A.dtype, device=A.device)
    for t in range(at + 1):
        decay = torch.exp(dt[:, t, :, None] * A)
        W = outer(decay) * W + outer(dt[:, t, :, None] * B[:, t, None])
    M = torch.zeros_like(W)
    for t in range(local.length - 1, at - 1, -1):
        M = M + outer(C[:, t]).unsqueeze(1)
        if t > at:
            M = outer(torch.exp(dt[:, t, :, None] * A)) * M
    return Gramians(at, local.length, W, M)


def effective_order(singular_values: Tensor) -> Tensor:
    """Participation ratio (Σσ)² / Σσ², [..., state] -> [...]: 1 when one direction carries all; 0 for all zero."""
    square = singular_values.square().sum(-1)
    return torch.where(square > 0, singular_values.sum(-1).square() / square.clamp(min=1e-300), 0.0)


@dataclass(frozen=True)
class ModeGram:
    """G[e, n, m] = mean over prompts and positions of r_n r_m, r_n = C_t[n] h_t[e, n]: what mode n adds to the scan.

    Dropping modes S of a channel changes its scan by Σ_S r, whose mean square is 1ᵀ G 1 over S, exactly.
    """

    gram: Tensor  # [channel, state, state], float64
    count: int

    @property
    def energy(self) -> Tensor:
        """Mean square of each channel's scan, [channel]."""
        return self.gram.sum((-1, -2))

    @property
    def use(self) -> Tensor:
        """Share of each mode in the mean squares of its channel's modes, [channel, state]."""
        own = self.gram.diagonal(dim1=-2, dim2=-1)
        return own / own.sum(-1, keepdim=True).clamp(min=1e-300)

    def drop(self, dropped: Tensor) -> Tensor:
        """Mean square of the change of each channel's scan when modes are dropped.

        Args:
            dropped: [..., channel, state], 1 or True for what is dropped.

        Returns:
            [..., channel].
        """
        s = dropped.to(self.gram)
        return torch.einsum("...en,enm,...em->...e", s, self.gram, s).clamp(min=0)

    def drop_refitted(self, dropped: Tensor) -> Tensor:
        """The same when the kept modes are weighted anew by least squares (a Schur complement), [..., channel].

        The refit shows how much of the dropped modes' effect the others can take over.
        """
        s = dropped.to(self.gram)
        change = torch.einsum("enm,...em->...en", self.gram, s)  # covariance of every mode with what is lost
        kept = 1 - s
        inner = self.gram * kept.unsqueeze(-1) * kept.unsqueeze(-2)
        target = change * kept
        solved = torch.linalg.pinv(inner, hermitian=True) @ target.unsqueeze(-1)
        return (self.drop(dropped) - (target * solved.squeeze(-1)).sum(-1)).clamp(min=0)


@torch.no_grad()
def mode_gram(local: Linearised, chunk: int = 64) -> ModeGram:
    """Streams the layer's states into the Gram matrix of its modes."""
    size = local.A.shape[1]
    gram = torch.zeros(local.u.shape[-1], size, size, dtype=torch.float64, device=local.u.device)
    for first, h in states(local.u, local.dt, local.A, local.B, chunk=chunk):
        read = (h * local.C[:, first : first + h.shape[1]].unsqueeze(2)).double().flatten(0, 1)  # [rows, E, N]
        gram += torch.einsum("ren,rem->enm", read, read)
    count = local.u.shape[0] * local.u.shape[1]
    return ModeGram(gram / count, count)


@torch.no_grad()
def effective_memory(local: Linearised, chunk: int = 64) -> Tensor:
    """Time constant of each channel in tokens, [prompt, channel]: the τ of its modes on that prompt, weighted by their
    use there. It follows from rates of decay, so it may be longer than the prompt: an extrapolation then."""
    square = torch.zeros(len(local.u), *local.A.shape, dtype=torch.float64, device=local.u.device)
    for first, h in states(local.u, local.dt, local.A, local.B, chunk=chunk):
        square += (h * local.C[:, first : first + h.shape[1]].unsqueeze(2)).double().square().sum(1)
    use = square / square.sum(-1, keepdim=True).clamp(min=1e-300)
    rate = local.dt.double().mean(1).unsqueeze(-1) * local.A.double().abs()  # [prompt, channel, state]
    return (use / rate.clamp(min=1e-300)).sum(-1)


def memory_of(memory: Tensor, channels: Sequence[int], length: int, bootstrap: ClusterBootstrap) -> Number:
    """The mean time constant of some channels, with its interval over prompts; ``extrapolated`` where it is longer than
    the prompts of ``length`` tokens. ``memory`` is [prompt, channel]."""
    value = bootstrap.interval(lambda mean: mean, memory[:, list(channels)].mean(1).cpu().numpy())
    return {**value, "extrapolated": bool(value["value"] > length)}
