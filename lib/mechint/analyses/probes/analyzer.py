"""Reads labels out of sites by linear probes, and sets control labels beside them.

1. Take the labels of the task or of the lines of a file; leave out those that the prompts do not tell apart.
2. At each site of each layer, where the answer is predicted, fit a probe on the discovery prompts; its penalty is
   chosen by folds that no template crosses (:mod:`.fitting`).
3. Score it on held-out prompts, with an interval over templates and a p-value from permuted labels, adjusted for all
   probes.
4. Fit such a probe to control labels, random ones of each token, and take the difference: the selectivity of Hewitt &
   Liang 2019 (:mod:`.control_labels`).
5. Repeat on models with shuffled weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...interventions.model import Model, left_out
from ...interventions.run import run
from ...tasks import Prompts
from ...tasks.base import mix
from ...utils import files
from ...utils.errors import MechintError, did_you_mean, shown
from ...utils.options import listed, named
from ...utils.progress import Progress
from ...utils.statistics import ClusterBootstrap, draws_needed, exact, said, said_p
from ..base import Analysis, ControlledAnalyzer, Later
from ..loader import PromptLoader
from ..options import fixed_sites, layer_list
from ..random_weights import control, told_apart
from .control_labels import Types, distance, labeling, types
from .fitting import Labelled, check, hits_of, penalty, probe
from .options import ProbeConfig, refuse
from .results import adjusted, best_of, quantities


class Prober(ControlledAnalyzer[ProbeConfig]):
    """Probes a model; see the top of this file."""

    name = "probe"

    def __init__(self, model: Model, config: ProbeConfig, device: str | torch.device = "cpu", **others: Any) -> None:
        super().__init__(model, config, device, **others)
        self.sites = fixed_sites(model, config.sites, layer_list(config.layers, model.num_layers, "probe"), "probe")
        self.weights: dict[str, Tensor] = {}

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        self.labels(train_loader, val_loader)

    def labels(self, train: PromptLoader, val: PromptLoader) -> dict[str, tuple[Labelled, Labelled]]:
        """The labels of both halves, with the templates, and no activations yet.

        Raises:
            MechintError: no such label, or one that cannot be probed.
        """
        there = {
            name: (without_sites(train, name), without_sites(val, name)) for name in train.task.labels(train.batches[0])
        }
        usual = self.config.labels.strip() == "usual"
        asked = list(there) if usual else listed(self.config.labels, named("probe", "labels"))
        found: dict[str, tuple[Labelled, Labelled]] = {}
        why = ""
        for name in dict.fromkeys(asked):
            if name not in there:
                raise MechintError(
                    f"probe: prompts of {train.task.name!r} have no label {shown(name)}{did_you_mean(name, there)}; "
                    f"they have {', '.join(there)}"
                )
            first, second = there[name]
            try:
                check(first, second, self.config.method, name)
            except MechintError as reason:
                if not usual:
                    raise
                why = str(reason)
                continue
            found[name] = first, second
        if not found:
            raise MechintError(why or f"probe: no label is named; leave {named('probe', 'labels')} at 'usual'")
        return found

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Fits probes on ``train_loader``, tests them on ``val_loader``; returns the results."""
        val_loader.check_intervals()
        labels = self.labels(train_loader, val_loader)
        back = distance(train_loader.batches)
        control_types = types(train_loader.batches, back), types(val_loader.batches, back)
        rows: list[dict[str, Any]] = []
        with Progress("probes", len(self.sites) * len(labels)) as progress:
            for site in self.sites:
                one = functools.partial(self.of_site, site, labels, control_types, train_loader, val_loader, progress)
                found = self.stages.get(f"site {site}", one)
                rows += found["rows"]
                self.weights |= found["weights"]
        rows = adjusted(rows)
        best = best_of(rows)
        used = len(next(iter(labels.values()))[1])
        metrics = {"prompts_used": exact(used)} | {f"best_{row['label']}": row["accuracy"] for row in best}
        self.results = {
            "report": "probe",
            "metric": "held-out accuracy of a probe",
            "ablation": "none",
            "metrics": metrics,
            "method": self.config.method,
            "labels": {name: len(np.unique(first.y)) for name, (first, _) in labels.items()},
            "control_token": back,
            "probes": rows,
            "best": best,
            "notes": self.notes(train_loader, labels, len(rows)),
        }
        self.results["control"] = control(self, train_loader, val_loader, quantities)
        return self.results

    def save_results(self) -> list[Path]:
        """Writes ``probes.pt``, the weights of each label and site [class, unit …], into the run directory."""
        return [files.write_torch(self.directory / "probes.pt", self.weights)]

    # ---- the work -----------------------------------------------------------------------------------------------

    def of_site(
        self,
        site: str,
        labels: dict[str, tuple[Labelled, Labelled]],
        control_types: tuple[Types, Types],
        train: PromptLoader,
        val: PromptLoader,
        progress: Progress,
    ) -> dict[str, Any]:
        """The probes of all labels at a site."""
        values = [read(self.model, loader.batches, site) for loader in (train, val)]
        rows, weights = [], {}
        for name, halves in labels.items():
            first, second = (Labelled(x, half.y, half.groups) for x, half in zip(values, halves, strict=True))
            found = probe(
                first, second, self.config.method, name, shuffles=self.config.shuffles, draws=self.config.bootstrap,
                seed=self.seed,
            )  # fmt: skip
            hits, strength = [], 0.0
            for k in range(self.config.labelings):
                drawn = labeling(control_types[0], control_types[1], first.y, mix(self.seed, "control labels", name, k))
                a, b = (Labelled(d.X, y, d.groups) for d, y in zip((first, second), drawn, strict=True))
                strength = strength or penalty(a, self.config.method, self.seed)  # of the first, for all
                hits.append(hits_of(a, b, self.config.method, strength))
            boot = ClusterBootstrap(second.groups, self.config.bootstrap, self.seed)
            selectivity = boot.over_baselines(found.hits, np.stack(hits), "control labelings")
            layer = int(site.split(".")[1])
            rows.append({
                "name": f"{name} at {site}", "label": name, "site": site.rpartition(".")[2], "layer": layer,
                "classes": found.classes, "accuracy": found.score, "selectivity": selectivity,
                "control_labels": boot.share(np.stack(hits).mean(0)), "shuffled": found.shuffled,
                "most_frequent": float(np.unique(second.y, return_counts=True)[1].max() / len(second)),
                "p": found.p, "across_folds": found.across_folds, "units_used": len(found.units),
                "strength": found.strength,
            })  # fmt: skip
            shape = self.model.sites[site].units
            weights[f"{name} {site}"] = torch.from_numpy(found.weights).float().unflatten(1, shape)
            progress.step()
        return {"rows": rows, "weights": weights}

    def notes(self, train: PromptLoader, labels: dict[str, tuple[Labelled, Labelled]], count: int) -> list[str]:
        found = left_out(self.model, [site.rpartition(".")[2] for site in self.sites])
        every = train.task.labels(train.batches[0])
        missing = [name for name in every if name not in labels]
        if missing and self.config.labels.strip() == "usual":
            found.append(f"Labels that these prompts do not tell apart are left out: {', '.join(missing)}")
        if (needed := draws_needed(count)) > self.config.bootstrap:
            found.append(f"{self.config.bootstrap} draws cannot show p ≤ 0.05 for {count} probes; ask for {needed}")
        return found


def without_sites(loader: PromptLoader, name: str) -> Labelled:
    """A label of all prompts, with their templates and zeros as activations."""
    y = torch.cat([loader.task.labels(batch)[name].cpu() for batch in loader]).numpy()
    return Labelled(np.zeros((len(y), 1)), y, loader.templates())


@torch.no_grad()
def read(model: Model, batches: Sequence[Prompts], site: str) -> Any:
    """A site where the last answer of each prompt is predicted, units of several axes laid out, [prompt, unit]."""
    found = []
    for batch in batches:
        asked = batch.last()
        values = run(model, asked.tokens, [site], logits_at=asked.positions[:, :0])[site]
        rows = torch.arange(len(asked), device=values.device)
        found.append(values[rows, asked.positions[:, 0]].flatten(1).double().cpu())
    return torch.cat(found).numpy()


def work(config: ProbeConfig) -> str:
    fits = 73 + config.shuffles + config.labelings
    return (
        f"one forward of {config.prompts + config.eval_prompts} prompts for each site, and {fits} fits for each site "
        f"and label; the same on {config.controls} models with shuffled weights"
    )


def summary(found: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the best probe of each label."""
    lines = []
    for row in found["best"]:
        lines.append(f"  {row['label']:<15} accuracy {said(row['accuracy'])} at layer {row['layer']} {row['site']}")
        lines.append(f"  {'':<15} selectivity {said(row['selectivity'])}; {said_p(row['p'])}")
    return [*lines, *told_apart(found["control"])]


ANALYSIS = Analysis(
    name="probe",
    title="Probes",
    config=ProbeConfig,
    analyzer=Prober,
    refuse=refuse,
    work=work,
    summary=summary,
    report=Later("analyses.probes.report:write_probes"),
    headline=Later("analyses.probes.report:headline"),
)
