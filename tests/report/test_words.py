"""The forms of numbers and tokens: an interval decides how many decimals are worth printing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mechint.analyses.metrics import NAMES
from mechint.report.page import picture
from mechint.report.words import between, decimals, gap, metric_label, value_cells, with_interval


@pytest.mark.parametrize(
    ("low", "high", "places"),
    [
        (0.26, 0.355, 3), (25.81, 27.5, 1), (0.0, 84.0, 0), (0.0, 840.0, 0), (0.0, 0.01, 3), (1.0, 1.0, None),
        (None, None, None), (math.nan, math.nan, None), (2.0, 1.0, None),
    ],
)  # fmt: skip
def test_an_interval_has_two_significant_digits_of_its_width(
    low: float | None, high: float | None, places: int | None
) -> None:
    assert decimals(low, high) == places


def test_a_value_has_the_decimals_of_its_interval() -> None:
    assert value_cells(0.3075, 0.26, 0.355) == ("0.307", "0.260 to 0.355")  # half to even, as Python rounds
    assert value_cells(-0.00818, -9.326e-05, 0.02911) == ("−0.008", "0.000 to 0.029")
    assert value_cells(12345.6, 12000.0, 13000.0) == ("12,346", "12,000 to 13,000")
    assert value_cells(0.5, None, None) == ("0.5", "none")
    assert between(1.0, 1.0) == "1 to 1"
    assert with_interval(26.654, 25.81, 27.5) == "26.7 [25.8, 27.5]"
    assert with_interval(-0.0337, -0.422, 0.627) == "0.0 [−0.4, 0.6]"
    assert with_interval(0.5, math.nan, math.nan) == "0.5"


def test_tokens_stand_apart_unless_they_bring_their_spaces() -> None:
    assert gap(["k4", "v3"]) == " "
    assert gap(["the", " cat"]) == gap(["\u0120cat", "s"]) == gap(["\u2581cat", "s"]) == ""
    assert gap(["a", "b", "⟨23⟩"]) == gap([]) == ""


def test_every_metric_has_a_name_for_people() -> None:
    assert metric_label("answer_logprob") == "log-probability of the answer (nats)"
    assert metric_label("accuracy") == "accuracy" and metric_label("a_b") == "a b"
    assert not [name for name in NAMES if "_" in metric_label(name)]


@pytest.mark.parametrize("pixels", [400, 1800])
def test_a_figure_is_not_blown_up(tmp_path: Path, pixels: int) -> None:
    """Text is as large in a small figure as in a large one."""
    from matplotlib.figure import Figure

    Figure(figsize=(pixels / 100, 1), dpi=100).savefig(tmp_path / "a.png")
    assert f"max-width: {round(0.6 * pixels)}px" in picture(tmp_path / "a.png", "caption")
