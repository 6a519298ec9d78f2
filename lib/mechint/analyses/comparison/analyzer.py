"""One model's profile, measured so that it can be compared with any other's: Mamba or transformer, on the same prompts.

1. Measure loss and accuracy on held-out prompts, in nats per token and in bits per byte of text.
2. Measure the curves over layers: the loss from removing a layer, the inequality of its units' effects, how far and how
   widely it looks (:mod:`.curves`), and how the residual stream changes (:mod:`.residual_stream`).
3. Measure the scale-free sparsities at matched sites (:mod:`mechint.analyses.sparsity.analyzer`).
4. Count parameters, floating-point operations and bytes of memory; measure seconds and peak memory (:mod:`.cost`).
5. Repeat curves and sparsities on models with shuffled weights.

Two or more profiles are compared by :mod:`mechint.analyses.comparison.report`: models of one family and size are a
group, whose members differ by the seed of training, and differences between groups are tested against those between
seeds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import torch

from ...interventions.model import Model
from ...tasks import Task
from ...utils import files
from ...utils.statistics import ClusterBootstrap, Number, exact
from ..base import Analysis, ControlledAnalyzer, Later
from ..loader import PromptLoader
from ..random_weights import Quantities, control, quantity, told_apart
from ..sparsity.analyzer import SparsityAnalyzer
from ..sparsity.measures import SCALE_FREE
from ..sparsity.options import SparsityConfig
from ..unit_effects import Effects
from .cost import flops, measure, memory_bytes, parameters, token_bytes
from .curves import CURVES, layers_of, measured
from .identity import label, prompts_of, tokenizer_of, training
from .options import CompareConfig, lengths, refuse
from .residual_stream import dynamics, stream_numbers
from .results import Cell, Memory, Profile

MEASURED = "efficiency_measured.json"
"""The file of times and peaks of memory; these differ from run to run, so they are not in results.json."""


class Profiler(ControlledAnalyzer[CompareConfig]):
    """Measures one model; see :class:`CompareConfig`."""

    name = "compare"

    def __init__(self, model: Model, config: CompareConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(model, config, *arguments, **options)
        self.lengths = lengths(config.lengths)
        self.times: list[dict[str, Any]] = []

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """The profile on the prompts of ``val_loader``; thresholds and means are from ``train_loader``."""
        val_loader.check_intervals()
        model, config, task = self.model, self.config, val_loader.task
        bootstrap = ClusterBootstrap(val_loader.templates(), config.bootstrap, self.seed)
        mean = lambda values: bootstrap.interval(lambda m: m, values)
        effects = Effects(
            model, [model.ranked] if model.ranked else [], list(range(model.num_layers)), "mean", train_loader.batches,
            task.aligned, "answer_logprob",
        )  # fmt: skip
        parts = [
            self.stages.get(f"batch {k}", functools.partial(measured, model, batch, effects))
            for k, batch in enumerate(val_loader)
        ]
        found = self.tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        costs = self.costs(task.length)
        loss = mean(found["loss"].numpy())
        bits, bytes_per_token = per_byte(task, val_loader, loss)
        curves: dict[str, list[Number | None]] = {}
        for name in CURVES:
            places = {layer: k for k, layer in enumerate(layers_of(model, effects, name))}
            curves[name] = [
                mean(found[name][:, places[i]].numpy()) if i in places else None for i in range(model.num_layers)
            ]
        cka, sparse = self.dynamics(val_loader, curves, mean), self.sparsity(train_loader, val_loader)
        self.times = [dataclasses.asdict(m) for m in self.measured()]
        profile = Profile(
            metric="answer_logprob",
            ablation="zero for layers, mean for units",
            metrics={
                "prompts_used": exact(bootstrap.n),
                "loss": loss,
                "accuracy": bootstrap.share(found["accuracy"].numpy()),
                "bits_per_byte": bits,
                **{name: exact(int(value)) for name, value in costs.items()},
                "gain_per_mflop": scaled(
                    loss, -1 / (costs["flops_per_token"] / 1e6), math.log(model.config.vocab_size)
                ),
            },
            bytes_per_token=bytes_per_token,
            tokenizer=tokenizer_of(task),
            prompts=prompts_of(val_loader),
            label=label(model),
            training=training(model),
            curves=curves,
            cka=cka,
            sparsity=sparse,
            memory=[Memory(n, memory_bytes(model, n) if n <= self.most else None) for n in self.lengths],
            notes=[*self.notes(task), *left_out(curves, model.ranked)],
        )
        self.results = profile.entries()
        self.results["control"] = control(self, train_loader, val_loader, structure)
        return self.results

    def control_config(self) -> CompareConfig:
        """The options of the same profile on shuffled weights; nothing is timed there."""
        return dataclasses.replace(self.config, controls=0, measure=False)

    def notes(self, task: Task) -> list[str]:
        notes = (
            [] if self.times or not self.config.measure else ["None of the lengths fits this model: nothing was timed"]
        )
        if task.name != "text" and getattr(task, "tokenizer", None) is None:
            notes.append("The tokens of this task are symbols of its own; each counts as one byte")
        return notes

    def costs(self, length: int) -> dict[str, float]:
        count = parameters(self.model, self.config.active)
        return {
            "parameters": count.total,
            "parameters_without_embeddings": count.total - count.embedding,
            "parameters_active": count.active,
            "flops_per_token": round(flops(self.model, length)["total"]),
            "bytes_per_generated_token": token_bytes(self.model, length),
        }

    def dynamics(self, loader: PromptLoader, curves: dict[str, list[Number | None]], mean: Any) -> list[list[Number]]:
        """Adds the streams' curves; returns the matrix of CKA."""
        found = dynamics(self.model, loader)
        for name, values in (("stream_norm", found.norms), ("update", found.updates)):
            curves[name] = [mean(values[:, i]) for i in range(self.model.num_layers)]
        cka, rank = stream_numbers(found)
        curves["effective_rank"] = [*rank]
        return cka

    def sparsity(self, discovery: PromptLoader, evaluation: PromptLoader) -> list[Cell]:
        """The scale-free measures at the matched sites of all layers."""
        config = SparsityConfig(epsilon=self.config.epsilon, bootstrap=self.config.bootstrap, controls=0)
        cells = SparsityAnalyzer(self.model, config, self.model.device, seed=self.seed).run_analysis(
            discovery, evaluation
        )
        return [
            Cell(
                **{name: cell[name] for name in ("layer", "site", "role", "units")},
                measures={m: cell["measures"][m] for m in SCALE_FREE},
                percentiles={"p50": cell["percentiles"]["p50"]} if cell["percentiles"] else {},
            )
            for cell in cells["cells"]
        ]

    def measured(self) -> list[Any]:
        if not self.config.measure:
            return []
        possible = [n for n in self.lengths if n < self.most]
        return measure(self.model, possible) if possible else []

    @property
    def most(self) -> int:
        """The longest prompt that the model can read, or one more than the longest length asked for."""
        return getattr(self.model.config, "n_ctx", None) or max(self.lengths) + 1

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` and what was timed, ``efficiency_measured.json``."""
        written = super().save_results()
        return [*written, files.write_json(self.directory / MEASURED, {"schema": 1, "measured": self.times})]


def left_out(curves: dict[str, list[Number | None]], ranked: str) -> list[str]:
    """Says which layers have no number of a curve."""
    reasons = {
        "unit_effect_gini": f"have no units of {ranked}" if ranked else "have no units that are ranked",
        "attention_distance": "read no other position",
    }
    missing = {name: [i for i, value in enumerate(curves[name]) if value is None] for name in reasons}
    return [
        f"Layers {', '.join(map(str, missing[name]))} {reason} and are left out of that curve"
        for name, reason in reasons.items()
        if missing[name]
    ]


def structure(results: dict[str, Any]) -> Quantities:
    """Lists the quantities compared with shuffled weights: every curve of every layer, every measure of sparsity."""
    profile = Profile.read(results)
    curves = [
        quantity(name, value, None, layer)
        for name, values in profile.curves.items()
        for layer, value in enumerate(values)
        if value is not None
    ]
    cells = [
        quantity(name, value, cell.site, cell.layer)
        for cell in profile.sparsity
        for name, value in {**cell.measures, **cell.percentiles}.items()
    ]
    return [*curves, *cells]


def per_byte(task: Task, loader: PromptLoader, loss: Number) -> tuple[Number, float]:
    """The loss in bits for each byte of text, and the bytes of a token: of plain text its own, elsewhere 1."""
    tokenizer = getattr(task, "tokenizer", None)
    size = 1.0
    if tokenizer is not None:
        rows = [row.tolist() for batch in loader for row in batch.answers]
        size = sum(len(tokenizer.decode(row).encode()) for row in rows) / sum(map(len, rows))
    return scaled(loss, 1 / (size * math.log(2))), size


def scaled(value: Number, factor: float, add: float = 0.0) -> Number:
    """The number (value - add) · factor."""
    ends = [(float(value[key]) - add) * factor for key in ("value", "low", "high")]
    return {**value, "value": ends[0], "low": min(ends[1:]), "high": max(ends[1:])}


def work(config: CompareConfig) -> str:
    return (
        f"a few forwards and backwards of {config.eval_prompts} prompts, a removal of each layer"
        + (", and timed forwards" if config.measure else "")
        + (f"; the same on {config.controls} models with shuffled weights" if config.controls else "")
    )


def summary(results: dict[str, Any]) -> list[str]:
    profile = Profile.read(results)
    metrics = profile.metrics
    loss, bits = metrics["loss"], metrics["bits_per_byte"]
    return [
        f"  {profile.label}: {metrics['parameters']['value']:,} parameters, "
        f"{metrics['flops_per_token']['value'] / 1e6:.3g} MFLOP for a token",
        f"  loss            {loss['value']:.4f} [{loss['low']:.4f}, {loss['high']:.4f}] nats, "
        f"{bits['value']:.3f} bits per "
        f"byte",
        *told_apart(results["control"]),
    ]


ANALYSIS = Analysis(
    name="compare",
    title="Model comparison",
    config=CompareConfig,
    analyzer=Profiler,
    refuse=refuse,
    work=work,
    summary=summary,
    report=Later("analyses.comparison.report:write_profile"),
    headline=Later("analyses.comparison.report:headline"),
    compare=Later("analyses.comparison.report:write_model_comparison"),
    cell=Later("analyses.comparison.report:cell"),
    entries=Later("analyses.comparison.results:Profile"),
)
