"""Subspaces of a site, and what passes through them: prompts beside their twins, with the metric's gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.gradients import gradients
from ...interventions.model import Model, having, layer_kinds
from ...tasks import Prompts
from ...utils.errors import MechintError, an, did_you_mean
from ..interchange import Corruption, Interchange
from ..spectra import alignment

POINTS = 5
"""Points of the path from twin to prompt that gradients are averaged over."""


def study_site(model: Model, layer: int, kind: str = "usual") -> str:
    """The name of a layer's site.

    Raises:
        MechintError: there is no such layer, or no such site in it.
    """
    if not 0 <= layer < model.num_layers:
        raise MechintError(
            f"layer {layer} does not exist; {getattr(model, 'source', 'the model')} has {model.num_layers} "
            f"(0 to {model.num_layers - 1})"
        )
    if kind == "usual":  # all that an SSM channel or a head passes on
        usual = (*model.patched, *model.single)  # where nothing is patched, a layer of neurons or experts alone
        kind = next((kind for kind in usual if f"layers.{layer}.{kind}" in model.sites), model.patched[0])
    name = f"layers.{layer}.{kind}"
    if name not in model.sites or model.sites[name].has_sources:
        if there := [i for i in having(model, kind) if not model.sites[f"layers.{i}.{kind}"].has_sources]:
            raise MechintError(
                f"layer {layer} of this {model.config.family} model has no site {kind!r}; choose among the layers "
                f"{', '.join(map(str, there))}, which have it"
            )
        raise MechintError(
            f"{an(model.config.family)} model has no site {kind!r} with units of its own"
            f"{did_you_mean(kind, layer_kinds(model))}"
        )
    return name


@dataclass(frozen=True)
class Traffic:
    """Activations of a site on prompts and on their twins, with the metric's gradient and effect.

    Attributes:
        clean, twin: [prompt, position, unit], units of all axes in one.
        slope: Gradient of the metric, averaged over the path of the embeddings from twin to prompt.
        effect: Metric of the prompt less that of the twin, [prompt].
        right: True if the model answers, [prompt].
    """

    site: str
    clean: Tensor
    twin: Tensor
    slope: Tensor
    effect: Tensor
    right: Tensor

    @property
    def change(self) -> Tensor:
        return self.clean - self.twin

    def share(self, basis: Tensor) -> float:
        """Share of the effect that passes through a subspace, to first order: Σ ⟨slope V, change V⟩ / Σ effect."""
        through = ((self.slope @ basis) * (self.change @ basis)).sum()
        return float(through / self.effect.sum())

    def by_unit(self) -> Tensor:
        """The same of every unit alone, [unit]; their sum is the whole site's."""
        return (self.slope * self.change).sum((0, 1)) / self.effect.sum()


def traffic(
    model: Model, batches: Sequence[Prompts], sites: Sequence[str], metric: str = "logit_diff"
) -> list[Traffic]:
    """Collects activations, gradients and effects of each site in float64 on the CPU; batches of one length are joined.

    Raises:
        MechintError: prompts without twins; prompts of several lengths; no difference that could be explained.
    """
    parts: list[dict[str, Tensor]] = []
    ends: list[tuple[Tensor, Tensor]] = []
    if len({batch.tokens.shape[1] for batch in batches}) > 1:
        raise MechintError("a study needs prompts of one length; choose a task whose prompts share theirs")
    for batch in batches:
        pair = Interchange(model, batch, Corruption("twin"), "noise", metric)
        clean, twin = (pair.values(of, [*sites, "embed"]) for of in (pair.receiver, pair.donor))
        slope = {site: torch.zeros_like(clean[site]) for site in sites}
        for k in range(POINTS):
            start = twin["embed"] + (k + 0.5) / POINTS * (clean["embed"] - twin["embed"])
            _, found = gradients(
                model, batch.tokens, sites, pair.metric, [Edit("embed", "replace", start)], pair.logits_at
            )
            for site in sites:
                slope[site] += found[site] / POINTS
        parts.append({f"{name} {site}": value[site].flatten(2).double().cpu() for site in sites
                      for name, value in (("clean", clean), ("twin", twin), ("slope", slope))})  # fmt: skip
        ends.append((pair.clean - pair.corrupted_value, pair.right))
    effect, right = (torch.cat([end[k] for end in ends]) for k in range(2))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return [
        Traffic(site, whole[f"clean {site}"], whole[f"twin {site}"], whole[f"slope {site}"], effect, right)
        for site in sites
    ]


def orthonormal(vectors: Tensor, most: int | None = None) -> Tensor:
    """An orthonormal basis [unit, k] of what the rows [vector, unit] span, the strongest directions first.

    Args:
        most: Largest k.
    """
    _, s, V = torch.linalg.svd(vectors.double(), full_matrices=False)
    k = int((s > 1e-9 * s.max().clamp(min=1e-300)).sum())
    return V[: k if most is None else min(k, most)].T.contiguous()


def unit_basis(units: Sequence[int], width: int) -> Tensor:
    """The subspace of whole units, [unit, k]."""
    return torch.eye(width, dtype=torch.float64)[:, list(units)]


def random_basis(width: int, rank: int, generator: torch.Generator, within: Tensor | None = None) -> Tensor:
    """A subspace of that rank, uniformly at random, [unit, rank]; of ``within`` [unit, k] where that is given."""
    size = width if within is None else within.shape[1]
    Q, R = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))
    Q = Q * R.diagonal().sign()  # without this, QR's own choice of signs is not uniform
    return Q if within is None else within @ Q


def overlap(a: Tensor, b: Tensor) -> float:
    """‖AᵀB‖² / min(rank): 1 when the smaller subspace lies in the larger one, 0 when they are orthogonal."""
    return float((a.T @ b).square().sum() / min(a.shape[1], b.shape[1]))


def linear_cka(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, equation 4) of [row, unit] and [row, other unit]."""
    a, b = a - a.mean(0), b - b.mean(0)
    found = alignment(*(torch.from_numpy(product) for product in (a.T @ b, a.T @ a, b.T @ b)))
    return 0.0 if math.isnan(found) else found
