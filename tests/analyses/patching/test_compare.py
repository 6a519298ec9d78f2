"""Patchings side by side: cells against effects by hand, what cannot be compared, many runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mechint.analyses.patching.compare import write_patch_comparison
from mechint.report import figure_style as style
from mechint.utils.files import read_json, write_bytes, write_json, write_torch
from tests.analyses.patching.test_report import finished
from tests.helpers.builders import tiny_gpt2
from tests.helpers.patching import SMALL
from tests.helpers.tracing import loaders

FEW = dataclasses.replace(SMALL, flow="pattern", units="head_out")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "save_figure", lambda path, size, draw: write_bytes(path, b"no figure"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished patching."""
    directory = tmp_path_factory.mktemp("patching") / "one"
    model = tiny_gpt2(1).requires_grad_(False)
    finished(directory, model, FEW, loaders(model))
    write_json(directory / "manifest.json", {"prompts": "same"})
    return directory


def copy(source: Path, target: Path, **changes: object) -> Path:
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    write_json(target / "results.json", {**read_json(target / "results.json"), **changes})
    return target


def test_cells_are_compared_over_the_prompts_that_both_answer(one: Path, tmp_path: Path, undrawn: None) -> None:
    other = copy(one, tmp_path / "other")  # a model that does all of it three times as much, but for what suffices
    found = torch.load(one / "effects.pt", weights_only=True)
    more = lambda name: 3.0 if name.startswith(("flow", "necessary")) else 1
    write_torch(other / "effects.pt", {name: value * more(name) for name, value in found.items()})
    written = write_patch_comparison([one, other], tmp_path / "out")
    assert {path.name for path in written} >= {"comparison.json", "comparison_map_cells.png", "comparison.html"}
    [pair] = json.loads((tmp_path / "out" / "comparison.json").read_text())["maps"]
    assert [each["name"] for each in pair["maps"]] == ["cut at pattern", "head_out, necessary", "head_out, sufficient"]
    batches = sorted(name for name in found if name.startswith("right."))
    whole = lambda name: np.concatenate([found[f"{name}.{k}"].numpy() for k in range(len(batches))], -1)
    right = whole("right")
    raw = read_json(one / "results.json")
    total = (whole("clean") - whole("corrupted"))[right].mean() if raw["scale"] != "metric" else 1.0
    effects = whole("necessary head_out")[:, right].mean(1) / total
    kind = raw["units"][0]
    for cell in pair["maps"][1]["largest"]:
        k = next(k for k in range(len(effects)) if (kind["layer"][k], f"unit {kind['unit'][k]}") == (
            cell["layer"], cell["cell"]))  # fmt: skip
        assert cell["one"] == pytest.approx(effects[k]) == pytest.approx(kind["necessary"]["value"][k])
        assert cell["value"] == pytest.approx(2 * effects[k]) and cell["n"] == right.sum()
    assert pair["maps"][1]["spearman"]["value"] == pytest.approx(1.0)
    assert {cell["value"] for cell in pair["maps"][2]["largest"]} == {0.0} and pair["maps"][2]["differing"] == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "How alike the maps are" in text and "Largest differences" in text and "other less one:" in text


def test_what_can_not_be_subtracted_is_said(one: Path, tmp_path: Path, undrawn: None) -> None:
    raw = read_json(one / "results.json")
    others = copy(one, tmp_path / "others")
    write_json(others / "manifest.json", {"prompts": "others"})
    window = copy(one, tmp_path / "window", config={**raw["config"], "window": 3})
    unit = copy(one, tmp_path / "unit", scale="metric" if raw["scale"] != "metric" else "share of the total effect")
    old = copy(one, tmp_path / "old")
    found = torch.load(old / "effects.pt", weights_only=True)
    write_torch(old / "effects.pt", {name: value for name, value in found.items() if name != "templates"})
    write_patch_comparison([one, others, window, unit, old], tmp_path / "out")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    said = " ".join(data["notes"])
    for word in ("other prompts", "another metric, values, window or decay", "another unit of effects", "templates"):
        assert word in said
    assert data["maps"] == []


def test_more_than_a_dozen_are_followed_by_their_main_numbers(one: Path, tmp_path: Path, undrawn: None) -> None:
    runs = [copy(one, tmp_path / f"r{k}", checkpoint=f"out/step{k}.pt") for k in range(13)]
    write_patch_comparison(runs, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert data["along"] == "training step" and "maps" not in data
    assert any("for up to 12 runs; these are 13" in note for note in data["notes"])
