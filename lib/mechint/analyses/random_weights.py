"""The control on random weights: the same quantities of the same model with the entries of every weight shuffled.

A shuffled model has the trained one's sizes and the same numbers in every tensor, so the same scales; what training
arranged them into is gone. What a study finds in both is no finding about the training: a ranking's inequality, say, or
how sparse a gate is because SiLU made it. Of each quantity the interval of the trained model stands beside those of all
shuffled ones, and the two differ when they are apart.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..interventions.model import Model
from ..tasks.base import mix
from ..utils.errors import MechintError
from ..utils.statistics import Number, number
from .base import Study
from .loader import PromptLoader

Quantities = list[dict[str, Any]]
"""Reported numbers, each under ``number`` with its ``quantity``, ``site`` and ``layer``; None where it is of all."""


def quantity(name: str, value: Number, site: str | None = None, layer: int | None = None) -> dict[str, Any]:
    return {"quantity": name, "site": site, "layer": layer, "number": value}


def shuffled_models(model: Model, seed: int, count: int) -> Iterator[Any]:
    """Copies of a model, each with the entries of every weight in another order; the same ones for the same seed."""
    for k in range(count):
        yield shuffled_weights(model, mix(seed, "shuffled weights", k))


def control(
    study: Study, discovery: PromptLoader, evaluation: PromptLoader, quantities: Callable[[dict[str, Any]], Quantities]
) -> dict[str, Any] | None:
    """Runs a finished study again on ``config.controls`` shuffled models; None where there are to be none.

    Args:
        study: With ``results``; each shuffled model is one of its stages.
        discovery: The loader that the study ranked on.
        evaluation: The loader that it measured on.
        quantities: What is compared, from the results of either.
    """
    if not study.config.controls:
        return None
    config = study.control_config()

    def one(k: int) -> Quantities | str:
        model = shuffled_weights(study.model, mix(study.seed, "shuffled weights", k))
        try:
            other = type(study)(model, config, study.model.device, seed=study.seed)
            return quantities(other.run_analysis(discovery, evaluation))
        except MechintError as error:  # of the control, not of what is studied: said in its place
            return str(error)

    found = [study.stages.get(f"control {k}", functools.partial(one, k)) for k in range(study.config.controls)]
    return compared(quantities(study.results), found)


def compared(trained: Quantities, shuffled: list[Quantities | str]) -> dict[str, Any]:
    """Every quantity of the trained model beside those of the shuffled ones.

    Returns:
        ``models`` (how many were shuffled), ``failed`` (why some could not be measured) and ``quantities``, each with
        ``trained``, ``shuffled`` (the mean, from the least to the most of all their intervals; None where no shuffled
        model has it) and ``differs`` (whether the two intervals are apart; None likewise).
    """
    key = lambda entry: (entry["quantity"], entry["site"], entry["layer"])
    others = [{key(entry): entry["number"] for entry in found} for found in shuffled if not isinstance(found, str)]
    rows = []
    for entry in trained:
        own = entry["number"]
        theirs = [other[key(entry)] for other in others if key(entry) in other]
        beside = together(theirs) if theirs else None
        differs = None if beside is None else bool(own["low"] > beside["high"] or own["high"] < beside["low"])
        rows.append(
            {**{name: entry[name] for name in ("quantity", "site", "layer")}, "trained": own, "shuffled": beside,
             "differs": differs}
        )  # fmt: skip
    failed = [found for found in shuffled if isinstance(found, str)]
    return {"weights": "shuffled", "models": len(shuffled), "failed": failed, "quantities": rows}


def together(numbers: list[Number]) -> Number:
    value = sum(float(n["value"]) for n in numbers) / len(numbers)
    low, high = min(float(n["low"]) for n in numbers), max(float(n["high"]) for n in numbers)
    return number(
        value, low, high, len(numbers), "least and most of the 95 % intervals of models with shuffled weights"
    )


def told_apart(found: dict[str, Any] | None) -> list[str]:
    """The line for the terminal."""
    if found is None:
        return []
    known = [row for row in found["quantities"] if row["differs"] is not None]
    apart = sum(row["differs"] for row in known)
    models = "model" if found["models"] == 1 else f"{found['models']} models"
    return [f"  {apart} of {len(known)} quantities differ from those of the {models} with shuffled weights"]


def shuffled_weights(model: Model, seed: int) -> Any:
    """A copy of the model with the entries of every weight tensor in another order: the control on random weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def reinitialised(model: Model, seed: int) -> Any:
    """A copy of the model whose weight matrices are drawn anew: normal, with the mean and spread of each one's entries.

    What training seldom arranges stays as it is: vectors (norms, biases, D) and the decays of a scan (``A_log``), so
    that the copy runs at the model's own scale and time scales.
    """
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                spread, mean = parameter.double().std().cpu(), parameter.double().mean().cpu()
                parameter.copy_((drawn * spread + mean).to(parameter))
    return other
