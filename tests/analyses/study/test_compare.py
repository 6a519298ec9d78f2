"""Studies side by side: claims that belong together, verdicts that differ, tests of effects, many runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.study.compare import matched, source, write_study_comparison
from mechint.analyses.study.results import Claims
from mechint.report import figure_style as style
from mechint.report.along_training import apart
from mechint.report.finished import read_finished
from mechint.report.values import Value
from mechint.utils.files import write_bytes, write_json
from mechint.utils.statistics import number
from tests.analyses.study.test_results import MADE, STUDY


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "save_figure", lambda path, size, draw: write_bytes(path, b"no figure"))


def study(
    directory: Path, step: int, effect: float, verdict: str, name: str = "L0 mask 1 2 … (8)", **more: Any
) -> Path:
    """A finished study whose candidate has this effect and verdict; the combined circuit and the probe stay."""
    combined, candidate, probe = MADE.claims
    found = number(effect, effect - 0.05, effect + 0.05, 99, "95 %")
    changed = dataclasses.replace(candidate, candidate=name, effect=found, verdict=verdict)
    made = dataclasses.replace(MADE, claims=more.get("claims", [combined, changed, probe]))
    raw = {
        "schema": 1, "analysis": "study", "title": "Study", "checkpoint": f"out/step{step}.pt", "status": "complete",
        "model": {"family": "mamba", "parameters": 9}, "task": {"name": "recall"}, "config": {},
        **dataclasses.replace(STUDY, claims=made).entries(),
    }  # fmt: skip
    write_json(directory / "results.json", json.loads(json.dumps(raw)))
    write_json(directory / "manifest.json", {})
    return directory


def test_claims_stand_side_by_side_and_effects_are_tested(tmp_path: Path, undrawn: None) -> None:
    runs = [
        study(tmp_path / "a", 0, 0.5, "supported"), study(tmp_path / "b", 100, 0.1, "refuted", "L0 mask 4 5 … (8)"),
        study(tmp_path / "c", 200, 0.5, "underpowered", "L1 mask 1"),
    ]  # fmt: skip
    written = write_study_comparison(runs, tmp_path / "out")
    assert {path.name for path in written} >= {"comparison.html", "comparison_claims.png"}
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    claims = {entry["claim"]: entry for entry in data["claims"]}
    assert list(claims) == [
        "combined circuit",
        "probe of key",
        "L0 mask at u",
        "L1 mask at u",
    ]  # those of most runs first
    mask = claims["L0 mask at u"]
    assert [run["verdict"] for run in mask["runs"]] == ["supported", "refuted", "not made"] and mask["changes"]
    assert not claims["combined circuit"]["changes"] and not claims["L1 mask at u"]["changes"]
    p = apart(Value(0.5, 0.45, 0.55, 99), Value(0.1, 0.05, 0.15, 99))
    assert p is not None and mask["runs"][1]["p_differs"] == pytest.approx(min(1.0, 5 * p), rel=1e-6)  # Holm over five
    assert [run["p_differs"] for run in claims["combined circuit"]["runs"]] == [None, 1.0, 1.0]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "4 claims, 3 of them in two runs or more: the verdict of 1 differs between runs." in text
    assert (
        "L0 mask at u: supported in a (0.5" in text
        and ", refuted in b (0.1" in text
        and "; the effect certainly" in text
    )
    assert "certainly differs from a's in b (p ≤ 0.05, adjusted)" in text and "L0 mask 4 5 … (8)" in text
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_study_comparison(runs, tmp_path / "out")] == before


def test_a_verdict_that_changes_with_an_effect_that_does_not_is_called_so(tmp_path: Path, undrawn: None) -> None:
    runs = [study(tmp_path / "a", 0, 0.50, "supported"), study(tmp_path / "b", 100, 0.49, "underpowered")]
    write_study_comparison(runs, tmp_path / "out")
    assert "; the effects cannot be told apart." in (tmp_path / "out" / "comparison.md").read_text()


def test_many_studies_are_counted_and_none_without_claims_is_compared(tmp_path: Path, undrawn: None) -> None:
    verdicts = ["supported"] * 9 + ["refuted"] * 4
    runs = [study(tmp_path / f"r{k}", k, 0.1 * k, verdict) for k, verdict in enumerate(verdicts)]
    write_study_comparison(runs, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert (
        "| L0 mask at u | 9 | 4 | 0 | 0 | 0 | 1.2 |" in text
        and not (tmp_path / "out" / "comparison_claims.png").exists()
    )
    none = [study(tmp_path / f"n{k}", k, 0.1, "supported", claims=[]) for k in range(2)]
    write_study_comparison(none, tmp_path / "none")
    assert "No run has claims." in (tmp_path / "none" / "comparison.md").read_text()


def test_claims_of_one_source_are_matched_by_their_strength(tmp_path: Path) -> None:
    candidate = MADE.claims[1]
    several: list[Any] = [dataclasses.replace(candidate, candidate=f"L0 mask {k} {k + 1} … (8)") for k in range(3)]
    runs = [read_finished(study(tmp_path / str(k), k, 0.5, "supported", claims=several[k:]), "study") for k in range(2)]
    found, tests = matched(runs)
    assert [made.said for made in found] == ["L0 mask at u", "L0 mask at u, 2", "L0 mask at u, 3"] and tests == 2
    assert [[claim.candidate if claim else None for claim in made.claims] for made in found] == [  # type: ignore[union-attr]
        ["L0 mask 0 1 … (8)", "L0 mask 1 2 … (8)"], ["L0 mask 1 2 … (8)", "L0 mask 2 3 … (8)"],
        ["L0 mask 2 3 … (8)", None],
    ]  # fmt: skip
    assert isinstance(MADE, Claims)


@pytest.mark.parametrize(
    ("name", "short"), [("L0 mask 18 23 … (8)", "L0 mask"), ("L12 sae latents 3", "L12 sae latents"),
                        ("L1 cluster 4", "L1 cluster"), ("L0 lasso of key", "L0 lasso of key"), ("L0 a", "L0 a")]
)  # fmt: skip
def test_the_source_of_a_candidate(name: str, short: str) -> None:
    assert source(name) == short
