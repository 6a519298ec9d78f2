"""What a comparison of traces writes, from made-up traces: which runs are subtracted, figures, tables and notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.map_comparison import CellPair, MapPair
from mechint.analyses.tracing import compare
from mechint.report.content import Content, Table
from mechint.utils.files import write_json
from tests.helpers.tracing import made_trace as trace

ROW = {"direction": "denoise", "panel": "state", "layer": 1, "role": "last", "value": 0.5, "low": 0.4, "high": 0.6,
       "n": 7}  # fmt: skip


CELL = CellPair(1, "last", 0.1, 0.6, 0.5, 0.4, 0.6, 0.01, 7)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Any, Content, dict[str, Any]]]:
    """Compares made-up traces: comparison.json, the page, and the sizes of its figures."""

    def write(traces: dict[str, Any]) -> tuple[Any, Content, dict[str, Any]]:
        found, sizes, pages = {}, {}, []
        for name, one in traces.items():
            one.directory = tmp_path / name
            one.raw |= {"title": "Causal tracing", "checkpoint": f"{name}.pt", "notes": [f"a note of {name}"]}
            one.raw["trace"]["strongest"] = [ROW]
        monkeypatch.setattr(compare, "load_trace", lambda run_dir: traces[Path(run_dir).name])
        monkeypatch.setattr(compare, "findings", lambda trace: [])
        monkeypatch.setattr(compare, "measured", lambda trace: None)
        monkeypatch.setattr(compare, "compared", lambda one, other: [MapPair("state, denoise", None, None, [CELL])])
        monkeypatch.setattr(compare, "figure", lambda name, caption, size, *rest: sizes.update({name: size}))
        monkeypatch.setattr(compare, "write_json", lambda path, data: found.update(data) or write_json(path, data))
        monkeypatch.setattr(compare, "write_page", lambda output, content, *names, **more: pages.append(content) or [])
        compare.write_trace_comparison([*traces], tmp_path / "out")
        return found, pages[0], sizes

    return write


def tables(page: Content) -> dict[str, Table]:
    return {section.title: block for section in page.sections for block in section.blocks if isinstance(block, Table)}


def test_every_trace_less_the_first_where_they_are_of_one_request(written: Any) -> None:
    found, page, _ = written({"a": trace(), "b": trace(), "c": trace(manifest={"prompts": "q"}), "d": trace()})
    assert [(entry["run"], entry["less"], entry["value"]) for entry in found["differences"]] == [
        ("b", "a", 0.5), ("d", "a", 0.5)]  # fmt: skip
    assert found["notes"] == ["c and a: other prompts, so no differences are given."]
    assert [run["name"] for run in found["runs"]] == ["a", "b", "c", "d"] and found["schema"] == 1
    assert found["runs"][2] == {"name": "c", "directory": "../c", "checkpoint": "c.pt", "strongest": [ROW]}
    assert [names for _, names in found["warnings"]] == [["a"], ["b"], ["c"], ["d"]]
    assert page.title == "Causal tracing: comparison of 4 checkpoints"


def test_numbers_stand_right_in_the_tables_of_a_comparison(written: Any) -> None:
    _, page, _ = written({"a": trace(), "b": trace()})
    found = tables(page)
    for name in ("Strongest cell of every map", "Largest differences"):
        words = [found[name].header[k] for k in range(len(found[name].header)) if k not in found[name].numeric]
        assert set(words) <= {"run", "less", "direction", "site", "token", "map", "cell"}, name
        assert len(words) + len(found[name].numeric) == len(found[name].header)
    assert found["Strongest cell of every map"].rows[1][:5] == ("b", "denoise", "state", "1", "last")
    assert found["Largest differences"].rows[0][:2] == ("b", "a")


@pytest.mark.parametrize(
    ("maps", "width", "of_layers"),
    [(1, 4.5, (4.3, 3.4)), (5, 12.1, (11.2, 5.3)), (8, 16.0, (11.2, 5.3))],
)
def test_figures_grow_with_the_maps_and_the_traces(written: Any, maps: int, width: float, of_layers: Any) -> None:
    """A map takes 1.9 inches up to 16, a trace 1.7; layers stand in rows of four."""
    wide = trace(panels=lambda direction: [{"name": f"map {k}", "value": [[0.1]]} for k in range(maps)])
    _, _, sizes = written({"a": wide, "b": trace()})
    assert sizes["comparison_maps_denoise.png"] == pytest.approx((width, 5.0))
    assert sizes["comparison_layers_denoise.png"] == pytest.approx(of_layers)


def test_directions_that_not_all_traces_have_get_no_figure(written: Any) -> None:
    both = trace(directions=["denoise", "noise"])
    _, _, sizes = written({"a": both, "b": trace()})
    assert {*sizes} == {"comparison_maps_denoise.png", "comparison_layers_denoise.png"}
