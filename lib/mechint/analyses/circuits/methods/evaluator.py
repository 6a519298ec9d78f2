"""The data that a method of ranking units may use: prompts of the discovery half, and what masks over the units do
there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ....interventions.model import Model
from ....interventions.units import Units
from ....tasks import Prompts
from ..bench import Bench
from ..search.learning import SearchOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluator:
    """The discovery prompts of a model, with what replaces its units.

    Attributes:
        bench: Measures masks over the units on the prompts.
        metric: Metric that the circuit preserves, from :data:`mechint.analyses.circuits.bench.METRICS`.
        size: Units of the circuit that is wanted; a mask search learns one of this size.
        search: Options of the mask search.
        seed: Seed of everything drawn at random.
        aligned: True if a position means the same in every prompt, so that means can be taken by position.
    """

    bench: Bench
    metric: str = "kl"
    size: int = 1
    search: SearchOptions = field(default_factory=SearchOptions)
    seed: int = 0
    aligned: bool = True
    known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Quantities that several methods share, by name."""

    @property
    def model(self) -> Model:
        return self.bench.model

    @property
    def units(self) -> Units:
        return self.bench.units

    @property
    def batches(self) -> list[Prompts]:
        return self.bench.batches

    @property
    def answer_metric(self) -> str:
        """The metric of methods that need one of the answers' logits alone, such as gradients at the intact model.

        The KL to the full model has no gradient there: it is zero, and so is its slope. The logit difference replaces
        it and the accuracy, or the log-probability of the answer where the task has no twins.
        """
        if self.metric in ("logit_diff", "answer_logprob", "loss"):
            return self.metric
        if self.metric == "perplexity":
            return "loss"
        whole = any(batch.whole or batch.bad() is None for batch in self.batches)
        return "answer_logprob" if whole else "logit_diff"

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """A quantity that several methods share, computed by the first that asks for it."""
        if name not in self.known:
            self.known[name] = compute()
        found: T = self.known[name]
        return found
