"""The control on random weights: a result that untrained models show, too, is no evidence about training.

1. Random models. :func:`shuffled_weights` puts the entries of every weight tensor in another order: sizes and scales
   stay, but the arrangement that training made is lost. :func:`reinitialised` draws the weight matrices anew at the
   model's own scale.
2. Repeated studies. :func:`control` runs a whole study again on shuffled models, and :func:`compared` puts each
   quantity of the trained model beside theirs: the two differ where their intervals are apart.
   :func:`shuffled_numbers` does the same for single numbers of layers.
3. Scores of prompts. :func:`beside` tests whether the trained model's score exceeds those of :func:`random_models`.
   Null hypothesis: the trained model is one more of them. The interval of the difference holds the variation among
   models and the variation among prompts.

A search for a circuit is repeated on shuffled weights by :meth:`.circuits.analyzer.CircuitAnalyzer.random_weights`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..interventions.model import Model
from ..tasks.base import mix
from ..utils.errors import MechintError
from ..utils.statistics import Array, Number, number, t_quantile
from .base import ControlledAnalyzer
from .loader import PromptLoader

Quantities = list[dict[str, Any]]
"""Reported numbers, each under ``number`` with its ``quantity``, ``site`` and ``layer``; None where it is of all."""
MODELS = 6
"""Random models that each study compares with."""


def shuffled_weights(model: Model, seed: int) -> Model:
    """Copies the model with the entries of every weight tensor in another order."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def reinitialised(model: Model, seed: int) -> Model:
    """Copies the model with new weight matrices: normal, with the mean and standard deviation of each one's entries.

    Vectors (norms, biases, D) and the decays of a scan (``A_log``) stay as they are, so that the copy runs at the
    model's own scale and time scales.
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


MAKERS: dict[str, Callable[[Model, int], Model]] = {"shuffled": shuffled_weights, "drawn anew": reinitialised}
"""Ways of making a model with random weights, from the model and a seed."""


def shuffled_models(model: Model, seed: int, count: int) -> Iterator[Model]:
    """Yields copies of a model, each with the entries of every weight in another order; the same for the same seed."""
    for k in range(count):
        yield shuffled_weights(model, mix(seed, "shuffled weights", k))


def random_models(model: Model, seed: int, count: int = MODELS) -> Iterator[tuple[str, Model]]:
    """Yields (name of the way it was made, model), the two ways of :data:`MAKERS` in turn."""
    for k in range(count):
        name = list(MAKERS)[k % len(MAKERS)]
        yield name, MAKERS[name](model, mix(seed, "random model", k))


def quantity(name: str, value: Number, site: str | None = None, layer: int | None = None) -> dict[str, Any]:
    """An entry of :data:`Quantities`."""
    return {"quantity": name, "site": site, "layer": layer, "number": value}


def control(
    study: ControlledAnalyzer[Any],
    discovery: PromptLoader,
    evaluation: PromptLoader,
    quantities: Callable[[dict[str, Any]], Quantities],
) -> dict[str, Any] | None:
    """Runs a finished study again on ``config.controls`` shuffled models; None if the options ask for none.

    Args:
        study: With ``results``; each shuffled model is one of its stages.
        discovery: The loader that the study ranked on.
        evaluation: The loader that it measured on.
        quantities: Function that takes the compared quantities from the results of either model.
    """
    if not study.config.controls:
        return None
    config = study.control_config()

    def one(k: int) -> Quantities | str:
        model = shuffled_weights(study.model, mix(study.seed, "shuffled weights", k))
        try:
            other = type(study)(model, config, study.model.device, seed=study.seed)
            return quantities(other.run_analysis(discovery, evaluation))
        except MechintError as error:  # a control that cannot be measured does not end the study
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
    """The mean of the values, with the least lower and the greatest upper edge of the intervals."""
    value = sum(float(n["value"]) for n in numbers) / len(numbers)
    low, high = min(float(n["low"]) for n in numbers), max(float(n["high"]) for n in numbers)
    return number(
        value, low, high, len(numbers), "least and most of the 95 % intervals of models with shuffled weights"
    )


def told_apart(found: dict[str, Any] | None) -> list[str]:
    """Says on the terminal how many quantities differ."""
    if found is None:
        return []
    known = [row for row in found["quantities"] if row["differs"] is not None]
    apart = sum(row["differs"] for row in known)
    models = "model" if found["models"] == 1 else f"{found['models']} models"
    return [f"  {apart} of {len(known)} quantities differ from those of the {models} with shuffled weights"]


def shuffled_numbers(
    model: Model, seed: int, count: int, layers: Iterable[int], measure: Callable[[Any], dict[int, Number | None]]
) -> dict[int, Number | None]:
    """Measures a number of each layer on ``count`` shuffled models.

    Returns:
        For each layer the mean of the numbers, from the least to the most of their intervals; None where there are no
        models, or none has a finite number.
    """
    found: dict[int, list[Number]] = {layer: [] for layer in layers}
    for other in shuffled_models(model, seed, count):
        for layer, value in measure(other).items():
            if value is not None and all(math.isfinite(value[name] or 0.0) for name in ("value", "low", "high")):
                found[layer].append(value)
    return {layer: together(values) if values else None for layer, values in found.items()}


def beside(own: Array, random: Array, clusters: NDArray[np.int64]) -> dict[str, Any]:
    """Tests how much the studied model's score exceeds those of random models, on the same prompts.

    The difference from their mean has the variance s² (1 + 1/K) + e²: s² is the variance of K random models' scores,
    and e² that of the difference over the prompts' templates. The interval is Student's with K - 1 degrees of freedom.
    Part of e² is in s² already, so the interval errs on the wide side.

    Args:
        own: Contribution of each prompt to the studied model's score, [prompt].
        random: The same of random models, [model, prompt]; at least two models.
        clusters: The template of each prompt, [prompt].

    Returns:
        ``score``, ``random`` (the scores), ``difference`` (95 %), ``error`` and ``freedom`` of its t.
    """
    scores = random.mean(1)
    apart = own - random.mean(0)
    value = float(apart.mean())
    _, cluster = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster, weights=apart - value)
    count = len(sums)
    within = count / max(count - 1, 1) * float((sums**2).sum()) / len(own) ** 2
    error = math.sqrt(float(scores.var(ddof=1)) * (1 + 1 / len(scores)) + within)
    half = t_quantile(len(scores) - 1) * error
    what = f"95 % by Student's t over {len(scores)} models with random weights and {count} templates"
    return {
        "score": float(own.mean()),
        "random": [float(score) for score in scores],
        "difference": number(value, value - half, value + half, len(own), what),
        "error": error,
        "freedom": len(scores) - 1,
    }


def spread_about_mean(scores: list[float]) -> Number:
    """The range of random models' scores about their mean, to draw beside the difference from that mean."""
    mean = float(np.mean(scores))
    return number(
        0.0, min(scores) - mean, max(scores) - mean, len(scores), "least and most of models with random weights"
    )
