"""Circuits of features: the fewest latents of dictionaries that still do what the whole model does (Marks et al. 2024).

At every site with a dictionary the activation is its latents and an error, which is a unit like the others: no feature
explains the part of a circuit's effect that rests on the error. The control on random weights gets dictionaries of its
own, trained on that
model: with latents of another model the errors would do all the work, and the errors alone would be a faithful circuit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import sae
from ...interventions.model import Model
from ...interventions.prefix import up_to
from ...interventions.units import Units
from ...sae import SAEConfig, SparseAutoencoder, Transcoder
from ...sae.activations.contexts import TaskContexts, excluded
from ...sae.activations.flattening import check_rule, latents_at, rule_of
from ...sae.activations.pools import Streamed
from ...sae.training import Training, train_grid
from ...sae.transcoder import TranscoderConfig
from ...sae.transcoder_training import train_transcoders
from ...tasks.config import TaskConfig
from ...utils.errors import MechintError
from ...utils.options import named, option
from ...utils.rundir import fingerprint
from ..base import Analysis
from ..dictionaries.features import read_features, save_features
from ..dictionaries.reading import window_of
from ..dictionaries.stored import changed, check_given, one_for_each_site
from ..loader import PromptLoader
from .analyzer import CircuitAnalyzer
from .evidence import Evidence
from .feature_units import KIND, FeatureUnits
from .methods.found import FoundCircuit
from .options import BudgetOptions, method_option, refuse_method, refuse_without_twins
from .pages import PAGES
from .results import summary
from .time_estimate import work

NAME, DICTIONARIES = "feature", "sae"
"""Names of this analysis, and of the one whose dictionaries it takes where no others are named."""
CONTROL_BATCH, CONTROL_BUFFER = 512, 65_536
"""Activations of a step, and those shuffled together, where dictionaries of the control are trained."""


@dataclass(frozen=True)
class FeatureCircuitConfig(BudgetOptions):
    """The dictionaries that the units come from, the search for the circuit, and its evidence."""

    dictionaries: str = option(
        "",
        "Directory of dictionaries or transcoders, or of the analysis that evaluated them, or the hub id of one "
        "(owner/name:folder); empty takes those of this experiment",
        path=True,
    )
    choose: str = option(
        "",
        "Names or shell patterns of the dictionaries, one for each site, separated by commas; empty takes those "
        "with the smallest rise of the loss",
    )
    flatten: str = option("all", "How the sites' axes are read where a dictionary does not say: all, last or unit:5")
    exclude: str = option(
        "bos,boundary,padding", "Kinds of token left out of dictionaries and contexts, separated by commas"
    )
    control_tokens: int = option(
        200_000,
        "Activations that the dictionaries of the random-weights control are trained on; 0 leaves this control out",
        unit="activations",
        low=0,
        high=10**9,
    )
    method: str = method_option({KIND.name: KIND})
    read: int = option(
        64, "Latents of the circuit whose contexts are read, the highest attribution first", unit="latents", low=0,
        high=100_000,
    )  # fmt: skip

    @property
    def unit(self) -> str:
        return KIND.name


class FeatureCircuitAnalyzer(CircuitAnalyzer[FeatureCircuitConfig]):
    """Circuits of the latents, and the errors, of one dictionary for each of some sites."""

    def __init__(
        self, model: Model, config: FeatureCircuitConfig, device: str | torch.device = "cpu", **others: Any
    ) -> None:
        excluded(config.exclude)
        chosen = one_for_each_site(where(config, others.get("run_dir")), config.choose, config.flatten, model)
        self.chosen = {changed(dictionary.config): name for name, dictionary in chosen.items()}
        units = FeatureUnits(model, {changed(d.config): d.to(device) for d in chosen.values()})
        self.digests = {site: digest(dictionary) for site, dictionary in units.dictionaries.items()}
        others["key"] = fingerprint([others.get("key", ""), self.digests])
        super().__init__(model, config, device, units=units, **others)
        self.features = units

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        results = super().run_analysis(train_loader, val_loader)
        results["dictionaries"] = [
            {"site": site, "name": self.chosen[site], "sha256": self.digests[site], "d_sae": int(d.config.d_sae),
             "flatten": rule_of(d), **({"reads": d.config.site} if isinstance(d, Transcoder) else {})}
            for site, d in self.features.dictionaries.items()
        ]  # fmt: skip
        results["notes"] += [
            f"{entry['name']} is a transcoder: its latents are encoded from what the circuit has at {entry['reads']}, "
            f"and kept or replaced in {entry['site']}; "
            f"{'its skip connection is one unit, and ' if entry['site'] in self.features.skips else ''}"
            f"the error is all else that is written there."
            for entry in results["dictionaries"] if "reads" in entry
        ]  # fmt: skip
        self.read(train_loader)
        return results

    def measured(self, evidence: Evidence, found: FoundCircuit, ranking: Tensor) -> dict[str, Any]:
        """Every number of a circuit, and how much of it is the errors' and the skip connections'."""
        results, mask = super().measured(evidence, found, ranking), found.mask
        errors, skips = (part.to(mask) for part in (self.features.errors(), self.features.skip_connections()))
        latents = 1 - errors - skips
        parts = {"latents": mask * latents, "errors": mask * errors, "all_latents": latents}
        if self.features.skips:
            parts |= {"skips": mask * skips, "explained": mask * (1 - errors), "all_explained": 1 - errors}
        for name, part in parts.items():
            results["metrics"][f"faithfulness_{name}"] = evidence.interval(part) | {
                "metric": self.config.metric, "ablation": self.config.ablation, "sites": ",".join(self.features.sites)
            }  # fmt: skip
        return results

    def units_of(self, random: Model, loader: PromptLoader) -> Units | None:
        """Latents of dictionaries as wide and as sparse as ours, trained on the model with random weights."""
        if not self.config.control_tokens:
            return None
        ours = self.features.dictionaries
        saes = {
            site: SAEConfig(
                "batch_topk", d.config.d_in, d.config.d_sae, k=self.active(site, loader), site=site,
                flatten=rule_of(d), seed=self.seed,
            )
            for site, d in ours.items() if not isinstance(d, Transcoder)
        }  # fmt: skip
        transcoders = {
            site: replace(d.config, architecture="topk", k=self.active(site, loader))
            for site, d in ours.items()
            if isinstance(d, Transcoder)
        }
        train = lambda: self.train(random, saes, loader) | self.train_transcoders(random, transcoders, loader)
        states = self.stages.get("random weights dictionaries", train)
        made: dict[str, SparseAutoencoder | Transcoder] = {}
        for site, config in saes.items():
            one = made[site] = sae.make(replace(config, architecture="jumprelu"))  # as BatchTopK is used
            one.load_state_dict(states[site])
        made |= {site: Transcoder(config, states[site]) for site, config in transcoders.items()}
        for each in made.values():
            each.to(random.device).requires_grad_(False).eval()
        return FeatureUnits(random, made)

    @torch.no_grad()
    def active(self, site: str, loader: PromptLoader) -> int:
        """Latents of a site's dictionary that are active on an activation of these prompts, on average; at least 1."""
        read = self.features.reads[site]
        counts = [
            (latents_at(self.features.dictionaries[site], up_to(self.model, batch.tokens, read)[0]) > 0).sum(-1)
            for batch in loader
        ]
        return max(1, round(float(torch.cat([count.flatten() for count in counts]).double().mean())))

    def train(self, model: Model, configs: dict[str, SAEConfig], loader: PromptLoader) -> dict[str, dict[str, Tensor]]:
        """Dictionaries of a model: their tensors by site."""
        found = {}
        for rule in dict.fromkeys(config.flatten for config in configs.values()):
            mine = {site: config for site, config in configs.items() if config.flatten == rule}
            pools, training = self.activations(model, list(mine), loader, rule)
            for member in train_grid(mine, pools, training, model.device, title="training for random weights"):
                found[member.name] = {name: tensor.cpu() for name, tensor in member.sae.state_dict().items()}
        return found

    def train_transcoders(
        self, model: Model, configs: dict[str, TranscoderConfig], loader: PromptLoader
    ) -> dict[str, dict[str, Tensor]]:
        """Transcoders of a model, with a skip connection where ours have one: their tensors by the site they write."""
        if not configs:
            return {}
        sites = list(dict.fromkeys(site for c in configs.values() for site in (c.site, c.site_out)))
        pools, training = self.activations(model, sites, loader, "all")
        made = train_transcoders(
            configs,
            {site: site in self.features.skips for site in configs},
            pools,
            training,
            model.device,
            "training for random weights",
        )
        return {site: {name: value.cpu() for name, value in one.named_buffers()} for site, one in made.items()}

    def activations(self, model: Model, sites: list[str], loader: PromptLoader, rule: str) -> tuple[Streamed, Training]:
        """Activations that the control's dictionaries are trained on, and for how long."""
        c, rows = self.config, max(len(batch) for batch in loader)
        contexts = TaskContexts(loader.task, "train", rows, self.seed)
        pool = max(1, min(c.control_tokens, CONTROL_BUFFER) // (rows * contexts.length))
        training = Training(tokens=c.control_tokens, batch=min(CONTROL_BATCH, c.control_tokens), seed=self.seed)
        return Streamed(model, sites, contexts, pool, rule, c.exclude), training

    def read(self, loader: PromptLoader) -> None:
        """Writes features/{dictionary}.json: where the circuit's latents fire, and what they raise."""
        if self.run_dir is None or not self.config.read:
            return
        windows = [window_of(batch, loader.task, self.config.exclude) for batch in loader]
        kept = self.masks_by_site()
        for site, latents in kept.items():
            if latents:
                found = read_features(
                    self.features.dictionaries[site], self.model, windows, self.features.reads[site],
                    loader.task.decode, features=latents,
                )  # fmt: skip
                save_features(found, self.run_dir / "features" / f"{self.chosen[site]}.json")

    def masks_by_site(self) -> dict[str, list[int]]:
        """The circuit's latents that are read, the highest attribution over all sites first chosen; by site."""
        d_sae = lambda site: int(self.features.dictionaries[site].config.d_sae)
        every = [
            (-abs(float(score)), site, number)
            for site in self.features.sites
            for number, (score, kept) in enumerate(
                zip(*(self.masks[site][name][: d_sae(site)] for name in ("importance", "mask")), strict=True)
            )
            if kept
        ]
        best = sorted(every)[: self.config.read]
        return {site: sorted(number for _, where, number in best if where == site) for site in self.features.sites}


def digest(dictionary: SparseAutoencoder | Transcoder) -> str:
    """Hex digest of a dictionary: its weights and what decides how they are used."""
    c = dictionary.config
    written = [c.site_out] if isinstance(c, TranscoderConfig) else []
    found = hashlib.sha256(json.dumps([c.architecture, c.k, c.site, rule_of(dictionary), *written]).encode())
    for name, tensor in sorted(dictionary.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def where(config: FeatureCircuitConfig, run_dir: str | Path | None) -> str | Path:
    """The directory of the dictionaries: the one named, or that of the analysis that trained them beside this one."""
    if config.dictionaries:
        return config.dictionaries
    beside = None if run_dir is None else Path(run_dir).parent / DICTIONARIES
    if beside is None or not beside.is_dir():
        raise MechintError(
            f"a circuit of features needs dictionaries; name their directory with {named('feature', 'dictionaries')}"
        )
    return beside


def lacks(config: FeatureCircuitConfig, chosen: Collection[str]) -> str | None:
    """Why there will be no dictionaries; None when there will be."""
    if config.dictionaries or DICTIONARIES in chosen:
        return None
    return (
        f"there are no dictionaries; name their directory with {named('feature', 'dictionaries')}, or switch on the "
        f"analysis that trains them ({named('', 'sae')}) in the same experiment"
    )


def inputs(config: FeatureCircuitConfig, run_dir: Path) -> dict[str, str]:
    """Digests of the dictionaries that it takes, by site."""
    chosen = one_for_each_site(where(config, run_dir), config.choose, config.flatten)
    return {f"dictionary at {changed(dictionary.config)}": digest(dictionary) for dictionary in chosen.values()}


def refuse(config: FeatureCircuitConfig, task: TaskConfig) -> str | None:
    try:
        check_rule(config.flatten)
        if config.dictionaries:
            check_given(config.dictionaries, config.choose)
    except MechintError as error:
        return str(error)
    return refuse_without_twins(config, task) or refuse_method(config, KIND, task)


ANALYSIS = Analysis(
    name=NAME,
    title="Circuit of features",
    config=FeatureCircuitConfig,
    analyzer=FeatureCircuitAnalyzer,
    aliases=("feature-circuit",),
    refuse=refuse,
    work=work,
    summary=summary,
    lacks=lacks,
    after=(DICTIONARIES,),
    inputs=inputs,
    **PAGES,
)
