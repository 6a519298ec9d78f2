"""Curves of recovery over noise and width: what is refused, where a curve ends, and its numbers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mechint.ground_truth import MODELS
from mechint.scorecard import ScorecardConfig
from mechint.scorecard.figures import draw_recovery
from mechint.scorecard.hard.recovery import curves, points, recover, wide
from mechint.scorecard.report import recovery_section
from mechint.utils.errors import MechintError

SLOW = [pytest.mark.slow, pytest.mark.exhaustive]


def test_the_points_of_curves_are_listed() -> None:
    config = ScorecardConfig(models="latch,gpt2_latch,delta_recall", noise="0, 1e-3", widths="256")
    assert points(config) == [("noise", 0.0), ("noise", 1e-3), ("width", 256.0)]
    assert points(ScorecardConfig()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "much"}, "noise: 'much' is none of the numbers from 0 on"),
        ({"noise": "-0.1"}, "noise: '-0.1'"),
        ({"noise": "nan"}, "noise: 'nan'"),
        ({"widths": "inf"}, "widths: 'inf'"),
        ({"widths": "96.5"}, "widths: '96.5' is none of the whole numbers"),
        ({"widths": "8"}, "latch of width 8: the model is too small; it needs at least d_model"),
        ({"noise": "0.1", "models": "siit_gpt2_recall"}, "siit_gpt2_recall is trained"),
    ],
)
def test_points_that_no_model_has_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(MechintError, match=message):
        points(ScorecardConfig(**{"models": "latch", **changes}))


@pytest.mark.parametrize("name", ["latch", "gpt2_latch", "mamba2_latch", "delta_recall", "hybrid_sections"])
def test_wide_sizes_hold_the_circuit(name: str) -> None:
    size = wide(name, 768)
    assert 768 <= size.d_model < 768 + 64
    MODELS[name]().least_beside(size)
    own = MODELS[name]().least().comfortable()
    assert all(getattr(size, field) >= getattr(own, field) for field in vars(own))


@pytest.mark.parametrize(
    ("name", "width"),
    [("latch", 64), pytest.param("gpt2_recall", 128, marks=SLOW), pytest.param("delta_recall", 128, marks=SLOW)],
)
def test_a_wide_model_is_verified_and_as_wide_as_it_is_said(name: str, width: int) -> None:
    seen: list[Any] = []
    found = recover(name, 3, "width", width, lambda compiled: seen.append(compiled) or [{"method": "one"}])
    assert found == {
        "model": name, "seed": 3, "axis": "width", "value": width, "ends": "", "compiled": [{"method": "one"}]
    }  # fmt: skip
    assert width <= seen[0].model.config.d_model < width + 32
    assert not any(weight.requires_grad for weight in seen[0].model.parameters())


def test_a_curve_ends_where_noise_destroys_the_circuit() -> None:
    def never(compiled: Any) -> list[dict[str, Any]]:
        raise AssertionError("there is nothing to score")

    found = recover("selective_copy", 3, "noise", 0.3, never)
    assert found["compiled"] == [] and "noise of 0.3" in found["ends"]
    assert recover("latch", 3, "noise", 1e-3, lambda compiled: [{}])["ends"] == ""


def point(value: float, seed: int, auroc: float | None) -> dict[str, Any]:
    cells = [] if auroc is None else [{"method": "a", "auroc": auroc, "exact": auroc == 1.0, "total": 64}]
    ends = "too much" if auroc is None else ""
    return {"model": "latch", "seed": seed, "axis": "noise", "value": value, "ends": ends, "compiled": cells}


def results() -> dict[str, Any]:
    found = [point(0.0, 0, 1.0), point(0.0, 1, 0.5), point(0.1, 0, 0.75), point(0.1, 1, None), point(1.0, 0, None)]
    return {"recovery": curves(found, ["a"]), "methods": {"a": "one method"}}


def test_curves_by_hand() -> None:
    first, second, third = results()["recovery"]
    assert (first["auroc"]["value"], first["exact"], first["seeds"], first["destroyed"]) == (0.75, 0.5, 2, 0)
    assert first["auroc"]["high"] - 0.75 == pytest.approx(0.25 * 12.706, rel=1e-3)  # Student's t of one degree
    assert (second["auroc"]["value"], second["auroc"]["low"]) == (0.75, None)  # one seed: no interval
    assert (second["seeds"], second["destroyed"]) == (2, 1)
    assert (third["method"], third["value"], third["destroyed"]) == ("", 1.0, 1)


def test_the_page_says_where_a_curve_ends(tmp_path: Path) -> None:
    [section] = recovery_section(results())
    assert section.title == "Noise and width"
    assert draw_recovery(results(), tmp_path / "recovery.png").read_bytes()[:4] == b"\x89PNG"
    rows = [row for block in section.blocks for row in getattr(block, "rows", ())]
    assert [row[3] for row in rows] == ["one method", "one method", "no circuit is left"]
    assert [row[7] for row in rows] == ["2 of 2", "1 of 2", "0 of 1"]
    assert rows[2][4:7] == ("–", "–", "–") and rows[1][5] == "–"
    assert recovery_section({"recovery": []}) == []
