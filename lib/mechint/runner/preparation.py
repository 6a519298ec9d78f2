"""Checks before any work: models, tasks, prompts, and what each analysis needs of them."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..analyses.base import Analysis, analyses, check_model
from ..analyses.loader import PromptLoader
from ..analyses.options import AnalysisOptions, RunConfig, request
from ..interventions.model import Model
from ..models.loading.hub import cached
from ..models.loading.load import find_devices, load
from ..report.finished import edited, finished, is_complete, repeat
from ..tasks import Task, task_of, tokenizer_of
from ..tasks.config import TaskConfig
from ..tasks.files.prompt_file import EVERY, FactFile
from ..tasks.stored import check_loss
from ..utils.errors import MechintError, NotAnswered
from ..utils.options import named
from ..utils.rundir import code_digest, weights_digest
from .request import Experiment

Directories = dict[tuple[str, str], Path]


@dataclasses.dataclass
class Prepared:
    """A loaded checkpoint, the digest of its weights, and the task of each analysis."""

    model: Model
    tasks: dict[str, Task]
    digest: str


def prepare(experiment: Experiment, checkpoint: str) -> Prepared:
    """The loaded model and the task of each analysis, checked against them."""
    run = experiment.run
    model = load(checkpoint, dtype=run.dtype, device=run.place)
    check_model(experiment.chosen(), model, checkpoint)
    wanted = {name: experiment.asked(name) for name in experiment.configs}
    made = {task: task_of(model, task) for task in dict.fromkeys(wanted.values())}
    for analysis in experiment.chosen():
        task = made[wanted[analysis.name]].config or wanted[analysis.name]
        if task != wanted[analysis.name] and (reason := analysis.refuse(experiment.configs[analysis.name], task)):
            raise MechintError(f"{analysis.title}: {reason}")
    return Prepared(model, {name: made[task] for name, task in wanted.items()}, weights_digest(model))


PATHS = ("text", "file", "tokenizer")
"""Options of a task that say where its data lies; its fingerprint, its prompts and its tokenizer identify the data."""


def key_of(
    experiment: Experiment, name: str, prepared: Prepared, directory: Path, prompts: Sequence[PromptLoader]
) -> dict[str, Any]:
    """All that the results of one analysis depend on, by content: equal keys, equal results."""
    run, config, model = experiment.run, experiment.configs[name], prepared.model
    asks = prepared.tasks[name].config or experiment.asked(name)
    options = {option: value for option, value in dataclasses.asdict(asks).items() if option not in PATHS}
    tokenizer = tokenizer_of(asks, model.tokenizer, model.config.vocab_size)
    return {
        "analysis": name,
        "weights": prepared.digest,
        "config": request(config),
        "task": {**options, "data": prepared.tasks[name].fingerprint, "prompts": prompts_digest(*prompts)},
        "tokenizer": "" if tokenizer is None else hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "inputs": analyses()[name].inputs(config, directory),
        "run": {option: getattr(run, option) for option in ("dtype", "batch_size", "seed")},
        "code": code_digest(),
    }


def prompts_digest(*loaders: PromptLoader) -> str:
    """Digest of all that the prompts say: tokens, positions, answers, twins and what else they have."""
    digest = hashlib.sha256()
    for loader in loaders:
        for prompts in loader.groups:
            for field in dataclasses.fields(prompts):
                value = getattr(prompts, field.name)
                digest.update(f"{field.name} {getattr(value, 'shape', value)}".encode())
                if isinstance(value, torch.Tensor):
                    digest.update(value.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def is_finished(directory: Path, key: dict[str, Any], rerun: bool) -> bool:
    """True if the directory holds the whole results of this very request, as they were written.

    Raises:
        MechintError: it holds those of another request, or some that were changed since.
    """
    if not finished(directory, key, rerun) or not is_complete(directory):
        return False
    if said := edited(directory):
        raise MechintError(f"{said}; {repeat()}")
    return True


def loaders(
    run: RunConfig, analysis: Analysis[Any], config: AnalysisOptions, task: Task
) -> tuple[PromptLoader, PromptLoader]:
    """The prompts of the discovery and of the evaluation half; an analysis that learns nothing evaluates all of a file.

    Raises:
        MechintError: those to evaluate on are of too few templates, and the analysis has intervals.
    """
    device = find_devices(run.place)[0]
    held_out = "evaluation" if analysis.learns or not isinstance(task, FactFile) else EVERY
    discovery, evaluation = (
        PromptLoader(task, split, count, run.batch_size, run.seed, device)
        for split, count in (("discovery", config.prompts), (held_out, config.eval_prompts))
    )
    if not analysis.lone:
        try:
            evaluation.check_intervals()
        except MechintError as error:
            raise MechintError(f"{analysis.title}: {error}") from None
    return discovery, evaluation


def check_read(task: TaskConfig, names: Sequence[str]) -> None:
    """Raises :class:`MechintError` for a file or a prompt that none of the tasks that are asked, by name, reads."""
    for source in ("file", "prompt"):
        if getattr(task, source) and source not in names:
            raise MechintError(
                f"{named('task', source)} is given, and the task is {' and '.join(map(repr, names))}, which does not "
                f"read it; set {named('task', 'name')} to {source!r}, or leave it out"
            )


def on_this_machine(checkpoint: str) -> str | None:
    """The path of a checkpoint, or the directory of a hub's model in the cache; None where it is not here."""
    if Path(checkpoint).expanduser().exists():
        return checkpoint
    found = cached(checkpoint)
    return None if found is None else str(found)


def check_all(
    experiment: Experiment, checkpoints: list[str], directories: Directories, dry_run: bool
) -> Prepared | None:
    """Refuses what some analysis of some checkpoint would refuse later; what is prepared, if it is one checkpoint.

    A dry run downloads nothing: it passes over a hub's model that is not in the cache, and says so.

    Raises:
        MechintError: the first checkpoint or analysis that cannot be worked on, by name.
    """
    prepared = None
    for checkpoint in checkpoints:
        where = on_this_machine(checkpoint) if dry_run else checkpoint
        if where is None:
            print(f"note: {checkpoint} is not on this machine, so it is not checked", file=sys.stderr, flush=True)
            continue
        try:
            prepared = prepare(experiment, where)
            for name in experiment.configs:
                check_one(experiment, name, prepared, directories[checkpoint, name])
        except NotAnswered:  # the run itself says it, and goes on to the others
            continue
        except MechintError as error:
            if len(checkpoints) == 1 or checkpoint in str(error):
                raise
            raise MechintError(f"{checkpoint}: {error}") from None
    return prepared if len(checkpoints) == 1 else None


def check_one(experiment: Experiment, name: str, prepared: Prepared, directory: Path) -> None:
    """Refuses one analysis that cannot be made: other results in its place, no prompts, or none that it can use."""
    run, analysis, config = experiment.run, analyses()[name], experiment.configs[name]
    prompts = loaders(run, analysis, config, prepared.tasks[name])
    check_loss(prepared.model, prepared.tasks[name], prompts[1])
    made_here = analysis.lacks(config, ()) is not None
    old = (directory / "results.json").exists() and not run.rerun
    if (old or not made_here) and is_finished(
        directory, key_of(experiment, name, prepared, directory, prompts), run.rerun
    ):
        return
    if made_here:
        return  # what it works on is made by another analysis of the experiment
    try:
        analyzer = analysis.analyzer(prepared.model, config, find_devices(run.place)[0], seed=run.seed)
        analyzer.check(*prompts)
    except MechintError as error:
        if len(experiment.configs) == 1 or isinstance(error, NotAnswered):
            raise
        raise MechintError(f"{analysis.title}: {error}") from None
