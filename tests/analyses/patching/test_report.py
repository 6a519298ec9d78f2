"""The files of a patching analysis: results, figures, Markdown, a page, and W&B."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.analyses.loader import PromptLoader
from mechint.analyses.patching.analyzer import ANALYSIS, Patcher
from mechint.analyses.patching.options import PatchConfig
from mechint.analyses.patching.role_means import RoleValues
from mechint.report import log_wandb, write_report
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.patching import SMALL
from tests.helpers.run_files import write_results
from tests.helpers.tracing import loaders


def finished(directory: Path, model: Any, config: PatchConfig, sets: list[PromptLoader]) -> dict[str, Any]:
    """A run directory as the runner leaves it."""
    patcher = Patcher(model, config, run_dir=directory, key="a")
    found = patcher.run_analysis(*sets)
    patcher.save_results()
    return write_results(directory, "patch", "Activation patching", config, found)


@pytest.mark.slow_except("tiny_gpt2")
@pytest.mark.parametrize("family", [tiny_mamba, tiny_gpt2])
def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Any) -> None:
    model = family(1).requires_grad_(False)
    raw = finished(tmp_path, model, SMALL, loaders(model))
    assert len(ANALYSIS.summary(raw)) == 2 + len(model.paths) + 2 * len(model.patched)
    written = write_report(tmp_path)
    before = {path: path.read_bytes() for path in written}
    flows = {f"patch_flow_{kind}.png" for kind in model.paths}
    assert {path.name for path in written} == flows | {
        "patch_units.png", "patch_ranking.png", "patch_report.md", "report.html",
    }  # fmt: skip
    if family is tiny_mamba:  # one family's figures are drawn twice
        assert {path: path.read_bytes() for path in write_report(tmp_path)} == before
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;x.pt" in page and "<b>x.pt" not in page and 'src="http' not in page
    assert "query ← key asked for" in page and "no prompt has such a pair" in page
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert log_wandb(tmp_path, "project", "patch").is_dir()
    for broken in (
        {"flow": {**raw["flow"], "roles": raw["flow"]["roles"], "pairs": [[0, 0]]}},
        {"scale": None, "units": [{}]},
    ):
        write_json(tmp_path / "results.json", {**raw, **broken})
        with pytest.raises(MechintError, match="not valid"):
            write_report(tmp_path)


@pytest.mark.slow
def test_a_report_of_one_part_alone(tmp_path: Path) -> None:
    model = tiny_mamba(1).requires_grad_(False)
    for name, change in (("flow", {"units": ""}), ("units", {"flow": ""})):
        finished(tmp_path / name, model, dataclasses.replace(SMALL, **change), loaders(model))
        assert write_report(tmp_path / name)[-1].name == "report.html"


@pytest.mark.usefixtures("no_figures")
def test_means_need_no_twins_and_their_results_say_what_they_are(tmp_path: Path) -> None:
    model = tiny_mamba(1).requires_grad_(False)
    config = dataclasses.replace(SMALL, values="mean", flow="out", units="gated", max_units=9)
    sets = loaders(model)
    found = finished(tmp_path, model, config, sets)
    assert found["scale"] == "metric" and "total_effect" not in found["metrics"]
    assert "mean over the discovery prompts' tokens of the same role" in found["ablation"]
    every = found["metrics"]["all_gated"]
    assert every["n"] == found["metrics"]["prompts_used"]["value"] and every["low"] <= every["value"] <= every["high"]
    write_report(tmp_path)
    text = (tmp_path / "patch_report.md").read_text()
    assert "all of gated at their means" in text and "twin" not in text.lower()
    with pytest.raises(MechintError, match=r"pattern has an entry for each token of its prompt"):
        gpt2 = tiny_gpt2().requires_grad_(False)
        Patcher(gpt2, dataclasses.replace(config, flow="", units="pattern")).run_analysis(*loaders(gpt2))
    usual = RoleValues(model, ["layers.0.gated"], sets[0])
    usual.there[2] = False
    with pytest.raises(MechintError, match="no discovery prompt has a token of the role"):
        usual.of(torch.tensor([[0, 2]]), ["layers.0.gated"])


@pytest.mark.slow
def test_direct_paths_are_in_the_page_the_figures_and_the_frame(tmp_path: Path) -> None:
    model = tiny_gpt2(1).requires_grad_(False)
    config = dataclasses.replace(SMALL, flow="", units="head_out", paths=2, metric="answer_logprob")
    raw = finished(tmp_path, model, config, loaders(model))
    names = {path.name for path in write_report(tmp_path)}
    assert {"path_strongest_necessary.png", "path_matrix_sufficient.png", "patch_units.png"} <= names
    page = (tmp_path / "report.html").read_text()
    assert "Strongest direct paths" in page and "direct paths have an effect" in page and "embed → " in page
    every = mechint.results(tmp_path).rows()
    rows = [row for row in every if str(row["entry"]).startswith("direct_paths.paths.necessary")]
    assert len(rows) == sum(
        value is not None for row in raw["direct_paths"]["paths"]["necessary"]["value"] for value in row
    )
    assert {row["metric"] for row in rows} == {"necessary"} and any(row["name"] == "embed → logits" for row in rows)
    cut = {**raw["direct_paths"], "senders": raw["direct_paths"]["senders"][1:]}
    write_json(tmp_path / "results.json", {**raw, "direct_paths": cut})
    with pytest.raises(MechintError, match="not valid"):
        write_report(tmp_path)
