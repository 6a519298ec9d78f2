"""The documented calls of a study: ``ExperimentConfig``, ``MambaMechanisticAnalyzer`` and ``run_sae_analysis``.

>>> config = ExperimentConfig(model_name="state-spaces/mamba-130m-hf", layer_idx=0, use_toy_data=True)
>>> analyzer = MambaMechanisticAnalyzer(config).setup()
>>> analyzer.collect_activations()
>>> analyzer.discover_interpretable_features()
>>> analyzer.select_candidate_circuits()
>>> analyzer.test_circuit_causality()
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..analyses.loader import PromptLoader
from ..analyses.probes.fitting import Labelled, derived, probe, refuse_derived, split_by_group
from ..analyses.study.analyzer import WORK, Study
from ..analyses.study.context import Found
from ..analyses.study.options import STEPS, TITLES, StudyConfig
from ..analyses.study.steps_discovery import dictionary
from ..models.loading.load import find_device, load
from ..models.loading.tokenizer import check_bytes
from ..report import log_wandb, write_report
from ..tasks import TaskConfig, make_task
from ..tasks.text import read_text
from ..tasks.windows import Windows
from ..utils import files, wandb_run
from ..utils.errors import MechintError, check_type
from ..utils.options import named
from ..utils.rundir import check_writable, fingerprint, manifest
from ..utils.statistics import ClusterBootstrap, p_of_draws

SCHEMA = 1


@dataclass(frozen=True)
class ExperimentConfig:
    """One layer of one model.

    Attributes:
        model_name: A hub id, a model directory or a checkpoint.
        hidden_size, num_layers: Checked against the model where they are given; 0 takes the model's.
        layer_idx: The layer that is studied.
        top_k: Candidates that are tested.
        num_samples: Prompts of each split.
        sae_latent_dim: Latents of the dictionary for each unit of the site.
        sae_l1_weight: Weight of an L1 penalty on the active latents of the dictionary.
        sae_sparsity_target: Share of the latents that are active at the most (TopK), whatever the penalty.
        seed: Seed of everything drawn at random.
        device: ``auto``, ``cpu`` or ``cuda``.
        use_wandb: True if the finished run is logged to Weights & Biases.
        log_dir: Directory in which ``experiment_YYYYMMDD_HHMMSS`` is made.
        use_toy_data: Prompts of ``toy_task`` instead of text.
        toy_task: A task of the library, with its default sizes.
        text_length: Tokens of a prompt taken from text.
        max_lag: Largest lag of the temporal Jacobians; 0 takes every lag that the prompts have.
        skip_steps: Numbers of steps to leave out.
        draws: Random subspaces that a candidate has to beat.
    """

    model_name: str = "state-spaces/mamba-130m-hf"
    hidden_size: int = 0
    num_layers: int = 0
    layer_idx: int = 0
    top_k: int = 10
    num_samples: int = 50
    sae_latent_dim: float = 0.3
    sae_l1_weight: float = 1e-3
    sae_sparsity_target: float = 0.05
    seed: int = 42
    device: str = "auto"
    use_wandb: bool = False
    log_dir: str = "experiment_logs"
    use_toy_data: bool = False
    toy_task: str = "recall"
    text_length: int = 16
    max_lag: int = 0
    skip_steps: str = ""
    draws: int = 199

    def check(self) -> None:
        """Raises :class:`MechintError` for what no model could be studied with."""
        if self.num_samples < FEWEST_SAMPLES:
            raise MechintError(
                f"{named('', 'num_samples')} is {self.num_samples}; each split needs at least "
                f"{FEWEST_SAMPLES} prompts for its probes"
            )
        if not 0 < self.sae_sparsity_target <= 1:
            raise MechintError(
                f"{named('', 'sae_sparsity_target')} is {self.sae_sparsity_target}; it is a share above 0 and up to 1"
            )

    def study(self, width: int) -> StudyConfig:
        """The study's options, for a site of so many units.

        Raises:
            MechintError: a share of active latents that is less than one of them.
        """
        return StudyConfig(
            layers=str(self.layer_idx), skip_steps=self.skip_steps, candidates=self.top_k, draws=self.draws,
            sae_width=self.sae_latent_dim, sae_k=active_latents(self.sae_sparsity_target, self.sae_latent_dim, width),
            sae_penalty=self.sae_l1_weight, max_lag=self.max_lag, prompts=self.num_samples,
            eval_prompts=self.num_samples,
        )  # fmt: skip


FEWEST_SAMPLES = 16


def active_latents(share: float, width: float, units: int) -> int:
    """Returns the number of latents in a share of a dictionary, to the nearest one.

    Raises:
        MechintError: less than one of them.
    """
    latents = max(2, round(width * units))
    if share * latents < 0.5:
        least = 1 / latents
        raise MechintError(
            f"a share of {share:g} of {latents} latents is less than one active latent; take {least:.2g} or more, or "
            "a wider dictionary"
        )
    return max(1, round(share * latents))


class MambaMechanisticAnalyzer:
    """The steps one by one, or all of them with :meth:`run`; each call returns what its step found."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config
        self.study: Study | None = None
        self.results: Found = {}
        stamp = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
        self.directory = Path(config.log_dir) / f"experiment_{stamp}"

    def setup(self) -> MambaMechanisticAnalyzer:
        """Loads the model and checks the request.

        Raises:
            MechintError: no such model or layer, sizes that are not the model's, a directory that can't be written.
        """
        c = self.config
        c.check()
        if c.use_wandb:
            wandb_run.check()
        check_writable(c.log_dir, named("", "log_dir"))
        with files.nothing_left(self.directory):
            self.start(c)
        return self

    def start(self, c: ExperimentConfig) -> None:
        self.device = find_device(c.device)
        self.model = load(c.model_name, device=self.device)
        for name, given, real in (
            ("hidden_size", c.hidden_size, self.model.config.d_model),
            ("num_layers", c.num_layers, self.model.config.n_layer),
        ):
            if given not in (0, real):
                raise MechintError(
                    f"{name} is {given}, and {c.model_name} has {real}; leave it at 0 to take the model's"
                )
        if c.layer_idx not in range(self.model.num_layers):
            raise MechintError(
                f"{named('', 'layer_idx')} is {c.layer_idx}, and {c.model_name} has {self.model.num_layers} layers "
                f"(0 to {self.model.num_layers - 1})"
            )
        width = getattr(self.model.config, "d_inner", self.model.config.d_model)
        self.study = Study(self.model, c.study(width), self.device, seed=c.seed, run_dir=self.directory)
        files.write_json(self.directory / "config.json", dataclasses.asdict(c))
        self.say(f"{c.model_name}: {self.model.config.family}, layer {c.layer_idx}, {self.directory}")

    def say(self, line: str) -> None:
        print(line, flush=True)
        with open(self.directory / "experiment.log", "a", encoding="utf-8") as log:
            log.write(f"{datetime.datetime.now().isoformat(timespec='seconds')} {line}\n")

    def ready(self) -> Study:
        if self.study is None:
            raise MechintError("call setup() first: it loads the model")
        return self.study

    def begin(self, texts: Sequence[str] | None) -> None:
        """Draws the prompts: of the texts, of the toy task, or of the package's text."""
        c, study = self.config, self.ready()
        samples = study.config.prompts
        if texts is None and c.use_toy_data:
            task = make_task(TaskConfig(name=c.toy_task), self.model.tokenizer, self.model.config.vocab_size)
        else:
            texts = [read_text("topics")[:200_000]] if texts is None else list(texts)
            if self.model.tokenizer is None:
                check_bytes(self.model.config.vocab_size)
            task = Windows(texts, c.text_length, self.model.tokenizer)
            if task.vocab_size > self.model.config.vocab_size:
                raise MechintError(
                    f"the texts have token ids up to {task.vocab_size - 1}, and the model knows "
                    f"{self.model.config.vocab_size}; take a model with a tokenizer, or toy data"
                )
        loaders = [PromptLoader(task, split, samples, 16, c.seed, self.device) for split in ("discovery", "evaluation")]
        study.begin(*loaders)

    def step(self, number: int) -> Found:
        study = self.ready()
        if study.context is None:
            raise MechintError("call collect_activations() first: every step works on its prompts")
        report = study.run_step(number)
        study.save_step(number)
        self.say(f"{number:>2} {TITLES[number]:<26} {report['said']}")
        return report

    def collect_activations(self, texts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Steps 1 and 2: activations of the studied site on the discovery prompts, [prompt, position, unit], by name.

        Args:
            texts: Texts that prompts are cut from; None for the toy task or the package's own text.
        """
        self.begin(texts)
        self.step(1)
        self.step(2)
        assert self.study is not None and self.study.context is not None
        return {site: carried.clean for site, carried in self.study.context.carried.items()}

    def discover_interpretable_features(self) -> Found:
        """Steps 3 and 4: dictionaries, and probes of the labels."""
        return {STEPS[n]: self.step(n) for n in (3, 4)}

    def select_candidate_circuits(self) -> list[Found]:
        """Step 5: the candidates, the strongest evidence first."""
        found: list[Found] = self.step(5).get("candidates", [])
        return found

    def test_circuit_causality(self) -> Found:
        """Steps 6 and 7."""
        return {STEPS[n]: self.step(n) for n in (6, 7)}

    def run(self, texts: Sequence[str] | None = None) -> Found:
        """All steps, the documented files and the report."""
        self.collect_activations(texts)
        study = self.ready()
        assert study.context is not None
        study.check_answers(study.context.found["setup"]["report"])
        for number in [number for number in WORK if number > 2]:
            self.step(number)
        return self.finish(study)

    def finish(self, study: Study) -> Found:
        assert study.context is not None
        study.finish(study.context)
        train, val = study.context.train, study.context.val
        written = study.save_results()
        self.results = {
            "schema": SCHEMA, "analysis": "study", "title": "Study", "checkpoint": self.config.model_name,
            "status": "complete",
            "model": {"family": self.model.config.family, "n_layer": self.model.config.n_layer,
                      "d_model": self.model.config.d_model,
                      "parameters": sum(p.numel() for p in self.model.parameters())},
            "task": {"name": train.task.name, "description": train.task.description,
                     "discovery_prompts": len(train.templates()), "evaluation_prompts": len(val.templates())},
            "config": dataclasses.asdict(study.config), **study.results,
        }  # fmt: skip
        files.write_json(self.directory / "results.json", self.results)
        files.write_json(self.directory / "comprehensive_report.json", self.results)
        files.write_json(
            self.directory / "manifest.json",
            manifest(device=str(self.device), seed=self.config.seed,
                     configuration=fingerprint(dataclasses.asdict(self.config)),
                     files=sorted(path.name for path in written)),
        )  # fmt: skip
        write_report(self.directory)
        if self.config.use_wandb:
            log_wandb(self.directory, "mechint", self.directory.name)
        study.stages.clear()
        return self.results


def run_sae_analysis(
    activations: Tensor,
    task_labels: Any,
    config: dict[str, Any] | None = None,
    groups: Any = None,
    shuffled: tuple[Tensor, Any] | None = None,
) -> Found:
    """A dictionary of activations, and which of its latents go with the labels on rows it was not trained on.

    Args:
        activations: [row, unit].
        task_labels: One for each row: whole numbers name classes, fractions are a quantity.
        config: ``latent_dim_ratio`` (latents for each unit), ``sparsity_target`` (the share of them that are active at
            the most, TopK; 1 leaves sparsity to the penalty), ``sparsity_weight`` (of an L1 penalty on the active
            ones), ``num_epochs``, ``seed``, ``draws``.
        groups: The template of each row; None where all rows are independent.
        shuffled: Activations of prompts whose tokens were shuffled, and the labels given for them: if these can be
            told without an error, they were made of activations, and are refused.

    Returns:
        ``variance_explained`` and ``l0`` on held-out rows with intervals; ``active``, the latents that are active at
        the most; ``latents``: the strongest correlations with
        the labels, their p-values adjusted for all latents by permutations; ``probe``: a Lasso of the latents.

    Raises:
        MechintError: shapes that do not belong together, one class, labels made of the activations, too few rows; an
            unknown option.
    """
    known = {
        "latent_dim_ratio": 0.3, "sparsity_weight": 1e-3, "sparsity_target": 0.05, "num_epochs": 100, "seed": 0,
        "draws": 1000,
    }  # fmt: skip
    if unknown := set(config or {}) - set(known):
        raise MechintError(f"run_sae_analysis: no option {sorted(unknown)[0]!r}; take {', '.join(known)}")
    c: dict[str, Any] = {**known, **(config or {})}
    check_type(activations, Tensor, "run_sae_analysis: activations", "a tensor [row, unit]: torch.as_tensor(…)")
    X, y = activations.detach().double().cpu().flatten(1), np.asarray(task_labels)
    rows = np.arange(len(X)) if groups is None else np.asarray(groups)
    if not len(X) == len(y) == len(rows):
        raise MechintError(
            f"run_sae_analysis: {len(X)} rows, {len(y)} labels and {len(rows)} groups; give as many of each"
        )
    train, test = split_by_group(Labelled(X.numpy(), y, rows), 0.6, c["seed"])
    if shuffled is not None:
        refuse_derived(shuffled[0].detach().double().cpu().flatten(1).numpy(), shuffled[1])
    if reason := derived(train, test):
        raise MechintError(f"the labels are a function of the activations ({reason}); take labels from the task")
    steps = max(10, c["num_epochs"] * max(1, len(train) // 1024))
    active = active_latents(c["sparsity_target"], c["latent_dim_ratio"], train.X.shape[1])
    sae = dictionary(
        torch.from_numpy(train.X), "activations", c["latent_dim_ratio"], active, steps, c["seed"],
        penalty=c["sparsity_weight"],
    )  # fmt: skip
    with torch.no_grad():
        inside, outside = (sae.encode(torch.from_numpy(d.X).float()).double() for d in (train, test))
        rest = (sae.decode(outside.float()).double() - torch.from_numpy(test.X)).square().sum(-1).numpy()
    boot = ClusterBootstrap(test.groups, c["draws"], c["seed"])
    total = ((test.X - test.X.mean(0)) ** 2).sum(-1)
    latents = Labelled(inside.numpy(), train.y, train.groups), Labelled(outside.numpy(), test.y, test.groups)
    return {
        "latents_total": int(sae.config.d_sae),
        "active": active,
        "variance_explained": boot.interval(lambda a, b: 1 - a / b, rest, total, within=(-np.inf, 1.0)),
        "l0": boot.interval(lambda a: a, (outside > 0).double().sum(-1).numpy()),
        "probe": probe(*latents, "lasso", "label", draws=c["draws"], seed=c["seed"]).report(),
        "latents": correlated(outside.numpy(), test.y, c["draws"], c["seed"]),
        "n": len(test),
    }


def correlated(latents: Any, y: Any, draws: int, seed: int, most: int = 20) -> list[Found]:
    """Correlations of latents [row, latent] with a label, the largest first; of classes the strongest indicator's.

    p-values by permutation of the label, each against the largest of all latents (Westfall & Young 1993).
    """
    numeric = y.dtype.kind == "f"
    targets = y[:, None].astype(float) if numeric else (y[:, None] == np.unique(y)).astype(float)
    z = latents - latents.mean(0)
    z = z / np.where((size := np.linalg.norm(z, axis=0)) > 1e-12, size, np.inf)

    def strongest(t: Any) -> Any:
        t = t - t.mean(0)
        t = t / np.where((size := np.linalg.norm(t, axis=0)) > 1e-12, size, np.inf)
        return z.T @ t

    real = strongest(targets)
    at = np.abs(real).argmax(1)
    value = real[np.arange(len(real)), at]
    rng = np.random.default_rng(seed)
    null = np.array([np.abs(strongest(targets[rng.permutation(len(y))])).max() for _ in range(draws)])
    order = np.argsort(-np.abs(value), kind="stable")[:most]
    names = [None] if numeric else np.unique(y).tolist()
    return [
        {"latent": int(i), "correlation": float(value[i]), "label": names[int(at[i])],
         "p": p_of_draws(abs(float(value[i])), null), "n": len(y)}
        for i in order
    ]  # fmt: skip
