"""Lengths and notes of a profile by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mechint.analyses.comparison import analyzer
from mechint.analyses.comparison.analyzer import MEASURED, Profiler, work
from mechint.analyses.comparison.cost import measure
from mechint.analyses.comparison.options import CompareConfig
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_mamba


def profiler(**changes: Any) -> Any:
    settings = {
        "model": SimpleNamespace(config=SimpleNamespace()), "lengths": [4, 8, 16], "times": [],
        "config": SimpleNamespace(measure=True),
    } | changes  # fmt: skip
    made = SimpleNamespace(**settings)
    made.most = Profiler.most.fget(made)  # type: ignore[attr-defined]
    return made


def test_lengths_are_those_that_the_model_can_read_with_one_token_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyzer, "measure", lambda model, lengths: list(lengths))
    short = profiler(model=SimpleNamespace(config=SimpleNamespace(n_ctx=8)))
    assert profiler().most == 17 and short.most == 8
    assert Profiler.measured(profiler()) == [4, 8, 16] and Profiler.measured(short) == [4]
    assert Profiler.measured(profiler(config=SimpleNamespace(measure=False))) == []
    assert Profiler.measured(profiler(model=SimpleNamespace(config=SimpleNamespace(n_ctx=4)))) == []


def test_notes_say_what_was_not_timed_and_what_counts_as_a_byte() -> None:
    task = lambda name, **more: SimpleNamespace(name=name, **more)
    notes = lambda of, **changes: Profiler.notes(profiler(**changes), of)
    assert notes(task("text"), times=[1]) == [] == notes(task("text"), config=SimpleNamespace(measure=False))
    assert notes(task("facts", tokenizer="t"), times=[1]) == []
    [symbols] = notes(task("recall"), times=[1])
    assert "symbols of its own" in symbols
    [untimed] = notes(task("text"))
    assert "nothing was timed" in untimed


def test_a_prompt_of_one_token_is_timed_and_an_empty_one_refused() -> None:
    model = tiny_mamba(n_layer=1)
    [found] = measure(model, [1], repeats=3)
    assert found.length == 1 and found.repeats == 3 and found.seconds[1] <= found.seconds[0] <= found.seconds[2]
    for lengths in ([], [4, 0]):
        with pytest.raises(MechintError, match="give at least one, each at least 1"):
            measure(model, lengths)


def test_a_dry_run_says_what_is_measured() -> None:
    said = lambda **changes: work(CompareConfig(eval_prompts=7, **changes))
    few = "a few forwards and backwards of 7 prompts, a removal of each layer"
    assert said(measure=False, controls=0) == few and said(measure=True, controls=0) == f"{few}, and timed forwards"
    assert said(measure=False, controls=2) == f"{few}; the same on 2 models with shuffled weights"


def test_what_was_timed_is_written_with_the_version_of_its_file(tmp_path: Path) -> None:
    made = Profiler(tiny_mamba(n_layer=1), CompareConfig(), run_dir=tmp_path, key="k")
    made.times = [{"length": 4}]
    assert made.save_results()[-1] == tmp_path / MEASURED
    assert json.loads((tmp_path / MEASURED).read_text()) == {"schema": 1, "measured": [{"length": 4}]}
