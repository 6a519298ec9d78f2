"""How sparse activations are, by measures fixed beforehand, on held-out prompts, with intervals.

For a token's activations a [unit] at one site (Hurley & Rickard 2009 compare such measures):

================== ============================================================================ =======
measure            definition                                                                   sparser
================== ============================================================================ =======
gini               Σ_k (2k - n - 1) |a|_(k) / (n Σ|a|), of the sorted sizes: 0 even, 1 one unit   higher
hoyer              (√n - ‖a‖₁/‖a‖₂) / (√n - 1): 0 even, 1 one unit (Hoyer 2004)                   higher
entropy            -Σ p log p / log n with p = |a| / Σ|a|: 1 even, 0 one unit                     lower
participation      (Σ a²)² / (n Σ a⁴): the share of units that take part                         lower
below_rms          share of units with |a_e| < ε · RMS_e, RMS_e of that unit on other prompts    higher
below_optimal      share with |a| < τ, where τ reaches the target share on other prompts          higher
below_fixed        share with |a| < the documented constant: 0.01 for a Mamba, 1e-5 for others   higher
================== ============================================================================ =======

The first five do not change when all activations are scaled. The last two do; the documented constants differ between
families by a factor of a thousand, so that they say nothing of a difference between these. The percentile profile is
that of the units' variances over tokens, as multiples of their mean (the share of units below a percentile is the
percentile, whatever the model: that number measures nothing). No measure is chosen by its value.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks import Prompts
from ...tasks.config import TaskConfig
from ...utils.options import option
from ...utils.progress import Progress
from ...utils.statistics import Array, ClusterBootstrap, Number, exact, rank_correlation
from ..base import Analysis, Study, values_of
from ..loader import PromptLoader
from ..options import layer_list, unit_sites
from ..random_weights import Quantities, control, quantity, told_apart

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
DOCUMENTED = {"mamba": 0.01}
"""Fixed thresholds as they were documented; :data:`OTHERS` for every other family."""
OTHERS = 1e-5
ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "mamba": {"stream": ("resid_post",), "added": ("out",), "read": ("gated",)},
    "gpt2": {"stream": ("resid_post",), "added": ("attn_out", "mlp_out"), "read": ("head_out", "mlp_post")},
    "llama": {"stream": ("resid_post",), "added": ("attn_out", "mlp_out"), "read": ("head_out", "mlp_post")},
}
"""Matched sites: the residual stream, what a layer adds to it, and what its output projections read."""
POOL = 1 << 16
"""Most activations of one batch and site that the optimal threshold is taken from, evenly spaced."""


@dataclass(frozen=True)
class SparsityConfig:
    """Where and how sparsity is measured."""

    layers: str = option("all", "Layers to look at, separated by commas, or all")
    sites: str = option(
        "usual",
        "Kinds of site, separated by commas; 'usual' takes the residual stream, what layers add to it, and what their "
        "output projections read",
    )
    epsilon: float = option(0.1, "Share of a unit's RMS below which an activation counts as none", low=1e-6, high=1.0)
    target: float = option(0.5, "Share of activations that the optimal threshold is to leave out", low=0.01, high=0.99)
    prompts: int = option(
        64, "Discovery prompts, for RMS and the optimal threshold", unit="prompts", low=2, high=1_000_000
    )
    eval_prompts: int = option(64, "Prompts that are measured", unit="prompts", low=2, high=1_000_000)
    controls: int = option(
        3, "Models with the same weights, shuffled, that are measured beside this one", unit="models", low=0, high=100
    )
    bootstrap: int = option(1000, "Bootstrap draws", unit="draws", low=100, high=100_000)


@dataclass(frozen=True)
class Scale:
    """What thresholds are relative to, from other prompts than those measured."""

    rms: Tensor  # [unit]
    optimal: float
    fixed: float
    epsilon: float


def gini(a: Tensor, scale: Scale) -> Tensor:
    x, n = a.abs().sort(-1).values, a.shape[-1]
    weight = 2 * torch.arange(1, n + 1, dtype=x.dtype, device=x.device) - n - 1
    return (x * weight).sum(-1) / (n * x.sum(-1)).clamp(min=torch.finfo(x.dtype).tiny)


def hoyer(a: Tensor, scale: Scale) -> Tensor:
    root = a.shape[-1] ** 0.5
    length = a.norm(dim=-1)
    ratio = torch.where(length > 0, a.abs().sum(-1) / length, torch.full_like(length, root))
    return (root - ratio) / max(root - 1, torch.finfo(a.dtype).tiny)


def entropy(a: Tensor, scale: Scale) -> Tensor:
    total = a.abs().sum(-1, keepdim=True)
    p = torch.where(total > 0, a.abs() / total, torch.full_like(a, 1 / a.shape[-1]))
    return -torch.xlogy(p, p).sum(-1) / max(float(np.log(a.shape[-1])), 1e-300)


def participation(a: Tensor, scale: Scale) -> Tensor:
    square = (a / a.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)).square()
    fourth = square.square().sum(-1) * a.shape[-1]
    return torch.where(fourth > 0, square.sum(-1).square() / fourth, torch.ones_like(fourth))


def below_rms(a: Tensor, scale: Scale) -> Tensor:
    return (a.abs() < scale.epsilon * scale.rms).to(a.dtype).mean(-1)


def below_optimal(a: Tensor, scale: Scale) -> Tensor:
    return (a.abs() < scale.optimal).to(a.dtype).mean(-1)


def below_fixed(a: Tensor, scale: Scale) -> Tensor:
    return (a.abs() < scale.fixed).to(a.dtype).mean(-1)


MEASURES: dict[str, Callable[[Tensor, Scale], Tensor]] = {
    measure.__name__: measure
    for measure in (gini, hoyer, entropy, participation, below_rms, below_optimal, below_fixed)
}
"""A token's activations [..., unit] in float64 to a number in 0 … 1, [...]. All zero counts as even."""
FALLING = ("entropy", "participation")
"""Measures that are lower where activations are sparser."""
SCALE_FREE = ("gini", "hoyer", "entropy", "participation", "below_rms")


class SparsityAnalyzer(Study):
    """Measures sparsity at every chosen layer and site; see the top of this file."""

    name = "sparsity"

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Thresholds from ``train_loader``, measures on ``val_loader``; returns the results."""
        layers = layer_list(self.config.layers, self.model.num_layers, self.name)
        roles = {site: role for role, sites in ROLES[self.model.config.family].items() for site in sites}
        kinds = unit_sites(self.model, self.config.sites, roles, self.name)
        cells = [(layer, kind) for kind in kinds for layer in layers]
        names = [f"layers.{layer}.{kind}" for layer, kind in cells]
        scales = self.scales(train_loader, names)
        found = [
            self.stages.get(f"batch {k}", functools.partial(measured, self.model, batch, scales))
            for k, batch in enumerate(val_loader)
        ]
        self.tensors = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        bootstrap = ClusterBootstrap(val_loader.templates(), self.config.bootstrap, self.seed)
        entries = []
        with Progress("intervals", len(cells)) as progress:
            for (layer, kind), name in zip(cells, names, strict=True):
                moments = [self.tensors[f"{name} {power}"].numpy() for power in ("mean", "square")]
                values = self.tensors[f"{name} measures"].numpy()
                entries.append(
                    {
                        "layer": layer,
                        "site": kind,
                        "role": roles.get(kind, kind),
                        "units": moments[0].shape[1],
                        "measures": {m: mean_of(bootstrap, values[:, k]) for k, m in enumerate(MEASURES)},
                        "percentiles": profile(bootstrap, *moments),
                        "optimal_threshold": scales[name].optimal,
                    }
                )
                progress.step()
        self.results = {
            "report": "sparsity",
            "metric": "sparsity of activations",
            "ablation": "none",
            "fixed_threshold": next(iter(scales.values())).fixed,
            "metrics": {"prompts_used": exact(bootstrap.n)},
            "cells": entries,
            "agreement": agreement(entries),
            "disagreements": disagreements(entries),
            "notes": [],
        }
        self.results["control"] = control(self, train_loader, val_loader, quantities)
        return self.results

    def scales(self, loader: PromptLoader, names: list[str]) -> dict[str, Scale]:
        """RMS of each unit and the optimal threshold of each site, on discovery prompts."""
        squares: dict[str, Tensor] = {}
        pools: dict[str, list[Tensor]] = {name: [] for name in names}
        count = 0
        for batch in loader:
            for name, value in values_of(self.model, batch, names).items():
                wide = value.double()
                squares[name] = squares.get(name, torch.zeros(())) + wide.square().sum((0, 1)).cpu()
                flat = wide.abs().flatten()
                pools[name].append(flat[:: max(1, len(flat) // POOL)].cpu())
            count += batch.tokens.numel()
        fixed = DOCUMENTED.get(self.model.config.family, OTHERS)
        return {
            name: Scale(
                (squares[name] / count).sqrt(),
                float(np.quantile(torch.cat(pools[name]).numpy(), self.config.target)),
                fixed,
                self.config.epsilon,
            )
            for name in names
        }


def quantities(results: dict[str, Any]) -> Quantities:
    """What is compared with shuffled weights: every measure of every layer and site."""
    return [
        quantity(name, value, cell["site"], cell["layer"])
        for cell in results["cells"]
        for name, value in cell["measures"].items()
    ]


def measured(model: Model, prompts: Prompts, scales: dict[str, Scale]) -> dict[str, Tensor]:
    """For each site every measure's mean over a prompt's tokens [prompt, measure], and each unit's mean and mean square
    over them [prompt, unit]."""
    found = {}
    for name, value in values_of(model, prompts, scales).items():
        a, scale = value.double().cpu(), scales[name]
        found[f"{name} measures"] = torch.stack([m(a, scale).mean(1) for m in MEASURES.values()], 1)
        found[f"{name} mean"], found[f"{name} square"] = a.mean(1), a.square().mean(1)
    return found


def mean_of(bootstrap: ClusterBootstrap, values: Array) -> Number:
    return bootstrap.interval(lambda mean: mean, values)


def profile(bootstrap: ClusterBootstrap, mean: Array, square: Array) -> dict[str, Number]:
    """Percentiles over the units of their variance over tokens, as multiples of the mean variance."""

    def of(percentile: int) -> Callable[[Array, Array], Array]:
        def statistic(first: Array, second: Array) -> Array:
            variance = np.maximum(second - first**2, 0.0)
            total = variance.mean(1)
            return np.asarray(np.percentile(variance, percentile, axis=1) / np.where(total > 0, total, np.nan))

        return statistic

    if not np.any(square - mean**2 > 0):
        return {}
    return {f"p{p}": bootstrap.interval(of(p), mean, square) for p in PERCENTILES}


def oriented(entries: list[dict[str, Any]], measure: str, key: str) -> Array:
    """A measure of all cells, higher where sparser."""
    values = np.array([entry["measures"][measure][key] for entry in entries])
    return -values if measure in FALLING else values


def agreement(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's correlation of every two measures over the cells, both turned so that higher is sparser."""
    values = {measure: oriented(entries, measure, "value") for measure in MEASURES}
    return {
        "measures": list(MEASURES),
        "spearman": [[rank_correlation(values[a], values[b]) for b in MEASURES] for a in MEASURES],
        "n": len(entries),
    }


def disagreements(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of cells that one measure orders one way and another one the other, each with intervals apart.

    For each two measures: how many of all pairs of cells, and the pair with the largest smaller gap.
    """
    ends = {m: [oriented(entries, m, key) for key in ("value", "low", "high")] for m in MEASURES}
    found = []
    for a, b in itertools.combinations(MEASURES, 2):
        pairs = []
        for i, j in itertools.combinations(range(len(entries)), 2):
            gaps = [gap(ends[m], i, j) for m in (a, b)]
            if gaps[0] * gaps[1] < 0:
                pairs.append((min(map(abs, gaps)), i, j, gaps[0] > 0))
        total = len(entries) * (len(entries) - 1) // 2
        if pairs:
            _, i, j, first = max(pairs, key=lambda pair: pair[0])
            sparser, other = (i, j) if first else (j, i)
            where = [{"layer": entries[k]["layer"], "site": entries[k]["site"]} for k in (sparser, other)]
            found.append(
                {
                    "measures": [a, b],
                    "pairs": len(pairs),
                    "of": total,
                    "sparser_by_first": where[0],
                    "by_second": where[1],
                }
            )
    return sorted(found, key=lambda entry: -entry["pairs"])


def gap(ends: list[Array], i: int, j: int) -> float:
    """How much sparser cell i is than j, 0 unless their intervals are apart."""
    value, low, high = (np.sort([end[[i, j]] for end in ends], 0)[k] for k in (1, 0, 2))
    apart = low[0] > high[1] or low[1] > high[0]
    return float(value[0] - value[1]) if apart else 0.0


def refuse(config: SparsityConfig, task: TaskConfig) -> str | None:
    return None


def work(config: SparsityConfig) -> str:
    return (
        f"one forward of {config.prompts + config.eval_prompts} prompts, {config.bootstrap} draws for each site; the "
        f"same on {config.controls} models with shuffled weights"
    )


def summary(results: dict[str, Any]) -> list[str]:
    """The scale-free measures of the last layer's sites."""
    last = max(entry["layer"] for entry in results["cells"])
    lines = []
    for entry in results["cells"]:
        if entry["layer"] == last:
            said = ", ".join(f"{name} {entry['measures'][name]['value']:.3f}" for name in SCALE_FREE)
            lines.append(f"  {entry['site']:<15} layer {last}: {said}")
    return [*lines, *told_apart(results["control"])]


ANALYSIS = Analysis(
    name="sparsity",
    title="Sparsity of activations",
    config=SparsityConfig,
    analyzer=SparsityAnalyzer,
    families=tuple(ROLES),
    refuse=refuse,
    work=work,
    summary=summary,
)
