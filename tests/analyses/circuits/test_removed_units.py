"""The report's table of units removed one at a time, in Markdown and in the page, for units of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.circuits.pages.removed import removed_rows, removed_sentence
from mechint.analyses.circuits.report import content
from mechint.analyses.circuits.results import load_results
from mechint.interventions.unit_kinds import KV_UNITS
from mechint.interventions.units import Units
from mechint.report.html import html
from mechint.report.markdown import markdown
from mechint.utils import files
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2
from tests.helpers.circuit_runs import write_run


def tried(unit: Any, drop: float, p: float, layer: int = 0) -> dict[str, Any]:
    return {"layer": layer, "unit": unit, "p": p,
            "drop": {"value": drop, "low": drop - 0.01, "high": drop + 0.01, "n": 48}}  # fmt: skip


def a_run(directory: Path, entries: list[dict[str, Any]], unit: str = "kv") -> Path:
    model = tiny_gpt2(vocab_size=32)
    mask = torch.ones(Units(model, KV_UNITS[unit]).total)
    run = write_run(directory, model, unit, mask)
    found = files.read_json(run / "results.json")
    files.write_json(run / "results.json", found | {"leave_one_out": entries})
    return run


def test_the_worst_ten_and_the_count_of_the_rest(tmp_path: Path) -> None:
    hurts = [tried([k % 2, 1, k % 4], 0.01 * k, 0.001 * k) for k in range(1, 13)]
    idle = [tried([0, 0, 3], -0.5, 0.001), tried([1, 0, 3], 0.9, 0.06, layer=1), tried([1, 2, 3], 0.0, 1.0)]
    results = load_results(a_run(tmp_path / "run", [*hurts, *idle]))
    sentence, rows = removed_sentence(results), removed_rows(results)
    assert "15 of the 48 units, at random," in sentence and "The 10 that cost most" in sentence
    assert "removal of 12 certainly costs" in sentence and "3 are not certainly needed" in sentence
    assert len(rows) == 10 and rows[0] == ("1", "V 0.3", "90.0 %", "[89.0, 91.0]", "0.06")
    assert [row[2] for row in rows[1:]] == [f"{k}.0 %" for k in range(12, 3, -1)]
    text, page = markdown(content(results), {}), html(content(results), {})
    assert "## Removed one at a time" in text and ">Removed one at a time</h2>" in page
    for row in rows:
        assert f"| {' | '.join(row)} |" in text
        assert row[1] in page and row[2] in page
    assert "removal of 12 certainly costs" in page


def test_when_every_unit_is_needed_no_other_unit_is_told_of(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [tried(0, 0.9, 0.001), tried(0, 0.4, 0.002, layer=1)], unit="layer")
    results = load_results(run)
    assert removed_sentence(results).startswith(
        "All 2 units were removed"
    ) and "not certainly needed" not in removed_sentence(results)
    assert [row[:3] for row in removed_rows(results)] == [
        ("0", "the whole layer", "90.0 %"),
        ("1", "the whole layer", "40.0 %"),
    ]


def test_what_was_not_tried_is_not_told(tmp_path: Path) -> None:
    results = load_results(a_run(tmp_path / "run", []))
    page = content(results)
    assert "one at a time" not in markdown(page, {}) and "one at a time" not in html(page, {})


@pytest.mark.parametrize("broken", [{"layer": 0}, {"layer": 0, "unit": 1, "drop": {"value": 1}, "p": 0.1}, 7])
def test_an_entry_that_is_none_is_named(broken: Any, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match="leave_one_out") as error:
        load_results(a_run(tmp_path / "run", [broken]))
    assert "\n" not in str(error.value)
