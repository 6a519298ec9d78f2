"""Comparisons of runs: their order, their overlap, and variants against the noise of seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechint.errors import MechintError
from mechint.report import write_comparison
from mechint.report.compare import run_names
from mechint.report.results import load_results
from tests.report_runs import Page, build_run, edit, value


def test_a_comparison_keeps_the_order_and_measures_the_overlap(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / "out" / name, seed=seed) for seed, name in enumerate(("stepV2", "stepV10", "stepV1"))]
    written = write_comparison(list(runs), tmp_path / "out")
    assert sorted(path.suffix for path in written) == [".html", ".json", ".md", ".png"]
    data = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [run["directory"] for run in data["runs"]] == ["stepV2", "stepV10", "stepV1"]
    sets = [load_results(run).circuit for run in runs]
    assert data["jaccard"][0][1] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1])) != 1.0
    assert [data["jaccard"][i][i] for i in range(3)] == [1.0, 1.0, 1.0]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.index("| stepV2 | 16 of 256") < text.index("| stepV10 | 16 of 256") < text.index("| stepV1 | 16 of 256")
    assert Page((tmp_path / "out" / "comparison.html").read_text()).open == []
    before = {path: path.read_bytes() for path in written}
    write_comparison(list(runs), tmp_path / "out")
    assert all(path.read_bytes() == data for path, data in before.items())


def test_models_of_different_shape_have_no_overlap_and_the_report_says_so(tmp_path: Path) -> None:
    runs = [build_run(tmp_path / "a"), build_run(tmp_path / "b", layers=3), build_run(tmp_path / "c", text=True)]
    edit(runs[2], ablation="zero")
    write_comparison(runs, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())["jaccard"] is None
    text = (tmp_path / "comparison.md").read_text()
    assert "no units in common" in text and "differ in ablation (mean, zero)" in text and "Jaccard):" not in text


def test_runs_that_can_not_be_compared_are_refused(tmp_path: Path) -> None:
    one, two = build_run(tmp_path / "a"), build_run(tmp_path / "b")
    with pytest.raises(MechintError, match="at least two"):
        write_comparison([one], tmp_path)
    with pytest.raises(MechintError, match="named twice"):
        write_comparison([one, one], tmp_path)
    edit(two, analysis="kv")
    with pytest.raises(MechintError, match="kv, ssm"):
        write_comparison([one, two], tmp_path)
    assert run_names([Path("/x/a/ssm"), Path("/x/b/ssm")]) == ["a/ssm", "b/ssm"]


def study(tmp_path: Path, variants: list[str]) -> list[Path]:
    runs = []
    for number, variant in enumerate(variants):
        run = build_run(tmp_path / f"stepV{number}", seed=number)
        raw = json.loads((run / "results.json").read_text())
        edit(
            run,
            model={**raw["model"], "variant": variant},
            metrics__faithfulness=value(0.5 + 0.4 * ("tied" in variant)),
        )
        runs.append(run)
    return runs


def test_variants_are_named_and_held_against_training_seeds(tmp_path: Path) -> None:
    seeds = ["baseline", "seed=1", "seed=2", "seed=3"]
    runs = study(tmp_path, [*seeds, *(f"kv=tied+{s}" if "=" in s else "kv=tied" for s in seeds)])
    write_comparison(runs, tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["noise"]["kind"] == "training" and found["runs"][5]["variant"] == "kv=tied+seed=1"
    by_name = {entry["quantity"]: entry for entry in found["differences"]}
    best = by_name["faithfulness"]
    assert (best["one"], best["other"], best["counts"]) == ("baseline", "kv=tied", [4, 4])
    assert best["p"] == pytest.approx(2 / 70) and best["adjusted"] >= best["p"]
    text = (tmp_path / "out/comparison.md").read_text()
    assert "To one unit, all keep the same share" in text and "smallest share" not in text.split("\n\n")[1]
    assert "stepV5 (kv=tied+seed=1)" in text and "Held against models of a variant" in text


def test_without_training_seeds_the_noise_is_that_of_the_search(tmp_path: Path) -> None:
    write_comparison(study(tmp_path, ["baseline", "kv=tied"]), tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["noise"]["kind"] == "search" and "nothing of another training" in found["noise"]["meaning"]
    assert all(entry["least"] >= 0.1 for entry in found["differences"])
    assert "With so few seeds none could" in (tmp_path / "out/comparison.html").read_text()
