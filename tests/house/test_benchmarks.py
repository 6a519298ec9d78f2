"""The paired timing that `make bench` stands on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import pairs, sections
from benchmarks.pairs import Limit, Measured, Question, Slope, Target, measure
from benchmarks.sections import SECTIONS
from benchmarks.show import draw, table


@pytest.mark.slow
def test_candidates_take_turns_and_a_part_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only the work moves: a busy machine changes nothing."""
    order, now = list[str](), [0.0]
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: now[0])

    def work(name: str, seconds: float) -> torch.Tensor:
        order.append(name)
        now[0] += seconds
        return torch.zeros(2**18)

    question = Question(
        "x",
        "y",
        {"a": lambda: work("a", 0.001), "b": lambda: work("b", 0.02)},
        [Target("b", "a", 200.0)],
        {"b": 10.0},
        2,
    )
    found = measure(question)
    assert order == ["a", "b"] * 3  # a warm-up, and two turns
    a, b = found["rows"]
    assert (a["name"], a["peak_mib"], b["name"]) == ("a", 1.0, "b")
    assert [a["median_s"], b["median_s"]] == pytest.approx([0.001, 0.2])
    assert found["targets"][0]["value"] == pytest.approx(200) and found["targets"][0]["bound"] == 200


def test_a_ratio_is_of_paired_turns() -> None:
    rows = {"slow": Measured([2.0, 30.0, 2.0], 6.0), "fast": Measured([1.0, 10.0, 1.0], 3.0)}
    found = Target("slow", "fast", 3.0).judge(rows)
    assert (found["value"], found["least"], found["most"], found["holds"]) == (2.0, 2.0, 3.0, False)
    assert Target("slow", "fast", 2.0, at_most=True).judge(rows)["holds"]
    assert not Target("slow", "fast", 1.9, at_most=True, of="memory").judge(rows)["holds"]


def test_limits_are_of_the_median_and_of_the_peak() -> None:
    rows = {"a": Measured([2.0, 30.0, 3.0], 6.0)}
    assert Limit("a", 3.0).judge(rows)["holds"] and not Limit("a", 2.9).judge(rows)["holds"]
    assert Limit("a", 6.0, "MiB").judge(rows)["holds"] and not Limit("a", 5.9, "MiB").judge(rows)["holds"]


def test_a_slope_is_the_power_of_each_turn() -> None:
    rows = {f"n {n}": Measured([3.0 * n, 0.1 * n**2, 5.0 * n], 7.0) for n in (1, 4, 16)}
    found = Slope("n", [1.0, 4.0, 16.0], 1.1).judge(rows)
    assert found["holds"] and [round(found[k], 9) for k in ("least", "value", "most")] == [1, 1, 2]
    flat = Slope("n", [1.0, 4.0, 16.0], 0.01, of="memory").judge(rows)
    assert flat["holds"] and flat["value"] == 0


@pytest.mark.slow
def test_the_table_and_the_pictures(tmp_path: Path) -> None:
    work = lambda: torch.zeros(9)
    questions = [
        Question(
            "x",
            "a pair",
            {"mechint": work, "peer": work},
            [Target("peer", "mechint", 1e9)],
            {"peer": 3.0},
            1,
            cold=("peer",),
        ),
        Question("x", "a curve", {"n 2": work, "n 4": work}, [Slope("n", [2.0, 4.0], 99)], rounds=2, curve="n"),
    ]
    found = [measure(question) for question in questions]
    text = "\n".join(table(found))
    assert (
        "| peer (extrapolated × 3.0) |" in text
        and "| 1 | not measured |" in text
        and "to be ≥ 1e+09: **MISSED**" in text
    )
    assert "seconds grow as n to the power of" in text and "to be ≤ 99: **holds**" in text
    assert [path.name for path in draw(found, tmp_path)] == ["bench.png", "curves.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("bench.png", "curves.png"))
    assert draw([], tmp_path) == []


def test_every_section_has_its_file() -> None:
    there = {path.stem for path in (Path(sections.__file__).parent).glob("[a-z]*.py")}
    assert there == set(SECTIONS)


def test_make_bench_runs_every_section() -> None:
    lines = (Path(__file__).resolve().parents[2] / "Makefile").read_text().splitlines()
    (listed,) = [line.split(":=")[1].split() for line in lines if line.startswith("ALL_SECTIONS :=")]
    assert sorted(listed) == sorted(SECTIONS)
