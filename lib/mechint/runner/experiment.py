"""An experiment: every checkpoint that a pattern names, every analysis that is switched on, one report each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from ..analyses.base import analyses
from ..analyses.options import RunConfig, own
from ..models.loading.discover import find_checkpoints
from ..models.loading.load import find_devices
from ..report.figure_style import formats_of, in_formats
from ..report.finished import is_complete
from ..utils import files, program, progress, wandb_run, workers
from ..utils.checkpoint_step import name_of
from ..utils.errors import MechintError, SaidElsewhere, say_failure
from ..utils.options import named
from ..utils.rundir import check_writable
from .drawing import finished_below, logging, redraw, say_index, write_comparisons
from .one_analysis import analyse_one
from .preparation import Directories, Prepared, check_all, prepare
from .request import Experiment


def run_directories(
    run: RunConfig, checkpoints: list[str], names: list[str], several: bool = False
) -> dict[tuple[str, str], Path]:
    """Returns the directory of each (checkpoint, analysis).

    One named checkpoint fills the output directory itself; a glob or a directory of checkpoints gets one directory
    for each, however many it matches today. Several analyses get one directory each below that.
    """
    several = several or len(names) > 1
    single = checkpoints == [str(Path(run.checkpoint).expanduser())]  # ./m.pt is m.pt
    labels = {checkpoint: "" if single else name_of(checkpoint) for checkpoint in checkpoints}
    above = {c: [part for part in Path(c).parent.parts if part != Path(c).anchor] for c in checkpoints}
    for depth in range(1, 1 + max(map(len, above.values()))):
        if len(set(labels.values())) < len(labels):  # as many directories as tell them apart
            labels = {c: "-".join((*parts[-depth:], name_of(c))) for c, parts in above.items()}
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


@dataclasses.dataclass
class Plan:
    """The work for the analyses whose models are in one place.

    Attributes:
        directories: Directory of each (checkpoint, analysis); empty where finished ones are drawn again.
        known: Finished analyses to compare with.
    """

    experiment: Experiment
    checkpoints: list[str] = dataclasses.field(default_factory=list)
    directories: Directories = dataclasses.field(default_factory=dict)
    known: list[Path] = dataclasses.field(default_factory=list)


Lost = list[tuple[str, str]]
"""(checkpoint, analysis) of what could not be made."""


def run_experiment(experiment: Experiment, dry_run: bool = False) -> None:
    """Analyses, or draws again, all that the options name; prints where the reports are.

    Raises:
        MechintError: something is wrong with the request, before work starts; or a checkpoint could not be
            analysed, after the others were.
    """
    with in_formats(formats_of(experiment.run.figure_formats, named("", "figure_formats"))):
        run_parts(experiment, dry_run)


def run_parts(experiment: Experiment, dry_run: bool) -> None:
    if experiment.run.mode != "from_runs" and not experiment.configs:
        raise MechintError(f"no analysis is switched on; choose one or more, such as {named('', 'ssm')}")
    if not dry_run:
        workers.join()
    parts = apart(experiment) or [experiment]
    made: dict[str, Prepared | None] = {}
    plans = [
        Plan(part, *found)
        for part, found in zip(parts, workers.by_first(lambda: look(parts, made, dry_run)), strict=True)
    ]
    if dry_run:
        for plan in plans:
            say(plan)
        return
    lost: list[str] = []
    only = len(experiment.configs) == 1 and workers.worker()[1] == 1
    groups = [group for plan in plans for group in waiting(plan)]
    several = any(len(plan.checkpoints) > 1 for plan in plans)  # of one checkpoint the processes share the work
    with progress.command(groups, workers.worker()[1] if several else 1):
        for plan in plans:
            try:
                lost += run_part(plan, made if len(plans) == 1 else {}, only, before(plans, plan))
            except Exception as error:
                if len(plans) == 1 or workers.worker()[1] > 1:
                    raise
                say_failure(error)
                lost.append(f"{', '.join(analysis.title for analysis in plan.experiment.chosen())} could not be made")
    lost += index(plans)
    workers.exchange("all is written")  # a process that ends first with a failure would end the others
    if lost:
        if workers.worker()[0] > 0:
            raise SaidElsewhere("the first process says what is lost")
        raise MechintError("; ".join(lost) + "; the lines above say why")


def waiting(plan: Plan) -> list[list[progress.Part]]:
    """The work of each checkpoint, for lines of progress; what is finished already takes no time."""
    rerun, sizes = plan.experiment.run.rerun, [size_of(checkpoint) for checkpoint in plan.checkpoints]
    if 0.0 in sizes:  # a model of a hub, say: how the others relate to it is not known
        sizes = [1.0] * len(sizes)
    return [
        [
            progress.Part(name, size)
            for name in made_in_order(plan.experiment)
            if rerun or not is_complete(plan.directories[checkpoint, name])
        ]
        for checkpoint, size in zip(plan.checkpoints, sizes, strict=True)
    ]


def before(plans: list[Plan], plan: Plan) -> int:
    """The number of checkpoints of the plans in front of one."""
    return sum(len(other.checkpoints) for other in plans[: plans.index(plan)])


def made_in_order(experiment: Experiment) -> list[str]:
    """The names of the analyses in the order in which they are made: one may take another's results."""
    return [name for name in analyses() if name in experiment.configs]


def size_of(checkpoint: str) -> float:
    """Bytes of a checkpoint's files; 0 of a model that is not a path here."""
    path = Path(checkpoint).expanduser()
    return float(sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()))


def index(plans: list[Plan]) -> list[str]:
    """Writes the index of the output directory; one that could not be written is told like a lost analysis."""
    run = plans[0].experiment.run
    if workers.worker()[0] > 0 or run.mode == "from_runs":
        return []
    asked = {directory: key for plan in plans for key, directory in plan.directories.items()}
    try:
        say_index(Path(run.output_dir), run.folder, asked)
    except Exception as error:
        say_failure(error, f"index of {run.output_dir}")
        return ["the index could not be written"]
    return []


def look(
    parts: list[Experiment], made: dict[str, Prepared | None], dry_run: bool
) -> list[tuple[list[str], Directories, list[Path]]]:
    """Checkpoints, directories and baselines of every part; refuses, before any work, what cannot be done.

    Args:
        made: Takes what was prepared of a part with one checkpoint, by the checkpoint.
    """
    found: list[tuple[list[str], Directories, list[Path]]] = []
    for part in parts:
        run = part.run
        if run.mode == "from_runs":
            finished_below(run.run_dir or run.folder, "run_dir")
            found.append(([], {}, []))
            continue
        for analysis in part.chosen():
            config = part.configs[analysis.name]
            reason = analysis.refuse(config, part.asked(analysis.name)) or analysis.lacks(config, part.configs)
            if reason:
                raise MechintError(f"{analysis.title}: {reason}")
        checkpoints = find_checkpoints(run.checkpoint)
        directories = run_directories(run, checkpoints, list(part.configs), part.several)
        known = finished_below(run.baseline, "baseline") if run.baseline else []
        if run.visualize_wandb:
            wandb_run.check()
        check_writable(run.folder, dry=True)
        found.append((checkpoints, directories, known))
    for part, (checkpoints, directories, _) in zip(parts, found, strict=True):
        made.update({checkpoint: None for checkpoint in checkpoints})
        prepared = check_all(part, checkpoints, directories, dry_run)
        if prepared is not None and not dry_run and len(parts) == 1:
            made[checkpoints[0]] = prepared
    return found


def say(plan: Plan) -> None:
    """Prints the work, without doing it."""
    if plan.experiment.run.mode == "from_runs":
        redraw(plan.experiment.run, dry_run=True)
    for (checkpoint, name), directory in plan.directories.items():
        print(f"would analyse {checkpoint} -> {directory}")
        print(f"  {analyses()[name].title}: {analyses()[name].work(plan.experiment.configs[name])}")


def run_part(plan: Plan, made: dict[str, Prepared | None], only: bool, first: int = 0) -> list[str]:
    """The analyses whose models are in one place; says which analyses failed; standard error explains each failure.

    Args:
        made: Prepared runs, by the checkpoint.
        only: There is no other analysis, and no other process: its failure is raised.
        first: Checkpoints of other plans in front of these.
    """
    experiment, run, checkpoints = plan.experiment, plan.experiment.run, plan.checkpoints
    rank, world = workers.worker()
    if run.mode == "from_runs":
        if rank == 0:
            redraw(run, dry_run=False)
        return []
    lost: Lost = []
    with contextlib.ExitStack() as held:

        def hold() -> None:
            check_writable(run.folder)
            held.enter_context(files.lock(run.folder))

        workers.by_first(hold)
        shared = world > 1 and len(checkpoints) == 1
        for k in range(1) if shared else workers.deal(len(checkpoints)):
            checkpoint = checkpoints[k]
            taken = None if shared else functools.partial(taken_by_all, first, len(checkpoints))
            progress.current().enter(first + k, taken)
            try:
                lost += analyse(experiment, checkpoint, plan.directories, made.pop(checkpoint, None), shared, only)
            except Exception as error:
                if len(checkpoints) == 1:
                    raise
                say_failure(error, checkpoint)
                lost += [(checkpoint, name) for name in experiment.configs]
        every = workers.exchange(lost)
        failures = [key for key in plan.directories if any(key in some for some in every)]
        uncompared = []
        if len(checkpoints) + len(plan.known) > 1 and rank == 0:
            uncompared = compare(experiment, plan.directories, failures, plan.known)
    said = [lost_ones(checkpoints, failures, len(plan.directories))] if failures else []
    return said + [f"the comparison of {name} could not be written" for name in workers.exchange(uncompared)[0]]


def taken_by_all(first: int, count: int) -> int:
    """Counts the checkpoints that are taken: ``first`` of other plans, and those of the ``count`` under way."""
    return first + workers.dealt(count)


def lost_ones(checkpoints: list[str], failures: Lost, among: int) -> str:
    """Says in one line what could not be made, of several checkpoints or of several analyses of one, ``among`` all that
    there are."""
    if len(checkpoints) > 1:
        lost = list(dict.fromkeys(checkpoint for checkpoint, _ in failures))
        return f"{len(lost)} of {len(checkpoints)} checkpoints could not be analysed ({', '.join(lost)})"
    names = ", ".join(analyses()[name].title for _, name in failures)
    others = "; the others are finished" if len(failures) < among else ""
    return f"{len(failures)} of the analyses of {checkpoints[0]} could not be made ({names}){others}"


def analyse(
    experiment: Experiment,
    checkpoint: str,
    directories: Directories,
    prepared: Prepared | None = None,
    shared: bool = False,
    only: bool = False,
) -> Lost:
    """Every analysis of one checkpoint; where one of several fails, the others are made.

    Args:
        prepared: The checkpoint, where it is loaded already.
        shared: All processes are at it: the first one analyses, and the others assist where an analysis has work to
            share.
        only: The failure of the one analysis is raised.

    Returns:
        The analyses that failed; standard error says why.
    """
    prepared = prepared or prepare(experiment, checkpoint)
    if program.is_ours():
        program.keep_memory(large=sum(weight.numel() for weight in prepared.model.parameters()) >= program.LARGE)
    if all(device.type == "cpu" for device in find_devices(experiment.run.place)):
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports the compiler: 2 s
        # torch then fills memory with NaN before a result is written over it: a tenth of the time of a search
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    lost: Lost = []
    for name in made_in_order(experiment):
        by_all = shared and analyses()[name].shares
        if shared and workers.worker()[0] > 0 and not by_all:
            continue
        if shared and not by_all:
            print(f"note: {analyses()[name].title} of one checkpoint is the work of one process; the others wait")
        try:
            with (
                progress.current().part(name),
                logging(experiment.run, experiment.asked(name), checkpoint, name, experiment.configs[name]),
            ):
                analyse_one(experiment, name, checkpoint, directories[checkpoint, name], prepared, by_all)
        except Exception as error:
            if only or by_all:  # the other processes wait for this one in the middle of their work
                raise
            say_failure(error, f"{checkpoint}: {analyses()[name].title}")
            lost.append((checkpoint, name))
        program.give_back()
    return lost


def compare(experiment: Experiment, directories: Directories, failures: Lost, known: list[Path]) -> list[str]:
    """One comparison for each analysis over the checkpoints that could be analysed, after those known before.

    Returns:
        The titles of those that could not be written; standard error says why.
    """
    lost = []
    for name in experiment.configs:
        done = [path for path in known if files.read_json(path / "results.json").get("analysis") == name]
        for (checkpoint, other), path in directories.items():
            if other == name and (checkpoint, name) not in failures and path.resolve() not in map(Path.resolve, done):
                done.append(path)
        if len(done) < 2:
            continue
        target = experiment.run.folder
        try:
            write_comparisons(done, target / name if experiment.several or len(experiment.configs) > 1 else target)
        except Exception as error:
            say_failure(error, f"comparison of {analyses()[name].title}")
            lost.append(analyses()[name].title)
    return lost
