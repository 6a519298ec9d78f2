"""One model's profile, measured so that it can be laid beside any other's: Mamba or transformer, on the same prompts.

The runner makes a profile of every checkpoint; two or more are compared (:mod:`mechint.analyses.comparison.report`):
models of one family and size are a group, its members differ by the seed of training, and what differs between groups
is told from what differs between seeds. Quantities are per token, and the loss per byte too, so that models with
different tokenizers compare at all.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...attribution.attention import attention_maps, normalised
from ...interventions.edits import Edit
from ...interventions.gradients import gradients
from ...interventions.model import Model
from ...interventions.run import run
from ...tasks import Prompts, Task
from ...tasks.config import TaskConfig
from ...utils import files
from ...utils.errors import MechintError, shown
from ...utils.options import listed, named, option, whole_number
from ...utils.statistics import ClusterBootstrap, Number, exact
from ..base import Analysis, Study
from ..loader import PromptLoader
from ..metrics import answer_metric
from ..random_weights import Quantities, control, quantity, told_apart
from ..sparsity.analyzer import SCALE_FREE, SparsityAnalyzer, SparsityConfig, gini
from ..unit_effects import Effects, main_site
from .cost import flops, measure, memory_bytes, parameters, token_bytes
from .residual_stream import dynamics, stream_numbers

MEASURED = "efficiency_measured.json"
"""Times and peaks, which no two runs share: beside results.json, not in it."""


@dataclass(frozen=True)
class CompareConfig:
    """What a profile holds."""

    lengths: str = option("32,128,512,2048", "Prompt lengths whose memory is counted, separated by commas")
    measure: bool = option(True, "Measure seconds and peak memory, too, at those lengths that the model can have")
    active: float = option(
        0.01, "Share of its tensor's RMS below which a parameter counts as inactive", low=0.0, high=1.0
    )
    epsilon: float = option(0.1, "Share of a unit's RMS below which an activation counts as none", low=1e-6, high=1.0)
    prompts: int = option(64, "Discovery prompts, for means and thresholds", unit="prompts", low=2, high=1_000_000)
    eval_prompts: int = option(64, "Prompts that are measured", unit="prompts", low=2, high=1_000_000)
    bootstrap: int = option(1000, "Bootstrap draws", unit="draws", low=100, high=100_000)
    controls: int = option(
        1, "Models with the same weights, shuffled, that are measured beside this one", unit="models", low=0, high=100
    )


class Profiler(Study):
    """Measures one model; see :class:`CompareConfig`."""

    name = "compare"

    def __init__(self, model: Model, config: CompareConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(model, config, *arguments, **options)
        self.lengths = lengths(config.lengths)
        self.times: list[dict[str, Any]] = []

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """The profile on the prompts of ``val_loader``; thresholds and means are from ``train_loader``."""
        model, config, task = self.model, self.config, val_loader.task
        bootstrap = ClusterBootstrap(val_loader.templates(), config.bootstrap, self.seed)
        mean = lambda values: bootstrap.interval(lambda m: m, values)
        effects = Effects(
            model, [main_site(model.config.family)], list(range(model.num_layers)), "mean", train_loader.batches,
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
        curves = {name: [mean(found[name][:, i].numpy()) for i in range(model.num_layers)] for name in CURVES}
        cka, sparse = self.dynamics(val_loader, curves, mean), self.sparsity(train_loader, val_loader)
        self.times = [dataclasses.asdict(m) for m in self.measured()]
        self.results = {
            "report": "compare",
            "metric": "answer_logprob",
            "ablation": "zero for layers, mean for units",
            "metrics": {
                "prompts_used": exact(bootstrap.n),
                "loss": loss,
                "accuracy": bootstrap.share(found["accuracy"].numpy()),
                "bits_per_byte": bits,
                **{name: exact(int(value)) for name, value in costs.items()},
                "gain_per_mflop": scaled(
                    loss, -1 / (costs["flops_per_token"] / 1e6), math.log(model.config.vocab_size)
                ),
            },
            "bytes_per_token": bytes_per_token,
            "tokenizer": tokenizer_of(task),
            "prompts": prompts_of(val_loader),
            "label": label(model),
            "training": training(model),
            "curves": curves,
            "cka": cka,
            "sparsity": sparse,
            "memory": [
                {"length": n, "bytes": memory_bytes(model, n) if n <= self.most else None} for n in self.lengths
            ],
            "notes": self.notes(task),
        }
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

    def dynamics(self, loader: PromptLoader, curves: dict[str, list[Number]], mean: Any) -> list[list[Number]]:
        """Adds the streams' curves; returns the matrix of CKA."""
        found = dynamics(self.model, loader)
        for name, values in (("stream_norm", found.norms), ("update", found.updates)):
            curves[name] = [mean(values[:, i]) for i in range(self.model.num_layers)]
        cka, curves["effective_rank"] = stream_numbers(found)
        return cka

    def sparsity(self, discovery: PromptLoader, evaluation: PromptLoader) -> list[dict[str, Any]]:
        """The scale-free measures at the matched sites of all layers."""
        config = SparsityConfig(epsilon=self.config.epsilon, bootstrap=self.config.bootstrap, controls=0)
        cells = SparsityAnalyzer(self.model, config, self.model.device, seed=self.seed).run_analysis(
            discovery, evaluation
        )
        keep = ("layer", "site", "role", "units")
        return [
            {
                **{k: cell[k] for k in keep},
                "measures": {m: cell["measures"][m] for m in SCALE_FREE},
                "percentiles": {"p50": cell["percentiles"]["p50"]} if cell["percentiles"] else {},
            }
            for cell in cells["cells"]
        ]

    def measured(self) -> list[Any]:
        if not self.config.measure:
            return []
        possible = [n for n in self.lengths if n < self.most]
        return measure(self.model, possible) if possible else []

    @property
    def most(self) -> int:
        """The longest prompt that the model can have, or more than any that is asked for."""
        return getattr(self.model.config, "n_ctx", None) or max(self.lengths) + 1

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` and what was timed, ``efficiency_measured.json``."""
        written = super().save_results()
        return [*written, files.write_json(self.directory / MEASURED, {"schema": 1, "measured": self.times})]


def structure(results: dict[str, Any]) -> Quantities:
    """What is compared with shuffled weights: every curve of every layer, and every measure of sparsity."""
    curves = [
        quantity(name, value, None, layer)
        for name, values in results["curves"].items()
        for layer, value in enumerate(values)
    ]
    cells = [
        quantity(name, value, cell["site"], cell["layer"])
        for cell in results["sparsity"]
        for name, value in {**cell["measures"], **cell["percentiles"]}.items()
    ]
    return [*curves, *cells]


CURVES = ("layer_effect", "unit_effect_gini", "attention_distance", "attention_entropy")
"""By layer: what its output is worth, how unequal its units' estimated effects are, how far and how widely it looks."""


def measured(model: Model, batch: Prompts, effects: Effects) -> dict[str, Tensor]:
    """Of each prompt: loss and accuracy [prompt], and the curves [prompt, layer].

    ``layer_effect`` is the loss in nats that removing what a layer adds costs; ``unit_effect_gini`` the Gini index of
    the sizes of its main units' estimated effects; ``attention_distance`` Σ_j Ā[i, j] (i - j) / L and
    ``attention_entropy`` -Σ_j Ā log Ā / log(i + 1), means over positions i ≥ 1 of the map of
    :mod:`mechint.analyses.neurons.attention` with its rows divided by their sums.
    """
    with torch.no_grad():
        logits = run(model, batch.tokens, logits_at=batch.positions).logits
    cells = [[Edit(f"layers.{i}.{site}", "replace", 0.0) for site in model.mixers] for i in range(model.num_layers)]
    swept = effects.sweep(batch, [*cells, []], "layers removed")
    estimates = effects.estimates(batch, effects.fills(batch))
    unequal = [gini(estimates[group.site].T, None) for group in effects.groups]  # type: ignore[arg-type]
    distance, spread = attention_reach(model, batch)
    return {
        "loss": answer_metric("loss", batch)(logits).double().cpu(),
        "accuracy": batch.correct(logits).cpu(),
        "layer_effect": (swept[-1] - swept[:-1]).T.contiguous(),
        "unit_effect_gini": torch.stack(unequal, 1),
        "attention_distance": distance,
        "attention_entropy": spread,
    }


def attention_reach(model: Model, batch: Prompts) -> tuple[Tensor, Tensor]:
    """Mean distance of what each layer reads, as a share of the prompt, and the entropy of it, [prompt, layer]."""
    needed = ("scan_out", "u", "dt", "B", "C") if model.config.family == "mamba" else ("pattern",)
    sites = [f"layers.{i}.{name}" for i in range(model.num_layers) for name in needed]
    values, slopes = gradients(
        model, batch.tokens, sites, answer_metric("answer_logprob", batch), logits_at=batch.positions
    )
    length = batch.tokens.shape[1]
    at = torch.arange(length, dtype=torch.float64)
    back = (at[:, None] - at) / length
    distance, spread = [], []
    for layer in range(model.num_layers):
        plain = normalised(attention_maps(model, layer, values, slopes)[0])  # [prompt, i, j]
        distance.append((plain * back).sum(-1)[:, 1:].mean(-1))
        spread.append((-torch.xlogy(plain, plain).sum(-1)[:, 1:] / torch.log(at[1:] + 1)).mean(-1))
    return torch.stack(distance, 1), torch.stack(spread, 1)


def lengths(said: str) -> list[int]:
    """The lengths of an option, ascending.

    Raises:
        MechintError: none, or one that is no whole number from 1 to 1,000,000.
    """
    found = []
    for part in listed(said, named("compare", "lengths")):
        length = whole_number(part)
        if length is None or not 1 <= length <= 1_000_000:
            raise MechintError(
                f"compare: lengths are {shown(said)}, and {shown(part)} is none; give numbers from 1 to 1000000"
            )
        found.append(length)
    if not found:
        raise MechintError("compare: no length is named; give some such as 32,128,512")
    return sorted(set(found))


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


def tokenizer_of(task: Task) -> str:
    """What tells tokenizers apart: a hash of the tokenizer's definition, ``bytes``, or the task's own symbols."""
    tokenizer = getattr(task, "tokenizer", None)
    if tokenizer is not None:
        return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return "bytes" if task.name == "text" else f"symbols of {task.name}"


def prompts_of(loader: PromptLoader) -> str:
    """A hash of the prompts' tokens and answers: equal ones were measured on the same prompts."""
    digest = hashlib.sha256()
    for batch in loader:
        for tensor in (batch.tokens, batch.answers):
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def label(model: Model) -> str:
    """What models of one group share: family and sizes."""
    c = model.config
    tied = ", K = V" if getattr(c, "kv_tied", False) else ""
    return f"{c.family}, {c.n_layer} layers of width {c.d_model}{tied}"


def training(model: Model) -> dict[str, Any]:
    """What the checkpoint says of its training, where it says so.

    ``seed``, ``steps``, ``budget`` (a hash of task, data and options but for seed and learning rate), ``lr`` and
    ``held_out_loss``, the least that was seen while it was trained.
    """
    metadata = getattr(model, "metadata", None) or {}
    train = metadata.get("train")
    if not isinstance(train, dict):
        return {}
    budget = {k: v for k, v in train.items() if k not in ("seed", "step_name", "lr")}
    said = [metadata.get("task"), metadata.get("data"), budget]
    digest = hashlib.sha256(repr(said).encode()).hexdigest()
    best = metadata.get("best_val_loss")
    return {
        "seed": train.get("seed"),
        "steps": metadata.get("iter_num"),
        "budget": digest,
        "lr": train.get("lr"),
        "held_out_loss": best if isinstance(best, float) and math.isfinite(best) else None,
    }


def refuse(config: CompareConfig, task: TaskConfig) -> str | None:
    lengths(config.lengths)
    return None


def work(config: CompareConfig) -> str:
    return (
        f"a few forwards and backwards of {config.eval_prompts} prompts, a removal of each layer"
        + (", and timed forwards" if config.measure else "")
        + (f"; the same on {config.controls} models with shuffled weights" if config.controls else "")
    )


def summary(results: dict[str, Any]) -> list[str]:
    metrics = results["metrics"]
    loss, bits = metrics["loss"], metrics["bits_per_byte"]
    return [
        f"  {results['label']}: {metrics['parameters']['value']:,} parameters, "
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
    families=("mamba", "gpt2", "llama"),
    refuse=refuse,
    work=work,
    summary=summary,
)
