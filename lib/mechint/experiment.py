"""An experiment: every checkpoint that a pattern names, every analysis that is switched on, one report each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import files, scan, wandb_run, workers
from .analysis import Analysis, analyses, check_family
from .discover import find_checkpoints
from .drawing import draw, finished_below, logging, redraw, write_comparisons
from .errors import MechintError, NotAnswered
from .loader import PromptLoader
from .models.load import find_device, load
from .run_config import RunConfig, asked, elsewhere, own, request
from .rundir import check_writable, fingerprint, finished, manifest, weights_digest
from .statistics import FEWEST
from .tasks import Task, make_task
from .tasks.config import TaskConfig

SCHEMA = 1
DefconfigText = Callable[[RunConfig, TaskConfig, dict[str, Any]], str]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What to do: the shared options, the task, and the options of each analysis that is switched on.

    Attributes:
        defconfig: The text of the minimal configuration that repeats the experiment on one checkpoint and analysis,
            or None when the caller has no such thing (a notebook).
    """

    run: RunConfig
    task: TaskConfig
    configs: dict[str, Any]
    defconfig: DefconfigText | None = None
    several: bool = False
    """Whether it is a part of one with further analyses."""

    def chosen(self) -> list[Analysis]:
        return [analyses()[name] for name in self.configs]

    def asked(self, name: str) -> TaskConfig:
        """The task of one analysis."""
        return asked(self.task, self.configs[name])


def run_directories(
    run: RunConfig, checkpoints: list[str], names: list[str], several: bool = False
) -> dict[tuple[str, str], Path]:
    """Where each (checkpoint, analysis) goes.

    One named checkpoint fills the output directory itself; a glob or a directory of checkpoints gets one directory
    for each, however many it matches today. Several analyses get one directory each below that.
    """
    several = several or len(names) > 1
    single = checkpoints == [str(Path(run.checkpoint).expanduser())]  # ./m.pt is m.pt
    labels = {checkpoint: "" if single else Path(checkpoint).stem for checkpoint in checkpoints}
    if len(set(labels.values())) < len(labels):
        labels = {c: f"{Path(c).parent.name}-{Path(c).stem}" for c in checkpoints}
    if len(set(labels.values())) < len(labels):
        raise MechintError(f"{run.checkpoint}: two of the checkpoints would share a directory; name them apart")
    base = run.folder
    return {
        (checkpoint, name): base / label / (name if several else "")
        for checkpoint, label in labels.items()
        for name in names
    }


def apart(experiment: Experiment) -> list[Experiment]:
    """The experiment, split where analyses have models of their own."""
    places: dict[RunConfig, dict[str, Any]] = {}
    for name, config in experiment.configs.items():
        places.setdefault(own(experiment.run, config), {})[name] = config
    several = len(experiment.configs) > 1
    return [dataclasses.replace(experiment, run=run, configs=c, several=several) for run, c in places.items()]


def run_experiment(experiment: Experiment, dry_run: bool = False) -> None:
    """Analyses, or draws again, all that the options name; prints where the reports are.

    Raises:
        MechintError: something is wrong with the request, before work starts; or a checkpoint could not be
            analysed, after the others were.
    """
    if experiment.run.mode != "from_runs" and not experiment.configs:
        raise MechintError(
            "no analysis is switched on; choose one in the menu (KNLP_MECHINT_SSM=y) or on the command line"
        )
    for part in apart(experiment) or [experiment]:
        run_part(part, dry_run)


def run_part(experiment: Experiment, dry_run: bool) -> None:
    """The analyses whose models are in one place.

    Raises:
        MechintError: something is wrong with the request, before work starts; or a checkpoint could not be
            analysed, after the others were.
    """
    run = experiment.run
    if run.mode == "from_runs":
        redraw(run, dry_run)
        return
    for analysis in experiment.chosen():
        config = experiment.configs[analysis.name]
        reason = analysis.refuse(config, experiment.asked(analysis.name)) or analysis.lacks(config, experiment.configs)
        if reason:
            raise MechintError(f"{analysis.title}: {reason}")
    checkpoints = find_checkpoints(run.checkpoint)
    directories = run_directories(run, checkpoints, list(experiment.configs), experiment.several)
    known = finished_below(run.baseline, "BASELINE") if run.baseline else []
    if run.visualize_wandb:
        wandb_run.check()
    if dry_run:
        for (checkpoint, name), directory in directories.items():
            print(f"would analyse {checkpoint} -> {directory}")
            print(f"  {analyses()[name].title}: {analyses()[name].work(experiment.configs[name])}")
        return
    check_writable(run.folder)
    workers.join()
    rank, world = workers.worker()
    with files.lock(run.folder) if rank == 0 else contextlib.nullcontext():
        if len(checkpoints) > 1:
            for checkpoint in checkpoints:  # every one is checked before the first is worked on
                prepare(experiment, checkpoint)
        failed: list[tuple[str, str]] = []
        shared = world > 1 and len(checkpoints) == 1
        for checkpoint in checkpoints if shared else (checkpoints[k] for k in workers.deal(len(checkpoints))):
            try:
                lost = analyse(experiment, checkpoint, directories, shared)
            except MechintError as error:
                if len(checkpoints) == 1:
                    raise
                print(f"error: {error}", file=sys.stderr, flush=True)
                lost = list(experiment.configs)
            failed += [(checkpoint, name) for name in lost]
        every = workers.exchange(failed)
        failures = [key for key in directories if any(key in some for some in every)]
        if len(checkpoints) + len(known) > 1 and rank == 0:
            compare(experiment, directories, failures, known)
    if failures:
        raise MechintError(lost_ones(checkpoints, failures))


def lost_ones(checkpoints: list[str], failures: list[tuple[str, str]]) -> str:
    """What could not be made, of several checkpoints or of several analyses of one."""
    if len(checkpoints) > 1:
        lost = list(dict.fromkeys(checkpoint for checkpoint, _ in failures))
        what = f"{len(lost)} of {len(checkpoints)} checkpoints could not be analysed ({', '.join(lost)})"
    else:
        names = ", ".join(analyses()[name].title for _, name in failures)
        what = (
            f"{len(failures)} of the analyses of {checkpoints[0]} could not be made ({names}); the others are finished"
        )
    return f"{what}; the lines above say why"


def prepare(experiment: Experiment, checkpoint: str) -> tuple[Any, dict[str, Task]]:
    """The loaded model and the task of each analysis, checked against them."""
    run = experiment.run
    model = load(checkpoint, dtype=run.dtype, device=find_device(run.device))
    check_family(experiment.chosen(), model.config.family, checkpoint)
    wanted = {name: experiment.asked(name) for name in experiment.configs}
    made = {
        task: make_task(task, tokenizer=model.tokenizer, vocab_size=model.config.vocab_size)
        for task in dict.fromkeys(wanted.values())
    }
    return model, {name: made[task] for name, task in wanted.items()}


def analyse(
    experiment: Experiment, checkpoint: str, directories: dict[tuple[str, str], Path], shared: bool = False
) -> list[str]:
    """Every analysis of one checkpoint; where it does not answer what one of several asks, the others are made.

    Args:
        shared: All processes are at it: the first one analyses, and the others assist where an analysis has work to
            share.

    Returns:
        The names of those that could not be made; standard error says why.

    Raises:
        MechintError: something is wrong with the request, or the checkpoint does not answer its only analysis.
    """
    model, tasks = prepare(experiment, checkpoint)
    digest = weights_digest(model)
    if find_device(experiment.run.device).type == "cpu":
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports the compiler: 2 s
    failed = []
    for name in experiment.configs:
        by_all = shared and analyses()[name].shares
        if shared and workers.worker()[0] > 0 and not by_all:
            continue
        if shared and not by_all:
            print(f"note: {analyses()[name].title} of one checkpoint is the work of one process; the others wait")
        try:
            with logging(experiment.run, checkpoint, name, experiment.configs[name]):
                analyse_one(
                    experiment, name, checkpoint, directories[checkpoint, name], model, tasks[name], digest, by_all
                )
        except NotAnswered as error:
            if len(experiment.configs) == 1 or by_all:
                raise
            print(f"error: {analyses()[name].title}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
    return failed


def analyse_one(
    experiment: Experiment, name: str, checkpoint: str, directory: Path, model: Any, task: Task, digest: str,
    by_all: bool,
) -> None:  # fmt: skip
    """One analysis of one checkpoint, unless it is finished; ``by_all`` where all processes share its work."""
    run, analysis, config = experiment.run, analyses()[name], experiment.configs[name]
    helper = by_all and workers.worker()[0] > 0
    device, asks = find_device(run.device), experiment.asked(name)
    key = {
        "analysis": name,
        "weights": digest,
        "config": request(config),
        "task": {**dataclasses.asdict(asks), "data": task.fingerprint},
        "run": {option: getattr(run, option) for option in ("dtype", "batch_size", "seed")},
    }
    with workers.together() if by_all else contextlib.nullcontext():
        done = workers.from_first(None if helper else finished(directory, key, run.rerun))
    if done and not helper:
        print(f"{checkpoint}: {analysis.title} is finished in {directory}, skipped (RERUN repeats it)", flush=True)
    if done:
        return
    if not helper:
        print(f"{checkpoint}: {analysis.title} on the task {task.name!r} -> {directory}", flush=True)
    start = time.monotonic()
    analyzer = analysis.analyzer(
        model,
        config,
        device,
        seed=run.seed,
        run_dir=None if helper else directory,
        key=fingerprint(
            {**key, "threads": torch.get_num_threads(), "scan": scan.chosen(torch.empty(0, device=device))}
        ),
    )
    analyzer.shared = by_all
    loaders = [
        PromptLoader(task, split, count, run.batch_size, run.seed, device)
        for split, count in (("discovery", config.prompts), ("evaluation", config.eval_prompts))
    ]
    if not analysis.lone and (clusters := len(set(loaders[1].templates().tolist()))) < FEWEST:
        have = "one template (or subject)" if clusters == 1 else f"{clusters} templates (or subjects)"
        raise MechintError(
            f"{analysis.title}: the prompts of the task {task.name!r} to evaluate on have {have}: no number would have "
            f"an interval; give prompts of several, at least {FEWEST}"
        )
    if helper:
        analyzer.assist(*loaders)
        return
    for old in ("results.json", "final_masks.pt", "effects.pt", "claims.json"):  # of another run, not this one's
        (directory / old).unlink(missing_ok=True)
    found = analyzer.run_analysis(*loaders)
    written = analyzer.save_results()
    if not run.save_masks:
        (directory / "final_masks.pt").unlink(missing_ok=True)
    results = {
        "schema": SCHEMA,
        "analysis": name,
        "title": analysis.title,
        "checkpoint": checkpoint,
        "status": "complete",
        "key": key,
        "model": {
            "family": model.config.family,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "n_layer": model.config.n_layer,
            "d_model": model.config.d_model,
            "sha256": digest,
            **{said: model.metadata[said] for said in ("variant",) if model.metadata.get(said)},
        },
        "task": describe(task, *loaders),
        "config": request(config),
        **found,
    }
    files.write_json(directory / "results.json", results)
    if experiment.defconfig is not None:
        one = dataclasses.replace(run, checkpoint=checkpoint, output_dir=str(directory), label="", baseline="")
        files.write_text(directory / "config", experiment.defconfig(one, asks, {name: elsewhere(config)}))
    files.write_json(
        directory / "manifest.json",
        manifest(
            device=str(device),
            scan=scan.chosen(torch.empty(0, device=device)),
            dtype=run.dtype,
            seed=run.seed,
            configuration=fingerprint(key),
            weights=digest,
            prompts=prompts_digest(*loaders),
            resumed=analyzer.stages.resumed,
            seconds=round(time.monotonic() - start, 1),
            peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            files=sorted(path.name for path in written),
        ),
    )
    draw(run, directory)
    analyzer.stages.clear()
    print(*analysis.summary(results), f"  report: {directory / 'report.html'}", sep="\n", flush=True)


def describe(task: Task, discovery: PromptLoader, evaluation: PromptLoader) -> dict[str, Any]:
    return {
        "name": task.name,
        "description": task.description,
        "discovery_prompts": len(discovery.templates()),
        "evaluation_prompts": len(evaluation.templates()),
        "evaluation_templates": len(set(evaluation.templates().tolist())),
        "answers_per_prompt": int(evaluation.groups[0].answers.shape[1]),
    }


def prompts_digest(*loaders: PromptLoader) -> str:
    digest = hashlib.sha256()
    for loader in loaders:
        for prompts in loader.groups:
            for tensor in (prompts.tokens, prompts.positions, prompts.answers):
                digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def compare(
    experiment: Experiment,
    directories: dict[tuple[str, str], Path],
    failures: list[tuple[str, str]],
    known: list[Path],
) -> None:
    """One comparison for each analysis over the checkpoints that could be analysed, behind those known before."""
    for name in experiment.configs:
        done = [path for path in known if files.read_json(path / "results.json").get("analysis") == name]
        for (checkpoint, other), path in directories.items():
            if other == name and (checkpoint, name) not in failures and path.resolve() not in map(Path.resolve, done):
                done.append(path)
        if len(done) > 1:
            target = experiment.run.folder
            write_comparisons(done, target / name if experiment.several or len(experiment.configs) > 1 else target)
