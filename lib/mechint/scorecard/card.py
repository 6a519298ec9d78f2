"""Fills the scorecard: every method × model × seed, and the same where nothing is to be found; one stage per model."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..ground_truth import FAMILIES, HARD, IMPOSED, MODELS, Compiled, score_units, verify
from ..ground_truth.edges import DECLARED
from ..interventions.units import units_named
from ..tasks import Task
from ..utils import files, workers
from ..utils.errors import MechintError
from ..utils.progress import Progress
from ..utils.rundir import Stages, fingerprint, manifest
from .cost import cost, standing
from .curves import Curves
from .dictionaries import score_dictionaries
from .edges import EDGE_METHODS, links_by_chance, score_edges
from .hard.from_file import method_from
from .hard.recovery import curves, points, recover
from .hard.several import several_scores
from .hard.sizes import Sizes
from .methods import METHODS, Budget, Method, outside_method
from .options import ScorecardConfig
from .probes import score_planted_probes, score_probes
from .report import write_scorecard
from .requests import check_request, claimed, key_of
from .summary import summarise
from .traces import null_trials, positions, random_model, same_twins

SAME_TWINS = 16
"""Prompts that are traced against themselves."""
VERIFIED = 500
"""Discovery prompts on which a compiled model's truth is held against its own ablations before it is asked for."""

Outside = Callable[[Any, Task], Any] | tuple[Callable[[Any, Task], Any], str]


def scorecard(config: ScorecardConfig, outside: dict[str, Outside] | None = None) -> dict[str, Any]:
    """Scores everything and writes results.json, scorecard.html, .md and .png; returns the results.

    A killed run resumes after the last model and seed that it finished, and a finished one is not repeated. Processes
    that torchrun started share the models and seeds, each taking the next when it is free; all return the results.

    Args:
        config: The options.
        outside: More methods by name, ``(model, task) -> one number for each unit``; or such a function and the
            ablation by which it tries units, see :func:`mechint.ground_truth.score_method`.

    Raises:
        MechintError: an unknown model, a declared truth that the model's own ablations contradict, a method whose
            scores are not one finite number for each unit, or a directory with results or unfinished work of another
            request, where ``rerun`` is not set. Functions have no fingerprint: with methods from ``outside`` any
            results there are those of another request.
    """
    check_request(config)
    ours = {name: METHODS[name] for name in config.chosen(METHODS)}
    theirs = [(name, outside_method(name, given)) for name, given in (outside or {}).items()]
    theirs += [method_from(path) for path in config.score_files()]
    methods = dict(ours)
    for name, method in theirs:
        if name in methods or name in METHODS:
            raise MechintError(f"a method is called {name!r} already; give yours another name")
        methods[name] = method
    folder = Path(config.output_dir)
    key = key_of(config, outside or ())
    opened = lambda: Stages(None if outside else folder / ".stages", fingerprint(key))
    workers.join()
    first = workers.worker()[0] == 0
    with claimed(folder, key, config.rerun) as done:
        if done is not None:
            if first:
                print(f"the scorecard is finished in {folder}: nothing is scored (--rerun repeats it)", flush=True)
            return done
        if first:
            opened()  # makes the directory, before the other processes look
        workers.exchange(None)
        stages = opened()
        parts, planted, again = collect(config, methods, stages)
        results = {
            "schema": 2,
            "key": key,
            "config": dataclasses.asdict(config),
            "methods": {name: method.title for name, method in methods.items()},
            "order": [*methods, *EDGE_METHODS],
            "edge_methods": {name: method.title for name, method in EDGE_METHODS.items()},
            "models": {name: MODELS[name]().task.description for name in config.names},
            "groups": groups(config.names),
            **summarise(parts, planted, methods),
            "recovery": curves(again, list(methods)),
            "parts": parts,
            "planted": planted,
            "manifest": manifest(),
        }
        if first:
            files.write_json(folder / "results.json", results)
            write_scorecard(folder, results)
            stages.clear()
    return results


def groups(names: list[str]) -> list[list[str]]:
    """The models that stand in a table together: compiled ones of a family, trained ones, and hard ones of each."""
    found: dict[Any, list[str]] = {}
    for name in names:
        found.setdefault((name in IMPOSED, name in HARD, FAMILIES[name]), []).append(name)
    return list(found.values())


# ---- measuring ---------------------------------------------------------------------------------------------------


def collect(
    config: ScorecardConfig, methods: dict[str, Method], stages: Stages
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs :func:`measure` for each model and seed, :func:`plant` for each seed, and :func:`.hard.recovery.recover` for
    each model, seed and point of a curve; all processes share the work.

    Nothing is planted where no dictionary is to be trained.
    """
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    models = {
        f"{name} {seed}": functools.partial(measure, name, seed, config, methods)
        for seed in seeds
        for name in config.names
    }
    planted = {f"planted {seed}": functools.partial(plant, seed, config) for seed in seeds if config.plants}
    again = {
        f"{name} {seed} {axis} {value:g}": functools.partial(
            recover, name, seed, axis, value, functools.partial(judged, name, seed, config, methods)
        )
        for seed in seeds
        for name in config.names
        for axis, value in points(config)
    }
    work = {**models, **planted, **again}
    names, mine = list(work), {}
    with Progress("scorecard", len(names), quiet=0.0) as progress:
        for k in workers.deal(len(names)):
            mine[names[k]] = stages.get(names[k], work[names[k]])
            progress.step(names[k], k + 1 - progress.done)  # others are at those between
    every = {name: part for some in workers.exchange(mine) for name, part in some.items()}
    return [every[name] for name in models], [every[name] for name in planted], [every[name] for name in again]


@standing()
def plant(seed: int, config: ScorecardConfig) -> dict[str, Any]:
    """Dictionaries and probes on the planted features of a seed."""
    start = time.perf_counter()
    rows = score_dictionaries(seed, config.sae_tokens)
    probes = score_planted_probes(seed, config.probe_prompts)
    return {"seed": seed, "rows": rows, "probes": probes, "seconds": time.perf_counter() - start}


@standing()
def measure(name: str, seed: int, config: ScorecardConfig, methods: dict[str, Method]) -> dict[str, Any]:
    """All numbers of one model, and in turn of random weights of its sizes."""
    start = time.perf_counter()
    compiled = MODELS[name]().compile(seed=seed)
    compiled.model.requires_grad_(False)
    if name not in IMPOSED:  # these are checked whenever they are loaded
        verify(compiled.model, compiled.truth, compiled.task, VERIFIED, "discovery", seed)
    fitting = {key: method for key, method in methods.items() if is_asked(method, compiled)}
    by_size = Curves(compiled.model, compiled.task, compiled.unit, config.curve_prompts)
    sizes = Sizes(compiled, config.prompts, config.steps) if config.sizes else None
    found: dict[str, Any] = {
        "model": name,
        "seed": seed,
        "compiled": [
            scored(compiled, key, method, config, by_size, (name, seed), sizes) for key, method in fitting.items()
        ],
        "best": by_size.of(compiled.truth.mask(compiled.model, compiled.unit, "counterfactual", unsure=True)),
        **(BESIDE if config.units_only else beside_units(compiled, name, seed, config, fitting)),
    }
    return {**found, "seconds": time.perf_counter() - start}


BESIDE: dict[str, Any] = {"positions": {}, "trace": {}, "edges": [], "probes": [], "random": [], "null": {}}
"""The result of :func:`beside_units` where nothing of it is measured."""


def beside_units(
    compiled: Compiled, name: str, seed: int, config: ScorecardConfig, methods: dict[str, Method]
) -> dict[str, Any]:
    """All that is measured on a model beside rankings of its units, and in turn on random weights of its sizes.

    Args:
        methods: Those that rank the units of this model, which are tried on random weights, too.
    """
    with cost() as spent:
        places = positions(compiled, config.trace_prompts)
    same = same_twins(compiled.model, compiled.task, SAME_TWINS, seed)
    found: dict[str, Any] = {**BESIDE, "positions": places, "trace": spent, "same_twins": same}
    if name in DECLARED:
        found["edges"] = score_edges(compiled, config.edge_prompts, config.edges, seed)
        found["probes"] = score_probes(compiled, config.probe_prompts, seed)
    if in_turn(name, seed, config):
        random = dataclasses.replace(compiled, model=random_model(compiled.model, seed))
        found["null"] = {
            weights: null_trials(model, compiled.task, config.null_prompts, config.null_trials, seed)
            for weights, model in (("random", random.model), ("compiled", compiled.model))
        }
        found["random"] = [
            {"method": key, "auroc": within_layers(random, method, config)} for key, method in methods.items()
        ]
        if found["edges"]:
            found["random"] += links_by_chance(compiled, random.model, seed)
    return found


def judged(
    name: str, seed: int, config: ScorecardConfig, methods: dict[str, Method], compiled: Compiled
) -> list[dict[str, Any]]:
    """The scores of all methods that a model is asked by, without faithfulness at all sizes."""
    fitting = {key: method for key, method in methods.items() if is_asked(method, compiled)}
    return [scored(compiled, key, method, config, of=(name, seed)) for key, method in fitting.items()]


def is_asked(method: Method, compiled: Compiled) -> bool:
    """True if a method is for this family and its ablation leaves a part of the circuit to be found."""
    fits = method.fits(compiled.model)
    return fits and bool(compiled.truth.mask(compiled.model, compiled.unit, method.ablation).any())


def in_turn(name: str, seed: int, config: ScorecardConfig) -> bool:
    """True if this model is tried with random weights for this seed: each seed takes others of its family."""
    family = [other for other in config.names if FAMILIES[other] == FAMILIES[name]]
    return (family.index(name) + seed - config.first_seed) % config.random_every == 0


def scored(
    compiled: Compiled,
    key: str,
    method: Method,
    config: ScorecardConfig,
    curves: Curves | None = None,
    of: tuple[str, int] | None = None,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """The score of one method on one model, against the mask that is declared; ``of``: its name and its seed."""
    truth, asked = (part(compiled.model, compiled.unit, method.ablation) for part in truths(compiled))
    budget = Budget(
        int(truth.sum()), config.prompts, config.patch_prompts, config.steps, compiled.unit, *(of or ("", 0))
    )
    with cost() as spent:
        values = method.scores(compiled.model, compiled.task, budget)
    score = score_units(truth, values, f"{key} on {compiled.model.source}", asked)
    areas = curves.of(values) if curves else {}
    beside = several_scores(compiled, values, method.ablation)
    stops = sizes.of(method, values) if sizes else {}
    return {"method": key, **dataclasses.asdict(score), **areas, **spent, **beside, **stops}


def truths(compiled: Compiled) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The circuit to be found, and the units asked for, by model, kind of unit and ablation."""
    return compiled.truth.mask, compiled.truth.asked


def within_layers(random: Compiled, method: Method, config: ScorecardConfig) -> float:
    """AUROC on random weights against the declared mask, the mean over the layers that have units of the circuit.

    Layer by layer, keys and values apart: channels of early layers differ from those of late ones on any weights, and
    keys from values. Only the seed decides which units of a layer are declared, so any method is expected to have 0.5.
    """
    truth, asked = (part(random.model, random.unit, method.ablation) for part in truths(random))
    budget = Budget(int(truth.sum()), config.prompts, config.patch_prompts, config.steps, random.unit)
    values = torch.as_tensor(method.scores(random.model, random.task, budget))
    score_units(truth, values, f"{method.title} on random weights", asked)  # refuses what is not a score
    counted = units_named(random.model, random.unit).counted
    groups = zip(*(part.split(counted) for part in (truth, values, asked)), strict=True)
    return fmean(score_units(mask, scores, asked=some).auroc for mask, scores, some in groups if mask.any())
