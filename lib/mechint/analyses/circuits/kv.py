"""KV circuits: the fewest key and value channels, heads or neurons of a transformer that still do its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...interventions.model import Model
from ...interventions.unit_kinds import KV_UNITS
from ...interventions.units import Units, kind_named
from ...tasks.config import TaskConfig
from ...utils.errors import MechintError
from ...utils.options import option
from ..base import Analysis
from ..loader import PromptLoader
from ..options import Source
from .analyzer import CircuitAnalyzer
from .options import CircuitOptions, method_option, refuse_method
from .pages import PAGES
from .results import summary as circuit_summary
from .search.gates import HOLD, Temperature
from .search.learning import SearchOptions
from .time_estimate import work

METRIC_NAMES = {"kl_div": "kl"}
"""Metrics that the options call otherwise than the engine."""


@dataclass(frozen=True)
class KVCircuitConfig(CircuitOptions, Source):
    """The search for the circuit, and its evidence."""

    unit: str = option(
        "kv",
        "Units that are kept or dropped: key and value channels (kv), one sort of channel (k, v, q, o), whole heads, "
        "MLP neurons, or layers",
        choices=("kv", "k", "v", "q", "o", "head", "mlp", "layer"),
    )
    method: str = method_option(KV_UNITS)
    target_metric: str = option(
        "kl_div",
        "Metric that the circuit must preserve; for accuracy and perplexity the gates learn from the loss",
        choices=("kl_div", "loss", "accuracy", "perplexity", "logit_diff"),
    )
    search: str = option(
        "sparsity",
        "Drop exactly the target sparsity, find a circuit as small as can be that reaches the target, or keep "
        "every unit that is worth its penalty",
        choices=("sparsity", "smallest", "penalty"),
    )
    target_sparsity: float = option(
        0.95, "Share of the units that is dropped, exact to one unit, for the search 'sparsity'", low=0.0, high=0.9999
    )
    l1_lambda: float = option(
        1e-3,
        "For the search 'penalty', the cost of an open gate in units of the metric: the L1 norm of the gates times "
        "this cost is added to the loss, and a unit stays if it is worth more; for 'sparsity' the norm is fixed, and "
        "the penalty changes nothing",
        low=0.0,
        high=1000.0,
    )
    hard_masks: bool = option(
        False, "Gates exactly open or shut while they learn (straight-through), instead of hard-concrete ones"
    )
    steps: int = option(500, "Optimiser steps of one search", unit="steps", low=10, high=100_000)
    temp_schedule: str = option(
        "constant:1.0",
        "Temperature of the gates over a search: linear:1.0:0.1, exponential:1.0:0.1, cosine:1.0:0.1 or constant:1.0",
    )
    sparsity_schedule: str = option(
        "exponential",
        "How the sparsity rises: the number of units falls in equal factors, or the sparsity along a line or a cubic",
        choices=("exponential", "linear", "cubic"),
    )
    sparsity_hold: float = option(
        HOLD,
        "Share of the steps, at the end, that run at the target sparsity; 0 lets the sparsity rise to the end",
        low=0.0,
        high=0.9,
    )
    precision: str = option(
        "float32",
        "Arithmetic of the search; bfloat16 only where the processor has it. The reported numbers are measured in "
        "float32, with the cosine between the gradients in both precisions",
        choices=("float32", "bfloat16"),
    )
    random_circuits: int = option(
        20,
        "Random circuits with as many units in each layer, K and V apart, for the control band",
        unit="circuits",
        low=2,
        high=10_000,
    )

    @property
    def metric(self) -> str:
        return METRIC_NAMES.get(self.target_metric, self.target_metric)

    def size(self, total: int) -> int | None:
        return kept(self.target_sparsity, total) if self.search == "sparsity" else None

    @property
    def price(self) -> float | None:
        return self.l1_lambda if self.search == "penalty" else None

    @property
    def learning(self) -> SearchOptions:
        gate = "straight_through" if self.hard_masks else "hard_concrete"
        temperature = Temperature.parse(self.temp_schedule)
        return SearchOptions(gate, self.steps, self.lr, self.sparsity_schedule, temperature, self.sparsity_hold)


def kept(sparsity: float, total: int) -> int:
    """Units left at a sparsity: the nearest number, and never none."""
    return max(1, round((1 - sparsity) * total))


class KVCircuitAnalyzer(CircuitAnalyzer[KVCircuitConfig]):
    """Circuits of key and value channels, heads, MLP neurons or layers of models with attention."""

    def __init__(
        self,
        model: Model,
        config: KVCircuitConfig,
        device: str | torch.device = "cpu",
        **others: Any,
    ) -> None:
        super().__init__(model, config, device, units=Units(model, kind_named(model, config.unit)), **others)

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        results = super().run_analysis(train_loader, val_loader)
        metrics = results["metrics"]
        results["sparsity"] = {
            "asked": self.config.target_sparsity if self.config.search == "sparsity" else None,
            "achieved": 1 - metrics["units_kept"]["value"] / metrics["units_total"]["value"],
        }
        if getattr(self.model.config, "kv_tied", False) and self.config.unit in ("kv", "k", "v"):
            results["notes"].append(
                "Keys and values of this model come from one projection; a channel is still kept or dropped as a key "
                "and as a value separately, where attention reads it."
            )
        return results


def refuse(config: KVCircuitConfig, task: TaskConfig) -> str | None:
    """Why this task can't be analysed so, known before anything is loaded."""
    try:
        Temperature.parse(config.temp_schedule)
    except MechintError as error:
        return str(error)
    if task.name == "text" and (config.ablation == "counterfactual" or config.target_metric == "logit_diff"):
        asked = "ablation counterfactual" if config.ablation == "counterfactual" else "metric logit_diff"
        return f"the {asked} needs counterfactual twins, and plain text has none; choose mean or resample, and kl_div"
    return refuse_method(config, KV_UNITS[config.unit], task)


def summary(results: dict[str, Any]) -> list[str]:
    """The figures a user wants to see at once."""
    lines, metrics, sparsity = circuit_summary(results), results["metrics"], results["sparsity"]
    asked = "" if sparsity["asked"] is None else f" (asked for: {sparsity['asked']:.2%})"
    lines.insert(1, f"  sparsity        {sparsity['achieved']:.2%}{asked}")
    if "units_kept_k" in metrics:
        lines.insert(1, f"  of them         {metrics['units_kept_k']['value']} K, {metrics['units_kept_v']['value']} V")
    return lines


ANALYSIS = Analysis(
    name="kv",
    title="KV circuit",
    config=KVCircuitConfig,
    analyzer=KVCircuitAnalyzer,
    aliases=("transformer-circuit",),
    needs=("k", "v"),
    refuse=refuse,
    work=work,
    summary=summary,
    **PAGES,
)
