"""The cell of a trace that is followed along a training, and what makes two traces incomparable, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mechint.analyses.tracing.compare import cell, incomparable, trace_tracks
from mechint.report.values import Value
from tests.helpers.tracing import made_trace as trace


def at(**changes: Any) -> dict[str, Any]:
    return {"direction": "denoise", "panel": "state", "layer": 1, "role": "last", **changes}


def test_a_cell_is_read_where_the_trace_has_it() -> None:
    assert cell(trace(), at()) == Value(0.4, 0.1, 0.9, 6) and cell(trace(), at(layer=0, role="subject")) is not None
    for other in ({"direction": "noise"}, {"panel": "dt"}, {"role": "first"}, {"layer": 2}, {"layer": 0}):
        assert cell(trace(), at(**other)) is None, other


def test_the_strongest_cell_of_the_last_trace_is_followed() -> None:
    other = trace(unit="metric", metrics={})
    tracks = {track.name: track for track in trace_tracks([trace(), other], trace())}
    followed = tracks["denoise: state, layer 1, last"]
    assert followed.values == [Value(0.4, 0.1, 0.9, 6), None] and followed.share
    assert followed.label == "state, layer 1, last"
    assert tracks["accuracy_full"].values[1] is None and tracks["accuracy_full"].share
    assert not tracks["total_effect"].share
    both = trace(directions=["denoise", "noise"])
    assert trace_tracks([both], both)[-1].label == "state, layer 1, last (denoise)"


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"manifest": {"prompts": "q"}}, "other prompts"), ({"unit": "metric"}, "another unit"),
     ({"roles": ["last"]}, "roles"), ({"directions": []}, "other directions"),
     ({"raw": {"config": {**trace().raw["config"], "window": 3}}}, "window")],
)  # fmt: skip
def test_traces_of_other_requests_are_not_subtracted(changes: dict[str, Any], why: str) -> None:
    assert incomparable(trace(), trace()) == ""
    assert why in incomparable(trace(), trace(**changes))
