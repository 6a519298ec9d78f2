"""A checkpoint, or a finished run, that several paths lead to counts once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mechint.models.loading.discover import find_checkpoints
from mechint.runner.drawing import finished_below
from mechint.runner.index import entries_of
from mechint.runner.results import directories
from tests.helpers.report_runs import build_run


def test_links_to_a_checkpoint_are_that_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``latest.pt`` beside the step that it leads to, by a link of either kind, of a file or of a directory."""
    runs = tmp_path / "runs"
    for step in (10, 9):
        (runs / f"run{step}").mkdir(parents=True)
        (runs / f"run{step}" / f"step{step}.pt").write_bytes(b"never read")
    one = runs / "run9" / "step9.pt"
    (one.parent / "latest.pt").symlink_to("step9.pt")
    os.link(one, one.parent / "zz_hard.pt")
    (runs / "newest").symlink_to("run10", target_is_directory=True)
    assert find_checkpoints(str(one.parent)) == [str(one)]
    assert f"{one.parent / 'latest.pt'} is the same checkpoint as {one}" in capsys.readouterr().err
    assert find_checkpoints(str(runs / "*" / "*.pt")) == [str(one), str(runs / "run10" / "step10.pt")]
    assert find_checkpoints(str(one.parent / "latest.pt")) == [str(one.parent / "latest.pt")]  # as it was asked for
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "latest.pt").symlink_to(one)
    assert find_checkpoints(str(tmp_path / "alone")) == [str(tmp_path / "alone" / "latest.pt")]


def test_a_model_directory_and_the_files_in_it_are_one_checkpoint(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"never read")
    (tmp_path / "linked").symlink_to(tmp_path / "a", target_is_directory=True)
    assert find_checkpoints(str(tmp_path)) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert find_checkpoints(str(tmp_path / "**")) == [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.usefixtures("no_figures")
def test_a_link_to_a_finished_run_is_that_run(tmp_path: Path) -> None:
    """Comparisons, exports and the index had two rows, with the same numbers."""
    runs = [build_run(tmp_path / name, channels=12, kept=3) for name in ("step9", "step10")]
    (tmp_path / "latest").symlink_to("step10", target_is_directory=True)
    assert directories(tmp_path) == runs and directories(tmp_path / "*") == runs
    assert sorted(finished_below(tmp_path, "baseline")) == sorted(runs)
    assert {entry.place for entry in entries_of(tmp_path, {})} == {"step9", "step10"}
