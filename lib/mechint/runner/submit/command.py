"""The command ``submit``: an experiment as jobs of one checkpoint and one analysis, and their comparison afterwards.

1. Read the experiment as the flat form of the command line does, and refuse before any work what cannot be done.
2. Make a job of each checkpoint and analysis; analyses that take each other's results are one job.
3. Leave out the jobs whose results are finished, and run the others here or on Slurm.
4. Compare the finished results and write the index.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from ...analyses.base import analyses
from ...models.loading.discover import find_checkpoints
from ...utils import files
from ...utils.errors import MechintError
from ...utils.options import Parser, add_flags, from_flags
from ...utils.rundir import check_writable
from .. import command_line
from ..drawing import finished_below
from ..experiment import Plan, apart, compare, index, look, run_directories
from ..preparation import is_finished, key_of, loaders, prepare
from ..request import Experiment
from .jobs import FOLDER, Job, SubmitConfig, check_slurm, run_here, to_slurm

TITLE = "Runs an experiment as jobs, on this machine or on Slurm, and compares their results."
FLAT = ("-m", "mechint")
"""The program of a job, after the interpreter."""


def parser() -> Parser:
    top = command_line.parser()
    add_flags(top, SubmitConfig, "submit", "submission")
    return top


def own_parser() -> Parser:
    """The options of the submission alone; the others are of the experiment."""
    top = Parser(add_help=False, allow_abbrev=False)
    add_flags(top, SubmitConfig, "submit")
    top.add_argument("--submit-program", default="", help="script that takes the flags of a job")
    return top


def main(arguments: Sequence[str]) -> None:
    """Runs, or hands to Slurm, what the arguments name."""
    if "--help-all" in arguments:
        parser().parse_all(["--help-all"])
    flags, rest = own_parser().parse_known_args(arguments)
    config = from_flags(flags, SubmitConfig, "submit")
    experiment, dry_run = command_line.experiment_of(command_line.parse(rest))
    if experiment.run.mode != "posttrain":
        raise MechintError("a submission analyses checkpoints; finished runs are drawn again by the command report")
    if not experiment.configs:
        raise MechintError("no analysis is switched on; choose one or more, such as --ssm")
    if config.executor == "slurm":
        check_slurm(config)
    parts = apart(experiment)
    if len(parts) > 1:
        raise MechintError("analyses with checkpoints of their own are submitted one by one; leave out all but one")
    program = [sys.executable, *([flags.submit_program] if flags.submit_program else FLAT)]
    part = parts[0]
    if config.executor == "none":
        finish(part)
        return
    [(checkpoints, directories, known)] = look(parts, {}, dry_run)
    plan = Plan(part, checkpoints, directories, known)
    jobs = [job for checkpoint in checkpoints for job in jobs_of(plan, checkpoint, [*program, *rest])]
    waiting = [job for job in jobs if not done(plan.experiment, job)]
    for job in jobs:
        if job not in waiting:
            print(f"{job.key}: is finished", flush=True)
    if dry_run:
        print(*(f"would run {job.key} -> {', '.join(map(str, job.directories))}" for job in waiting), sep="\n")
        return
    folder = part.run.folder / FOLDER
    check_writable(folder)
    if config.executor == "slurm":
        submission = [*arguments, "--submit-executor=none"]
        to_slurm(waiting, [sys.executable, *FLAT, "submit", *submission], folder, config)
        return
    failed = run_here(waiting, folder, config.at_once)
    finish(part)
    if failed:
        raise MechintError(
            f"{len(failed)} of {len(jobs)} jobs failed ({'; '.join(job.key for job in failed)}); their logs are in "
            f"{folder}, and the same command runs them again"
        )


def groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Analyses that are made one after the other in one job, since one takes results of another; others alone."""
    found: list[set[str]] = []
    for name in names:
        linked = {name, *analyses()[name].after} & set(names)
        touching = [group for group in found if group & linked]
        found = [group for group in found if group not in touching] + [linked.union(*touching)]
    return sorted((tuple(name for name in names if name in group) for group in found), key=lambda g: names.index(g[0]))


def jobs_of(plan: Plan, checkpoint: str, command: Sequence[str]) -> list[Job]:
    """The jobs of one checkpoint: the experiment's flags, and after them those that narrow it to the job."""
    found = []
    for names in groups(list(plan.experiment.configs)):
        places = tuple(plan.directories[checkpoint, name] for name in names)
        base = places[0] if len(names) == 1 else places[0].parent
        narrow = [f"--checkpoint={checkpoint}", f"--output-dir={base}", "--label=", "--baseline="]
        switches = [f"--{name}" if name in names else f"--no-{name}" for name in analyses()]
        found.append(Job(checkpoint, names, places, (*command, *narrow, *switches)))
    return found


def done(experiment: Experiment, job: Job) -> bool:
    """True if all results of a job are there, are of this very request and were not changed."""
    if experiment.run.rerun or not all((place / "results.json").exists() for place in job.directories):
        return False
    part = dataclasses.replace(experiment, configs={name: experiment.configs[name] for name in job.names})
    prepared = prepare(part, job.checkpoint)
    for name, place in zip(job.names, job.directories, strict=True):
        prompts = loaders(part.run, analyses()[name], part.configs[name], prepared.tasks[name])
        if not is_finished(place, key_of(part, name, prepared, place, prompts), rerun=False):
            return False
    return True


def finish(experiment: Experiment) -> None:
    """Compares what is finished, and writes the index of the output directory.

    Raises:
        MechintError: nothing is finished, or a comparison could not be written.
    """
    run = experiment.run
    checkpoints = find_checkpoints(run.checkpoint)
    directories = run_directories(run, checkpoints, list(experiment.configs), experiment.several)
    missing = [key for key, place in directories.items() if not (place / "results.json").is_file()]
    known = finished_below(run.baseline, "baseline") if run.baseline else []
    if len(missing) == len(directories):
        raise MechintError(f"none of the {len(directories)} results is finished; there is nothing to compare")
    with files.lock(run.folder):
        lost = [
            f"the comparison of {title} could not be written"
            for title in (
                compare(experiment, directories, missing, known)
                if len(directories) - len(missing) + len(known) > 1
                else []
            )
        ]
        lost += index([Plan(experiment, checkpoints, directories, known)])
    if lost:
        raise MechintError("; ".join(lost) + "; the lines above say why")
