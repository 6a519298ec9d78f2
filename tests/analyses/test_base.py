"""The registry of analyses: every entry names its pages, and finished runs find theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mechint.analyses.base import Later, analyses, analysis_of
from mechint.report import COMPARISONS, kind_of, write_report
from mechint.runner.drawing import write_comparisons
from mechint.utils.errors import MechintError
from tests.helpers.report_runs import build_run, edit


@pytest.mark.parametrize("name", list(analyses()))
def test_what_an_analysis_names_is_there(name: str) -> None:
    entry = analyses()[name]
    named = [value for value in vars(entry).values() if isinstance(value, Later)]
    assert entry.report in named and entry.headline in named
    assert all(callable(value.find()) for value in named)


@pytest.mark.slow
def test_what_takes_long_to_import_is_imported_where_it_is_used() -> None:
    """Figures and statistics: a command that only says what is wrong waits for neither; a search waits for no compiler
    of torch's, nor an interval for all of SciPy's distributions."""
    code = """
import sys, torch, mechint.runner.command_line
slow = lambda: {"matplotlib", "scipy.stats", "torch._dynamo"} & set(sys.modules) or ""
print(slow())
from mechint.analyses.circuits.search.learning import Adam
from mechint.utils.memory import peak_bytes
from mechint.utils.statistics import ClusterBootstrap, student
Adam(torch.ones(3).requires_grad_(), 0.1, (0.9, 0.99)).step(torch.ones(3))
assert peak_bytes(lambda: torch.ones(64) + 1) >= 512
assert student([1.0, 2.0, 3.0], "three")[0]["low"] < 2 and ClusterBootstrap(range(9), 9, 0).share([0.0, 1.0, 1.0] * 3)
print(slow())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_a_run_of_an_older_release_finds_its_pages_by_their_kind(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", channels=12, kept=3)
    assert analysis_of(run).name == "ssm" and kind_of(run) == "circuit"
    edit(run, analysis="channels")  # a name that no analysis has now
    assert analysis_of(run).kind == "circuit"
    assert write_report(run, heatmaps=False, curves=False, faithfulness=False)[-1].name == "report.html"
    assert analysis_of(run).headline(run).startswith("3 of 24 SSM channels")
    edit(run, report="tea leaves")
    with pytest.raises(MechintError, match="'tea leaves', which no analysis"):
        write_report(run)


@pytest.mark.usefixtures("no_figures")
def test_each_analysis_is_compared_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Circuits of two analyses lie side by side: each gets a comparison of its own."""
    runs = [build_run(tmp_path / f"run{k}", channels=12, kept=3, seed=k) for k in range(4)]
    for run in runs[2:]:
        edit(run, analysis="kv")
    write_comparisons(runs, tmp_path)
    for name, pair in (("ssm", runs[:2]), ("kv", runs[2:])):
        found = json.loads((tmp_path / name / "comparison.json").read_text())
        assert [entry["name"] for entry in found["runs"]] == [run.name for run in pair]
    assert {"circuit", "trace", "compare", "patch", "study"} <= set(COMPARISONS)
    assert capsys.readouterr().out.count("comparison: ") == 2
