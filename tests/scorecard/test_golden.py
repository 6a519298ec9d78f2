"""No score falls: of a part of the scorecard, the methods that find a circuit, against what is stored of it."""

from __future__ import annotations

import pytest

from mechint.ground_truth import IMPOSED
from mechint.scorecard import METHODS
from tests.golden import scorecard as golden

STORED = golden.stored()
FINDS = 0.9
"""A stored AUROC from which a method finds a circuit. What is below says how it fails, and is no floor."""
NOISE = 0.05
"""The amount by which another processor's rounding may move a score that is not perfect; three times that for an
average precision.

Where a compiled circuit is found to the unit it must stay so.
"""
GOAL = 0.95
"""The floor of methods that find a trained model's circuit, whose weights other processors train otherwise."""


def fallen(now: dict[str, float], then: dict[str, float]) -> dict[str, tuple[float, float]]:
    """The scores that are worse than stored, each with what was stored."""
    worse = {name: (then[name] - now[name]) * (-1 if name == "cmd" else 1) for name in then}
    allowed = dict.fromkeys(then, NOISE) | {"average_precision": 3 * NOISE}
    if then.get("exact") == 1.0:
        allowed |= dict.fromkeys(("auroc", "average_precision", "exact"), 0.0)
    return {name: (now[name], then[name]) for name in then if worse[name] > allowed[name]}


FLOORS = [
    (name, method) for name in golden.UNITS for method, row in STORED["units"][name].items() if row["auroc"] >= FINDS
]


@pytest.mark.slow_except("recall-(?!search_[rc]).*|gpt2_count-(attribution_counterfactual_size|causal_necessary)")
@pytest.mark.parametrize(("name", "method"), [floor for floor in FLOORS if floor[0] not in IMPOSED])
def test_no_score_of_units_falls(name: str, method: str) -> None:
    assert fallen(golden.units(name, method), STORED["units"][name][method]) == {}


# The other methods keep watch over the trained model, and over the searches the compiled models above.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(n, m, marks=[pytest.mark.exhaustive] * m.startswith("search"))  # a minute each, see above
        for n, m in FLOORS
        if n in IMPOSED and STORED["units"][n][m]["auroc"] >= 0.99
    ],
)
def test_what_finds_a_trained_circuit_does(name: str, method: str) -> None:
    assert golden.units(name, method)["auroc"] >= GOAL


@pytest.mark.slow_except("recall")
@pytest.mark.parametrize("name", [name for name in golden.UNITS if name not in IMPOSED])
def test_size_gives_nothing_away(name: str) -> None:
    assert not any(golden.units(name, method)["exact"] for method in ("weight_magnitude", "activation_magnitude"))


@pytest.mark.slow_where("siit")
@pytest.mark.parametrize("name", golden.UNITS)
def test_every_method_that_is_asked_has_a_stored_score(name: str) -> None:
    assert list(STORED["units"][name]) == golden.asked(name)
    assert set(STORED["units"][name]) <= set(METHODS)


@pytest.mark.slow_where("siit")
@pytest.mark.parametrize("name", golden.UNITS)
def test_no_trace_points_elsewhere(name: str) -> None:
    assert fallen(golden.places(name), STORED["positions"][name]) == {}


SPARE = {"induction", "gpt2_latch"}
"""Models on which every method of edges is scored as on another here; tests of edges hold most of them, too."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in SPARE)) for name in golden.EDGES]
)
def test_no_score_of_edges_and_probes_falls(name: str) -> None:
    now, then = golden.edges(name), STORED["edges"][name]
    assert list(now) == list(then)
    finds = [key for key in now if then[key]["auroc"] >= FINDS]
    assert {key: worse for key in finds if (worse := fallen(now[key], then[key]))} == {}


def test_what_a_fall_is() -> None:
    then = {"auroc": 0.9, "average_precision": 0.5, "exact": 0.0, "cpr": 0.9, "cmd": 0.1}
    assert fallen(then, then) == {}
    assert fallen(then | {"cmd": 0.16, "auroc": 0.95}, then) == {"cmd": (0.16, 0.1)}
    assert fallen(then | {"auroc": 0.84}, then) == {"auroc": (0.84, 0.9)}
    perfect = {"auroc": 1.0, "average_precision": 1.0, "exact": 1.0, "cpr": 0.9, "cmd": 0.1}
    assert fallen(perfect | {"auroc": 0.999, "exact": 0.0}, perfect) == {"auroc": (0.999, 1.0), "exact": (0.0, 1.0)}
