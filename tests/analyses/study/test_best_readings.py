"""What is read from a model with random weights, and checkpoints of a run, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mechint.analyses.study import steps_controls
from mechint.analyses.study.steps_controls import appearance, best_readings, carries


def test_of_each_label_the_best_reading_across_folds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"label": label, "site": site, "method": method} for label, site, method in (
        ("a", "x", "linear"), ("a", "x", "ridge"), ("b", "x", "linear"), ("a", "y", "linear"))]  # fmt: skip
    scores = {("x", "linear", "a"): 0.6, ("x", "ridge", "a"): 0.9, ("x", "linear", "b"): 0.2, ("y", "linear", "a"): 0.7}
    monkeypatch.setattr(
        steps_controls, "collected", lambda context, loader, model: {"x": ("x", loader), "y": ("y", loader)}
    )
    monkeypatch.setattr(steps_controls, "labelled", lambda context, loader, values, label: (*values, loader, label))

    def reading(train: Any, test: Any, method: str, seed: int) -> tuple[float, Any]:
        assert train[1:3] == ("train", "train") and test[1:3] == ("val", "val") and seed == 5
        score = scores[train[0], method, train[3]]
        return score, np.array([score])

    monkeypatch.setattr(steps_controls, "reading", reading)
    found: Any = {"probes": {"report": {"probes": rows}}}
    context: Any = SimpleNamespace(found=found, train="train", val="val", seed=5)
    best = best_readings(context, "model")  # type: ignore[arg-type]
    assert {label: hits.tolist() for label, hits in best.items()} == {"a": [0.9], "b": [0.2]}
    assert best_readings(SimpleNamespace(found={}), "model") == {}  # type: ignore[arg-type]


def test_where_a_candidate_appears_along_a_training() -> None:
    row = lambda name, present: {"checkpoint": name, "present": present}
    said = lambda *present: appearance([row(f"c{k}", each) for k, each in enumerate(present)])
    assert said(False, False) == {
        "appears": None, "appearance": "The strongest candidate is present at none of the checkpoints."
    }  # fmt: skip
    assert said(False, True, True)["appearance"].endswith("first present at c1 and at every later checkpoint.")
    assert said(False, True, False, True)["appearance"].endswith("first present at c1, and later not at c2.")
    assert said(True, False)["appearance"].endswith("first present at c0, and later not at c1.")
    assert said(True)["appearance"].endswith("c0, the only checkpoint.") and said(True)["appears"] == "c0"
    assert said(False, True)["appears"] == "c1"


@pytest.mark.parametrize(
    ("p", "low", "needed"),
    [(0.05, 0.1, True), (0.051, 0.5, False), (0.01, 0.099, False), (0.0, None, False), (0.01, -0.5, False)],
)
def test_a_candidate_carries_another_task_if_surely_so_much_is_lost(p: float, low: float | None, needed: bool) -> None:
    assert carries({"p_holm": p, "effect": {"value": 0.6, "low": low, "high": 0.9}}, 0.1) is needed
