"""Traces side by side: the paired differences against brute force, and what can not be compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechint.analyses.map_comparison import compared
from mechint.analyses.tracing.analyzer import CausalTracer
from mechint.analyses.tracing.compare import differences, measured
from mechint.analyses.tracing.figures import load_trace
from mechint.report import figure_style as style
from mechint.report import write_trace_comparison
from mechint.utils.errors import MechintError
from mechint.utils.files import write_bytes, write_json
from tests.helpers.builders import tiny_mamba
from tests.helpers.tracing import SMALL, loaders


def traced(directory: Path, seed: int, prompts: str = "same", **changes: Any) -> Path:
    """A finished trace of a model of that seed, on the prompts of the model of seed 1."""
    asked = loaders(tiny_mamba(1).requires_grad_(False))
    config = dataclasses.replace(SMALL, direction="denoise", **changes)
    tracer = CausalTracer(tiny_mamba(seed).requires_grad_(False), config, run_dir=directory, key=str(seed))
    if seed != 1:  # nobody asks a random model for another one's answers: what it is asked does not matter here
        tracer.trace_answered = lambda batch, mean: {  # type: ignore[method-assign]
            **(found := tracer.trace(batch, mean)), "right": found["right"] | (batch.tokens[:, 0] % 2 == 0)
        }  # fmt: skip
    found = tracer.run_analysis(*asked)
    tracer.save_results()
    about = {
        "schema": 1, "analysis": "trace", "title": "Causal tracing", "checkpoint": f"<i>{seed}.pt",
        "status": "complete", "model": {"family": "mamba", "parameters": 1, "n_layer": 2, "d_model": 10},
        "task": {"name": "recall", "description": "recall"}, "config": dataclasses.asdict(config),
    }  # fmt: skip
    write_json(directory / "results.json", {**about, **found})
    write_json(directory / "manifest.json", {"mechint": "0", "prompts": prompts})
    return directory


@pytest.mark.slow
def test_differences_are_paired_over_what_both_answer(tmp_path: Path) -> None:
    one, other = (load_trace(traced(tmp_path / str(seed), seed)) for seed in (1, 2))
    raw = dataclasses.replace(other, raw={**other.raw, "trace": {**other.raw["trace"], "unit": one.unit}})
    found = differences(one, compared(measured(one), measured(raw)))
    assert found and {entry["panel"] for entry in found} == {"resid_post", "state", "dt", "resid_post without out"}
    import torch

    first, second = (torch.load(trace.directory / "effects.pt", weights_only=True) for trace in (one, other))
    both = (first["answered"] & second["answered"]).numpy()
    assert 0 < both.sum() < first["answered"].sum()
    for entry in found:
        k = [panel["name"] for panel in one.panels("denoise")].index(entry["panel"])
        shares = []
        for part in (first, second):
            rows = [i for i, at in enumerate(np.flatnonzero(part["answered"].numpy())) if both[at]]
            values = part["means.denoise"].numpy()[rows, k, entry["layer"], one.roles.index(entry["role"])]
            shares.append(values.mean() / part["total"].numpy()[rows].mean())
        assert entry["value"] == pytest.approx(shares[1] - shares[0])
        assert entry["low"] <= entry["value"] <= entry["high"] and entry["n"] == both.sum()


@pytest.mark.slow
def test_a_model_differs_from_itself_by_nothing(tmp_path: Path) -> None:
    one = traced(tmp_path / "a", 1)
    again = traced(tmp_path / "b", 1)
    written = write_trace_comparison([one, again], tmp_path / "out")
    assert {path.name for path in written} == {
        "comparison.json", "comparison_maps_denoise.png", "comparison_layers_denoise.png", "comparison.md",
        "comparison.html", "comparison_map_cells.png",
    }  # fmt: skip
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert data["notes"] == [] and data["differences"]
    assert {entry[name] for entry in data["differences"] for name in ("value", "low", "high")} == {0.0}
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_trace_comparison([one, again], tmp_path / "out")] == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_what_can_not_be_subtracted_is_said(tmp_path: Path) -> None:
    runs = [traced(tmp_path / "a", 1), traced(tmp_path / "b", 1, prompts="others")]
    runs.append(traced(tmp_path / "c", 1, metric="answer_prob"))
    runs.append(traced(tmp_path / "d", 1, sites="state"))
    write_trace_comparison(runs, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    said = ("other prompts", "another metric", "another unit of effects|other directions")
    for note, words in zip(data["notes"], said, strict=True):
        assert any(word in note for word in words.split("|"))
    assert data["differences"] == []
    with pytest.raises(MechintError, match="at least two"):
        write_trace_comparison(runs[:1], tmp_path / "out")
    (runs[1] / "effects.pt").write_bytes(b"")
    write_json(runs[1] / "manifest.json", {"prompts": "same"})
    with pytest.raises(MechintError, match=r"effects\.pt is cut short or damaged"):
        write_trace_comparison(runs[:2], tmp_path / "out")


def test_many_traces_are_followed_along_their_training_with_their_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "save_figure", lambda path, size, draw: write_bytes(path, b"no figure"))
    one = traced(tmp_path / "one", 1)
    raw = json.loads((one / "results.json").read_text())
    runs = []
    for k in range(13):
        found = {**raw, "checkpoint": f"out/step{100 * k}.pt", "notes": ["Nothing hurts."] if k == 4 else []}
        for name in ("results.json", "examples.json", "manifest.json", "effects.pt"):
            (tmp_path / f"r{k}").mkdir(exist_ok=True)
            (tmp_path / f"r{k}" / name).write_bytes((one / name).read_bytes())
        write_json(tmp_path / f"r{k}" / "results.json", found)
        runs.append(tmp_path / f"r{k}")
    written = write_trace_comparison(runs, tmp_path / "out")
    assert sorted(path.name for path in written) == [f"comparison.{kind}" for kind in ("html", "json", "md", "png")]
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert data["along"] == "training step" and ["Nothing hurts.", ["r4"]] in data["warnings"]
    best = raw["trace"]["strongest"][0]
    [cell] = [n for n in data["numbers"] if n["name"].startswith(f"denoise: {best['panel']}, layer {best['layer']}")]
    assert len(cell["values"]) == 13 and cell["values"][5]["value"] == best["value"]
    text = (tmp_path / "out" / "comparison.html").read_text()
    assert "it is chosen by its size there" in text and "no number changes beyond its intervals" in text
