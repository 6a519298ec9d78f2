"""Pages in a real browser: no error, no network, nothing wider than the window; tables sort, maps answer to keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.analyses.dictionaries.analyzer import SAEAnalysisConfig
from mechint.analyses.lens.options import LensConfig
from mechint.analyses.patching.options import PatchConfig
from mechint.analyses.paths.options import PathConfig
from mechint.analyses.tracing.options import TraceConfig
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.runner.experiment import run_experiment
from mechint.tasks import TaskConfig
from tests.helpers.browser import driven
from tests.helpers.experiments import experiment
from tests.helpers.scorecards import compiled

pytestmark = pytest.mark.slow
TASK = TaskConfig(name="recall", pairs=3, keys=8, values=8)
COUNTS = {"prompts": 12, "eval_prompts": 12, "bootstrap": 100}
OTHERS: dict[str, Any] = {
    "trace": TraceConfig(**COUNTS, examples=1, sites="resid_post,out"),
    "patch": PatchConfig(**COUNTS),
    "path": PathConfig(**COUNTS),
    "lens": LensConfig(**COUNTS),
    "sae": SAEAnalysisConfig(
        layers="0", ratio="2", architectures="topk", sparsity="4", tokens=2000, batch=64, buffer=256, **COUNTS
    ),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: circuits of two checkpoints, their comparison, the index, and other analyses of the first one."""
    folder = tmp_path_factory.mktemp("pages")
    for seed in range(2):
        known = compiled("recall", seed)
        torch.save(
            {"model": to_hf_state_dict(known.model), "config": hf_config(known.model)}, folder / f"step{seed}.pt"
        )
    asked = experiment(folder / "step*.pt", folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechint.analyses.circuits.analyzer.CircuitAnalyzer.controls", ())
        run_experiment(dataclasses.replace(asked, task=TASK))
    others = experiment(folder / "step0.pt", folder / "out" / "others")
    run_experiment(dataclasses.replace(others, task=TASK, configs=OTHERS))
    found = {str(page.relative_to(folder / "out")): page for page in sorted((folder / "out").rglob("*.html"))}
    return {name: page for name, page in found.items() if "step1/" not in name}


LOOK = """
  const wait = event => new KeyboardEvent("keydown", {key: event, bubbles: true});
  said.tables = [];
  for (const table of document.querySelectorAll("table")) {
    const head = table.querySelector("th.n button");
    if (!head || table.closest(".sortable")) continue;
    const k = head.parentNode.cellIndex;
    const read = () => [...table.tBodies[0].rows].map(row => row.cells[k].textContent.trim().replace(/,/g, ""))
      .map(text => (text.replace("−", "-").match(/-?[0-9][0-9.]*(e[-+]?[0-9]+)?/i) || [""])[0]).filter(text => text);
    head.click();
    said.tables.push(read().map(Number));
  }
  said.maps = [];
  for (const [cells, line] of [["table.flow td", "p.value"], ["#trace-maps rect", "#trace-value"],
                               ["#lens-map td", "#lens-value"]]) {
    const all = [...document.querySelectorAll(cells)], say = document.querySelector(line);
    if (!all.length) continue;
    const stops = all.filter(cell => cell.tabIndex === 0).length, told = [];
    const first = all.find(cell => cell.tabIndex === 0);
    first.focus(); told.push(say.textContent);
    first.dispatchEvent(wait("ArrowRight")); told.push(say.textContent);
    document.activeElement.dispatchEvent(wait("ArrowDown")); told.push(say.textContent);
    document.activeElement.dispatchEvent(wait("ArrowLeft")); told.push(say.textContent);
    document.activeElement.dispatchEvent(wait("ArrowUp")); told.push(say.textContent);
    first.dispatchEvent(new MouseEvent("click", {bubbles: true})); told.push(say.textContent);
    said.maps.push({stops, told, back: document.activeElement === first, all: all.length});
  }
  const links = [...document.querySelectorAll(".contents a")];
  said.sections = document.querySelectorAll("h2").length;
  said.lost = links.filter(link => !document.querySelector(link.hash)).length;
  said.contents = links.length;
  said.open = links.length ? document.querySelector(".contents details").open : null;
"""


@pytest.mark.parametrize("width", [390, 1600])
def test_every_page(pages: dict[str, Path], tmp_path: Path, width: int) -> None:
    assert {"index.html"} < set(pages) and any("comparison" in name for name in pages)
    sorts = maps = long = 0
    for name, page in pages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        said = driven(page, LOOK, (tmp_path / name).parent, width)
        assert said["errors"] == [] and said["loaded"] == 0, (name, said["errors"])
        assert said["wide"] <= 0, (name, said["wide"])
        assert said["lost"] == 0 and said["contents"] in (0, said["sections"]), name
        assert said["open"] in (None, width > 1500), name
        for column in said["tables"]:
            assert column == sorted(column), (name, column)
        for each in said["maps"]:
            told = each["told"]
            assert each["back"] and told[0] == told[4] == told[5] and len(set(told[:4])) == 4 and each["stops"] >= 1, (
                name,
                each,
            )
        sorts, maps, long = sorts + len(said["tables"]), maps + len(said["maps"]), long + bool(said["contents"])
    assert sorts >= 5 and maps >= 4 and long >= 3
