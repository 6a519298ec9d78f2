"""Options that analyses of circuits share, whatever their units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from ...interventions.unit_kinds import UnitKind
from ...tasks.config import TaskConfig
from ...utils.options import option
from .methods.all_methods import METHODS, SEARCH, methods_of
from .search.learning import SearchOptions

METHOD_HELP = (
    "How the circuit is found: search learns which units to keep and prunes the circuit; every other method ranks the "
    "units, and the circuit is the top of its order"
)


def method_option(kinds: dict[str, UnitKind]) -> Any:
    """The option ``method`` of circuits of these kinds of unit: the methods that can rank at least one of them."""
    return option(SEARCH, METHOD_HELP, choices=methods_of(kinds))


@dataclass(frozen=True)
class CircuitOptions(ABC):
    """Options of circuits of every kind: by which method one is found, on which prompts, and how it is judged.

    The analyzer reads these fields and the properties below, which are options of some kinds and follow from options of
    other names in others.
    """

    method: str = option(SEARCH, METHOD_HELP, choices=tuple(METHODS))
    ablation: str = option(
        "mean",
        "Value that replaces a dropped unit: its mean, its value on another prompt or on the twin, or zero",
        choices=("mean", "resample", "counterfactual", "zero"),
    )
    target_faithfulness: float = option(
        0.95, "Faithfulness the smallest circuit must reach on the discovery prompts", low=0.05, high=0.999
    )
    lr: float = option(0.1, "Learning rate of the gates' logits", low=1e-5, high=10.0)
    prompts: int = option(256, "Discovery prompts", unit="prompts", low=2, high=1_000_000)
    eval_prompts: int = option(
        256, "Held-out prompts that every reported number is measured on", unit="prompts", low=2, high=1_000_000
    )
    seeds: int = option(
        3, "Searches with different seeds, for the stability of the circuit", unit="searches", low=1, high=100
    )
    random_circuits: int = option(
        20, "Random circuits of the same size and layers, for the control band", unit="circuits", low=2, high=10_000
    )
    removed_units: int = option(
        64,
        "Units of the circuit that are removed one at a time, to test whether the circuit needs them; a larger "
        "circuit is sampled at random; 0 for none",
        unit="units",
        low=0,
        high=1_000_000,
    )
    bootstrap: int = option(1000, "Bootstrap draws of every interval", unit="draws", low=100, high=100_000)
    min_accuracy: float = option(
        0.5,
        "Accuracy below which the model has no circuit for the task and the analysis is refused; not used for text",
        low=0.0,
        high=1.0,
    )

    @property
    @abstractmethod
    def unit(self) -> str:
        """The kind of unit that is kept or dropped."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """The quantity that the circuit preserves, of :data:`mechint.analyses.circuits.bench.METRICS`."""

    @property
    @abstractmethod
    def search(self) -> str:
        """The way to choose the number of units: ``smallest`` is the least that reaches the target faithfulness."""

    @abstractmethod
    def size(self, total: int) -> int | None:
        """Returns how many of ``total`` units the circuit keeps, exactly; None where the search finds the number."""

    @property
    def price(self) -> float | None:
        """The price of an open gate, in units of the metric; None where the number of units is chosen otherwise."""
        return None

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimiser steps of one search."""

    @property
    @abstractmethod
    def learning(self) -> SearchOptions:
        """The options of a search's gates."""

    @property
    def precision(self) -> str:
        """Arithmetic of the search: ``float32``, or ``bfloat16`` by autocast."""
        return "float32"


@dataclass(frozen=True)
class BudgetOptions(CircuitOptions):
    """Options of circuits whose size is a number of units."""

    metric: str = option(
        "kl",
        "Metric that the circuit must preserve: KL to the full model, logit difference to the twin's answer, "
        "log-probability "
        "of the answer, or loss",
        choices=("kl", "logit_diff", "answer_logprob", "loss"),
    )
    search: str = option(
        "smallest",
        "Find a circuit as small as can be that reaches the target faithfulness, or the best one of the budget's size",
        choices=("smallest", "budget"),
    )
    budget: int = option(
        16,
        "Exact number of units that the circuit keeps, for the search 'budget'",
        unit="units",
        low=1,
        high=10_000_000,
    )
    gate: str = option(
        "hard_concrete",
        "Gates of the search: hard-concrete (Louizos et al. 2018) or straight-through",
        choices=("hard_concrete", "straight_through"),
    )
    steps: int = option(100, "Optimiser steps of one search", unit="steps", low=10, high=100_000)

    def size(self, total: int) -> int | None:
        return self.budget if self.search == "budget" else None

    @property
    def learning(self) -> SearchOptions:
        return SearchOptions(self.gate, self.steps, self.lr)


def refuse_without_twins(config: BudgetOptions, task: TaskConfig) -> str | None:
    """Says why plain text, which has no counterfactual twins, cannot be analysed so; None when it can."""
    if task.name == "text" and (config.ablation == "counterfactual" or config.metric == "logit_diff"):
        asked = "ablation counterfactual" if config.ablation == "counterfactual" else "metric logit_diff"
        return (
            f"the {asked} needs counterfactual twins, and plain text has none; choose mean or resample, and kl or loss"
        )
    return None


def refuse_method(config: CircuitOptions, kind: UnitKind, task: TaskConfig) -> str | None:
    """Says why the method cannot rank units of this kind on this task; None when it can."""
    method = METHODS[config.method]
    if reason := method.refuse(kind):
        return f"the method {config.method}: {reason}"
    if method.twins and task.name == "text":
        return (
            f"the method {config.method} exchanges units with counterfactual twins, and plain text has none; choose "
            "removal or causal_necessary"
        )
    if config.method != SEARCH and config.price is not None:
        return (
            f"a penalty is a price of open gates, and the method {config.method} has no gates; choose the size with "
            "the search sparsity or smallest, or the method search"
        )
    return None
