"""Jobs of an experiment, and the two places where they run: processes of this machine, and an array of Slurm.

A job is the ordinary command line of one checkpoint and one analysis, which skips what is finished and resumes what
was killed; so a submission can be repeated at any time.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils import files
from ...utils.errors import MechintError, one_line, short
from ...utils.options import option
from ...utils.rundir import fingerprint

EXECUTORS = ("local", "slurm", "none")
FOLDER = "submitted"
"""The directory of logs and of the list of jobs, in that of the results."""
LIST = "jobs.json"
LONGEST = 50
"""Characters of a job's own name in that of its log: a file's has 255 bytes at the most."""


@dataclass(frozen=True)
class SubmitConfig:
    """Says where jobs run, how many at once, and what each may use."""

    executor: str = option(
        "local",
        "Run jobs as processes of this machine (local), as an array of Slurm (slurm), or only compare what is finished "
        "(none)",
        choices=EXECUTORS,
    )
    at_once: int = option(1, "Jobs that run at the same time", unit="jobs", low=1, high=10_000)
    minutes: int = option(240, "Time limit of a job on Slurm", unit="minutes", low=1, high=100_000)
    cpus: int = option(4, "Cores of a job on Slurm", unit="cores", low=1, high=1024)
    gpus: int = option(0, "GPUs of a job on Slurm", unit="GPUs", low=0, high=64)
    memory: int = option(16, "Memory of a job on Slurm", unit="GB", low=1, high=10_000)
    partition: str = option("", "Partition of Slurm; empty takes its default")
    slurm: str = option("", "Further options of sbatch: 'account=lab qos=low'")


@dataclass(frozen=True)
class Job:
    """One checkpoint and the analyses that are made together, with the directory of each result.

    Attributes:
        command: The command line that makes them.
    """

    checkpoint: str
    names: tuple[str, ...]
    directories: tuple[Path, ...]
    command: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.checkpoint}: {', '.join(self.names)}"

    @property
    def log(self) -> str:
        """The name of its log file on this machine, which no other job has: it ends in a digest of the job's."""
        stem = "-".join(self.directories[0].parts[-2:])[:LONGEST]
        plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem)
        return f"{plain}-{fingerprint([self.key, *map(str, self.directories)])[:8]}.log"


def run_here(jobs: Sequence[Job], folder: Path, at_once: int) -> list[Job]:
    """Runs jobs as processes, some at the same time; prints how each ended, and returns those that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // at_once))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    if at_once == 1 and "OMP_NUM_THREADS" not in os.environ:
        del environment["OMP_NUM_THREADS"]

    def one(job: Job) -> int:
        with open(folder / job.log, "wb") as log:
            return subprocess.run(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            ).returncode

    failed = []
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(one, job): job for job in jobs}
        for ended in concurrent.futures.as_completed(running):
            job = running[ended]
            if status := ended.result():
                failed.append(job)
                print(f"{job.key}: failed with status {status}: {last_line(folder / job.log)}", flush=True)
            else:
                print(f"{job.key}: made ({folder / job.log})", flush=True)
    return [job for job in jobs if job in failed]


def last_line(log: Path) -> str:
    """The last error that a log tells, or its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return short(one_line((errors or lines or ["it printed nothing"])[-1]))


def call(command: Sequence[str]) -> None:
    """Runs a command line within a job of Slurm.

    Raises:
        RuntimeError: it failed; submitit then marks the job as failed.
    """
    status = subprocess.run(list(command), stdin=subprocess.DEVNULL).returncode
    if status:
        raise RuntimeError(f"status {status}: {shlex.join(command)}")


def check_slurm(config: SubmitConfig) -> dict[str, str]:
    """The further options of sbatch.

    Raises:
        MechintError: Slurm or submitit is missing, or an option is not NAME=VALUE.
    """
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise MechintError(
                f"there is no Slurm here: {program} is not on the PATH; submit on a login node of the cluster, or run "
                "the jobs on this machine with --submit-executor local"
            )
    submitit()
    more = {}
    for word in shlex.split(config.slurm):
        name, equals, value = word.partition("=")
        if not (equals and name.replace("-", "").replace("_", "").isalnum()):
            raise MechintError(f"--submit-slurm holds {word!r}, which is not NAME=VALUE; write 'account=lab qos=low'")
        more[name.replace("-", "_")] = value
    return more


def submitit() -> Any:
    """The package submitit.

    Raises:
        MechintError: it is not installed.
    """
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise MechintError(
            "jobs are handed to Slurm by submitit, which is not installed; pip install 'mechint[cluster]' (or "
            "submitit), or run them on this machine with --submit-executor local"
        ) from None


def under_way(folder: Path) -> dict[str, str]:
    """The numbers of earlier jobs that still wait or run, by the key of each job.

    Raises:
        MechintError: squeue does not answer.
    """
    path = folder / LIST
    if not path.is_file():
        return {}
    told = {str(key): str(number) for key, number in files.read_json(path).items()}
    done = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True)
    if done.returncode:
        raise MechintError(f"squeue does not answer ({one_line(done.stderr)}); try again when Slurm does")
    alive = set(done.stdout.split())
    return {key: number for key, number in told.items() if number in alive}


def to_slurm(jobs: Sequence[Job], compare: Sequence[str], folder: Path, config: SubmitConfig) -> None:
    """Hands jobs to Slurm as one array, and the comparison as a job that waits for all of them.

    Those that an earlier submission left waiting or running are not handed over again.
    """
    more = check_slurm(config)
    known = under_way(folder)
    for job in jobs:
        if job.key in known:
            print(f"{job.key}: is under way as job {known[job.key]}")
    new = [job for job in jobs if job.key not in known]
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit().AutoExecutor(folder=str(folder), cluster="slurm")
    limits: dict[str, object] = {"timeout_min": config.minutes, "cpus_per_task": config.cpus, "mem_gb": config.memory}
    limits |= {"gpus_per_node": config.gpus} if config.gpus else {}
    limits |= {"slurm_partition": config.partition} if config.partition else {}
    limits |= {"slurm_additional_parameters": more} if more else {}
    executor.update_parameters(**limits, name="mechint", slurm_array_parallelism=config.at_once)
    made = executor.map_array(call, [job.command for job in new]) if new else []
    numbers = {**known, **{job.key: str(one.job_id) for job, one in zip(new, made, strict=True)}}
    files.write_json(folder / LIST, numbers)
    for job in new:
        print(f"{job.key}: job {numbers[job.key]}")
    first = dict.fromkeys(number.partition("_")[0] for number in numbers.values())
    waits = {"slurm_dependency": f"afterany:{':'.join(first)}"} if first else {}
    executor.update_parameters(name="mechint-compare", slurm_array_parallelism=1, **waits)
    last = executor.submit(call, compare)
    print(f"comparison and index: job {last.job_id}, after the others; logs are in {folder}", flush=True)
