"""Entries of a profile: what is read is what was written, new entries are left out, and a missing one is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechint.analyses.base import entries_of_analyses
from mechint.analyses.comparison.results import UNKNOWN, Cell, Memory, Profile, Training, profile_of
from mechint.report.finished import FinishedRun
from mechint.report.tables.schema import schema
from mechint.utils.errors import MechintError
from mechint.utils.statistics import exact
from tests.helpers.json_schema import fits
from tests.helpers.profiles import profile

MADE = Profile(
    metric="answer_logprob", ablation="zero", metrics={"loss": exact(2)}, bytes_per_token=1.0, tokenizer="bytes",
    prompts="p", label="a model", training=Training(seed=3, lr=0.1), curves={"update": [exact(1), None]},
    cka=[[exact(1)]], sparsity=[Cell(0, "out", "added", 4, {"gini": exact(1)}, {"p50": exact(2)})],
    memory=[Memory(8, 64), Memory(16, None)], notes=["said"],
)  # fmt: skip


def test_a_profile_is_read_as_it_was_written() -> None:
    raw = json.loads(json.dumps(MADE.entries()))
    assert Profile.read(raw) == MADE and MADE.layers == 2
    assert raw["report"] == "compare" and raw["training"] == {
        "seed": 3, "steps": None, "budget": None, "lr": 0.1, "held_out_loss": None,
    }  # fmt: skip
    assert raw["memory"] == [{"length": 8, "bytes": 64}, {"length": 16, "bytes": None}]
    assert raw["sparsity"][0]["percentiles"] == {"p50": exact(2)} and raw["control"] is None
    assert [MADE.of_role("added"), MADE.of_role("read")] == [MADE.sparsity, []]


def test_entries_of_other_releases_are_left_out_or_filled() -> None:
    raw = MADE.entries()
    raw["training"], raw["new"] = {}, 1
    raw["sparsity"][0]["new"] = 2
    del raw["sparsity"][0]["percentiles"], raw["control"]
    found = Profile.read(raw)
    assert found.training == UNKNOWN and found.entries()["training"] == {}
    assert found.sparsity[0].percentiles == {} and found.control is None


@pytest.mark.parametrize("entry", ["metric", "training", "curves", "sparsity", "memory"])
def test_a_missing_entry_is_one_line(entry: str) -> None:
    study = profile(0, "mamba")
    del study.raw[entry]
    with pytest.raises(MechintError, match=r"/nowhere/results\.json is not valid .*run the analysis again"):
        profile_of(study)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda raw: raw.pop("label"), "$ has no label"),
        (lambda raw: raw["sparsity"][0].update(layer="x"), "$.sparsity[0].layer is 'x', not integer"),
        (lambda raw: raw["curves"].update(update=[3]), "$.curves.update[0] is 3"),
        (lambda raw: raw["memory"][0].pop("length"), "$.memory[0] has no length"),
    ],
)
def test_the_schema_holds_a_profile_to_its_types(change: Any, fault: str) -> None:
    header = {
        "analysis": "compare", "title": "t", "checkpoint": "c", "key": {}, "task": {}, "config": {},
        "status": "complete", "schema": 1,
        "model": {"family": "mamba", "parameters": 1, "n_layer": 1, "d_model": 1, "sha256": "0"},
    }  # fmt: skip
    raw = header | MADE.entries()
    assert fits(raw, schema(entries_of_analyses())) == []
    change(raw)
    [found] = fits(raw, schema(entries_of_analyses()))
    assert found.startswith(fault)
    raw["report"] = "another"  # whose entries are its own
    assert all("sparsity" not in line for line in fits(raw, schema(entries_of_analyses())))


def test_a_run_is_read_once_more_after_its_file_changed() -> None:
    study: FinishedRun = profile(0, "mamba")
    study.raw["label"] = "another"
    assert profile_of(study).label == "another" and study.directory == Path("/nowhere")
