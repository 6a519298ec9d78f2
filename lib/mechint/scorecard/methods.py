"""The rows of the scorecard: each asks a method of circuits for scores, by one ablation and a number of prompts.

The methods themselves are :data:`mechint.analyses.circuits.methods.all_methods.METHODS`: what is scored here can be
chosen for a circuit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..analyses.ablation import ABLATIONS, Ablation
from ..analyses.circuits.bench import Bench
from ..analyses.circuits.methods.all_methods import METHODS as RANKINGS
from ..analyses.circuits.methods.all_methods import SEARCH, scores_of
from ..analyses.circuits.methods.evaluator import Evaluator
from ..analyses.circuits.search.learning import SearchOptions
from ..analyses.loader import PromptLoader
from ..interventions.model import Model
from ..interventions.units import units_named
from ..tasks import Task
from ..utils.errors import MechintError, did_you_mean
from .hard.cheap import gradient_size, reach

BASELINE_PROMPTS = 64
"""Discovery prompts that the baselines look at."""


@dataclass(frozen=True)
class Budget:
    """The budget of a method.

    Attributes:
        size: Units to find: as many as the circuit has.
        prompts: Discovery prompts of searches and attributions.
        patch_prompts: Discovery prompts of patching.
        steps: Optimiser steps of a search.
        unit: The kind of unit that is scored.
        model, seed: Name of the model and its seed, by which a file names scores.
    """

    size: int
    prompts: int
    patch_prompts: int
    steps: int
    unit: str = "channel"
    model: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """A method and what it can be asked for.

    Attributes:
        title: In tables and plots.
        scores: (model, task, budget) -> one number for each unit, layer by layer.
        ablation: Units that this ablation is blind to are not counted as the circuit's; ``zero`` is blind to none.
            Where no unit is left, the method is not asked.
        fits: True of a model that it can be asked of.
        searches: True of a mask search, which chooses a size by searches of its own.
    """

    title: str
    scores: Callable[[Any, Task, Budget], Any]
    ablation: str = "zero"
    fits: Callable[[Model], bool] = lambda model: True
    searches: bool = False


def bench_of(
    model: Model, task: Task, ablation: str, unit: str, prompts: int, split: str = "discovery", batch_size: int = 32
) -> Bench:
    units = units_named(model, unit)
    loader = PromptLoader(task, split, prompts, batch_size, 0)
    return Bench(model, units, Ablation(model, units, ablation, loader.batches, task.aligned), loader.batches)


@functools.lru_cache(maxsize=4)
def evaluator_of(
    model: Model, task: Task, ablation: str, budget: Budget, prompts: int, batch_size: int = 32
) -> Evaluator:
    """The evaluator of a method; kept, since several methods share attributions or the values of rankings by Δ."""
    bench = bench_of(model, task, ablation, budget.unit, prompts, batch_size=batch_size)
    return Evaluator(bench, "kl", budget.size, SearchOptions(steps=budget.steps), 0, task.aligned)


def learned(model: Model, task: Task, budget: Budget, *, name: str, ablation: str) -> Tensor:
    """Scores [units] of a method that looks at the discovery prompts of searches and attributions, in batches."""
    return scores_of(name, evaluator_of(model, task, ablation, budget, budget.prompts))


def patched(model: Model, task: Task, budget: Budget, *, name: str, ablation: str = "zero") -> Tensor:
    """Scores [units] of a method that looks at the discovery prompts of patching, all at once."""
    return scores_of(name, evaluator_of(model, task, ablation, budget, budget.patch_prompts, budget.patch_prompts))


def baseline(model: Model, task: Task, budget: Budget, *, name: str) -> Tensor:
    """Scores [units] of a baseline, on :data:`BASELINE_PROMPTS` discovery prompts at once."""
    return scores_of(name, evaluator_of(model, task, "zero", budget, BASELINE_PROMPTS, BASELINE_PROMPTS))


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


def cheap(model: Model, task: Task, budget: Budget, *, name: str) -> Tensor:
    """Scores [units] of a ranking that one product gives: of weights alone, or the gradient."""
    if name == "reach":
        return reach(model)
    return gradient_size(evaluator_of(model, task, "zero", budget, BASELINE_PROMPTS, BASELINE_PROMPTS))


def ranks(name: str) -> Callable[[Model], bool]:
    """Gives whether a method of circuits can rank the units that are scored on a model."""

    def fits(model: Model) -> bool:
        method, units = RANKINGS[name], units_named(model, model.scored_unit)
        return method.refuse(units.kind) is None and method.unable(model, units) is None

    return fits


def row(key: str, title: str, how: Callable[..., Tensor], name: str, blind_to: str = "zero", **named: str) -> Any:
    """(key, method) of one row: the method ``name`` of circuits, asked in the way of ``how``.

    Args:
        key, title: In results, and in tables and plots.
        how: :func:`learned`, :func:`patched` or :func:`baseline`.
        name: Name in the registry.
        blind_to: As :attr:`Method.ablation`.
        named: Further arguments of ``how``.
    """
    return key, Method(title, functools.partial(how, name=name, **named), blind_to, ranks(name), name == SEARCH)


METHODS: dict[str, Method] = dict(
    [
        *(
            row(f"search_{by}", f"mask search, {by}", learned, "search", by, ablation=by)
            for by in ("mean", "resample", "counterfactual")
        ),
        *(
            row(f"attribution_{by}_{kind}", f"attribution, {by}, {kind}", learned, name, by, ablation=by)
            for by in ("mean", "counterfactual")
            for kind, name in (("signed", "attribution"), ("size", "attribution_size"))
        ),
        *(
            row(f"patching_{name}", f"single units, {name}", patched, f"patching_{name}", "counterfactual")
            for name in ("noise", "denoise")
        ),
        # rankings by Δ are judged by the channels whose step carries the answers, not by the whole circuit: what only
        # feeds B or C has a step that no unit reads
        row("delta_gradient", "Δ, gradient", patched, "delta_gradient", "step_zero"),
        row("delta_do_mean", "Δ held at its mean", patched, "delta_do_mean", "step_mean"),
        row("delta_variance", "variance of Δ", patched, "delta_variance", "step_mean"),
        row("delta_output_variance", "variance of output", patched, "delta_output_variance", "step_zero"),
        row("attention_weighted", "attention", patched, "attention_weighted"),
        row("gradient_guided", "attention × gradient", patched, "gradient_guided"),
        row("rollout", "attention rollout", patched, "rollout"),
        *(
            row(f"causal_{name}", f"single units, mean, {name}", patched, f"causal_{name}", "mean", ablation="mean")
            for name in ("necessary", "sufficient")
        ),
        *(
            row(name, title, learned, name, "counterfactual", ablation="counterfactual")
            for name, title in (
                ("attribution_patching", "attribution patching"),
                ("eap_ig", "EAP-IG, embeddings"),
                ("eap_ig_activations", "EAP-IG, activations"),
                ("relp", "RelP"),
                ("atp_star", "AtP*"),
            )
        ),
        row("probe", "linear probe", baseline, "probe"),
        row("weight_magnitude", "weight magnitude", baseline, "weight_magnitude"),
        row("activation_magnitude", "activation magnitude", baseline, "activation_magnitude"),
        row("gradient_x_activation", "gradient × activation", baseline, "gradient_x_activation"),
        *(
            (key, Method(title, functools.partial(cheap, name=key)))
            for key, title in (("reach", "weights to the logits"), ("gradient_size", "gradient"))
        ),
    ]
)
