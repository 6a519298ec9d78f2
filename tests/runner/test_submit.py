"""`mechint submit`: jobs of one checkpoint and one analysis, here and on a stand-in for Slurm."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.base import analyses
from mechint.runner import command_line, subcommands
from mechint.runner.submit import command as submit
from mechint.runner.submit import jobs
from mechint.runner.submit.jobs import Job, SubmitConfig
from mechint.utils.errors import MechintError
from tests.helpers.commands import Here
from tests.helpers.experiments import checkpoint

FLAGS = (
    "--checkpoint=ck/*.pt", "--output-dir=out", "--no-ssm", "--sparsity", "--task-name=recall", "--task-pairs=2",
    "--task-keys=12", "--task-values=12", "--sparsity-prompts=8", "--sparsity-eval-prompts=8",
    "--sparsity-controls=0", "--sparsity-bootstrap=100",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for step in (100, 200):
        checkpoint(tmp_path / f"ck/final_model_step{step}.pt", seed=step)
    return tmp_path


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Jobs run in this process, as their command lines say; the list of these."""
    called: list[list[str]] = []

    def run(wanted: list[Job], folder: Path, at_once: int) -> list[Job]:
        for job in wanted:
            program, flags = list(job.command[:3]), list(job.command[3:])
            assert program == [sys.executable, "-m", "mechint"]
            called.append(flags)
            command_line.main(arguments=flags)
        return []

    monkeypatch.setattr(submit, "run_here", run)
    return called


def call(here: Here, place: Path, *more: str) -> Any:
    return here(lambda: subcommands.main(["submit", *FLAGS, *more]), at=place)


@pytest.mark.slow
def test_jobs_write_what_one_command_writes_and_finished_ones_are_left_out(
    place: Path, here: Here, inside: list[list[str]], no_figures: None
) -> None:
    said = call(here, place)
    assert said.status == 0, said.err
    assert len(inside) == 2 and (place / "out/comparison.html").exists()
    assert (place / "out/index.html").exists()
    runs = sorted(path.parent.name for path in place.glob("out/*/results.json"))
    assert runs == ["final_model_step100", "final_model_step200"]
    whole = here(lambda: command_line.main(arguments=list(FLAGS)), at=place)
    assert whole.status == 0 and whole.out.count("is finished in") == 2  # of the very same requests
    (place / "out/final_model_step200/.complete").unlink()  # as a killed job leaves it
    again = call(here, place)
    assert again.status == 0 and len(inside) == 3 and "step200" in " ".join(inside[2])
    assert again.out.count(": is finished") == 1


def test_a_dry_run_says_the_jobs_and_a_bad_checkpoint_stops_all(place: Path, here: Here) -> None:
    said = call(here, place, "--dry-run")
    assert said.status == 0 and said.out.count("would run") == 2 and not (place / "out").exists()
    (place / "ck/broken.pt").write_bytes(b"x")
    said = call(here, place)
    assert said.status == 2 and "broken.pt" in said.err and not (place / "out").exists()


def test_analyses_that_take_results_of_others_are_one_job() -> None:
    names = list(analyses())
    found = submit.groups(names)
    assert sorted(name for group in found for name in group) == sorted(names)
    for name in names:
        [group] = [group for group in found if name in group]
        assert set(analyses()[name].after) <= set(group)
        assert list(group) == [each for each in names if each in group]
    assert ("sparsity",) in found and submit.groups(["lens", "trace"]) == [("lens",), ("trace",)]


def job(folder: Path, *command: str, name: str = "a") -> Job:
    return Job(f"{name}.pt", ("lens",), (folder / name / "lens",), command)


def test_a_job_that_fails_is_told_with_its_reason_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sh = ("sh", "-c")
    bad = job(tmp_path, *sh, "echo before; echo error: no room >&2; exit 3", name="bad")
    good = job(tmp_path, *sh, "touch made", name="good")
    os.chdir(tmp_path)
    assert jobs.run_here([bad, good], tmp_path / "submitted", 2) == [bad]
    said = capsys.readouterr().out
    assert "bad.pt: lens: failed with status 3: error: no room" in said and "good.pt: lens: made" in said
    assert (tmp_path / "made").exists() and (tmp_path / "submitted" / bad.log).read_text().startswith("before")


NAMES = ("a b", "a_b", "a?b", "a-b", "A-b", "é", "e", "x" * 200 + "1", "x" * 200 + "2")
"""Names of checkpoints that differ in characters that a log's name does not show."""


def test_every_job_has_a_log_of_its_own(tmp_path: Path) -> None:
    several = [job(tmp_path, "sh", "-c", f"echo job {k}; exit 1", name=name) for k, name in enumerate(NAMES)]
    several.append(Job("a", ("b-lens",), (tmp_path / "a" / "b-lens",), ("sh", "-c", f"echo job {len(NAMES)}; exit 1")))
    assert jobs.run_here(several, tmp_path / "submitted", 1) == several
    logs = [(tmp_path / "submitted" / one.log).read_text() for one in several]
    assert logs == [f"job {k}\n" for k in range(len(several))]
    assert len({one.log.lower() for one in several}) == len(several)


# ---- Slurm ----------------------------------------------------------------------------------------------------------


class Slurm:
    """A stand-in for submitit, which notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        outer = self

        class AutoExecutor:
            def __init__(self, folder: str, cluster: str) -> None:
                assert cluster == "slurm" and Path(folder).is_dir()

            def update_parameters(self, **values: Any) -> None:
                outer.told.append(("limits", values))

            def map_array(self, function: Any, commands: list[Any]) -> list[Any]:
                outer.told.append(("array", commands))
                return [types.SimpleNamespace(job_id=f"41_{k}") for k in range(len(commands))]

            def submit(self, function: Any, command: list[str]) -> Any:
                outer.told.append(("last", command))
                return types.SimpleNamespace(job_id="42")

        self.AutoExecutor = AutoExecutor


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A cluster on which job 41_0 waits."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", "exit 1"), ("squeue", "echo 41_0")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    made = Slurm()
    monkeypatch.setitem(sys.modules, "submitit", made)  # type: ignore[arg-type]
    return made


def test_an_array_and_the_comparison_after_it(slurm: Slurm, place: Path, here: Here) -> None:
    more = ("--submit-executor=slurm", "--submit-minutes=30", "--submit-gpus=1", "--submit-slurm=account=lab qos=low",
            "--submit-partition=short", "--submit-at-once=8")  # fmt: skip
    said = call(here, place, *more)
    assert said.status == 0, said.err
    assert [what for what, _ in slurm.told] == ["limits", "array", "limits", "last"]
    limits, array, last, command = (value for _, value in slurm.told)
    assert limits["timeout_min"] == 30 and limits["gpus_per_node"] == 1 and limits["slurm_partition"] == "short"
    assert limits["slurm_additional_parameters"] == {"account": "lab", "qos": "low"}
    assert limits["slurm_array_parallelism"] == 8 and last["slurm_dependency"] == "afterany:41"
    assert len(array) == 2 and command[-1] == "--submit-executor=none"
    assert json.loads((place / "out/submitted/jobs.json").read_text()) == {
        "ck/final_model_step100.pt: sparsity": "41_0", "ck/final_model_step200.pt: sparsity": "41_1",
    }  # fmt: skip
    slurm.told.clear()
    said = call(here, place, *more)  # the first still waits, the second is gone without results
    assert "step100.pt: sparsity: is under way as job 41_0" in said.out
    [handed] = dict(slurm.told)["array"]
    assert any("step200.pt" in word for word in handed)


def test_the_comparison_alone_needs_something_finished(place: Path, here: Here) -> None:
    said = call(here, place, "--submit-executor=none")
    assert said.status == 2 and "none of the 2 results is finished" in said.err


def test_without_slurm_or_submitit_one_line_says_so(place: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place))
    said = call(here, place, "--submit-executor=slurm")
    assert said.status == 2 and "there is no Slurm here: sbatch" in said.err and "--submit-executor local" in said.err
    for name in ("sbatch", "squeue"):
        (place / name).write_text("#!/bin/sh\n")
        (place / name).chmod(0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)  # type: ignore[arg-type]
    said = call(here, place, "--submit-executor=slurm")
    assert said.status == 2 and "submitit, which is not installed; pip install" in said.err
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--submit-slurm=account", "--submit-executor=slurm"], "is not NAME=VALUE"),
        (["--submit-executor=lsf"], "invalid choice: 'lsf'"),
        (["--submit-at-once=0"], "at_once is 0"),
        (["--mode=from_runs"], "a submission analyses checkpoints"),
        (["--no-sparsity"], "no analysis is switched on"),
        (["--submit-minuts=3"], "no option --submit-minuts"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], says: str, slurm: Slurm, place: Path, here: Here) -> None:
    said = call(here, place, *flags)
    assert said.status == 2 and says in said.err and said.err.count("\n") == 1 and not slurm.told


def test_squeue_that_does_not_answer_is_an_error(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "jobs.json").write_text('{"a": "41_0"}')
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho down >&2; exit 1\n")
    with pytest.raises(MechintError, match=r"squeue does not answer \(down\)"):
        jobs.to_slurm([job(tmp_path)], [], tmp_path, SubmitConfig())


def test_a_failed_job_of_slurm_is_a_failure_there() -> None:
    jobs.call(["true"])
    with pytest.raises(RuntimeError, match="status 1: false"):
        jobs.call(["false"])
