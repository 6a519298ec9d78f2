"""Changes of the residual stream from layer to layer: sizes, directions and dimensions.

================ ====================================================================================================
stream_norm      RMS over the width of the stream after a layer, mean over tokens
update           ‖what the layer adds‖ / ‖the stream after it‖, mean over tokens
effective_rank   exp of the entropy of the eigenvalues of the stream's covariance over tokens, as a share of the width
                 (Roy & Vetterli 2007)
cka              linear centred kernel alignment of two layers' streams (Kornblith et al. 2019, equation 3), [i, j]
================ ====================================================================================================

The last two are of all tokens together. Their intervals are those of the jackknife over groups of templates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model, added_sites
from ...interventions.run import run
from ...utils.statistics import Array, Number, number, t_quantile
from ..loader import PromptLoader
from ..spectra import alignment, effective_rank

GROUPS = 8
"""Groups of templates for the jackknife."""


@dataclass
class Dynamics:
    """Sums and means of the residual stream over a loader's prompts.

    Attributes:
        norms, updates: [prompt, layer].
        products: Σ over tokens of x_i ⊗ x_j for layers i ≤ j, [group, pair, model, model] in float64.
        sums: Σ over tokens of x_i, [group, layer, model].
        counts: Tokens, [group].
    """

    norms: Array
    updates: Array
    products: Tensor
    sums: Tensor
    counts: Tensor

    @property
    def layers(self) -> int:
        return self.sums.shape[1]

    def streams(self, left_out: int | None = None) -> tuple[list[list[float]], list[float]]:
        """(cka [layer, layer], effective rank [layer]) of all groups but one."""
        keep = [g for g in range(len(self.counts)) if g != left_out]
        n = float(self.counts[keep].sum())
        means, products = self.sums[keep].sum(0) / n, self.products[keep].sum(0) / n
        pairs = [(i, j) for i in range(self.layers) for j in range(i, self.layers)]
        covariance = {(i, j): products[k] - torch.outer(means[i], means[j]) for k, (i, j) in enumerate(pairs)}
        cka = [[1.0] * self.layers for _ in range(self.layers)]
        for i, j in pairs:
            cka[i][j] = cka[j][i] = alignment(covariance[i, j], covariance[i, i], covariance[j, j])
        return cka, [effective_rank(covariance[i, i]) for i in range(self.layers)]


@torch.no_grad()
def dynamics(model: Model, loader: PromptLoader) -> Dynamics:
    """Reads the stream after every layer, and what each layer adds, on the prompts of a loader."""
    depth, width = model.num_layers, model.config.d_model
    stream = [f"layers.{i}.resid_post" for i in range(depth)]
    added = added_sites(model)
    _, number_of = np.unique(loader.templates(), return_inverse=True)
    groups = min(GROUPS, int(number_of.max()) + 1)
    group = torch.from_numpy(number_of % groups)
    pairs = [(i, j) for i in range(depth) for j in range(i, depth)]
    products = torch.zeros(groups, len(pairs), width, width, dtype=torch.float64)
    sums, counts = torch.zeros(groups, depth, width, dtype=torch.float64), torch.zeros(groups, dtype=torch.float64)
    norms, updates, begin = [], [], 0
    for batch in loader:
        record = [*stream, *(name for names in added for name in names)]
        values = run(model, batch.tokens, record, logits_at=batch.positions[:, :0]).values
        x = torch.stack([values[name].double().cpu() for name in stream])  # [layer, prompt, position, model]
        more = torch.stack([torch.stack([values[n].double().cpu() for n in names]).sum(0) for names in added])
        norms.append(x.square().mean(-1).sqrt().mean(-1).T)
        updates.append((more.norm(dim=-1) / x.norm(dim=-1).clamp(min=1e-300)).mean(-1).T)
        own = group[begin : begin + len(batch)]
        begin += len(batch)
        for g in own.unique().tolist():
            flat = x[:, own == g].flatten(1, 2)  # [layer, token, model]
            sums[g] += flat.sum(1)
            counts[g] += flat.shape[1]
            for k, (i, j) in enumerate(pairs):
                products[g, k] += flat[i].T @ flat[j]
    return Dynamics(torch.cat(norms).numpy(), torch.cat(updates).numpy(), products, sums, counts)


def jackknife(whole: float, without: list[float]) -> Number:
    """The delete-one-group jackknife (Efron & Tibshirani 1993, chapter 11), with Student's t."""
    g = len(without)
    if g < 2:
        return number(whole, whole, whole, g, "one group of templates: no interval")
    error = math.sqrt((g - 1) / g * sum((value - sum(without) / g) ** 2 for value in without))
    half = t_quantile(g - 1) * error
    return number(whole, whole - half, whole + half, g, "95 % by the jackknife over groups of templates")


def stream_numbers(found: Dynamics) -> tuple[list[list[Number]], list[Number]]:
    """CKA [layer, layer] and effective rank [layer], with intervals."""
    cka, rank = found.streams()
    without = [found.streams(g) for g in range(len(found.counts))] if len(found.counts) > 1 else []
    matrix = [
        [jackknife(cka[i][j], [other[i][j] for other, _ in without]) for j in range(found.layers)]
        for i in range(found.layers)
    ]
    return matrix, [jackknife(rank[i], [other[i] for _, other in without]) for i in range(found.layers)]
