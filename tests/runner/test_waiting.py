"""The plan of an experiment as lines of progress know it: sizes of checkpoints, what is finished, what is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechint.analyses.base import analyses
from mechint.analyses.options import RunConfig
from mechint.report.finished import COMPLETE
from mechint.runner.experiment import Plan, before, size_of, taken_by_all, waiting
from mechint.runner.request import Experiment
from mechint.tasks.config import TaskConfig
from mechint.utils import workers
from mechint.utils.progress import Part


def plan_of(top: Path, checkpoints: list[str], **options: bool) -> Plan:
    run = RunConfig(checkpoint=str(top), output_dir=str(top / "out"), **options)  # type: ignore[arg-type]
    names = ("trace", "patch")
    configs = {name: analyses()[name].config() for name in names}
    directories = {(c, name): top / "out" / Path(c).stem / name for c in checkpoints for name in names}
    return Plan(Experiment(run, TaskConfig(), configs), checkpoints, directories)


def test_parts_wait_in_the_order_in_which_they_are_made_with_the_size_of_their_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x" * 10)
    (tmp_path / "b").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "b" / name).write_bytes(b"x" * 20)
    names = [str(tmp_path / "a.pt"), str(tmp_path / "b")]
    assert [size_of(name) for name in (*names, "hub/model")] == [10.0, 40.0, 0.0]
    order = [name for name in analyses() if name in ("trace", "patch")]
    plan = plan_of(tmp_path, names)
    assert waiting(plan) == [[Part(name, size) for name in order] for size in (10.0, 40.0)]
    done = plan.directories[names[0], "trace"]
    done.mkdir(parents=True)
    (done / COMPLETE).touch()
    assert waiting(plan)[0] == [Part("patch", 10.0)]
    assert waiting(plan_of(tmp_path, names, rerun=True))[0] == [Part(name, 10.0) for name in order]
    assert {part.size for group in waiting(plan_of(tmp_path, [*names, "hub/model"])) for part in group} == {1.0}
    assert [before([plan, plan_of(tmp_path, ["c"])], each) for each in (plan,)] == [0]


def test_what_is_taken_counts_the_plans_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    dealing = workers.deal(3)
    assert [next(dealing), taken_by_all(2, 3), next(dealing), taken_by_all(2, 3)] == [0, 3, 1, 4]

    class Store:
        """The store that processes share: its number is the last one asked for, and goes past the end."""

        count = 0

        def add(self, key: str, more: int) -> int:
            self.count += more
            return self.count

    monkeypatch.setattr(workers, "_world", 2)
    monkeypatch.setattr(workers, "_store", Store())
    dealing = workers.deal(2)
    assert [next(dealing), workers.dealt(2), next(dealing), workers.dealt(2)] == [0, 1, 1, 2]
    assert list(dealing) == [] and workers.dealt(2) == 2
