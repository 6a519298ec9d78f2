"""Sparsity of activations, by measures fixed beforehand, on held-out prompts, with intervals.

1. On discovery prompts, take each unit's root mean square and the threshold that leaves out the target share.
2. On held-out prompts, compute every measure of :mod:`.measures` at every chosen site and layer, for each token.
3. Average over the tokens of a prompt and over prompts; intervals are over templates.
4. Take the percentiles of the units' variances over tokens, as multiples of their mean variance.
5. Report the rank correlation of the measures over sites and layers, and the pairs of sites that two measures order
   in opposite ways.
6. Repeat all of it on models with shuffled weights.

No measure is chosen by its value.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...attribution.attention import selective_layers
from ...interventions.model import Model, left_out
from ...tasks import Prompts
from ...utils.errors import MechintError, shown
from ...utils.progress import Progress
from ...utils.statistics import ClusterBootstrap, exact
from ..base import Analysis, ControlledAnalyzer, Later, values_of
from ..loader import PromptLoader
from ..options import layer_list, unit_sites
from ..random_weights import control, told_apart
from .measures import MEASURES, SCALE_FREE, Scale
from .options import OF_CHANNELS, OF_OTHERS, SparsityConfig, refuse
from .results import agreement, disagreements, mean_of, profile, quantities

POOL = 1 << 16
"""Most activations of one batch and site that the optimal threshold is taken from, evenly spaced."""


def site_roles(model: Model) -> dict[str, str]:
    """Matched sites and their roles: the residual stream, what a layer adds to it, what its output projections read."""
    roles = {"stream": ("resid_post",), "added": model.mixers, "read": model.projected}
    return {site: role for role, sites in roles.items() for site in sites}


class SparsityAnalyzer(ControlledAnalyzer[SparsityConfig]):
    """Measures sparsity at every chosen layer and site; see the top of this file."""

    name = "sparsity"

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Thresholds from ``train_loader``, measures on ``val_loader``; returns the results."""
        val_loader.check_intervals()
        layers = layer_list(self.config.layers, self.model.num_layers, self.name)
        roles = site_roles(self.model)
        kinds = unit_sites(self.model, self.config.sites, roles, self.name)
        sites = self.model.sites
        cells = [(layer, kind) for kind in kinds for layer in layers if f"layers.{layer}.{kind}" in sites]
        if not cells:
            raise MechintError(
                f"sparsity: none of the layers {shown(layers)} has the sites {', '.join(kinds)}; choose other layers"
            )
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
            "notes": left_out(self.model, kinds, layers),
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
        fixed = OF_CHANNELS if selective_layers(self.model) else OF_OTHERS
        return {
            name: Scale(
                (squares[name] / count).sqrt(),
                float(np.quantile(torch.cat(pools[name]).numpy(), self.config.target)),
                fixed,
                self.config.epsilon,
            )
            for name in names
        }


def measured(model: Model, prompts: Prompts, scales: dict[str, Scale]) -> dict[str, Tensor]:
    """For each site every measure's mean over a prompt's tokens [prompt, measure], and each unit's mean and mean square
    over them [prompt, unit]."""
    found = {}
    for name, value in values_of(model, prompts, scales).items():
        a, scale = value.double().cpu(), scales[name]
        found[f"{name} measures"] = torch.stack([m(a, scale).mean(1) for m in MEASURES.values()], 1)
        found[f"{name} mean"], found[f"{name} square"] = a.mean(1), a.square().mean(1)
    return found


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
    refuse=refuse,
    work=work,
    summary=summary,
    report=Later("analyses.sparsity.report:write_sparsity"),
    headline=Later("analyses.sparsity.report:headline"),
)
