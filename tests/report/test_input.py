"""Results, masks and histories that are not right: one line each, before anything is written."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.circuits.results import load_history, load_masks, load_results
from mechint.report import write_report
from mechint.utils.errors import MechintError
from tests.helpers.report_runs import Json, build_run, edit, one_line, value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema 2"),
        ({"status": "running"}, "status 'running'"),
        ({"layers": None}, "'layers'"),
        ({"metrics__faithfulness": None}, "'faithfulness'"),
        ({"metrics__kl": {"value": 1.0}}, "metrics.kl"),
        ({"metrics__kl": value(math.nan)}, "NaN"),
        ({"metrics__units_kept": value(17, 0)}, "contradicts itself"),
        ({"curve__learned": [value(1.0)]}, "curve.learned"),
        ({"curve__size": [3, 2, 1]}, "curve.size"),
        ({"layers": [{"layer": 0, "total": 128, "kept": 2, "units": [1]}]}, "layers"),
        ({"searches": [{"name": "seed 0"}]}, "searches"),
    ],
)
def test_a_results_file_that_is_not_right_is_named_in_one_line(changes: Json, words: str, copy: Path) -> None:
    edit(copy, **changes)
    with pytest.raises(MechintError) as error:
        write_report(copy)
    assert str(copy / "results.json") in one_line(error) and words in str(error.value)


@pytest.mark.parametrize("name", ["results.json", "manifest.json", "history.jsonl", "final_masks.pt"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00"], ids=["missing", "empty", "cut", "binary"])
def test_a_file_that_is_missing_or_broken_is_named_in_one_line(name: str, content: bytes | None, copy: Path) -> None:
    before = (copy / "report.html").read_bytes()
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(MechintError) as error:
        write_report(copy)
    assert str(copy / name) in one_line(error)
    assert (copy / "report.html").read_bytes() == before


def test_masks_of_another_run_are_refused(copy: Path, tmp_path: Path) -> None:
    other = build_run(tmp_path / "other", seed=1)
    shutil.copy(other / "final_masks.pt", copy / "final_masks.pt")
    with pytest.raises(MechintError, match="from different runs"):
        write_report(copy)


def test_masks_that_would_run_code_are_refused(copy: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (copy / "ran",))

    torch.save({"layers.0": Evil()}, copy / "final_masks.pt")
    with pytest.raises(MechintError, match=r"final_masks\.pt"):
        load_masks(load_results(copy))
    assert not (copy / "ran").exists()


def test_a_history_line_that_is_not_a_step_is_named(copy: Path) -> None:
    lines = (copy / "history.jsonl").read_text().splitlines()
    lines[4] = lines[4][:-20]
    (copy / "history.jsonl").write_text("\n".join(lines))
    with pytest.raises(MechintError, match=r"history\.jsonl line 5"):
        load_history(load_results(copy))


def test_the_first_seed_may_be_logged_as_the_search_that_found_the_size(copy: Path) -> None:
    text = (copy / "history.jsonl").read_text()
    (copy / "history.jsonl").write_text(text.replace('"seed 0"', '"size 16"'))
    traces = {trace.name: trace for trace in load_history(load_results(copy))}
    assert list(traces) == ["descent", "size 32", "seed 0", "seed 1", "seed 2", "random weights", "exchanged answers"]
    assert [name for name, trace in traces.items() if trace.final] == ["seed 0", "seed 1", "seed 2"]
