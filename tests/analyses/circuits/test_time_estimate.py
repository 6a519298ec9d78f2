"""All work of a circuit's study is said before it starts, and how long it takes by a timed batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mechint.analyses.ablation import Ablation
from mechint.analyses.circuits import analyzer as circuit_analysis
from mechint.analyses.circuits import time_estimate
from mechint.analyses.circuits.bench import Bench, attribute
from mechint.analyses.circuits.kv import KVCircuitConfig
from mechint.analyses.circuits.search.pruning import evaluations, pruned
from mechint.analyses.circuits.ssm import SSMCircuitAnalyzer, SSMCircuitConfig
from mechint.analyses.circuits.time_estimate import estimate, in_time, timed, work
from mechint.analyses.study.analyzer import work as work_of_study
from mechint.analyses.study.options import StudyConfig
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from tests.helpers.builders import tiny_mamba
from tests.helpers.circuits import SMALL, bench, known_circuit, loaders


@pytest.mark.parametrize("config", [SSMCircuitConfig(), KVCircuitConfig()], ids=["ssm", "kv"])
def test_a_dry_run_names_every_kind_of_work(config: SSMCircuitConfig | KVCircuitConfig) -> None:
    said = work(config)
    parts = ("searches of", "removed one at a time", "prunings", "evaluations", "removals of single units", "of sets")
    assert all(part in said for part in parts), said
    assert all(part in work_of_study(StudyConfig()) for part in parts)
    assert "prunings" not in work_of_study(StudyConfig(skip_steps="16"))


def test_seconds_by_hand() -> None:
    config = SSMCircuitConfig(search="budget", seeds=1, steps=10, random_circuits=2, removed_units=3)
    # 4 searches of 10 steps and 3 attributions of 5 points on 2 batches, of 2 s each
    learning = (4 * 10 + 3 * 5 * 2) * 2.0
    # 3 prunings of 20, 2 · 11 circuits by size and 8 for each search on 2 batches; 11 · 4 + 4 + 3 + 14 on 3
    measured = ((3 * 20 + 2 * 11 + 8 * 4) * 2 + (11 * 4 + 4 + 3 + 14) * 3) * 0.5
    assert estimate(config, 100, (2, 3), 2.0, 0.5) == (learning + measured, 3 * 100 * 2 * 0.5)
    more = dataclasses.replace(config, search="smallest")
    assert estimate(more, 100, (2, 3), 2.0, 0.5)[0] > learning + measured


@pytest.mark.parametrize(("hands", "waited"), [(1, 120.0 - 101.5), (2, 0.0), (3, 0.0)])
def test_seconds_of_controls_that_are_made_beside_the_rest(hands: int, waited: float) -> None:
    config = SSMCircuitConfig(search="budget", seeds=1, steps=10, random_circuits=2, removed_units=3)
    whole, misled = estimate(config, 100, (2, 3), 2.0, 0.5)
    # each of two controls: 10 steps and 5 points on 2 batches of 2 s, a pruning of 20 circuits on 2 batches of 0.5 s
    control = (10 + 5 * 2) * 2.0 + 20 * 2 * 0.5
    # beside them a search of 10 steps, a pruning, and the evidence of 11 · 4 + 4 + 3 + 14 on 3 batches
    others = 10 * 2.0 + 20 * 2 * 0.5 + (11 * 4 + 4 + 3 + 14) * 3 * 0.5
    assert (control, others) == (60.0, 137.5)
    assert estimate(config, 100, (2, 3), 2.0, 0.5, hands) == (whole - 2 * control, misled)
    long = dataclasses.replace(config, removed_units=1, random_circuits=0)  # the controls take longer than the rest
    others -= (11 * 2 + 2) * 3 * 0.5
    assert others == 101.5
    before = estimate(long, 100, (2, 3), 2.0, 0.5)[0]
    assert estimate(long, 100, (2, 3), 2.0, 0.5, hands)[0] == before - 120.0 + waited


def test_a_pruning_of_few_units_is_announced_as_long_as_it_takes() -> None:
    assert [time_estimate.pruning(total, 100) for total in (6, 10, 16, 17, 5000)] == [42, 110, 272, 192, 40]
    model = tiny_mamba().requires_grad_(False)
    units, [loader, _] = Units(model, SSM_UNITS["path"]), loaders()
    whole = Bench(model, units, Ablation(model, units, "mean", loader.batches, True), loader.batches)
    took = pruned(whole, "kl", torch.ones(units.total), attribute(whole, "kl"), target=0.8).evaluations
    told = time_estimate.pruning(units.total, 100)
    assert units.total == 10 and told / 3 < took < 1.5 * told < evaluations(10) / 5


@pytest.mark.parametrize(
    ("total", "asked", "most"),
    [(256, None, 256), (256, 10, 256), (4096, 3686, 4096), (36864, 3686, 0), (36864, 2048, 4096), (36864, 1000, 4000),
     (36864, None, 4096), (5000, 4096, 0)],
)  # fmt: skip
def test_no_removal_is_announced_that_cannot_come(total: int, asked: int | None, most: int) -> None:
    assert time_estimate.removable(total, asked) == most


def test_where_no_unit_can_be_removed_none_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_estimate, "timed", lambda bench, metric: (1.0, 1.0))
    monkeypatch.setattr(time_estimate, "EXACT_UNITS", 4)
    time_estimate.announce(SSMCircuitConfig(search="budget", budget=3), bench(known_circuit()), 3)
    said = capfd.readouterr().err
    assert "in all, by a timed batch" in said
    assert "misleads" not in said


def test_time_in_words() -> None:
    assert [in_time(seconds) for seconds in (0.1, 40, 600, 7200)] == ["1 s", "40 s", "10 min", "2.0 h"]


def test_a_step_and_a_forward_are_timed() -> None:
    assert all(seconds > 0 for seconds in timed(bench(known_circuit()), SSMCircuitConfig()))


@pytest.mark.parametrize(("count", "total"), [(1, 28), (7, 28), (11, 28), (28, 28), (0, 5)])
def test_units_are_spread_evenly(count: int, total: int) -> None:
    mask = time_estimate.spread(count, total)
    assert int(mask.sum()) == count and mask.shape == (total,)
    counts = [int(part.sum()) for part in mask.chunk(2)]
    assert abs(counts[0] - counts[-1]) <= 1 or total % 2


@pytest.mark.parametrize(("seconds", "told"), [(1.0, 1), (1e-6, 0)])
def test_long_work_is_said_and_a_moment_is_not(
    seconds: float, told: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_estimate, "timed", lambda bench, metric: (seconds, seconds))
    time_estimate.announce(SSMCircuitConfig(), bench(known_circuit()), 3)
    out, err = capfd.readouterr()
    assert (out, err.count("in all, by a timed batch")) == ("", told)


def test_it_is_said_before_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Said(Exception):
        pass

    def announce(*arguments: Any) -> None:
        raise Said

    monkeypatch.setattr(circuit_analysis, "announce", announce)
    analyzer = SSMCircuitAnalyzer(known_circuit(), dataclasses.replace(SMALL, steps=10, seeds=1))
    monkeypatch.setattr(analyzer.stages, "get", lambda name, compute: pytest.fail(name))
    with pytest.raises(Said):
        analyzer.run_analysis(*loaders())
