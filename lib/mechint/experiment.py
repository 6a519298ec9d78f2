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

from . import files, scan, workers
from .analysis import Analysis, analyses, check_family
from .discover import find_checkpoints
from .errors import MechintError
from .loader import PromptLoader
from .models.load import find_device, load
from .report import COMPARISONS, kind_of, log_wandb, write_report
from .run_config import RunConfig, elsewhere, own, request
from .rundir import check_writable, fingerprint, manifest, weights_digest
from .tasks import Task, make_task
from .tasks.config import TaskConfig

SCHEMA = 1


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
    defconfig: Callable[[RunConfig, dict[str, Any]], str] | None = None
    several: bool = False
    """Whether it is a part of one with further analyses."""

    def chosen(self) -> list[Analysis]:
        return [analyses()[name] for name in self.configs]


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
    base = folder(run)
    return {
        (checkpoint, name): base / label / (name if several else "")
        for checkpoint, label in labels.items()
        for name in names
    }


def folder(run: RunConfig) -> Path:
    """Where the results of these checkpoints go."""
    return Path(run.output_dir) / run.label


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
        reason = analysis.refuse(config, experiment.task) or analysis.lacks(config, experiment.configs)
        if reason:
            raise MechintError(f"{analysis.title}: {reason}")
    checkpoints = find_checkpoints(run.checkpoint)
    directories = run_directories(run, checkpoints, list(experiment.configs), experiment.several)
    known = finished_below(run.baseline, "BASELINE") if run.baseline else []
    if dry_run:
        for (checkpoint, name), directory in directories.items():
            print(f"would analyse {checkpoint} -> {directory}")
            print(f"  {analyses()[name].title}: {analyses()[name].work(experiment.configs[name])}")
        return
    check_writable(folder(run))
    workers.join()
    rank, world = workers.worker()
    with files.lock(folder(run)) if rank == 0 else contextlib.nullcontext():
        if len(checkpoints) > 1:
            for checkpoint in checkpoints:  # every one is checked before the first is worked on
                prepare(experiment, checkpoint)
        failed = []
        shared = world > 1 and len(checkpoints) == 1
        for checkpoint in checkpoints if shared else checkpoints[rank::world]:
            try:
                analyse(experiment, checkpoint, directories, shared)
            except MechintError as error:
                if len(checkpoints) == 1:
                    raise
                print(f"error: {error}", file=sys.stderr, flush=True)
                failed.append(checkpoint)
        every = workers.gather_parts({rank: failed})
        failures = [checkpoint for checkpoint in checkpoints if any(checkpoint in some for some in every.values())]
        if len(checkpoints) + len(known) > 1 and rank == 0:
            compare(experiment, directories, failures, known)
    if failures:
        raise MechintError(
            f"{len(failures)} of {len(checkpoints)} checkpoints could not be analysed ({', '.join(failures)}); "
            f"the lines above say why"
        )


def prepare(experiment: Experiment, checkpoint: str) -> tuple[Any, Task]:
    """The loaded model and its task, checked against the analyses."""
    run = experiment.run
    model = load(checkpoint, dtype=run.dtype, device=find_device(run.device))
    check_family(experiment.chosen(), model.config.family, checkpoint)
    return model, make_task(experiment.task, tokenizer=model.tokenizer, vocab_size=model.config.vocab_size)


def analyse(
    experiment: Experiment, checkpoint: str, directories: dict[tuple[str, str], Path], shared: bool = False
) -> None:
    """Every analysis of one checkpoint.

    Args:
        shared: All processes are at it: the first one analyses, and the others assist where an analysis has work to
            share.
    """
    run, helper = experiment.run, shared and workers.worker()[0] > 0
    model, task = prepare(experiment, checkpoint)
    digest = weights_digest(model)
    device = find_device(run.device)
    if device.type == "cpu":
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports the compiler: 2 s
    for analysis in experiment.chosen():
        if helper and not analysis.shares:
            continue
        directory, config = directories[checkpoint, analysis.name], experiment.configs[analysis.name]
        apart = shared and analysis.shares
        key = {
            "analysis": analysis.name,
            "weights": digest,
            "config": request(config),
            "task": {**dataclasses.asdict(experiment.task), "data": task.fingerprint},
            "run": {name: getattr(run, name) for name in ("dtype", "batch_size", "seed")},
        }
        with workers.together() if apart else contextlib.nullcontext():
            done = workers.from_first(None if helper else finished(directory, key, run.rerun))
        if done and not helper:
            print(f"{checkpoint}: {analysis.title} is finished in {directory}, skipped (RERUN repeats it)", flush=True)
        if done:
            continue
        if not helper:
            print(f"{checkpoint}: {analysis.title} on the task {task.name!r} -> {directory}", flush=True)
            if shared and not apart:
                print(
                    f"note: {analysis.title} of one checkpoint is the work of one process; the others wait", flush=True
                )
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
        analyzer.shared = apart
        loaders = [
            PromptLoader(task, split, count, run.batch_size, run.seed, device)
            for split, count in (("discovery", config.prompts), ("evaluation", config.eval_prompts))
        ]
        if helper:
            analyzer.assist(*loaders)
            continue
        for name in (
            "results.json",
            "final_masks.pt",
            "effects.pt",
            "claims.json",
        ):  # of another run: not to be mistaken for this one's
            with contextlib.suppress(FileNotFoundError):
                (directory / name).unlink()
        found = analyzer.run_analysis(*loaders)
        written = analyzer.save_results()
        if not run.save_masks:
            (directory / "final_masks.pt").unlink(missing_ok=True)
        results = {
            "schema": SCHEMA,
            "analysis": analysis.name,
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
                **{name: model.metadata[name] for name in ("variant",) if model.metadata.get(name)},
            },
            "task": describe(task, *loaders),
            "config": request(config),
            **found,
        }
        files.write_json(directory / "results.json", results)
        if experiment.defconfig is not None:
            one = dataclasses.replace(run, checkpoint=checkpoint, output_dir=str(directory), label="", baseline="")
            files.write_text(directory / "config", experiment.defconfig(one, {analysis.name: elsewhere(config)}))
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


def finished(directory: Path, key: dict[str, Any], rerun: bool) -> bool:
    """Whether ``directory`` holds the finished results of this very request.

    Raises:
        MechintError: it holds the finished results of another one, which would be lost.
    """
    path = directory / "results.json"
    if rerun or not path.exists():
        return False
    old = files.read_json(path).get("key", {})
    if old == key:
        return not (directory / ".stages").exists()
    if (directory / ".stages").exists():
        return False  # results of a run that did not get to its report: nothing finished is lost
    flat_old, flat_new = _flat(old), _flat(key)
    changed = [
        f"{name} is {flat_new.get(name)!r} and was {flat_old.get(name)!r}"
        for name in sorted({*flat_old, *flat_new})
        if flat_old.get(name) != flat_new.get(name)
    ]
    raise MechintError(
        f"{directory} holds the finished results of another request ({'; '.join(changed[:3])}); "
        f"choose another OUTPUT_DIR, or set RERUN to replace them"
    )


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        flat |= _flat(entry, f"{prefix}{name}.") if isinstance(entry, dict) else {f"{prefix}{name}": entry}
    return flat


def draw(run: RunConfig, directory: Path) -> None:
    """The report of one run directory, and its W&B run."""
    drawable = kind_of(directory) != "circuit" or (directory / "final_masks.pt").exists()
    write_report(
        directory,
        heatmaps=run.visualize_heatmaps and drawable,
        curves=run.visualize_curves,
        faithfulness=run.visualize_faithfulness,
    )
    if run.visualize_wandb:
        log_wandb(directory, run.wandb_project, directory.name or "run")


def redraw(run: RunConfig, dry_run: bool) -> None:
    """Reports again from what finished analyses left; masks and numbers are not touched."""
    top = Path(run.run_dir or folder(run))
    found = finished_below(top, "RUN_DIR")
    for directory in found:
        print(f"{'would draw' if dry_run else 'drawing'} {directory} again", flush=True)
    if dry_run:
        return
    check_writable(top)
    with files.lock(top):
        for directory in found:
            draw(run, directory)
            print(f"report: {directory / 'report.html'}")
        if len(found) > 1:
            _compare(found, top)


def finished_below(top: str | Path, option: str) -> list[Path]:
    """The finished analyses in a directory and below it: by label, checkpoint and analysis."""
    found = sorted(path.parent for depth in range(4) for path in Path(top).glob("*/" * depth + "results.json"))
    if not found:
        raise MechintError(
            f"{top} holds no finished analysis (no results.json in it or below it); run one first, or name another "
            f"with {option}"
        )
    return found


def compare(
    experiment: Experiment, directories: dict[tuple[str, str], Path], failures: list[str], known: list[Path]
) -> None:
    """One comparison for each analysis over the checkpoints that could be analysed, behind those known before."""
    for name in experiment.configs:
        done = [path for path in known if files.read_json(path / "results.json").get("analysis") == name]
        for (checkpoint, other), path in directories.items():
            if other == name and checkpoint not in failures and path.resolve() not in map(Path.resolve, done):
                done.append(path)
        if len(done) > 1:
            target = folder(experiment.run)
            _compare(done, target / name if experiment.several or len(experiment.configs) > 1 else target)


def _compare(directories: list[Path], target: Path) -> None:
    for kind, write in COMPARISONS.items():
        alike = [directory for directory in directories if kind_of(directory) == kind]
        if len(alike) < 2:
            continue
        for path in write(alike, target if len(alike) == len(directories) else target / kind):
            if path.suffix == ".html":
                print(f"comparison: {path}")
    if sum(kind_of(directory) == "patch" for directory in directories) > 1:
        print("no comparison is written of several patchings; each has its own report")
