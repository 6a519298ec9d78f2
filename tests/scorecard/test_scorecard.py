"""The scorecard: scores that may not fall, statistics by hand, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses.random_weights import shuffled_weights
from mechint.ground_truth import GPT2_BLUEPRINTS, GROUPS, MODELS, score_units
from mechint.interventions.unit_kinds import SSM_UNITS
from mechint.interventions.units import Units
from mechint.report.markdown import markdown
from mechint.scorecard import METHODS, ScorecardConfig, card, scorecard
from mechint.scorecard.card import in_turn
from mechint.scorecard.edges import links_by_chance
from mechint.scorecard.figures import mark
from mechint.scorecard.methods import Budget, patched
from mechint.scorecard.report import content, verdict
from mechint.scorecard.summary import by_chance, rate
from mechint.scorecard.traces import effects, null_trials, positions, random_model, same_twins, unrelated
from mechint.utils.errors import MechintError
from mechint.utils.multiple_tests import max_t
from scripts import ground_truth
from tests.helpers.commands import Here
from tests.helpers.paths import ROOT
from tests.helpers.scorecards import SEED, compiled

SMALL = ScorecardConfig(
    models="selective_copy,recall", seeds=1, first_seed=SEED, prompts=96, patch_prompts=32, trace_prompts=16,
    null_prompts=12, null_trials=2, sae_tokens=0,
)  # fmt: skip


def test_positions_are_not_asked_for_where_twins_have_the_same_there() -> None:
    assert positions(compiled("count"), 8) == {}  # ticks differ, the marker's write does not
    assert positions(compiled("modular_sum"), 8) == {"write": 1.0, "state": 1.0}
    assert positions(compiled("shift"), 8) == {}  # no state at all


@pytest.mark.slow
def test_the_files_are_whole_and_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: METHODS[name] for name in ("attribution_mean_size", "weight_magnitude")}
    monkeypatch.setattr(card, "METHODS", few)
    results = scorecard(dataclasses.replace(SMALL, models="latch", output_dir=str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "results.json",
        "scorecard.csv",
        "scorecard.html",
        "scorecard.md",
        "scorecard.png",
    ]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    read = json.loads((tmp_path / "results.json").read_text())
    assert markdown(content(read), {"scorecard.png"}) == (tmp_path / "scorecard.md").read_text()
    assert [row["exact"]["value"] for row in results["card"]] == [1.0, 0.0]
    assert [row["share"]["value"] for row in results["positions"]] == [1.0, 1.0]
    assert results["false_positives"]["same_twins_largest_effect"] == 0.0
    assert set(results["false_positives"]) > {"trace random", "units random", "trace compiled", "probes shuffled"}
    best = results["best"][0]
    assert best["cmd"]["value"] <= min(row["cmd"]["value"] for row in results["card"]) + 1e-9
    text = (tmp_path / "scorecard.md").read_text()
    assert all(method.title in text for method in few.values())
    assert (tmp_path / "scorecard.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_units_alone_are_scored_as_beside_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: METHODS[name] for name in ("attribution_mean_size", "weight_magnitude")}
    monkeypatch.setattr(card, "METHODS", few)
    monkeypatch.setattr(card, "beside_units", None)  # would fail
    config = dataclasses.replace(
        SMALL, models="shift,latch", units_only=True, sae_tokens=1000, curve_prompts=4, output_dir=str(tmp_path)
    )
    results = scorecard(config)
    like = compiled("latch")
    for part in results["parts"]:
        assert not any(part[name] for name in ("positions", "trace", "edges", "probes", "random", "null"))
    for cell in results["parts"][1]["compiled"]:
        alone = card.scored(like, cell["method"], few[cell["method"]], config)
        assert all(cell[name] == alone[name] for name in ("auroc", "average_precision", "exact", "units", "total"))
    text = (tmp_path / "scorecard.md").read_text()
    assert results["planted"] == [] and "| attribution, mean, size | 1.000 ● | 1.000 ● |" in text
    empty = ("Causal traces", "Probes", "Edges", "Random weights", "Dictionaries", "Where nothing")
    assert not any(f"## {name}" in text for name in empty)


def test_a_killed_card_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    part = {
        "seed": 0, "random": [], "positions": {}, "null": {"random": {"trace": [1.0]}}, "same_twins": 0.0,
        "seconds": 1.0, "edges": [], "probes": [], "best": {"cpr": 1.0, "cmd": 0.0},
    }  # fmt: skip
    cell = {
        "method": "one", "auroc": 1.0, "average_precision": 1.0, "exact": True, "units": 1, "total": 2, "cpr": 1.0,
        "cmd": 0.0, "peak_mib": None,
    }  # fmt: skip

    def measure(name: str, *rest: Any) -> dict[str, Any]:
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        random = [{"method": "one", "auroc": 0.5}]
        return {**part, "model": name, "random": random, "compiled": [{**cell, "seconds": 0.0}]}

    monkeypatch.setattr(card, "measure", measure)
    monkeypatch.setattr(card, "METHODS", {"one": METHODS["weight_magnitude"]})
    config = dataclasses.replace(SMALL, output_dir=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        scorecard(config)
    assert not (tmp_path / "results.json").exists()
    scorecard(config)
    assert calls == ["selective_copy", "recall", "recall"]
    assert not (tmp_path / ".stages").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_share_a_card_and_write_what_one_writes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    small = [
        "--models=shift,latch",
        "--seeds=1",
        "--sae-tokens=0",
        "--null-trials=2",
        "--steps=10",
        "--random-every=2",
    ]
    for name, count in (("one", ""), ("two", "2")):
        command = [sys.executable, "-m", "scripts.kconfig", "score", f"--processes={count}", "--", *small]
        command.append(f"--output-dir={tmp_path / name}")
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("scorecard.html") == 1
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert len(one["parts"]) == 2

    def measured(value: Any) -> Any:
        """All but what another run takes otherwise."""
        if isinstance(value, dict):
            return {key: measured(own) for key, own in value.items() if key not in ("seconds", "peak_mib")}
        return [measured(own) for own in value] if isinstance(value, list) else value

    for part in ("parts", "card", "false_positives", "random", "positions", "edges"):
        assert measured(two[part]) == measured(one[part]), part
    assert not (tmp_path / "two" / ".stages").exists()
    command[-1] = f"--output-dir={tmp_path / 'bad'}"
    done = subprocess.run([*command, "--models=lach"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode and "error: no model 'lach' (did you mean latch" in done.stderr
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_the_effect_of_a_channel_is_one_run_by_hand(direction: str) -> None:
    model, task = compiled("recall").model, compiled("recall").task
    scores = patched(model, task, Budget(8, 96, 6, 60), name=f"patching_{direction}")
    units, prompts = Units(model, SSM_UNITS["channel"]), task.sample(6, "discovery", 0)
    assert prompts.twins is not None and prompts.wrong is not None
    ours, theirs = prompts.tokens, prompts.twins
    if direction == "denoise":
        ours, theirs = theirs, ours
    other = mechint.run(model, theirs, record=units.sites).values

    def difference(edits: list[mechint.Edit]) -> torch.Tensor:
        logits = mechint.run(model, ours, edits=edits, logits_at=prompts.positions).logits
        return logits.gather(-1, prompts.answers[..., None]) - logits.gather(-1, prompts.wrong[..., None])  # type: ignore[index]

    found = int(scores.argmax())
    for unit in (found, (found + 1) % units.total):
        mask = torch.ones(units.total)
        mask[unit] = 0
        effect = float((difference(units.edits(mask, dict(other))) - difference([])).abs().mean())
        assert float(scores[unit]) == pytest.approx(effect, abs=1e-4)


# ---- where nothing is to be found --------------------------------------------------------------------------------


def test_a_real_effect_is_found_and_a_prompt_s_own_twin_does_nothing() -> None:
    model, task = compiled("recall").model, compiled("recall").task
    prompts, others = (task.sample(16, "train", seed) for seed in (0, 1))
    means = effects(model, task, unrelated(prompts, others))
    assert np.nanmin(max_t(means, np.arange(16), 199, 0)) <= 0.05
    assert same_twins(model, task, 4, 0) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["compiled", "random"])
def test_false_positives_are_at_the_nominal_level(weights: str) -> None:
    """At most 0.07, and one standard error of 200 samples; of effects that take few values, which are a compiled
    model's, none is asked."""
    model = compiled("recall").model if weights == "compiled" else random_model(compiled("recall").model, SEED)
    found = null_trials(model, compiled("recall").task, 16, 200, SEED)
    assert {kind: len(least) for kind, least in found.items()} == {
        "trace": 200, "units": 0 if weights == "compiled" else 200
    }  # fmt: skip
    for least in found.values():
        assert all(0 < p <= 1 for p in least)
        assert not least or np.mean([p <= 0.05 for p in least]) <= 0.07 + 0.018


@pytest.mark.exhaustive
@pytest.mark.parametrize("prompts", [16, 32, 64])
@pytest.mark.parametrize("name", ["recall", "latch"])
def test_false_positives_of_re_centred_effects(name: str, prompts: int) -> None:
    """At most 0.07, and two standard errors of 400 samples."""
    model = random_model(compiled(name).model, SEED)
    for kind, least in null_trials(model, compiled(name).task, prompts, 400, SEED).items():
        assert len(least) == 400 and np.mean([p <= 0.05 for p in least]) <= 0.07 + 0.025, kind


def test_random_weights_are_those_of_their_seed() -> None:
    like, task = compiled("shift").model, compiled("shift").task
    one, again, other = (random_model(like, seed) for seed in (0, 0, 1))
    tokens = task.sample(4, "train", 0).tokens
    assert torch.equal(one(tokens), again(tokens))
    assert not torch.equal(one(tokens), other(tokens))
    assert float(one(tokens).std()) > 0.1


# ---- statistics --------------------------------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    found = rate([True] * 3 + [False] * 17)
    n, p, z = 20, 0.15, 1.96
    # the roots of (p - q)^2 = z^2 q (1 - q) / n
    roots = np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p])
    assert (found["low"], found["high"]) == pytest.approx(sorted(roots))
    assert (rate([False] * 9)["low"], rate([True] * 9)["high"]) == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_links_on_random_weights_are_asked_within_pairs_of_layers() -> None:
    """On the compiled model itself the same question has its usual answer; of random ones the mean is at chance."""
    known = compiled("count")
    alone = {row["method"]: row["auroc"] for row in links_by_chance(known, known.model, SEED)}
    assert alone["weight_products"] > 0.99 and alone["cross_layer_patched"] > 0.99
    drawn = [links_by_chance(known, random_model(known.model, seed), SEED) for seed in range(3)]
    assert {row["method"] for row in drawn[0]} == set(alone) and not any("flow" in key for key in alone)
    products = [row["auroc"] for rows in drawn for row in rows if row["method"] == "weight_products"]
    assert 0.2 < sum(products) / 3 < 0.8


@pytest.mark.slow
def test_random_weights_of_a_gpt2_have_logits_of_a_usual_size_and_its_own_shuffled_do_not() -> None:
    """A compiled GPT-2 pins its norms by large weights; a search on these shuffled stops in one line, not in NaN."""
    like = GPT2_BLUEPRINTS["gpt2_shift"]().compile(seed=102)
    tokens = like.task.sample(8, "train", 0).tokens
    assert 1.0 < float(random_model(like.model, 102)(tokens).abs().max()) < 100.0
    wild = shuffled_weights(like.model, 102)
    assert float(wild(tokens).abs().max()) > 1e6
    with pytest.raises(MechintError, match="the search's loss or its gradient is not finite at step"):
        METHODS["search_counterfactual"].scores(wild, like.task, Budget(32, 64, 16, 60, "kv"))


def test_the_interval_on_random_weights_is_over_seeds() -> None:
    parts = [{"seed": seed, "random": [{"method": "m", "auroc": 0.4 + 0.1 * seed}] * 2} for seed in (0, 0, 1, 2)]
    found = by_chance(parts, "m")
    assert (found["value"], found["n"]) == (pytest.approx(0.5), 3)
    assert found["high"] - found["value"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert by_chance(parts[:1], "m")["interval"] == "one seed: no interval"
    other_family = {**parts[0], "seed": 99, "random": []}
    assert by_chance([*parts, other_family], "m") == found


def test_every_model_has_its_turn_with_random_weights() -> None:
    config = ScorecardConfig(models="shift,latch,gpt2_shift,recall", seeds=3, random_every=3)
    turns = [[name for name in config.names if in_turn(name, 100 + k, config)] for k in range(4)]  # each family its own
    assert turns == [["shift", "gpt2_shift"], ["recall"], ["latch"], ["shift", "gpt2_shift"]]
    assert all(in_turn(name, 100, dataclasses.replace(config, random_every=1)) for name in config.names)


def test_marks_and_verdicts() -> None:
    marks = [mark({"exact": {"value": hits / 5, "n": 5}}) for hits in (0, 3, 5)]
    assert marks == ["", "(3 of 5)", "●"]
    shares = [{"value": value, "low": low} for value, low in ((0.05, 0.01), (0.07, 0.03), (0.2, 0.1))]
    assert [verdict(share, 0.05) for share in shares] == ["yes", "above, within chance", "✗ no"]


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3), r"mine on compiled shift: scores of shape \[3\] for units of shape \[128\]; give one number"),
        (torch.full((128,), math.nan), "mine on compiled shift: 128 of 128 scores are NaN or infinite; score every"),
    ],
)
def test_a_bad_scorer_is_one_line(
    scores: torch.Tensor, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "METHODS", {})
    config = dataclasses.replace(SMALL, models="shift", null_trials=1, output_dir=str(tmp_path))
    with pytest.raises(MechintError, match=message) as error:
        scorecard(config, {"mine": lambda model, task: scores})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("scores", "kind"), [(None, "NoneType"), ({}, "dict"), ("abc", "str"), ([[1, 2], [3]], "list"), (1j, "complex64")]
)
def test_scores_that_are_no_numbers_are_one_line(scores: Any, kind: str) -> None:
    with pytest.raises(MechintError, match=rf"mine: scores are not real numbers \({kind}\); give one number") as error:
        score_units(torch.ones(4), scores, "mine")
    assert "\n" not in str(error.value)


def test_bad_options(tmp_path: Path, here: Here) -> None:
    with pytest.raises(MechintError, match=r"no model 'recal' \(did you mean recall"):
        scorecard(dataclasses.replace(SMALL, models="recal"))
    with pytest.raises(MechintError, match="seeds is 0; it must be a whole number at least 1"):
        scorecard(dataclasses.replace(SMALL, seeds=0))
    with pytest.raises(MechintError, match="called 'search_mean' already"):
        scorecard(SMALL, {"search_mean": lambda model, task: 0})
    failed = here(ground_truth.main, "--models", "x", "--output-dir", str(tmp_path), at=tmp_path)
    assert failed.status == 2
    assert failed.err.splitlines() == [f"error: no model 'x'; take {', '.join([*GROUPS, *MODELS])}"]
