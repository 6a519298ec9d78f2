"""Fills the scorecard: every method × compiled model × seed, and the same on random weights; one stage per model."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from .. import files
from ..errors import MechintError, did_you_mean
from ..options import check, option
from ..progress import Progress
from ..report.scorecard import draw, markdown
from ..rundir import Stages, check_writable, fingerprint, manifest
from ..statistics import Number, number, student
from ..tasks import Task
from ..tasks.ground_truth import BLUEPRINTS, Compiled, score_units
from .methods import METHODS, Budget, Method, from_function
from .traces import NULL_DRAWS, null_trials, positions, random_model, same_twins

LEVEL = 0.05
"""Nominal level of the false-positive side."""
SAME_TWINS = 16
"""Prompts that are traced against themselves."""

Outside = Callable[[Any, Task], Any]


@dataclass(frozen=True)
class ScorecardConfig:
    """What is scored, and what the methods may use."""

    models: str = option("all", f"Compiled models, separated by commas, or all: {', '.join(BLUEPRINTS)}")
    seeds: int = option(
        5, "Compiled models of each kind, with the circuit in other places", unit="seeds", low=1, high=99
    )
    first_seed: int = option(100, "The first of these seeds; methods were tuned on seeds 0 to 2", low=0, high=1_000_000)
    steps: int = option(60, "Optimiser steps of a mask search", unit="steps", low=10, high=10_000)
    prompts: int = option(96, "Discovery prompts of searches and attributions", unit="prompts", low=32, high=100_000)
    patch_prompts: int = option(32, "Discovery prompts of patching", unit="prompts", low=2, high=100_000)
    trace_prompts: int = option(64, "Prompts of position accuracy", unit="prompts", low=2, high=100_000)
    null_prompts: int = option(24, "Prompts of one trace without an effect", unit="prompts", low=8, high=100_000)
    null_trials: int = option(
        100,
        "Shuffles of labels, for each model and seed, of a trace without an effect",
        unit="shuffles",
        low=1,
        high=10_000,
    )
    output_dir: str = option("output/ground_truth", "Directory of results.json, scorecard.md and scorecard.png")

    @property
    def names(self) -> list[str]:
        return list(BLUEPRINTS) if self.models == "all" else [name.strip() for name in self.models.split(",")]


def scorecard(config: ScorecardConfig, outside: dict[str, Outside] | None = None) -> dict[str, Any]:
    """Scores everything and writes results.json, scorecard.md and scorecard.png; returns the results.

    A killed run goes on behind the last model and seed that it finished.

    Args:
        config: The options.
        outside: More methods by name, ``(model, task) -> one number for each unit``.

    Raises:
        MechintError: an unknown model, or a method whose scores are not one finite number for each unit.
    """
    check(config)
    for name in config.names:
        if name not in BLUEPRINTS:
            raise MechintError(
                f"no compiled model {name!r}{did_you_mean(name, BLUEPRINTS)}; take {', '.join(BLUEPRINTS)}"
            )
    taken = set(outside or {}) & set(METHODS)
    if taken:
        raise MechintError(f"a method is called {min(taken)!r} already; give yours another name")
    methods = METHODS | {name: Method(name, from_function(f)) for name, f in (outside or {}).items()}
    folder = Path(config.output_dir)
    check_writable(folder)
    with files.lock(folder):
        stages = Stages(None if outside else folder / ".stages", fingerprint([dataclasses.asdict(config), sources()]))
        parts = collect(config, methods, stages)
        results = {
            "schema": 1,
            "config": dataclasses.asdict(config),
            "methods": {name: method.title for name, method in methods.items()},
            "models": {name: BLUEPRINTS[name]().task.description for name in config.names},
            **summarise(parts, methods),
            "parts": parts,
            "manifest": manifest(),
        }
        files.write_json(folder / "results.json", results)
        files.write_text(folder / "scorecard.md", markdown(results))
        draw(results, folder / "scorecard.png")
        stages.clear()
    return results


def sources() -> list[str]:
    """Hashes of the library's files: other code, other scores."""
    return [files.sha256(path) for path in sorted(Path(__file__).resolve().parent.parent.rglob("*.py"))]


# ---- measuring ---------------------------------------------------------------------------------------------------


def collect(config: ScorecardConfig, methods: dict[str, Method], stages: Stages) -> list[dict[str, Any]]:
    """For each model and seed, what :func:`measure` says."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    wanted = [(name, seed) for seed in seeds for name in config.names]
    parts = []
    with Progress("scorecard", len(wanted), quiet=0.0) as progress:
        for name, seed in wanted:

            def one(name: str = name, seed: int = seed) -> dict[str, Any]:
                return measure(name, seed, config, methods)

            parts.append(stages.get(f"{name} {seed}", one))
            progress.step(f"{name}, seed {seed}")
    return parts


def measure(name: str, seed: int, config: ScorecardConfig, methods: dict[str, Method]) -> dict[str, Any]:
    """All numbers of one compiled model, and of random weights of its sizes."""
    start = time.perf_counter()
    compiled = BLUEPRINTS[name]().compile(seed=seed)
    compiled.model.requires_grad_(False)
    random = dataclasses.replace(compiled, model=random_model(compiled.model, seed))
    fitting = {key: method for key, method in methods.items() if method.fits(compiled.model)}
    nulls = [
        null_trials(model, compiled.task, config.null_prompts, config.null_trials, seed)
        for model in (random.model, compiled.model)
    ]
    found: dict[str, Any] = {
        "model": name,
        "seed": seed,
        "compiled": [scored(compiled, key, method, config) for key, method in fitting.items()],
        "random": [{"method": key, "auroc": within_layers(random, method, config)} for key, method in fitting.items()],
        "positions": positions(compiled, config.trace_prompts),
        "null": dict(zip(("random", "compiled"), nulls, strict=True)),
        "same_twins": same_twins(compiled.model, compiled.task, SAME_TWINS, seed),
    }
    return {**found, "seconds": time.perf_counter() - start}


def scored(compiled: Compiled, key: str, method: Method, config: ScorecardConfig) -> dict[str, Any]:
    """The score of one method on one model, against the mask that is declared."""
    truth = compiled.truth.mask(compiled.model, compiled.unit, method.ablation)
    budget = Budget(int(truth.sum()), config.prompts, config.patch_prompts, config.steps, compiled.unit)
    start = time.perf_counter()
    values = method.scores(compiled.model, compiled.task, budget)
    seconds = time.perf_counter() - start
    score = score_units(truth, values, f"{key} on {compiled.model.source}")
    return {"method": key, **dataclasses.asdict(score), "seconds": seconds}


def within_layers(random: Compiled, method: Method, config: ScorecardConfig) -> float:
    """AUROC on random weights against the declared mask, the mean over the layers that have units of the circuit.

    Layer by layer, since channels of early layers differ from those of late ones on any weights; which channel of a
    layer is declared is a matter of the seed alone, so 0.5 is expected whatever the method.
    """
    truth = random.truth.mask(random.model, random.unit, method.ablation)
    budget = Budget(int(truth.sum()), config.prompts, config.patch_prompts, config.steps, random.unit)
    values = torch.as_tensor(method.scores(random.model, random.task, budget))
    score_units(truth, values, f"{method.title} on random weights")  # refuses what is no score
    layers = zip(*(rows.view(random.model.config.n_layer, -1) for rows in (truth, values)), strict=True)
    return fmean(score_units(mask, scores).auroc for mask, scores in layers if mask.any())


# ---- summaries ---------------------------------------------------------------------------------------------------


def summarise(parts: list[dict[str, Any]], methods: dict[str, Method]) -> dict[str, Any]:
    """Numbers over seeds: the card, random weights, positions, and traces where nothing is."""
    models = list(dict.fromkeys(part["model"] for part in parts))
    card = [row for model in models for row in rows([p for p in parts if p["model"] == model], methods)]
    rates = {
        weights: rate([p <= LEVEL for part in parts for p in part["null"][weights]])
        for weights in ("random", "compiled")
    }
    return {
        "card": card,
        "random": [{"method": key, "auroc": by_chance(parts, key)} for key in methods],
        "positions": [
            {"model": model, "site": site, "share": least_and_most(shares)}
            for model in models
            for site in ("write", "state")
            if (shares := [p["positions"][site] for p in parts if p["model"] == model and site in p["positions"]])
        ],
        "false_positives": {
            "level": LEVEL, "sign_flips": NULL_DRAWS, **rates,
            "same_twins_largest_effect": max(part["same_twins"] for part in parts),
        },
    }  # fmt: skip


def rows(parts: list[dict[str, Any]], methods: dict[str, Method]) -> Iterator[dict[str, Any]]:
    for key in methods:
        found = [cell for part in parts for cell in part["compiled"] if cell["method"] == key]
        if not found:
            continue  # not of this family
        yield {
            "model": parts[0]["model"],
            "method": key,
            "units": [cell["units"] for cell in found],
            "total": found[0]["total"],
            **{
                name: least_and_most([float(cell[name]) for cell in found])
                for name in ("auroc", "average_precision", "seconds")
            },
            "exact": rate([cell["exact"] for cell in found]),
        }


def least_and_most(values: Sequence[float]) -> Number:
    return number(fmean(values), min(values), max(values), len(values), "mean, least and most over seeds")


def by_chance(parts: list[dict[str, Any]], key: str) -> Number:
    """AUROC on random weights: each seed's mean over the models, and the interval of Student's t over the seeds.

    By seeds, since models of one seed draw their places from the same random numbers.
    """
    seeds: dict[int, list[float]] = {}
    for part in parts:
        seeds.setdefault(part["seed"], []).extend(c["auroc"] for c in part["random"] if c["method"] == key)
    means = [fmean(values) for values in seeds.values()]
    if len(means) < 2:
        return number(means[0], 0.0, 1.0, 1, "one seed: no interval")
    return student(means, "seeds")[0]


def rate(hits: Sequence[bool]) -> Number:
    """A share, with Wilson's interval (1927)."""
    n, z = len(hits), 1.96
    share = sum(hits) / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return number(share, min(share, middle - half), max(share, middle + half), n, "95 % by Wilson's score")
