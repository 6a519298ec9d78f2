"""Finished circuits as they are read: which search found the circuit, and what points of the curve are called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mechint.analyses.circuits.evidence import Evidence
from mechint.analyses.circuits.pages.words import unit_in
from mechint.analyses.circuits.results import Layer, Results, Search, _layer, cell, overlap
from mechint.utils.errors import MechintError
from mechint.utils.statistics import number
from tests.helpers.circuits import bench, known_circuit


def found(*searches: Search) -> Results:
    layers = [Layer(0, 4, ((1,), (3,))), Layer(1, 4, ((2,),))]
    return Results(Path("/nowhere"), {"config": {}}, {}, {}, layers=layers, searches=list(searches))


def search(name: str, weights: str, *units: tuple[int, ...]) -> Search:
    return Search(name, weights, len(units), 0.9, frozenset(units))


def test_the_search_that_found_the_circuit_is_the_one_with_its_units() -> None:
    other, own = search("seed 0", "trained", (0, 0)), search("seed 1", "trained", (0, 1), (0, 3), (1, 2))
    random = search("random", "random", (0, 1), (0, 3), (1, 2))
    results = found(random, other, own)
    assert results.circuit == own.units and (results.kept, results.total) == (3, 8)
    assert results.of_weights("trained") == [other, own] and results.of_weights("random") == [random]
    assert results.chosen is own and found(random, other).chosen is other and found(random).chosen is None


def test_points_of_the_curve_are_called_by_their_size() -> None:
    raw = {"curve": {"size": [4, 8]}}
    assert cell(raw, ("curve", "learned", 1), ()) == {"name": "8 units kept"}
    assert cell(raw, ("metrics", "curve", 1), ()) == cell(raw, ("curve", "size"), ()) == {}


def test_circuits_overlap_by_the_units_of_both() -> None:
    one, other = frozenset({(0, 1), (0, 2)}), frozenset({(0, 2), (0, 3), (1, 0)})
    assert overlap(one, other) == 1 / 4 and overlap(one, one) == 1 == overlap(frozenset(), frozenset())


@pytest.mark.parametrize(("low", "high", "refused"), [(0.0, 1.0, True), (-1.0, 0.0, True), (0.1, 1.0, False)])
def test_no_shares_are_measured_of_an_effect_that_may_be_nothing(low: float, high: float, refused: bool) -> None:
    bootstrap = SimpleNamespace(interval=lambda *arguments: number((low + high) / 2, low, high, 9, "x"))
    evidence: Any = SimpleNamespace(options=SimpleNamespace(metric="kl"), bootstrap=bootstrap, ends=({}, {}))
    if refused:
        with pytest.raises(MechintError, match="which may be nothing"):
            Evidence.check(evidence)
    else:
        Evidence.check(evidence)


def test_a_site_s_last_units_are_called_skip_and_error() -> None:
    raw = {"layer": 0, "total": 10, "kept": 3, "units": [7, "skip", "error"], "site": "layers.0.mlp_out"}
    with_one, without = _layer({**raw, "skip": True}), _layer({**raw, "units": [7, 8, "error"]})
    assert with_one.units == without.units == ((7,), (8,), (9,))
    assert [unit_in(with_one, unit, "latent") for unit in with_one.units] == ["7", "skip", "error"]
    assert [unit_in(without, unit, "latent") for unit in without.units] == ["7", "8", "error"]


def test_slopes_in_bfloat16_point_nearly_the_same_way() -> None:
    assert 0.9 < bench(known_circuit()).half_cosine("kl") < 1
