"""Dictionaries of features: a grid of sparse autoencoders at the sites of a model, trained, evaluated and saved.

After Bricken et al. 2023 ("Towards Monosemanticity"), for state-space models as for transformers: every sparsity at
every width, all from one pass over the activations, and each judged by what the model loses when it reads the
reconstruction.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import sae
from ...interventions.model import Model
from ...sae import SAEConfig, SparseAutoencoder, Transcoder
from ...sae.activations.cache import fill_cache
from ...sae.activations.contexts import TaskContexts, excluded
from ...sae.activations.flattening import check_fit, check_rule, flat_width, rule_of
from ...sae.activations.pools import Pools, Streamed
from ...sae.architectures import BY_COUNT
from ...sae.training import FROZEN, Trained, Training, train_grid
from ...sae.transcoder import TranscoderConfig
from ...tasks.config import TaskConfig
from ...utils import files, workers
from ...utils.errors import MechintError
from ...utils.options import listed, option
from ...utils.rundir import weights_digest
from ...utils.statistics import exact
from ..base import Analysis, Later, StagedAnalyzer
from ..loader import PromptLoader
from ..options import layer_list
from .evaluation import Windows, evaluate_all
from .grid import grid, sites_of, unknown_architecture, warnings
from .kinds import BOTH, kind_of
from .reading import labels_of, read_dictionary, rule_in_words, to_read, window_of
from .stability import stability
from .stored import changed, chosen_of, load_given


@dataclass(frozen=True)
class SAEAnalysisConfig:
    """Options of the dictionaries, of their training and of their evaluation."""

    sites: str = option(
        "resid_post", "Kinds of site, separated by commas: resid_post, out, conv, y, state, write, mlp_out and so on"
    )
    layers: str = option("all", "Layers, separated by commas, or all")
    architectures: str = option(
        "batch_topk", "Separated by commas: relu, topk, batch_topk, jumprelu, gated, matryoshka"
    )
    sparsity: str = option(
        "8,16,32",
        "Active latents of topk, batch_topk, matryoshka and jumprelu, separated by commas; a number below 1 is a "
        "share of all latents",
    )
    penalty: str = option("2,4,8", "Weights of the penalty of relu and gated, separated by commas")
    ratio: str = option(
        "4", "Latents as multiples of the site's width, separated by commas; the documented 0.3 gives poor dictionaries"
    )
    flatten: str = option(
        "all",
        "How a site of several axes is read: all of them at once, last (one dictionary for the vectors of all heads or "
        "the states of all channels) or unit:5 (that head or channel alone)",
    )
    seeds: int = option(
        1, "Dictionaries of each setting that differ only in their initialisation", unit="seeds", low=1, high=100
    )
    controls: bool = option(
        True, "Also train each with a frozen random decoder and encoder, and measure PCA and neurons"
    )
    tokens: int = option(1_000_000, "Activations to train on", unit="activations", low=1, high=10**9)
    epochs: int = option(1, "Passes over these activations, in another order each time", low=1, high=1000)
    batch: int = option(2048, "Activations of a step", unit="activations", low=1, high=1_000_000)
    lr: float = option(
        0.0, "Peak learning rate of Adam; 0 takes 2e-4 times the root of 16384 / latents", low=0.0, high=1.0
    )
    dead_after: int = option(
        0,
        "Activations without firing after which a latent counts as dead and is revived; 0 takes 10 million, or a "
        "fifth of the training",
        unit="activations",
        low=0,
        high=10**9,
    )
    precision: str = option(
        "float32",
        "Precision of matrix products in training: float32, or bfloat16 with weights and sums in float32, for GPUs",
        choices=("float32", "bfloat16"),
    )
    buffer: int = option(65536, "Activations that are shuffled together", unit="activations", low=1, high=10**8)
    cache: str = option("", "Directory that keeps the activations for further grids; empty streams them", path=True)
    exclude: str = option(
        "bos,boundary,padding", "Kinds of token left out: bos, boundary, padding, separated by commas"
    )
    dictionaries: str = option(
        "",
        "Directory of dictionaries or transcoders to evaluate, or the hub id of one (owner/name:folder), instead of "
        "training",
        path=True,
    )
    prompts: int = option(256, "Contexts in which features are read", unit="prompts", low=2, high=1_000_000)
    eval_prompts: int = option(
        256, "Held-out contexts for every reported number", unit="prompts", low=2, high=1_000_000
    )
    read: int = option(
        1,
        "Dictionaries of each site whose features are read: the sparsest of those that recover nearly as much of the "
        "loss as the best",
        low=0,
        high=1000,
    )
    read_names: str = option(
        "",
        "Names or patterns of dictionaries to read, separated by commas, instead of the dictionaries that the "
        "rule chooses",
    )
    causal: int = option(8, "Features of each that are ablated one by one", unit="features", low=0, high=100_000)
    bootstrap: int = option(1000, "Bootstrap draws of every interval", unit="draws", low=100, high=100_000)


class SAEAnalyzer(StagedAnalyzer[SAEAnalysisConfig]):
    """Trains the grid on contexts of the task's training split and judges it on held-out ones."""

    def __init__(
        self, model: Model, config: SAEAnalysisConfig, device: str | torch.device = "cpu", **others: Any
    ) -> None:
        super().__init__(model, config, device, **others)
        self.device = torch.device(device)
        self.sites = sites_of(model, config.sites, config.layers)
        excluded(config.exclude)
        self.given: dict[str, SparseAutoencoder | Transcoder] | None = None
        self.members: dict[str, SAEConfig | TranscoderConfig] = {}
        if not config.dictionaries:
            self.members |= self.plan({})
        else:
            layers = None if config.layers.strip() == "all" else layer_list(config.layers, model.num_layers, "sae")
            self.given = load_given(config.dictionaries, config.flatten, model, layers)
            self.members |= {name: dictionary.config for name, dictionary in self.given.items()}
            self.sites = [site for site in model.sites if site in {changed(c) for c in self.members.values()}]
            for name, member in self.members.items():
                if member.site not in model.sites:
                    raise MechintError(f"dictionary {name} is of site {member.site!r}, which this model does not have")
                check_fit(self.given[name], model, member.site)
        if config.read_names:
            chosen_of(self.members, config.read_names)  # a name that is none is refused before the training
        self.notes = warnings({n: c for n, c in self.members.items() if isinstance(c, SAEConfig)})
        given = {name: c for name, c in self.members.items() if isinstance(c, TranscoderConfig)}
        self.title = kind_of(name in given for name in self.members).title
        if given:
            sites = "; ".join(f"{name} reads {c.site} and writes {c.site_out}" for name, c in given.items())
            self.notes.append(
                f"Transcoders: {sites}. What a transcoder makes of the site that it reads stands in the place of the "
                f"one that it writes; PCA and neurons, which would see what it has to predict, do not stand beside it"
            )
        self.trained: dict[str, SparseAutoencoder | Transcoder] = {}
        self.history: dict[str, list[dict[str, float]]] = {}

    def plan(self, about: dict[str, Any]) -> dict[str, SAEConfig]:
        return grid(self.model, [self.model.sites[name] for name in self.sites], self.config, about)

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Trains on the task of ``train_loader`` and evaluates on the prompts of ``val_loader``."""
        val_loader.check_intervals()
        self.notes += self.misfits(next(iter(val_loader)).tokens)
        for note in self.notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
        if self.given is None:
            with self.together():
                self.train(train_loader)
        else:
            self.trained = self.given
        windows = self.windows(val_loader)
        found: dict[str, dict[str, Any]] = {}
        for site in self.sites:
            found |= self.stages.get(f"evaluation {site}", functools.partial(self.evaluate, site, windows))
        self.results = self.report(found)
        self.results["sae"]["read"] = [
            self.stages.get(
                f"reading {name}", functools.partial(self.read, name, site, found, train_loader, val_loader)
            )
            for site in self.sites
            for name in self.to_read(site)
        ]
        rule = "by name" if self.config.read_names else rule_in_words(self.results["sae"]["members"])
        self.results["sae"]["read_rule"] = rule
        return self.results

    def misfits(self, tokens: Tensor) -> list[str]:
        """Warns of given dictionaries that look like those of another model or layer, by one batch of prompts."""
        fits = {
            name: one.fit(self.model, tokens) if isinstance(one, Transcoder) else sae.fit(one, self.model, tokens)
            for name, one in (self.given or {}).items()
            if isinstance(one, Transcoder) or not one.config.baseline
        }
        return [
            f"Dictionary {name} may not fit: it explains {found.variance_explained:.0%} of the variance at "
            f"{found.site}; {found.warning}"
            for name, found in fits.items()
            if found.warning is not None
        ]

    def to_read(self, site: str) -> list[str]:
        """The dictionaries of a site whose features are read: by their names, or by the rule."""
        if self.config.read_names:
            return [
                name for name in chosen_of(self.members, self.config.read_names) if changed(self.members[name]) == site
            ]
        return to_read(self.results["sae"]["members"], site, self.config.read)

    def assist(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Trains along: each process takes its part of every batch."""
        if self.given is None:
            with self.together():
                self.train(train_loader)

    def save_results(self) -> list[Path]:
        """Writes ``history.jsonl``, a training curve's point in a line; the dictionaries are saved already."""
        lines = [json.dumps({"member": name, **point}) for name, points in self.history.items() for point in points]
        written = [files.write_text(self.directory / "history.jsonl", "".join(line + "\n" for line in lines))]
        if self.given is not None:
            for name, dictionary in self.trained.items():
                place = self.directory / "dictionaries" / name
                if isinstance(dictionary, Transcoder):
                    sae.save_transcoder(dictionary, place)
                else:
                    sae.save(dictionary, place)
        return written + sorted((self.directory / "dictionaries").iterdir())

    # ---- training -----------------------------------------------------------------------------------------------

    def contexts(self, loader: PromptLoader) -> TaskContexts:
        rows = max(len(batch) for batch in loader)
        return TaskContexts(loader.task, "train", rows, self.seed)

    def pools(self, loader: PromptLoader) -> Pools:
        """The activations to train on: as many pools as hold the tokens that were asked for."""
        c, contexts = self.config, self.contexts(loader)
        sizes = [math.prod(site.units) // flat_width(site, c.flatten) for site in map(self.model.sites.get, self.sites)]
        a_token = [1] if c.flatten.startswith("unit:") else sizes  # activations that a site gives on it
        per_batch = contexts.rows * contexts.length
        pool_batches = max(1, min(c.buffer, c.tokens) // (per_batch * max(a_token)))
        streamed = Streamed(
            self.model, self.sites, contexts, pool_batches, c.flatten, c.exclude, weights_digest(self.model)
        )
        count = -(-c.tokens // (per_batch * pool_batches * min(a_token)))
        if c.cache:
            return fill_cache(streamed, c.cache, count)
        streamed.count = count if c.epochs > 1 else None
        return streamed

    def train(self, loader: PromptLoader) -> None:
        """Trains the whole grid, resumes where a killed run was, or takes what it left finished."""
        if workers.from_first(self.stages.has("training")) and workers.team()[0]:
            return  # another process has it all
        self.history = self.stages.get("training", lambda: self.train_now(loader))
        if self.run_dir is not None:
            self.trained = {name: sae.load(self.run_dir / "dictionaries" / name) for name in self.members}

    @property
    def training(self) -> Training:
        c = self.config
        return Training(
            tokens=c.tokens * c.epochs, batch=c.batch, lr=c.lr, dead_after=c.dead_after,
            bfloat16=c.precision == "bfloat16", seed=self.seed,
        )  # fmt: skip

    def train_now(self, loader: PromptLoader) -> dict[str, list[dict[str, float]]]:
        about = {
            "model_name": str(getattr(self.model, "source", "")),
            "model_family": self.model.config.family,
            "flatten": self.config.flatten,
            "context_size": loader.task.length,
            "prepend_bos": bool(loader.task.front),
            "dataset": loader.task.description,
        }
        done = train_grid(
            self.plan(about), self.pools(loader), self.training, self.device,
            workers.from_first(self.stages.part("training")),
            lambda state: self.stages.save_part("training", state),
        )  # fmt: skip
        for member in done:
            self.keep(member)
        return {member.name: member.history for member in done}

    def keep(self, member: Trained) -> None:
        self.trained[member.name] = member.sae
        if self.run_dir is not None:
            sae.save(member.sae, self.run_dir / "dictionaries" / member.name)

    # ---- evaluation ---------------------------------------------------------------------------------------------

    def windows(self, loader: PromptLoader) -> list[Windows]:
        return [window_of(batch, loader.task, self.config.exclude) for batch in loader]

    def evaluate(self, site: str, windows: list[Windows]) -> dict[str, dict[str, Any]]:
        here = {name: self.trained[name].to(self.device) for name, c in self.members.items() if changed(c) == site}
        found: dict[str, dict[str, Any]] = {}
        kind = lambda one: (rule_of(one), one.config.site if isinstance(one, Transcoder) else "")
        for rule, read in dict.fromkeys(map(kind, here.values())):
            alike = {name: dictionary for name, dictionary in here.items() if kind(dictionary) == (rule, read)}
            found |= evaluate_all(
                alike, self.model, windows, site, baselines=self.config.controls, draws=self.config.bootstrap,
                seed=self.seed, title=f"evaluating {site}", read=read,
            )  # fmt: skip
        return found

    # ---- reading ------------------------------------------------------------------------------------------------

    def read(
        self, name: str, site: str, found: dict[str, Any], train_loader: PromptLoader, val_loader: PromptLoader
    ) -> dict[str, Any]:
        """Features, causal checks and labels of one dictionary; features/{name}.json is written at once."""
        dictionary, task = self.trained[name].to(self.device), train_loader.task
        site = self.members[name].site  # of a transcoder the one that it reads
        contexts, held_out = self.windows(train_loader), self.windows(val_loader)
        told = read_dictionary(
            dictionary, self.model, site, name, contexts, held_out, task, checked=self.config.causal,
            density=torch.as_tensor(found[name]["density"]["share"]), draws=self.config.bootstrap, seed=self.seed,
            directory=None if self.run_dir is None else self.run_dir / "features",
        )  # fmt: skip
        batches = (list(train_loader), list(val_loader))
        return {**told, "labels": labels_of(dictionary, self.model, site, *batches, task, self.seed)}

    def report(self, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
        members = [self.entry(name, found[name]) for name in self.members]
        seen = {name: points[-1]["tokens"] for name, points in self.history.items() if points}
        notes = list(self.notes)
        if seen and max(seen.values()) < self.training.patience:
            notes.append(
                f"Training saw {max(seen.values()):,.0f} activations, fewer than the {self.training.patience:,} after "
                f"which a silent latent counts as dead: none was revived"
            )
        return {
            "report": "sae",
            "unit": "dictionary",
            "metric": "next-token cross-entropy",
            "ablation": "zero and mean activation",
            "metrics": {
                "dictionaries": exact(len(members)),
                **best_numbers(members),
            },
            "sae": {
                "members": members,
                "stability": self.stability(found),
                "training": [
                    {"name": name, "tokens": int(tokens), "dead_after": self.training.patience}
                    for name, tokens in seen.items()
                ],
            },
            "notes": notes,
        }

    def entry(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        c = self.members[name]
        if isinstance(c, TranscoderConfig):
            return self.transcoder_entry(name, c, found)
        trained_as = c.trained_as or c.architecture
        by_count = trained_as in BY_COUNT
        evaluated = {key: value for key, value in found.items() if key != "density"}
        return {
            "name": name,
            "architecture": trained_as,
            "site": c.site,
            "layer": c.layer,
            "d_in": c.d_in,
            "d_sae": c.d_sae,
            "seed": c.seed,
            "sparsity": sparsity("k", c.k, found) if by_count else sparsity("penalty", c.penalty, found),
            "baseline": c.baseline or None,
            "directory": f"dictionaries/{name}",
            **evaluated,
            "density": {key: value for key, value in found["density"].items() if key != "share"},
        }

    def transcoder_entry(self, name: str, c: TranscoderConfig, found: dict[str, Any]) -> dict[str, Any]:
        """The entry of a transcoder, under the site that it writes; it ``reads`` another one."""
        density = {key: value for key, value in found["density"].items() if key != "share"}
        return {
            **found, "name": name, "architecture": f"{c.architecture}_transcoder", "site": c.site_out,
            "reads": c.site, "layer": c.layer, "d_in": c.d_in, "d_sae": c.d_sae, "seed": 0,
            "sparsity": sparsity("k", c.k, found), "baseline": None,
            "directory": f"dictionaries/{name}", "density": density,
        }  # fmt: skip

    def stability(self, found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Agreement of the dictionaries that differ in their seed alone."""
        groups: dict[str, list[str]] = {}
        for name, c in self.members.items():
            if isinstance(c, SAEConfig) and not c.baseline:
                groups.setdefault(name.rpartition("-s")[0], []).append(name)
        entries = []
        for of, names in groups.items():
            if len(names) > 1:
                alive = [torch.as_tensor(found[name]["density"]["share"]) > 0 for name in names]
                agreed = stability([self.trained[name] for name in names], alive)
                entries.append({"of": of, "members": names, **agreed})
        return entries


def sparsity(name: str, value: float, found: dict[str, Any]) -> dict[str, Any]:
    """The sparsity that a dictionary was trained for; the measured L0 where its file does not say."""
    if value:
        return {"name": name, "value": float(value)}
    return {"name": "L0", "value": float(f"{found['metrics']['l0']['value']:.3g}")}


def best_numbers(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of the trained dictionary that loses the model least."""
    real = [member for member in members if not member["baseline"]]
    best = min(real, key=lambda member: member["metrics"]["ce_increase"]["value"])
    return {f"best_{name}": best["metrics"][name] for name in ("ce_increase", "variance_explained", "l0")}


def refuse(config: SAEAnalysisConfig, task: TaskConfig) -> str | None:
    if task.name == "prompt":
        return "one prompt is too little text for dictionaries; choose text, facts or another task"
    if config.batch > config.tokens and not config.dictionaries:
        return f"a step takes {config.batch} activations and there are {config.tokens}; raise tokens or lower batch"
    try:
        check_rule(config.flatten)
    except MechintError as error:
        return str(error)
    return unknown_architecture(config.architectures)


def work(config: SAEAnalysisConfig) -> str:
    if config.dictionaries:
        return f"evaluate the dictionaries or transcoders in {config.dictionaries} on {config.eval_prompts} contexts"
    kinds = listed(config.architectures)
    many = sum(len(listed(config.sparsity if kind in BY_COUNT else config.penalty)) for kind in kinds)
    many *= len(listed(config.ratio)) * (config.seeds + len(FROZEN) * config.controls)
    return f"{many} dictionaries for each site and layer, from one pass over {config.tokens:,} activations"


def summary(results: dict[str, Any]) -> list[str]:
    """One line for each dictionary."""
    name = kind_of("reads" in member for member in results["sae"]["members"]).one
    lines = [f"  {name:<44} {'L0':>6} {'explained':>9} {'CE recovered':>12} {'KL':>7} {'dead':>5}"]
    for member in results["sae"]["members"]:
        m = {name: entry["value"] for name, entry in member["metrics"].items()}
        lines.append(
            f"  {member['name']:<44} {m['l0']:6.1f} {m['variance_explained']:9.1%} {m['ce_recovered_zero']:12.1%} "
            f"{m['kl']:7.4f} {m['dead']:5.0%}"
        )
    return lines


ANALYSIS = Analysis(
    name="sae",
    title=BOTH.title,
    config=SAEAnalysisConfig,
    analyzer=SAEAnalyzer,
    aliases=("dictionaries",),
    refuse=refuse,
    work=work,
    summary=summary,
    shares=True,
    report=Later("analyses.dictionaries.report:write_sae"),
    headline=Later("analyses.dictionaries.report:headline"),
    to_log=Later("analyses.dictionaries.report:to_log"),
)
