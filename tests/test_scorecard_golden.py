"""No score falls: every number of a part of the scorecard against what is stored of it."""

from __future__ import annotations

import pytest

from mechint.scorecard import METHODS
from tests.golden import scorecard as golden

STORED = golden.stored()
NOISE = 0.02
"""What other processors' rounding may move a score that is not perfect; where one is exact it must stay so."""
CHANCE = ("weight_magnitude", "activation_magnitude")
"""Sizes, which are to say nothing: these may fall, and may not rise to the circuit."""


def fallen(now: dict[str, float], then: dict[str, float]) -> dict[str, tuple[float, float]]:
    """The scores that are worse than stored, each with what was stored."""
    worse = {name: (then[name] - now[name]) * (-1 if name == "cmd" else 1) for name in then}
    noise = 0.0 if then.get("exact") == 1.0 else NOISE
    allowed = {name: noise if name in ("auroc", "average_precision", "exact") else NOISE for name in then}
    return {name: (now[name], then[name]) for name in then if worse[name] > allowed[name]}


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in golden.UNITS for method in STORED["units"][name]]
)
def test_no_score_of_units_falls(name: str, method: str) -> None:
    now, then = golden.units(name, method), STORED["units"][name][method]
    if method in CHANCE:
        assert not now["exact"]
    else:
        assert fallen(now, then) == {}


@pytest.mark.parametrize("name", golden.UNITS)
def test_every_method_that_is_asked_has_a_stored_score(name: str) -> None:
    assert list(STORED["units"][name]) == golden.asked(name)
    assert set(STORED["units"][name]) <= set(METHODS)


@pytest.mark.parametrize("name", golden.UNITS)
def test_no_trace_points_elsewhere(name: str) -> None:
    assert fallen(golden.places(name), STORED["positions"][name]) == {}


@pytest.mark.parametrize("name", golden.EDGES)
def test_no_score_of_edges_and_probes_falls(name: str) -> None:
    now, then = golden.edges(name), STORED["edges"][name]
    assert list(now) == list(then)
    assert {key: worse for key in now if (worse := fallen(now[key], then[key]))} == {}


def test_what_a_fall_is() -> None:
    then = {"auroc": 0.9, "average_precision": 0.5, "exact": 0.0, "cpr": 0.9, "cmd": 0.1}
    assert fallen(then, then) == {}
    assert fallen(then | {"cmd": 0.13, "auroc": 0.95}, then) == {"cmd": (0.13, 0.1)}
    assert fallen(then | {"auroc": 0.87}, then) == {"auroc": (0.87, 0.9)}
    perfect = {"auroc": 1.0, "average_precision": 1.0, "exact": 1.0, "cpr": 0.9, "cmd": 0.1}
    assert fallen(perfect | {"auroc": 0.999, "exact": 0.0}, perfect) == {"auroc": (0.999, 1.0), "exact": (0.0, 1.0)}
