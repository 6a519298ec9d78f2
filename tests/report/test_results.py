"""results.json as a typed schema: every number of every analysis is a row that leads back to it."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import mechint
from mechint.report.results import Header, Model, Row, number_rows
from mechint.utils.errors import MechintError
from tests.helpers.dictionary_runs import results as dictionaries
from tests.helpers.dictionary_runs import write_run
from tests.helpers.report_runs import Json, build_run, edit, one_line, value

PATH = Path("results.json")


def grid(*cells: Any, **more: Any) -> Json:
    """A grid of numbers whose values are the cells, each with an interval of one on both sides; None has none."""
    over = lambda f, x: [over(f, y) for y in x] if isinstance(x, list) else f(x)
    ends = {
        name: over(lambda x, d=d: None if x is None else x + d, list(cells)) for name, d in (("low", -1), ("high", 1))
    }
    return {"value": list(cells), **ends, "n": over(lambda x: 0 if x is None else 5, list(cells)),
            "p": over(lambda x: None if x is None else 0.5, list(cells)), **more}  # fmt: skip


HEADER: Json = {"schema": 1, "status": "complete", "checkpoint": "a.pt", "title": "A title", "config": {"value": 1},
                "model": {"family": "mamba"}, "task": {"name": "recall"}, "notes": []}  # fmt: skip
METRICS = {"clean": value(2.0), "total_effect": value(1.0)}
TRACE: Json = {
    **HEADER, "analysis": "trace", "report": "trace", "metric": "logit_diff", "metrics": METRICS,
    "trace": {"unit": "metric", "interval": "95 % of a test", "roles": ["subject", "last"], "strongest": [
        {"direction": "noise", "panel": "resid", "layer": 1, "role": "last", **value(4.0), "p": 0.01}],
        "directions": {"noise": {"panels": [{"name": "resid", **grid([1.0, None], [3.0, 4.0])}]}}},
}  # fmt: skip
UNITS = {"name": "head_out", "axis": "head", "layers": 2, "per_layer": 4, "layer": [0, 1], "unit": [3, 2],
         "necessary": grid(0.5, 0.25, estimate=[0, 0]), "sufficient": grid(0.1, 0.2, estimate=[0, 0]),
         "correlation": {"necessary": 1.0, "sufficient": None}}  # fmt: skip
PATCH: Json = {
    **HEADER, "analysis": "patch", "report": "patch", "metric": "logit_diff", "metrics": METRICS, "units": [UNITS],
    "flow": {"roles": ["key", "value"], "pairs": [[0, 0], [1, 0]], "paths": [{"name": "out", **grid([0.5, 0.75])}]},
    "scale": "share of the total effect",
    "strongest": {"flow": [], "units": [{"kind": "head_out", "layer": 0, "unit": 3, "direction": "necessary",
                                         **value(0.5), "p": 0.2}]},
}  # fmt: skip


def written(directory: Path, raw: Json) -> Path:
    directory.mkdir()
    (directory / "results.json").write_text(json.dumps(raw))
    (directory / "manifest.json").write_text(json.dumps({"seed": 0}))
    (directory / "examples.json").write_text("[]")
    return directory


def of(run: Path, **columns: Any) -> list[dict[str, Any]]:
    """Rows of a run with these columns."""
    return [row for row in mechint.results(run).rows() if columns.items() <= row.items()]


def test_every_number_leads_back_to_its_entry(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / "circuit", channels=12, kept=3), write_run(tmp_path / "sae", dictionaries())]
    runs += [written(tmp_path / str(raw["report"]), raw) for raw in (TRACE, PATCH)]
    counts = []
    for run in runs:
        found = mechint.results(run)
        counts.append(len(found.rows()))
        assert len({row["entry"] for row in found.rows()}) == len(found.rows())
        for row in found.rows():
            entry: Any = found.raw
            for part in row["entry"].split("."):
                entry = entry[int(part)] if isinstance(entry, list) else entry[part]
            assert (entry["value"] if isinstance(entry, dict) else entry) == row["value"]
            assert (row["analysis"], row["checkpoint"]) == (found.raw["analysis"], found.raw["checkpoint"])
        assert {name for name in found.metrics} <= {row["metric"] for row in found.rows()}
        assert mechint.results(run / "results.json").rows() == found.rows() and found.headline in repr(found)
    text = json.dumps(dictionaries())
    assert counts == [14 + 19, text.count('"interval"'), 2 + 1 + 3, 2 + 1 + 2 + 4]


def test_rows_say_what_they_are_of(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", TRACE)
    [row] = of(trace, entry="trace.directions.noise.panels.0.value.1.1")
    assert row == {
        "analysis": "trace", "checkpoint": "a.pt", "entry": "trace.directions.noise.panels.0.value.1.1",
        "metric": "effect", "site": "resid", "layer": 1, "unit": None, "name": "noise: last", "value": 4.0, "low": 3.0,
        "high": 5.0, "n": 5, "interval": "95 % of a test", "p": 0.5,
    }  # fmt: skip
    [row] = of(trace, metric="strongest")
    assert (row["site"], row["layer"], row["name"], row["unit"], row["p"]) == ("resid", 1, "last", None, 0.01)
    patch = written(tmp_path / "patch", PATCH)
    [row] = of(patch, site="head_out", layer=1, name="necessary")
    assert (row["unit"], row["value"], row["interval"]) == (2, 0.25, value(0)["interval"])
    [row] = of(patch, site="out", name="value ← key")
    assert (row["metric"], row["layer"], row["value"], row["high"]) == ("lost", 0, 0.75, 1.75)
    sae = write_run(tmp_path / "sae", dictionaries())
    [row] = of(sae, metric="kl", name="topk-k12-512-s1")
    assert (row["site"], row["layer"]) == ("layers.0.out", 0)
    circuit = build_run(tmp_path / "circuit", channels=12, kept=3)
    edit(circuit, leave_one_out=[{"layer": 1, "unit": [3, 7], "drop": value(0.5), "p": 0.01}])
    [row] = number_rows(json.loads((circuit / "results.json").read_text()) | {"metrics": {}, "curve": {}}, PATH)
    assert (row.metric, row.layer, row.unit) == ("drop", 1, "3.7")
    assert of(build_run(tmp_path / "other", channels=12, kept=3), metric="learned", name="24 units kept")


def test_a_number_without_an_interval_has_no_ends(tmp_path: Path) -> None:
    lone = {"value": 3.0, "low": None, "high": None, "n": 1, "interval": "one template: no interval"}
    [row] = number_rows({"steps": {"layers": {"7": {"here": lone}}}}, PATH)
    assert math.isnan(row.low) and math.isnan(row.high) and (row.layer, row.metric, row.n) == (7, "here", 1)
    run = build_run(tmp_path / "run", channels=12, kept=3)
    edit(run, metrics__kl=lone)
    [said] = of(run, metric="kl")
    assert said["low"] is None and said["interval"] == "one template: no interval"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"status": "running"}, "let the analysis finish"),
        ({"schema": 7}, "has schema 7"),
        ({"metrics": 3}, "'metrics'"),
        ({"metrics__clean": {"value": 1.0, "low": 0.0, "high": "x", "n": 3}}, "metrics.clean must have"),
        ({"report": "tea leaves"}, "which no analysis"),
        ({"trace__directions__noise__panels": [{"name": "resid", **grid([1.0, 2.0]), "low": [[1.0]]}]}, "not valid"),
        ({"trace": None}, "not valid"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(changes: Json, says: str, tmp_path: Path) -> None:
    run = written(tmp_path / "run", TRACE)
    edit(run, **changes)
    with pytest.raises(MechintError) as error:
        mechint.results(run)
    assert says in one_line(error) and str(run / "results.json") in str(error.value)


def test_a_frame_needs_pandas_and_has_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = mechint.results(written(tmp_path / "run", TRACE))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MechintError, match=r"pip install pandas, or take rows\(\)") as error:
        found.frame()
    one_line(error)
    seen: list[Any] = []

    def frame(rows: Any, columns: list[str]) -> Any:
        seen.extend((list(rows), columns))
        return types.SimpleNamespace(astype=lambda kinds: kinds)

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=frame))
    kinds = found.frame()
    rows, columns = seen
    assert set(kinds) == set(columns) and kinds["layer"] == "Int64" and kinds["p"] == "float64"
    assert columns == [field.name for field in dataclasses.fields(Row)] and len(rows) == len(found.rows())
    assert all(list(row) == columns for row in rows)


def test_the_header_is_what_is_read_back() -> None:
    model = Model("mamba", 5, 1, 4, "ab", step=3)
    raw = Header("ssm", "SSM circuit", "a.pt", {"code": "x"}, model, {"name": "recall"}, {"steps": 1}).with_results(
        {"metrics": {}, "notes": []}
    )
    assert raw == {
        "schema": 1, "analysis": "ssm", "title": "SSM circuit", "checkpoint": "a.pt", "status": "complete",
        "key": {"code": "x"}, "task": {"name": "recall"}, "config": {"steps": 1}, "metrics": {}, "notes": [],
        "model": {"family": "mamba", "parameters": 5, "n_layer": 1, "d_model": 4, "sha256": "ab", "step": 3},
    }  # fmt: skip
