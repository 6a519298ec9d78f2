"""Lets methods choose the size of a circuit, and compares it with the declared one.

A circuit of the search ``smallest`` is as small as it can be and recovers 95 % of the effect of its ablation. Here it
is found as the analysis finds it (:class:`mechint.analyses.circuits.analyzer.CircuitAnalyzer`): of a ranking it is the
fewest top units that reach this target, while a mask search descends, searches at sizes between, and prunes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...analyses.ablation import ABLATIONS
from ...analyses.circuits.analyzer import CircuitAnalyzer
from ...analyses.circuits.bench import Bench
from ...analyses.circuits.options import BudgetOptions
from ...ground_truth import Compiled
from ...utils.options import option
from ..methods import Method, bench_of


@dataclass(frozen=True)
class ScoredCircuit(BudgetOptions):
    """The options of a circuit of the units that are scored, of any kind."""

    kind: str = option("channel", "Kind of unit")

    @property
    def unit(self) -> str:
        return self.kind


class Sizes:
    """Finds the smallest circuits of one compiled model, on its discovery prompts.

    Args:
        compiled: The model, its task and its truth.
        prompts: Discovery prompts on which the target must be reached.
        steps: Optimiser steps of a mask search.
    """

    def __init__(self, compiled: Compiled, prompts: int, steps: int) -> None:
        self.compiled, self.prompts, self.steps = compiled, prompts, steps
        self.benches: dict[str, Bench] = {}

    def of(self, method: Method, values: Any) -> dict[str, Any]:
        """``stops``: the size that a method chooses, the declared one, and the faithfulness there on these prompts.

        Empty of a method that replaces no units, and where the declared size is not known.

        Args:
            method: A row of the card; its ablation is that of the circuit.
            values: Its scores [units]; a mask search chooses by searches of its own.
        """
        if method.ablation not in ABLATIONS or method.ablation == "zero":
            return {}
        true = declared_size(self.compiled, method.ablation)
        if not true:
            return {}
        bench = self.bench(method.ablation)
        options = ScoredCircuit(
            ablation=method.ablation, seeds=1, steps=self.steps, search="smallest", kind=self.compiled.unit
        )
        analyzer = CircuitAnalyzer(self.compiled.model, options, units=bench.units)
        if method.searches:
            mask = analyzer.searched(bench, []).mask
        else:
            scores = torch.as_tensor(values).detach().flatten().to(bench.batches[0].tokens.device)
            mask = bench.units.top(scores, analyzer.fewest(bench, scores))
        faithful = bench.faithful(mask, options.metric)
        return {"stops": {"size": int(mask.sum()), "true": true, "faithfulness": faithful}}

    def bench(self, ablation: str) -> Bench:
        """The discovery prompts with one ablation; circuits that several methods ask for are measured once."""
        if ablation not in self.benches:
            compiled = self.compiled
            self.benches[ablation] = bench_of(compiled.model, compiled.task, ablation, compiled.unit, self.prompts)
        return self.benches[ablation]


def declared_size(compiled: Compiled, ablation: str) -> int:
    """Units of the smallest circuit that suffices, without those that the ablation does not change.

    0 where that is not known: of a superposition many sets suffice, and of a trained model some units are unsure.
    """
    truth, model, unit = compiled.truth, compiled.model, compiled.unit
    seen = truth.mask(model, unit, ablation)
    if not bool(truth.asked(model, unit, ablation).all()):
        return 0
    if truth.questions is None:
        return int(seen.sum())
    assert truth.questions.kind == unit  # in every model that has them
    sets = [int((mask * seen).sum()) for mask in truth.questions.masks(model)["sufficient"]]
    return min((size for size in sets if size), default=0)
