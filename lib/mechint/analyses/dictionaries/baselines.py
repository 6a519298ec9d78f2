"""Baselines without learning: what PCA and the neurons themselves reconstruct with as many numbers as a dictionary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WIDEST = 4096
"""Activations wider than this get no PCA: its covariance would take more than 128 MiB."""


class Moments:
    """Mean and covariance of activations, seen a batch at a time, in float64 on the CPU.

    Batches are merged about their own means (Chan, Golub & LeVeque 1983), so a large mean costs no digits.
    """

    def __init__(self, size: int, second: bool = True) -> None:
        self.size, self.count = size, 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.scatter = torch.zeros(size, size, dtype=torch.float64) if second and size <= WIDEST else None

    def add(self, x: Tensor) -> None:
        """Takes in activations [token, size]."""
        if not len(x):
            return
        wide = x.detach().double().cpu()
        total, mean = self.count + len(wide), wide.mean(0)
        gap = mean - self.mean
        if self.scatter is not None:
            centred = wide - mean
            self.scatter += centred.T @ centred + torch.outer(gap, gap) * (self.count * len(wide) / total)
        self.mean = self.mean + gap * (len(wide) / total)
        self.count = total

    def components(self) -> Tensor | None:
        """Principal directions [size, size], one a row, of falling variance; None where no covariance was kept."""
        if self.scatter is None:
            return None
        return torch.linalg.eigh(self.scatter).eigenvectors.flip(1).T.contiguous()


@dataclass(frozen=True, eq=False)
class Basis:
    """An orthonormal dictionary about the mean, of which a token uses ``active`` directions.

    Attributes:
        mean: [d_in].
        directions: [latent, d_in], orthonormal.
        active: Directions that a token uses: those with the largest coefficients.
    """

    mean: Tensor
    directions: Tensor
    active: int

    @property
    def latents(self) -> int:
        return len(self.directions)

    def encode(self, x: Tensor) -> Tensor:
        """[token, d_in] -> coefficients [token, latent], zero but for the ``active`` largest; of either sign."""
        f = (x - self.mean.to(x)) @ self.directions.to(x).T
        if self.active >= self.latents:
            return f
        top = f.abs().topk(self.active, -1).indices
        return torch.zeros_like(f).scatter(-1, top, f.gather(-1, top))

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.directions.to(f) + self.mean.to(f)


def baselines_at(moments: Moments, count: int) -> dict[str, Basis]:
    """Reconstructions from ``count`` numbers a token, about the same mean.

    ``pca_rank`` keeps the first ``count`` principal components (no linear map of that rank reconstructs better);
    ``pca_top`` the ``count`` largest of all components, chosen for each token; ``neurons`` the ``count`` entries that
    are furthest from their means.
    """
    count = min(count, moments.size)
    found = {"neurons": Basis(moments.mean, torch.eye(moments.size, dtype=torch.float64), count)}
    components = moments.components()
    if components is not None:
        found["pca_rank"] = Basis(moments.mean, components[:count], count)
        found["pca_top"] = Basis(moments.mean, components, count)
    return found
