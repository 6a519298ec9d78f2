"""Reads the residual stream of every layer with the logit lens and a tuned lens, and takes a logit apart.

1. Train a tuned lens on the tokens of the discovery prompts, or read one from a directory, where the options ask for
   it (:mod:`.tuned`).
2. On held-out prompts, read the residual stream at the answers with every lens at every site: probability,
   log-probability and rank of the answer, and KL(model ‖ lens) (:mod:`.reading`).
3. Split the answer's logit, or its difference from the wrong answer's, into what the embeddings and every part add,
   with the final norm's scale held (:mod:`.contributions`).
4. With a tuned lens, compare the KL of both lenses at all positions of the held-out prompts.
5. Average over prompts, with intervals from a bootstrap of whole templates.
6. Repeat steps 2, 3 and 5 on models with shuffled weights.
7. Read some prompts at every position, for the map.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks import Prompts
from ...utils import files
from ...utils.errors import MechintError
from ...utils.options import named
from ...utils.statistics import FEWEST, ClusterBootstrap, said
from ..base import Analysis, ControlledAnalyzer, Later
from ..loader import PromptLoader
from ..random_weights import control, told_apart
from . import tuned, tuned_files
from .contributions import Contributions, contributions, joined
from .options import LensConfig, refuse
from .reading import Lens, LogitLens, every_position_kl, read_answers, read_positions, stream_sites
from .results import contributed, improvement, metrics_of, quantities, readings

MOST_TOKENS = 64
"""Positions of a prompt of the map, the last ones."""
DIRECTORY = "tuned_lens"
"""The trained tuned lens, below the run directory."""


class LensAnalyzer(ControlledAnalyzer[LensConfig]):
    """Reads every layer of a model; see the top of this file."""

    name = "lens"

    def __init__(self, model: Model, config: LensConfig, device: str | torch.device = "cpu", **others: Any) -> None:
        super().__init__(model, config, device, **others)
        self.sites = stream_sites(self.model)
        self.tuned = tuned_files.load(config.tuned, self.model) if config.tuned else None
        self.examples: list[dict[str, Any]] = []

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        if self.config.target == "logit_diff" and not has_wrong(val_loader):
            raise MechintError(
                f"{named('lens', 'target')} is logit_diff, and some prompts of the task {val_loader.task.name!r} have "
                f"no wrong answer of one token; take logit"
            )
        templates = len(set(train_loader.templates().tolist()))
        if self.config.steps and templates < FEWEST:
            raise MechintError(
                f"a tuned lens would be trained on prompts of {templates} templates (or subjects); give at least "
                f"{FEWEST}, or set {named('lens', 'steps')} to 0"
            )

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Trains on ``train_loader`` if a tuned lens is asked for, reads ``val_loader``; returns the results."""
        if self.config.steps:
            self.tuned = self.trained(train_loader)
        lenses = self.lenses()
        target = self.config.target
        difference = target == "logit_diff" or (target == "usual" and has_wrong(val_loader))
        found = [
            self.stages.get(f"batch {k}", functools.partial(self.read, batch, lenses, difference))
            for k, batch in enumerate(val_loader)
        ]
        bootstrap = ClusterBootstrap(val_loader.templates(), self.config.bootstrap, self.seed)
        whole = {name: torch.cat([part[name] for part in found]) for name in found[0] if name != "parts"}
        parts = joined([Contributions(part["parts"], part["values"], part["total"]) for part in found])
        read = {name: whole[f"read {name}"].numpy() for name in lenses}
        self.tensors = whole
        self.results = {
            "metric": "logit difference" if difference else "logit of the answer",
            "ablation": "none",
            "metrics": metrics_of(bootstrap, read["logit"], self.sites, parts.total.numpy()),
            "readings": readings(bootstrap, read, self.sites),
            "contributions": contributed(bootstrap, parts),
            "remainder": parts.remainder,
            "tuned": None if self.tuned is None else self.compared(bootstrap, whole),
            "interval": bootstrap.kind,
            "notes": [],
        }
        asked = None if bootstrap.too_few else control(self, train_loader, val_loader, quantities)
        self.results["control"] = asked
        if bootstrap.too_few and self.config.controls:
            self.results["notes"].append(
                "Nothing was read on shuffled weights: without intervals nothing is told apart"
            )
        self.examples = self.show(val_loader, lenses)
        return self.results

    def control_config(self) -> LensConfig:
        return dataclasses.replace(super().control_config(), steps=0, tuned="", examples=0)

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt``, ``examples.json`` and the trained tuned lens into the run directory."""
        written = [*super().save_results(), files.write_json(self.directory / "examples.json", self.examples)]
        files.remove(self.directory / DIRECTORY)  # of an earlier request
        if self.tuned is not None and self.config.steps:
            written += tuned_files.save(self.tuned, self.model, self.directory / DIRECTORY)
        return written

    # ---- the work -----------------------------------------------------------------------------------------------

    def trained(self, loader: PromptLoader) -> tuned.TunedLens:
        """The tuned lens, trained or from a finished stage."""
        learn = lambda: tuned.plain(tuned.train(self.model, loader.batches, self.config, self.seed, self.stages))
        return tuned.TunedLens(**self.stages.get("tuned lens", learn))

    def lenses(self) -> dict[str, Lens]:
        found: dict[str, Lens] = {"logit": LogitLens()}
        return found if self.tuned is None else {**found, "tuned": self.tuned.to(self.model.device)}

    def read(self, batch: Prompts, lenses: dict[str, Lens], difference: bool) -> dict[str, Any]:
        """The numbers of one batch, as plain tensors by name."""
        numbers: dict[str, Any] = {
            f"read {name}": value for name, value in read_answers(self.model, batch, self.sites, lenses).items()
        }
        if "tuned" in lenses:
            everywhere = every_position_kl(self.model, batch.tokens, self.sites, lenses)
            numbers |= {f"kl {name}": value for name, value in everywhere.items()}
        parts = contributions(self.model, batch, difference)
        return {**numbers, "parts": parts.parts, "values": parts.values, "total": parts.total}

    def compared(self, bootstrap: ClusterBootstrap, whole: dict[str, Tensor]) -> list[dict[str, Any]]:
        kl = {name: whole[f"kl {name}"].numpy() for name in ("logit", "tuned")}
        return improvement(bootstrap, kl, self.sites)

    def show(self, loader: PromptLoader, lenses: dict[str, Lens]) -> list[dict[str, Any]]:
        """The first prompts, read at every position up to their last answer."""
        shown: list[dict[str, Any]] = []
        word = functools.cache(loader.task.decode)
        for batch in loader:
            for row in range(min(len(batch), self.config.examples - len(shown))):
                end = int(batch.positions[row].max())
                answer = int(batch.answers[row, int(batch.positions[row].argmax())])
                tokens = batch.tokens[row, : end + 1]
                read = read_positions(self.model, tokens, answer, self.sites, lenses, self.config.top)
                for entry in read.values():
                    entry |= {key: [line[-MOST_TOKENS:] for line in entry[key]] for key in entry if key != "sites"}
                    entry |= {key: rounded(entry[key]) for key in ("probability", "answer", "kl")}
                    entry["top"] = [[[word(token) for token in cell] for cell in line] for line in entry["top"]]
                texts = [word(token) for token in tokens[-MOST_TOKENS:].tolist()]
                shown.append({"tokens": texts, "answer": word(answer), "lenses": read})
        return shown


def rounded(value: Any) -> Any:
    """Nested lists of numbers to four digits, as a page shows them."""
    return [rounded(one) for one in value] if isinstance(value, list) else float(f"{value:.4g}")


def has_wrong(loader: PromptLoader) -> bool:
    """True if every prompt has a wrong answer of one token."""
    return all(batch.bad() is not None and not batch.whole for batch in loader)


def work(config: LensConfig) -> str:
    tune = f"{config.steps} training steps of a tuned lens, " if config.steps else ""
    return (
        f"{tune}one forward of {config.eval_prompts} prompts and one unembedding for each site; the same on "
        f"{config.controls} models with shuffled weights"
    )


def summary(results: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the main numbers, and the largest contributions."""
    metrics = results["metrics"]
    lines = [
        f"  accuracy        {said(metrics['accuracy'])}",
        f"  {results['metric']:<15} {said(metrics['target'], '.2f')}",
    ]
    if "decided_at" in metrics:
        lines.append(f"  decided behind  {said(metrics['decided_at'], '.2f')} layers")
    largest = sorted(results["contributions"], key=lambda entry: -abs(entry["contribution"]["value"]))[:3]
    lines += [f"  {entry['name']:<15} adds {said(entry['contribution'], '.2f')}" for entry in largest]
    for row in results["tuned"] or ():
        kl = [said(row[name], ".2f") for name in ("logit_lens", "tuned_lens")]
        lines.append(f"  KL, layer {row['layer']} {row['site']}: logit lens {kl[0]}, tuned lens {kl[1]}")
    return [*lines, *told_apart(results["control"])]


def inputs(config: LensConfig, run_dir: Path) -> dict[str, str]:
    """Digests of the tuned lens that is read."""
    place = Path(config.tuned)
    names = (tuned_files.CONFIG, tuned_files.PARAMS) if config.tuned else ()
    return {f"tuned lens {name}": files.sha256(place / name) for name in names if (place / name).is_file()}


ANALYSIS = Analysis(
    name="lens",
    title="Logit and tuned lens",
    config=LensConfig,
    analyzer=LensAnalyzer,
    refuse=refuse,
    work=work,
    summary=summary,
    lone=True,
    inputs=inputs,
    report=Later("analyses.lens.report:write_lens"),
    headline=Later("analyses.lens.report:headline"),
)
