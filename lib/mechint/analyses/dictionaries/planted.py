"""Planted features: activations whose directions are known, and how well dictionaries find them again.

The directions are random, more of them than dimensions; each activation is a sum of a few, with strengths of its own
(the toy data of Sharkey et al. 2022). A method that fails here cannot be trusted on a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...sae import ARCHITECTURES, SAEConfig, SparseAutoencoder
from ...sae.architectures import BY_COUNT
from ...sae.training import Training, train_grid
from ...utils.options import option
from .stability import planted

SITE = "planted"


@dataclass(frozen=True)
class PlantedConfig:
    """The data, and how long dictionaries are trained on it."""

    d_in: int = option(128, "Width of the activations", unit="dimensions", low=2, high=4096)
    features: int = option(256, "Directions that are planted", unit="directions", low=2, high=65536)
    active: float = option(3.0, "Directions in an activation, on average", low=0.1, high=1000.0)
    ratio: float = option(1.0, "Latents as a multiple of the directions", low=0.1, high=100.0)
    tokens: int = option(1_000_000, "Activations to train on", unit="activations", low=1, high=10**9)
    batch: int = option(512, "Activations of a step", unit="activations", low=1, high=1_000_000)
    lr: float = option(0.003, "Peak learning rate", low=1e-6, high=1.0)
    penalty: float = option(6.0, "Weight of the penalty of relu and gated", low=0.0, high=1000.0)
    seed: int = option(0, "Seed of the directions and of the dictionaries", low=0, high=2**31 - 1)


class Planted:
    """Pools of activations Σ strength · direction, strengths from 0.5 to 1.5, each direction on independently."""

    count: int | None = None
    rows = 8192

    def __init__(self, c: PlantedConfig) -> None:
        random = torch.Generator().manual_seed(c.seed)
        self.c = c
        self.directions = torch.nn.functional.normalize(torch.randn(c.features, c.d_in, generator=random), dim=-1)
        self.sites, self.widths = [SITE], {SITE: c.d_in}
        self.fingerprint = repr(c)

    def features(self, i: int) -> Tensor:
        """Strengths in pool i, [rows, features]."""
        random = torch.Generator().manual_seed(1_000_003 * (self.c.seed + 1) + i)
        shape = (self.rows, self.c.features)
        on = torch.rand(shape, generator=random) < self.c.active / self.c.features
        return on * (torch.rand(shape, generator=random) + 0.5)

    def pool(self, i: int) -> dict[str, Tensor]:
        return {SITE: self.features(i) @ self.directions}


def score(sae: SparseAutoencoder, source: Planted) -> dict[str, Any]:
    """Scores of a dictionary against the planted directions, on activations that no training saw.

    Returns:
        ``mean_cosine`` of each direction with its nearest latent, ``f1`` of that latent's activity as a detector of
        the feature (mean over features), ``l0``, and the numbers of :func:`.stability.planted`.
    """
    strengths = source.features(10**6)
    f = sae.encode(strengths @ source.directions)
    cosine = source.directions @ torch.nn.functional.normalize(sae.W_dec, dim=-1).T
    best = cosine.max(1)
    there, said = strengths > 0, f[:, best.indices] > 0
    hits = (there & said).sum(0)
    f1 = 2 * hits / (there.sum(0) + said.sum(0)).clamp_min(1)
    return {
        "mean_cosine": float(best.values.mean()),
        "f1": float(f1.mean()),
        "l0": float((f > 0).sum(1).float().mean()),
        **planted(source.directions, sae.W_dec),
    }


def planted_scores(
    c: PlantedConfig, architectures: tuple[str, ...] = tuple(ARCHITECTURES)
) -> dict[str, dict[str, Any]]:
    """Scores of every architecture, and of a frozen random decoder, on the same planted activations."""
    source = Planted(c)
    shape: dict[str, Any] = {"d_in": c.d_in, "d_sae": max(1, round(c.ratio * c.features)), "site": SITE, "seed": c.seed}
    k = max(1, round(c.active))
    configs = {
        name: SAEConfig(name, k=k, penalty=1.0 if name == "jumprelu" else 0.0, **shape)
        if name in BY_COUNT
        else SAEConfig(name, penalty=c.penalty, **shape)
        for name in architectures
    }
    configs["topk, frozen decoder"] = SAEConfig("topk", k=k, baseline="frozen_decoder", **shape)
    training = Training(c.tokens, c.batch, lr=c.lr, seed=c.seed)
    return {member.name: score(member.sae, source) for member in train_grid(configs, source, training)}


def table(scores: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"{'dictionary':<22} {'mean cosine':>11} {'F1':>6} {'L0':>6}"]
    return lines + [f"{name:<22} {s['mean_cosine']:11.3f} {s['f1']:6.3f} {s['l0']:6.2f}" for name, s in scores.items()]
