"""The methods on the scorecard: each gives one number for every unit of a model, from the model and its task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..analyses.ablation import ABLATIONS, Ablation
from ..analyses.circuits.bench import Bench, attribute
from ..analyses.circuits.methods.initial_scores import first_scores, needed_first
from ..analyses.circuits.search import Search
from ..analyses.loader import PromptLoader
from ..analyses.metrics import logit_differences
from ..ground_truth import BASELINES
from ..interventions.model import Model
from ..interventions.run import run
from ..interventions.sweep import sweep
from ..interventions.units import Units, unit_kinds
from ..tasks import Prompts, Task
from ..utils.errors import MechintError, did_you_mean
from .rankings import attention_ranking, causal_ranking, delta_ranking


@dataclass(frozen=True)
class Budget:
    """What a method may use.

    Attributes:
        size: Units to find: as many as the circuit has.
        prompts: Discovery prompts of searches and attributions.
        patch_prompts: Discovery prompts of patching.
        steps: Optimiser steps of a search.
        unit: The kind of unit that is scored.
    """

    size: int
    prompts: int
    patch_prompts: int
    steps: int
    unit: str = "channel"


@dataclass(frozen=True)
class Method:
    """A method and what it can be asked for.

    Attributes:
        title: In tables and plots.
        scores: (model, task, budget) -> one number for each unit, layer by layer.
        ablation: Units that this ablation is blind to are not counted as the circuit's; ``zero`` is blind to none.
            Where no unit is left, the method is not asked.
        families: Those it can be asked of; empty for all.
    """

    title: str
    scores: Callable[[Any, Task, Budget], Any]
    ablation: str = "zero"
    families: tuple[str, ...] = ()

    def fits(self, model: Model) -> bool:
        return not self.families or model.config.family in self.families


def bench_of(model: Model, task: Task, ablation: str, budget: Budget, split: str = "discovery") -> Bench:
    units = Units(model, unit_kinds(model)[budget.unit])
    loader = PromptLoader(task, split, budget.prompts, 32, 0)
    return Bench(model, units, Ablation(model, units, ablation, loader.batches, task.aligned), loader.batches)


@functools.lru_cache(maxsize=4)
def attributed(model: Model, task: Task, ablation: str, budget: Budget) -> Tensor:
    """Integrated gradients of KL over the mask, [units]; kept, since several methods begin with them."""
    return attribute(bench_of(model, task, ablation, budget), "kl")


def mask_search(model: Model, task: Task, budget: Budget, *, ablation: str) -> Tensor:
    """Logits [units] of the circuit search on KL, with the size given."""
    bench = bench_of(model, task, ablation, budget)
    scores, _ = first_scores(bench, "kl", attributed(model, task, ablation, budget))
    others = needed_first(bench, "kl", scores, budget.size)
    search = Search(bench, "kl", scores, "hard_concrete", budget.steps, 0.1, 0, budget.size, others=others)
    search.run("mask search")
    return search.logits.detach()


def attribution(model: Model, task: Task, budget: Budget, *, ablation: str, signed: bool) -> Tensor:
    """Integrated gradients of KL over the mask, [units]; signed so that a unit which lowers it is positive."""
    scores = attributed(model, task, ablation, budget)
    return scores if signed else scores.abs()


def interchange(model: Model, task: Task, budget: Budget, *, direction: str) -> Tensor:
    """Mean size of the exact effect of each single unit on the logit difference to the twin's answers, [units].

    ``denoise`` puts the unit's clean value into the run of the twin, ``noise`` the twin's into the clean run; at
    all positions and wherever others read it (a channel's u and gated).
    """
    prompts = task.sample(budget.patch_prompts, "discovery", 0)
    return unit_effects(model, prompts, budget.unit, direction, each=True).abs().mean(1)


def unit_effects(model: Model, prompts: Prompts, unit: str, direction: str = "noise", each: bool = False) -> Tensor:
    """The change of the logit difference by each single unit, [unit, prompt], or [unit, answer] where ``each`` is."""
    assert prompts.twins is not None and prompts.wrong is not None  # every compiled task has twins
    receiver, donor = (prompts.twins, prompts.tokens) if direction == "denoise" else (prompts.tokens, prompts.twins)
    units = Units(model, unit_kinds(model)[unit])
    with torch.no_grad():
        values = run(model, donor, record=units.sites, logits_at=prompts.positions[:, :0]).values
    cells = [units.dropping(number, dict(values)) for number in range(units.total)]
    difference = lambda logits: logit_differences(logits, prompts)  # [cell, row, Q, V] -> [cell, row, Q]
    # an empty cell is the receiver itself, so that units without an effect are exactly zero
    found = sweep(
        model, receiver, [*cells, []], difference, logits_at=prompts.positions, title=f"patching, {direction}"
    )
    change = found[:-1] - found[-1]
    return change.flatten(1) if each else change.mean(2)


def from_function(function: Callable[[Any, Task], Any]) -> Callable[[Any, Task, Budget], Any]:
    """A method that needs no budget."""
    return lambda model, task, budget: function(model, task)


def outside_method(name: str, given: Any) -> Method:
    """A method from a function of model and task, or from such a function and the ablation that it tries units by.

    Raises:
        MechintError: no such ablation.
    """
    function, ablation = given if isinstance(given, tuple) else (given, "zero")
    if ablation not in ABLATIONS:
        known = ", ".join(ABLATIONS)
        raise MechintError(f"{name}: no ablation {ablation!r}{did_you_mean(ablation, ABLATIONS)}; take {known}")
    return Method(name, from_function(function), ablation)


MAMBA = ("mamba",)
METHODS: dict[str, Method] = {
    **{
        f"search_{name}": Method(f"mask search, {name}", functools.partial(mask_search, ablation=name), name)
        for name in ("mean", "resample", "counterfactual")
    },
    **{
        f"attribution_{name}_{kind}": Method(
            f"attribution, {name}, {kind}",
            functools.partial(attribution, ablation=name, signed=kind == "signed"),
            name,
        )
        for name in ("mean", "counterfactual")
        for kind in ("signed", "size")
    },
    **{
        f"patching_{name}": Method(
            f"single units, {name}", functools.partial(interchange, direction=name), "counterfactual"
        )
        for name in ("noise", "denoise")
    },
    **{
        f"delta_{name}": Method(title, functools.partial(delta_ranking, ranking=name), ablation, MAMBA)
        for name, title, ablation in (
            ("gradient", "Δ, gradient", "step_zero"),
            ("do_mean", "Δ held at its mean", "step_mean"),
            ("variance", "variance of Δ", "step_mean"),
            ("output_variance", "variance of output", "step_zero"),
        )
    },
    **{
        name: Method(title, functools.partial(attention_ranking, ranking=name), families=MAMBA)
        for name, title in (
            ("attention_weighted", "attention"),
            ("gradient_guided", "attention × gradient"),
            ("rollout", "attention rollout"),
        )
    },
    **{
        f"causal_{name}": Method(
            f"single units, mean, {name}", functools.partial(causal_ranking, direction=name, site=site), "mean"
        )
        for name, site in (("necessary", "u"), ("sufficient", "gated"))
    },
    **{name: Method(name.replace("_", " ").replace(" x ", " × "), from_function(f)) for name, f in BASELINES.items()},
}
