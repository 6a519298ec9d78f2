"""Sparse autoencoders on the scorecard: do they find the features planted in a model's residual stream and state?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ground_truth.planted import SITES, Planted, planted
from ..sae import SAEConfig, SparseAutoencoder
from ..sae.architectures import BY_COUNT
from ..sae.training import Training, train_grid
from ..utils.errors import MechintError
from .cost import cost

KINDS = ("topk", "batch_topk", "gated", "relu")
PENALTY = 6.0
LR = 3e-3
FRESH = 10**6
"""Number of the pool that scores are taken on; training never gets there."""


class PlantedPools:
    """Activations of the sites of one planted model, whole prompts at a time (:class:`.pools.Pools`)."""

    count: int | None = None
    prompts = 512

    def __init__(self, source: Planted) -> None:
        self.source, self.sites = source, list(SITES)
        self.widths = {site: source.directions[site].shape[1] for site in SITES}
        self.fingerprint = f"{source.task.sizes} {float(source.codes.sum())}"

    def tokens(self, i: int) -> Tensor:
        return self.source.task.sample(self.prompts, "train", i).tokens

    def pool(self, i: int) -> dict[str, Tensor]:
        tokens = self.tokens(i)
        return {site: self.source.read(site, tokens).flatten(0, 1) for site in SITES}


@torch.no_grad()
def recovery(sae: SparseAutoencoder, x: Tensor, directions: Tensor, strengths: Tensor) -> dict[str, float]:
    """Measures how well a dictionary recovers known features.

    Args:
        x: Activations that no training saw, [row, width].
        directions: [feature, width], of norm 1.
        strengths: [row, feature], 0 where a feature is not there.

    Returns:
        ``mean_cosine`` of each direction with the nearest latent's; ``f1`` of that latent's activity as a detector of
        the feature, the mean over features; ``l0``; ``explained`` share of variance.
    """
    f = sae.encode(x)
    nearest = (directions @ torch.nn.functional.normalize(sae.W_dec, dim=-1).T).max(1)
    there, said = strengths > 0, f[:, nearest.indices] > 0
    f1 = 2 * (there & said).sum(0) / (there.sum(0) + said.sum(0)).clamp_min(1)
    error = (x - sae.decode(f)).square().sum() / (x - x.mean(0)).square().sum()
    return {
        "mean_cosine": float(nearest.values.mean()),
        "f1": float(f1.mean()),
        "l0": float((f > 0).sum(1).float().mean()),
        "explained": 1 - float(error),
    }


def score_dictionaries(seed: int, tokens: int, sites: tuple[str, ...] = SITES) -> list[dict[str, Any]]:
    """Each architecture at each site, a frozen random decoder, and each dictionary against another model's features.

    The last is what is found where nothing is to be found: the same number of directions in the same space, and
    activity that has nothing to do with them.
    """
    source, stranger = planted(seed=seed), planted(seed=seed + 10**6)
    pools, other = PlantedPools(source), PlantedPools(stranger)
    fresh, strange = pools.tokens(FRESH), other.tokens(FRESH)
    rows = []
    for site in sites:
        strengths = source.strengths(site, fresh).flatten(0, 1)
        k = max(1, round(float((strengths > 0).sum(1).float().mean())))
        configs = members(site, pools.widths[site], len(source.directions[site]), k, seed)
        with cost() as spent:  # of all of them, trained side by side
            trained = train_grid(configs, OneSite(pools, site), Training(tokens, 512, lr=LR, seed=seed))
        x = source.read(site, fresh).flatten(0, 1)
        for found in trained:
            row = recovery(found.sae, x, source.directions[site], strengths)
            null = recovery(
                found.sae, x, stranger.directions[site], stranger.strengths(site, strange).flatten(0, 1)
            )  # fmt: skip
            rows.append(
                {
                    "site": site, "method": found.name, **row, "features": len(source.directions[site]),
                    "true_l0": float((strengths > 0).sum(1).float().mean()), "stranger_cosine": null["mean_cosine"],
                    "stranger_f1": null["f1"], **spent,
                }
            )  # fmt: skip
    return rows


def members(site: str, width: int, features: int, k: int, seed: int) -> dict[str, SAEConfig]:
    shape: dict[str, Any] = {"d_in": width, "d_sae": features, "site": site, "seed": seed}
    found = {
        name: SAEConfig(name, k=k, **shape) if name in BY_COUNT else SAEConfig(name, penalty=PENALTY, **shape)
        for name in KINDS
    }
    return found | {"frozen decoder": SAEConfig("topk", k=k, baseline="frozen_decoder", **shape)}


class OneSite:
    """The pools of one of several sites."""

    count: int | None = None

    def __init__(self, pools: PlantedPools, site: str) -> None:
        if site not in pools.sites:
            raise MechintError(f"no features are planted at {site!r}; take {', '.join(pools.sites)}")
        self.source, self.sites, self.widths = pools.source, [site], {site: pools.widths[site]}
        self.tokens, self.fingerprint = pools.tokens, f"{pools.fingerprint} {site}"

    def pool(self, i: int) -> dict[str, Tensor]:
        (site,) = self.sites
        return {site: self.source.read(site, self.tokens(i)).flatten(0, 1)}
