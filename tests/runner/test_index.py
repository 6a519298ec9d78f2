"""index.html over the runs of an output directory: a row for each run, and links that lead somewhere."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from mechint.report import write_report
from mechint.runner.drawing import write_comparisons
from mechint.runner.experiment import run_experiment
from mechint.runner.index import write_index
from mechint.utils.errors import MechintError
from tests.helpers.browser import driven
from tests.helpers.experiments import experiment
from tests.helpers.report_runs import Page, build_run

PLAIN = {"heatmaps": False, "curves": False, "faithfulness": False}


def finished(directory: Path, checkpoint: str, seed: int = 0) -> Path:
    run = build_run(directory, channels=8, kept=3, seeds=2, checkpoint=checkpoint, seed=seed)
    write_report(run, **PLAIN)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "out"
    write_comparisons([finished(folder / f"step{k}", f"run/step{k}.pt", k) for k in (10, 2, 100)], folder)
    return folder


@pytest.fixture
def top(made: Path, tmp_path: Path) -> Path:
    """Three finished runs of a training, one that is cut short, and a comparison of the finished ones."""
    folder = Path(shutil.copytree(made, tmp_path / "out"))
    (folder / "step30").mkdir()
    (folder / "step30/results.json").write_text('{"schema": 1, "status"')
    return folder


def cells(page: Path) -> list[list[str]]:
    """The rows of the table, each a list of texts."""
    body = page.read_text().split("<tbody>")[1].split("</tbody>")[0]
    return [
        [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        for row in body.strip().split("\n")
    ]


def addresses(page: Path) -> list[Path]:
    """Where the links of a page lead to."""
    return [page.parent / html.unescape(address) for address in re.findall(r'<a href="([^#"]*)"', page.read_text())]


def test_every_run_is_a_row_in_the_order_of_its_step(top: Path) -> None:
    page = write_index(top, top, {top / "step7": ("run/step7.pt", "ssm")})
    assert page == top / "index.html"
    Page(page.read_text())  # well formed
    rows = cells(page)
    assert [row[0] for row in rows] == ["run/step2.pt", "run/step7.pt", "run/step10.pt", "run/step100.pt", "step30"]
    assert [row[1] for row in rows] == ["2", "–", "10", "100", "–"]
    assert [row[5] for row in rows][1::3] == ["not finished", "broken"]
    assert re.fullmatch(r"\d of \d checks hold", rows[0][5]) and rows[0][2:4] == ["recall", "SSM circuit"]
    assert "faithfulness" in rows[0][4] and "results.json is not valid JSON" in rows[-1][4]
    assert float(rows[0][6]) == json.loads((top / "step2/manifest.json").read_text())["seconds"]
    assert "5 runs: 3 finished, 1 broken, 1 not finished." in page.read_text()
    assert "step30" in (top / "index.md").read_text()


def test_the_verdict_counts_the_checks_of_the_report(top: Path) -> None:
    write_index(top, top)
    for name in ("step2", "step100"):
        text = (top / name / "circuit_analysis_report.md").read_text()
        good, bad = text.count("\n- ✓ "), text.count("\n- ✗ ")
        [row] = [row for row in cells(top / "index.html") if row[0] == f"run/{name}.pt"]
        assert row[5] == f"{good} of {good + bad} checks hold" and good + bad > 1


def test_every_link_leads_to_a_page(top: Path) -> None:
    write_index(top, top)
    pages = [top / "index.html", top / "comparison.html", *top.glob("step*/report.html")]
    assert len(pages) == 5
    for page in pages:
        found = addresses(page)
        assert found and all(place.is_file() for place in found), page
    assert {top / "step2/report.html", top / "comparison.html"} <= {place for place in addresses(top / "index.html")}
    middle = {place.resolve() for place in addresses(top / "step10/report.html")}
    assert middle >= {
        top / f"{name}" for name in ("index.html", "comparison.html", "step2/report.html", "step100/report.html")
    }


@pytest.mark.parametrize("damage", ["binary", "empty", "list", "no manifest", "folder", "seconds", "another", "edited"])
def test_a_run_that_is_not_right_says_so_and_stops_no_other(top: Path, damage: str) -> None:
    results, manifest = top / "step10/results.json", top / "step10/manifest.json"
    raw = json.loads(results.read_text())
    if damage in ("binary", "empty", "list"):
        results.write_bytes({"binary": b"\xff\xfe\x00", "empty": b"", "list": b"[]"}[damage])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "folder":
        results.unlink()
        results.mkdir()
    elif damage == "seconds":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "seconds": "long"}))
    elif damage == "another":
        results.write_text(json.dumps({**raw, "report": "nothing known"}))
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "results_sha256": "0" * 64}))
    write_index(top, top)
    rows = {row[0]: row for row in cells(top / "index.html")}
    assert len(rows) == 5 - 1 and all("checks hold" in rows[f"run/step{k}.pt"][5] for k in (2, 100))
    if damage == "edited":
        assert rows["run/step10.pt"][5] == "changed after it was written"
    elif damage == "seconds":
        assert rows["run/step10.pt"][6] == "–"
    else:
        assert rows["step10"][5] == "broken" and "\n" not in rows["step10"][4] and len(rows["step10"][4]) > 20


def test_a_page_that_is_drawn_alone_gets_its_links_again(top: Path) -> None:
    write_index(top, top)
    before = (top / "step10/report.html").read_bytes()
    assert before.count(b"<nav") == 1
    write_report(top / "step10", **PLAIN)
    assert (top / "step10/report.html").read_bytes() == before
    write_index(top, top)
    assert (top / "step10/report.html").read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", '{"runs": 3}', '{"runs": [{"other": 1}], "comparisons": {}}'])
def test_an_index_that_is_not_right_is_told_and_costs_no_page(
    top: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (top / "index.json").write_text(text)
    write_report(top / "step10", **PLAIN)
    assert "index.json is not valid" in capsys.readouterr().err
    assert "<nav" not in (top / "step10/report.html").read_text()


def test_a_comparison_that_is_not_right_is_left_out(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (top / "comparison.json").write_text('{"runs": 5}')
    write_index(top, top)
    assert "comparison.json is not valid" in capsys.readouterr().err
    assert "comparison.html" not in (top / "index.html").read_text()


def test_pages_of_another_command_are_left_alone(top: Path) -> None:
    other = finished(top / "other" / "step5", "other/step5.pt")
    before = (other / "report.html").read_bytes()
    write_index(top, top / "step2")
    assert (other / "report.html").read_bytes() == before
    assert "<nav" in (top / "step2/report.html").read_text() and "<nav" not in (top / "step10/report.html").read_text()
    assert "other/step5.pt" in (top / "index.html").read_text()


def test_names_can_not_break_the_index(tmp_path: Path) -> None:
    name = 'runs/</td><script>alert("x")</script>&.pt'
    for k in range(2):
        finished(tmp_path / f'a "{k}" <b>&', name, k)
    page = write_index(tmp_path, tmp_path)
    assert page is not None
    Page(page.read_text())
    assert [row[0] for row in cells(page)] == [name, name] and 'alert("x")</script>' not in page.read_text()
    assert all(place.is_file() for place in addresses(page)) and len(addresses(page)) == 2


def test_one_run_and_runs_without_results_need_no_index(tmp_path: Path) -> None:
    assert write_index(tmp_path, tmp_path, {tmp_path / k: ("m.pt", "ssm") for k in "ab"}) is None
    finished(tmp_path / "a", "m.pt")
    assert write_index(tmp_path, tmp_path) is None and not (tmp_path / "index.html").exists()


DRIVE = """
  const heads = [...document.querySelectorAll("th button")], body = document.querySelector("tbody");
  const column = k => [...body.rows].filter(row => !row.hidden).map(row => row.cells[k].textContent);
  const press = k => { heads[k].focus(); said.focused = document.activeElement === heads[k]; heads[k].click(); };
  said.tabs = heads.every(head => head.tabIndex === 0);
  press(1); said.up = column(1); said.aria = heads[1].parentNode.getAttribute("aria-sort");
  press(1); said.down = column(1); said.after = heads[1].parentNode.getAttribute("aria-sort");
  press(0); said.names = column(0); said.before = heads[1].parentNode.getAttribute("aria-sort");
  const field = document.querySelector("input");
  const search = text => { field.value = text; field.dispatchEvent(new Event("input")); };
  search("STEP10 circuit"); said.found = column(0); said.count = document.querySelector("output").textContent;
  search("no such words"); said.none = column(0).length;
  search(""); said.every = column(0).length;
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_sorts_and_searches_the_index(top: Path, tmp_path: Path, width: int) -> None:
    page = write_index(top, top)
    assert page is not None
    said = driven(page, DRIVE, tmp_path, width)
    assert said["up"] == ["2", "10", "100", "–"] and said["down"] == ["100", "10", "2", "–"]
    assert (said["aria"], said["after"], said["before"]) == ("ascending", "descending", "none")
    assert said["names"] == ["run/step2.pt", "run/step10.pt", "run/step100.pt", "step30"]
    assert said["found"] == ["run/step10.pt", "run/step100.pt"] and said["count"] == "2 of 4"
    assert (said["none"], said["every"], said["loaded"]) == (0, 4, 0)
    assert said["focused"] and said["tabs"] and said["wide"] <= 0 and said["errors"] == []


@pytest.mark.usefixtures("no_figures")
def test_a_broken_run_stops_no_other_from_being_drawn_again(top: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for page in top.glob("step*/report.html"):
        page.unlink()
    with pytest.raises(MechintError, match=r"1 of 4 analyses could not be drawn \(.*step30\)"):
        run_experiment(experiment("", top, mode="from_runs", run_dir=str(top)))
    assert len(list(top.glob("step*/report.html"))) == 3 and (top / "comparison.html").is_file()
    assert [row[5] for row in cells(top / "index.html")][-1] == "broken"
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "step30/results.json is not valid JSON" in line
