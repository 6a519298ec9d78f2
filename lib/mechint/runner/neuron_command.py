"""The command ``main.py``: the three studies of a model on plain text, gathered in one dictionary and one folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..analyses.comparison.analyzer import MEASURED
from ..analyses.comparison.options import CompareConfig
from ..analyses.comparison.report import write_model_comparison
from ..analyses.neurons.options import NeuronConfig
from ..analyses.options import AnalysisOptions, RunConfig
from ..analyses.sparsity.options import SparsityConfig
from ..models.loading.load import load
from ..tasks.config import TaskConfig
from ..utils import files
from ..utils.errors import MechintError
from ..utils.statistics import FEWEST
from .experiment import run_experiment
from .request import Experiment

OUTPUTS = "analysis_outputs"
SPARSE_LAYERS = 3
"""Sparsity is that of the first layers, as it was documented."""

CONTROLS = 1
"""Models with shuffled weights, measured as the model is."""


@dataclass(frozen=True)
class NeuronCommand:
    """The options of the command line; names and defaults as they were documented."""

    model: tuple[str, ...] = ("state-spaces/mamba-130m-hf",)
    layer: int = 0
    top_k: int = 10
    text_limit: int = 100
    text: str = "topics"
    length: int = 32
    enable_attention: bool = False
    attention_methods: tuple[str, ...] = ("attention_weighted", "gradient_guided", "rollout")
    save_results: bool = False
    plots_dir: str = "plots"


@dataclass
class CommandResults:
    """``analysis_results`` by model and study, what was written, and lines for the terminal."""

    analysis_results: dict[str, Any] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def analyse(command: NeuronCommand, outputs: str | Path = OUTPUTS) -> CommandResults:
    """Runs the studies into ``outputs``, copies their plots, and writes the dictionary when it is wanted.

    Raises:
        MechintError: fewer than four texts, two models of one name, no such layer, or what a study refuses.
    """
    if command.text_limit < (least := 2 * FEWEST):
        raise MechintError(
            f"--text_limit is {command.text_limit}; half are for ranking and an interval takes {FEWEST}, so give at "
            f"least {least}"
        )
    names = [Path(model).name.removesuffix(".pt") for model in command.model]
    if len(set(names)) < len(names):
        raise MechintError(f"--model: two models are called {max(names, key=names.count)}; name each once, apart")
    half = command.text_limit // 2
    shares: dict[str, Any] = {"prompts": half, "eval_prompts": command.text_limit - half}
    neuron = NeuronConfig(
        layers=str(command.layer), top_k=command.top_k, attention=command.enable_attention,
        attention_methods=",".join(command.attention_methods), controls=CONTROLS, **shares,
    )  # fmt: skip
    task = TaskConfig(name="text", text=command.text, length=command.length)
    found = CommandResults()
    several = len(names) > 1
    for name, model in zip(names, command.model, strict=True):
        directory = Path(outputs) / (name if several else "")
        sparsity = SparsityConfig(layers=first_layers(model, command.layer), controls=CONTROLS, **shares)
        configs: dict[str, AnalysisOptions] = {
            "neuron": neuron,
            "sparsity": sparsity,
            "compare": CompareConfig(**shares),
        }
        run = RunConfig(checkpoint=model, output_dir=str(directory), rerun=True, batch_size=16)
        run_experiment(Experiment(run, task, configs))
        entry = found.analysis_results[model] = {}
        for study in configs:
            entry[study] = files.read_json(directory / study / "results.json")
            found.written += copied(directory / study, Path(command.plots_dir), name if several else "")
        entry["efficiency_measured"] = files.read_json(directory / "compare" / MEASURED)["measured"]
        entry["key_metrics"] = key_metrics(entry)
    if several:
        target = Path(outputs) / "comparison"
        found.written += write_model_comparison([Path(outputs) / name / "compare" for name in names], target)
        found.lines.append(f"comparison: {target / 'comparison.html'}")
    if command.save_results:
        path = files.write_json(Path(outputs) / "analysis_results.json", found.analysis_results)
        found.written.append(path)
        found.lines.append(f"results: {path}")
    found.lines.append(f"plots: {command.plots_dir}")
    return found


def first_layers(model: str, layer: int) -> str:
    """The first layers and the one whose neurons are analysed, as far as the model has them."""
    depth = load(model).num_layers
    if layer not in range(depth):
        raise MechintError(f"--layer is {layer}; {model} has {depth} layers (0 to {depth - 1})")
    return ",".join(str(i) for i in sorted({*range(min(SPARSE_LAYERS, depth)), layer}))


def copied(directory: Path, plots: Path, prefix: str) -> list[Path]:
    """Copies of a study's plots; of several models with their name before them."""
    plots.mkdir(parents=True, exist_ok=True)
    found = []
    for path in sorted(directory.glob("*.png")):
        target = plots / (f"{prefix}_{path.name}" if prefix else path.name)
        shutil.copyfile(path, target)
        found.append(target)
    return found


def key_metrics(entry: dict[str, Any]) -> dict[str, Any]:
    """The documented key figures, each from the study that measured it."""
    metrics, neuron = entry["compare"]["metrics"], entry["neuron"]
    total, active = metrics["parameters"]["value"], metrics["parameters_active"]["value"]
    variances = [layer["rankings"]["output_variance"]["value"] for layer in neuron["delta"]]
    read = [cell for cell in entry["sparsity"]["cells"] if cell["role"] == "read"]
    return {
        "total_parameters": total,
        "active_parameters": active,
        "efficiency_ratio": active / total,
        "active_neurons": [
            {
                "layer": c["layer"],
                "site": c["site"],
                "neurons": c["units"],
                "threshold": entry["sparsity"]["fixed_threshold"],
                "above_threshold": c["units"] * (1 - c["measures"]["below_fixed"]["value"]),
                "above_share_of_rms": c["units"] * (1 - c["measures"]["below_rms"]["value"]),
            }
            for c in read
        ],
        "activation_variance": [sum(values) / len(values) for values in variances],
        "attention_neurons": [
            {
                "method": e["method"],
                "neurons_analyzed": len(e["top"]),
                "mean_activation": e["mean_activation"],
                "neuron_diversity": e["diversity"],
                "area": e["area"],
            }
            for e in neuron["attention"]
            if e["top"]
        ],
        "sparsity": [
            {
                "layer": c["layer"],
                "site": c["site"],
                **{m: n["value"] for m, n in (*c["measures"].items(), *c["percentiles"].items())},
            }
            for c in entry["sparsity"]["cells"]
        ],
    }
