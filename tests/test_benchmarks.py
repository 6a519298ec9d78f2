"""The paired timing that `make bench` stands on."""

from __future__ import annotations

import time

import torch

from benchmarks.pairs import Question, Target, judge, measure


def test_candidates_take_turns_and_a_part_is_scaled() -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> torch.Tensor:
        order.append(name)
        time.sleep(seconds)
        return torch.zeros(2**18)

    question = Question(
        "x",
        "y",
        {"a": lambda: work("a", 0.001), "b": lambda: work("b", 0.02)},
        [Target("b", "a", 20.0)],
        {"b": 10.0},
        2,
    )
    found = measure(question)
    assert order == ["a", "b"] * 3  # a warm-up, and two turns
    assert found["rows"]["a"]["peak_mib"] == 1.0 and found["rows"]["b"]["median_s"] >= 0.2
    assert found["targets"][0]["holds"] and found["targets"][0]["ratio"] > 20


def test_a_ratio_is_of_paired_turns() -> None:
    seconds = {"slow": [2.0, 30.0, 2.0], "fast": [1.0, 10.0, 1.0]}
    found = judge(Target("slow", "fast", 3.0), seconds)
    assert (found["ratio"], found["least"], found["most"], found["holds"]) == (2.0, 2.0, 3.0, False)
    assert judge(Target("slow", "fast", 2.0, at_most=True), seconds)["holds"]
