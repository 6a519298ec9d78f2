"""Numbers of finished runs as tables: the same numbers in every format, and one line for whatever is missing."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.analyses.base import entries_of_analyses
from mechint.report.results import COLUMNS, TABLES, ManyResults, Row, RunResults
from mechint.report.tables import export as tables
from mechint.report.tables import plots
from mechint.report.tables.schema import schema, text
from mechint.runner.export_command import ExportConfig, export
from mechint.runner.export_command import main as command
from mechint.utils.errors import MechintError
from tests.helpers.json_schema import fits
from tests.helpers.paths import ROOT
from tests.helpers.report_runs import build_run

ROW = Row("ssm", "a.pt", "metrics.kl", "kl", None, None, None, None, 0.25, 0.125, 0.5, 9, "95 % interval", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("runs")
    for k in (10, 2):
        build_run(top / f"step{k}" / "ssm", channels=8, kept=3, seeds=2, checkpoint=f"run/step{k}.pt", seed=k)
    return top


def single(path: Path) -> RunResults:
    found = mechint.results(path)
    assert isinstance(found, RunResults)
    return found


# ---- one run and several --------------------------------------------------------------------------------------------


def test_a_path_names_a_run_or_several(made: Path) -> None:
    one = single(made / "step2/ssm")
    assert one.raw == single(made / "step2/ssm/results.json").raw
    for path in (made, f"{made}/*/ssm", f"{made}/step*/ssm/results.json", f"{made}/*"):
        many = mechint.results(path)
        assert isinstance(many, ManyResults) and len(many) == 2
        assert [run.raw["checkpoint"] for run in many] == ["run/step2.pt", "run/step10.pt"]  # as people count
        assert many.rows() == many[0].rows() + many[1].rows() and many[0].rows() == one.rows()
        assert "2 finished runs" in repr(many)


def test_what_names_no_run_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match="matches no finished analysis"):
        mechint.results(f"{made}/x*")
    with pytest.raises(MechintError, match=r"results\.json is missing"):
        mechint.results(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(MechintError, match="schema None"):
        mechint.results(tmp_path)


def test_every_number_is_in_one_table_at_the_most(made: Path) -> None:
    run = single(made / "step2/ssm")
    split = {table: run.rows(table) for table in TABLES}
    assert sorted(row["metric"] for row in split["metrics"]) == sorted(run.metrics)
    assert {row["metric"] for row in split["curve"]} == set(run.raw["curve"]) - {"size", "fraction"}
    every = [row["entry"] for rows in split.values() for row in rows]
    assert len(every) == len(set(every)) and set(every) <= {row["entry"] for row in run.rows()}
    with pytest.raises(MechintError, match=r"no table is called 'metric' .did you mean metrics"):
        run.rows("metric")


@pytest.mark.parametrize(
    ("entry", "more", "table"),
    [
        ("metrics.kl", {}, "metrics"), ("metrics.kl", {"layer": 1}, "metrics"),
        ("curves.loss.1", {"layer": 1}, "curve"),
        ("units.0.value.3", {"layer": 0, "unit": 3}, "units"), ("strongest.1", {"unit": "1.2", "layer": 0}, "units"),
        ("trace.panels.0.value.1.2", {}, "cells"), ("cells.0.gini", {"layer": 0}, "cells"), ("control.0", {}, ""),
        ("curved.0", {}, ""), ("metricsx", {}, ""), ("values.3", {}, ""),
    ],
)  # fmt: skip
def test_the_table_of_a_number(entry: str, more: dict[str, Any], table: str) -> None:
    assert dataclasses.replace(ROW, entry=entry, **more).table == table


# ---- files ------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.integers(0, 10**15),
)
def test_csv_gives_every_value_again(value: float, name: str, n: int) -> None:
    row = dataclasses.replace(ROW, value=value, name=name, n=n, low=math.nan)
    [read] = csv.DictReader(io.StringIO(tables.as_csv([row]).decode(), newline=""))
    assert tuple(read) == COLUMNS
    assert (float(read["value"]), read["name"], int(read["n"]), read["low"], read["p"]) == (value, name, n, "", "")


def test_latex_is_a_table_that_latex_can_read() -> None:
    odd = dataclasses.replace(
        ROW, metric="a_b & 50 % $x$ #{~^\\}", value=-0.5, low=-0.625, high=-0.375, n=1000, p=0.001
    )
    head, line, *rest = tables.as_latex([odd, ROW]).decode().split("\\hline\n")[1:]
    assert (
        head == r"checkpoint & analysis & metric & value [95 \% interval] & n & p \\" + "\n"
    )  # empty columns are gone
    first, second, _ = line.split("\n")
    told = r"a\_b \& 50 \% \$x\$ \#\{\textasciitilde{}\textasciicircum{}\textbackslash{}\}"
    assert first == rf"a.pt & ssm & {told} & $-$0.50 [$-$0.62, $-$0.38] & 1,000 & 0.001 \\"
    assert second == r"a.pt & ssm & kl & 0.25 [0.12, 0.50] & 9 &  \\"
    assert rest == ["\\end{tabular}\n"]


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("[best].pt", "{}[best].pt"),
        ("*.pt", "{}*.pt"),
        ("a<b>|c", r"a\textless{}b\textgreater{}\textbar{}c"),
        ("a--b---c-d", "a-{}-b-{}-{}-c-d"),
        ("a`b", r"a\textasciigrave{}b"),
    ],
)
def test_latex_prints_odd_names_of_checkpoints(name: str, printed: str) -> None:
    r"""A bracket behind ``\\`` is a length, which ends LaTeX's run; < > and | are others in its usual fonts."""
    line = tables.as_latex([dataclasses.replace(ROW, checkpoint=name)]).decode().splitlines()[4]
    assert line.startswith(f"{printed} & ")


def test_parquet_has_typed_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in of pyarrow: what it is given, by its documented calls."""
    arrow, parquet = types.ModuleType("pyarrow"), types.ModuleType("pyarrow.parquet")
    for name in ("string", "float64", "int64"):
        setattr(arrow, name, functools.partial(str, name))
    arrow.array = lambda values, kind: (kind, values)  # type: ignore[attr-defined]
    arrow.table = lambda columns: columns  # type: ignore[attr-defined]
    parquet.write_table = lambda table, buffer: buffer.write(repr(table).encode())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    whole = dataclasses.replace(ROW, unit=3, layer=1, low=math.nan)
    told = eval(tables.as_parquet([whole]))
    assert tuple(told) == COLUMNS and told["unit"] == ("int64", [3]) and told["low"] == ("float64", [None])
    assert told["site"] == ("string", [None]) and told["value"] == ("float64", [0.25])
    named = eval(tables.as_parquet([whole, dataclasses.replace(whole, unit="1.2")]))
    assert named["unit"] == ("string", ["3", "1.2"])


def test_parquet_without_its_package_is_one_line_before_any_work(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MechintError, match="Parquet needs pyarrow, which is not installed; pip install pyarrow"):
        export(ExportConfig(str(made), formats="csv parquet", output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_an_export_has_the_numbers_of_all_runs(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (out).mkdir()
    (out / "units.csv").write_text("of another export")
    command([str(made), "--formats=csv,latex", f"--output-dir={out}"])
    many = mechint.results(made)
    for table in ("metrics", "curve"):
        read = list(csv.DictReader(io.StringIO((out / f"{table}.csv").read_text())))
        assert [float(row["value"]) for row in read] == [row["value"] for row in many.rows(table)]
        assert (out / f"{table}.tex").read_text().count(r" \\") == len(read) + 1
        assert f"{table}.csv: {len(read)} rows of 2 runs" in capsys.readouterr().out or table == "curve"
    assert not (out / "units.csv").exists() or many.rows("units")


def test_a_run_that_cannot_be_read_costs_no_other(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = shutil.copytree(made, tmp_path / "runs")
    (runs / "step2/ssm/results.json").write_text('{"schema"')
    with pytest.raises(MechintError, match="1 of 2 runs could not be read"):
        export(ExportConfig(str(runs), tables="metrics", output_dir=str(tmp_path / "out")))
    assert "step2" in capsys.readouterr().err
    read = (tmp_path / "out/metrics.csv").read_text()
    assert "run/step10.pt" in read and "run/step2.pt" not in read


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tables": "metric"}, "tables: 'metric' is none of .*did you mean metrics"),
        ({"formats": "tex"}, "formats: 'tex' is none of csv, parquet, latex"), ({"formats": ""}, "formats is empty"),
        ({"tables": "metrics,,units"}, "a word is missing"),
        ({"runs": "nowhere"}, "nowhere holds no finished analysis"),
        ({"runs": "nowhere*"}, "matches no finished analysis"), ({"output_dir": "/proc/x"}, "can't be written"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_line(changes: dict[str, str], says: str, made: Path, tmp_path: Path) -> None:
    config = ExportConfig(str(made), output_dir=str(tmp_path / "out"))
    with pytest.raises(MechintError, match=says):
        export(dataclasses.replace(config, **changes))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_the_files_and_writes_none(made: Path, tmp_path: Path, capsys: Any) -> None:
    command([f"--runs={made}", "--dry-run", f"--output-dir={tmp_path}/out"])
    assert "would export 2 runs" in capsys.readouterr().out and not (tmp_path / "out").exists()


# ---- plots ------------------------------------------------------------------------------------------------------


def test_plots_draw_into_given_axes_what_the_rows_say(made: Path) -> None:
    from matplotlib.figure import Figure

    run, axes = single(made / "step2/ssm"), Figure().subplots()
    assert run.plot_metrics("faithfulness", "kl", ax=axes) is axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["faithfulness", "kl"]
    drawn = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert drawn == [run.metrics["faithfulness"].value, run.metrics["kl"].value]
    curves = run.plot_curve()
    assert {line.get_label() for line in curves.lines} == {row["metric"] for row in run.rows("curve")}
    for line in curves.lines:
        rows = [row for row in run.rows("curve") if row["metric"] == line.get_label()]
        assert list(line.get_ydata()) == [row["value"] for row in rows]
        assert list(line.get_xdata()) == [int(row["name"].split()[0].replace(",", "")) for row in rows]
    assert curves.figure is not axes.figure
    with pytest.raises(MechintError, match=r"no metric 'faith' .did you mean"):
        run.plot_metrics("faith")
    with pytest.raises(MechintError, match="no cells to plot"):
        run.plot_cells()


def test_a_map_leaves_out_the_cell_that_is_said_again_as_the_strongest() -> None:
    from matplotlib.figure import Figure

    row = lambda entry, name, layer: Row(
        "trace", "x.pt", entry, "value", "resid_post", layer, None, name, 0.5, 0.5, 0.5, 1, "none", None
    )
    rows = [row(f"trace.panels.0.value.{layer}.0", "denoise: last token", layer) for layer in range(3)]
    axes = plots.cells(Figure().subplots(), [*rows, row("trace.strongest.0", "last token", 2)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["denoise: last token"]
    alone = plots.cells(Figure().subplots(), [row("strongest.0", "last token", 2)])
    assert [label.get_text() for label in alone.get_yticklabels()] == ["last token"]


END = {"low": 1, "high": 1, "n": 1}

# ---- the schema -------------------------------------------------------------------------------------------------


def test_the_schema_beside_the_documentation_is_the_one_that_is_made() -> None:
    assert (ROOT / "docs/results.schema.json").read_text() == text(entries_of_analyses()), (
        "write it again: PYTHONPATH=lib python -c 'from mechint.analyses.base import entries_of_analyses; "
        "from mechint.report.tables.schema import text; "
        'print(text(entries_of_analyses()), end="")\' > docs/results.schema.json'
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda raw: raw.pop("key"), "$ has no key"), (lambda raw: raw.update(schema=2), "$.schema is 2, not 1"),
        (lambda raw: raw["model"].update(n_layer="two"), "$.model.n_layer is 'two', not integer"),
        (lambda raw: raw["metrics"]["kl"].pop("n"), "$.metrics.kl has no n"),
        (lambda raw: raw["metrics"]["kl"].update(value=None), "$.metrics.kl.value is None, not number"),
        (lambda raw: raw.update(own={"deep": [{**END, "value": "x"}]}), "$.own.deep[0].value is 'x'"),
        (lambda raw: raw.update(own={**END, "value": [[1, "x"]]}), "$.own.value is [["),
        (lambda raw: raw["metrics"]["kl"].update(n=-1), "$.metrics.kl.n is below 0"),
        (lambda raw: raw.update(notes="text"), "$.notes is 'text', not array"),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_reader_would_trip_over(made: Path, change: Any, fault: str) -> None:
    raw = json.loads((made / "step2/ssm/results.json").read_text())
    raw.setdefault("key", {})
    assert fits(raw, schema()) == []
    change(raw)
    found = fits(raw, schema())
    assert (len(found) == 1 and found[0].startswith(fault)) or fault in found[0], found


def test_numbers_and_grids_of_any_depth_fit_the_schema(made: Path) -> None:
    raw = {**json.loads((made / "step2/ssm/results.json").read_text()), "key": {}}
    raw["own"] = {"value": [[1.5, None], [2]], "low": [[1, None], [1]], "high": [[2, None], [3]], "n": 7, "p": None}
    raw["more"] = [{"deep": {"value": 1, "low": None, "high": None, "n": 0, "interval": "none", "p": None}}]
    assert fits(raw, schema()) == []
