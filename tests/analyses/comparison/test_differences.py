"""Numbers of profiles, their differences, and which profile stands for a training run, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from mechint.analyses.comparison import runs
from mechint.analyses.comparison.differences import Group, comparable, compare, differences, quantities, untrained
from mechint.report.finished import FinishedRun
from mechint.utils.errors import MechintError
from mechint.utils.statistics import number
from tests.helpers.profiles import of_run, profile, with_control


def entry(value: float, n: int = 9) -> dict[str, Any]:
    return number(value, value - 1, value + 1, n, "x")


def made(**changes: Any) -> FinishedRun:
    """A profile without noise, of two layers."""
    return profile(0, "mamba", noise=0.0, **changes)


def test_numbers_of_a_profile_are_means_over_its_layers() -> None:
    study = made(
        cka=[[entry(1), entry(0.8), entry(0)], [entry(0.8), entry(1), entry(0.4)], [entry(0), entry(0.4), entry(1)]]
    )
    study.raw["curves"]["update"] = [entry(0.1), entry(0.4)]
    read = [cell for cell in study.raw["sparsity"] if cell["role"] == "read"]
    read[0]["measures"]["below_rms"], read[1]["measures"]["below_rms"] = entry(0.2), entry(0.6)
    read[0]["percentiles"], read[1]["percentiles"] = {"p50": entry(0.5)}, {}
    found = {name: value for name, (_, value) in quantities(study).items()}
    assert found["cka"] == pytest.approx(0.6) and found["update"] == pytest.approx(0.25) and found["loss"] == 2.0
    assert found["below_rms read"] == pytest.approx(0.4) and found["gini stream"] == pytest.approx(0.5)
    assert found["p50 read"] == 0.5 and "p50 stream" not in found
    assert quantities(study)["below_rms read"][0] == "below rms: read by output projections"
    assert set(quantities(study, {"cka", "nothing"})) == {"cka"}
    assert "cka" not in quantities(made(cka=[[entry(1)]]))


def test_numbers_of_shuffled_weights_are_means_over_layers_and_those_that_are_there() -> None:
    rows = [
        {"quantity": "gini", "site": "read", "layer": i, "trained": entry(0.5), "shuffled": value}
        for i, value in enumerate((entry(0.2), entry(0.6), None))
    ]
    rows += [{"quantity": "update", "site": None, "layer": 0, "trained": entry(1), "shuffled": entry(3)}]
    study = made(control={"quantities": rows})
    assert untrained(study) == pytest.approx({"gini read": 0.4, "update": 3.0})
    assert untrained(made()) == {} and untrained(made(control=None)) == {}


def test_differences_are_paired_and_beyond_those_of_shuffled_weights() -> None:
    """By seed the losses differ by 1, 2 and 3 in any order of the runs; the Gini indices by 0.3, of which 0.1 is there
    without training."""
    one, other = [], []
    for seed, gap in ((2, 3.0), (0, 1.0), (1, 2.0)):
        a, b = (with_control(profile(seed, family, noise=0.0), 0.5) for family in ("mamba", "gpt2"))
        a.raw["metrics"]["loss"], b.raw["metrics"]["loss"] = entry(5 + gap + seed), entry(5 + seed)
        for cell in a.raw["sparsity"]:
            if cell["role"] == "read":
                cell["measures"]["gini"] = entry(0.8 + 0.01 * seed)
        with_control(a, 0.6)
        one, other = [*one, a], [b, *other]
    rows, how = differences(Group("A", one), Group("B", other), {"loss", "gini read"})
    found = {row["quantity"]: row for row in rows}
    assert how == "paired by seed" and set(found) == {"loss", "gini read"}
    loss = found["loss"]
    p = 2 * stats.t.sf(2 / (1 / math.sqrt(3)), 2)
    assert (loss["A"], loss["B"], loss["difference"]["value"], loss["p"]) == pytest.approx((8, 6, 2, p))
    assert loss["shuffled"] is None and loss["p_beyond"] is None and "p_beyond_adjusted" not in loss
    gini = found["gini read"]
    assert gini["difference"]["value"] == pytest.approx(0.31) and gini["shuffled"] == pytest.approx(0.1)
    assert gini["beyond"]["value"] == pytest.approx(0.21) and gini["p_beyond_adjusted"] == gini["p_beyond"] < 0.01
    assert gini["p_adjusted"] == pytest.approx(2 * gini["p"]) and loss["p_adjusted"] == pytest.approx(p)


@pytest.mark.parametrize(
    "training",
    [
        {"seed": None, "steps": 10, "budget": "b"}, {"seed": 0, "steps": 10, "budget": "other"},
        {"seed": 0, "steps": 11, "budget": "b"}, {"seed": 7, "steps": 10, "budget": "b"},
    ],
)  # fmt: skip
def test_runs_of_other_seeds_or_budgets_are_no_pairs(training: dict[str, Any]) -> None:
    pair = [profile(s, "mamba") for s in (0, 1)]
    assert differences(Group("A", pair), Group("B", [profile(s, "gpt2") for s in (1, 0)]), None)[1] == "paired by seed"
    changed = [profile(0, "gpt2", training=training), profile(1, "gpt2")]
    assert "Welch" in differences(Group("A", pair), Group("B", changed), None)[1]
    alike = [profile(0, "mamba"), profile(0, "mamba")]  # one seed twice pairs with nothing
    assert "Welch" in differences(Group("A", alike), Group("B", [profile(0, "gpt2"), profile(0, "gpt2")]), None)[1]


def test_means_are_compared_as_welch_says() -> None:
    """(1, 2, 3) less (1.5, 2.5, 5): variances 1 and 3.25, error √(4.25 / 3), two degrees of freedom."""
    found, p = compare([1.0, 2.0, 3.0], [1.5, 2.5, 5.0], False)
    error = math.sqrt(4.25 / 3)
    assert found["value"] == pytest.approx(-1) and found["n"] == 3
    assert (found["low"], found["high"]) == pytest.approx((-1 - 4.302653 * error, -1 + 4.302653 * error), rel=1e-6)
    assert p == pytest.approx(1 - 1 / error / math.sqrt(2 + 1 / error**2))
    assert compare([2.0, 2.0], [2.0, 2.0], False)[1] == 1.0 and compare([3.0, 3.0], [2.0, 2.0], False)[1] == 0.0
    assert compare([2.0], [1.0, 3.0], False)[1] is None and compare([1.0, 4.0], [1.0], True)[0]["value"] == 1.5
    paired, p = compare([1.0, 3.0], [0.0, 1.0], True)  # 1 and 2: error 1/2, one degree
    assert paired["value"] == 1.5 and p == pytest.approx(1 - 2 / math.pi * math.atan(3))


def test_what_profiles_can_be_compared() -> None:
    same = [profile(s, f) for f in ("mamba", "gpt2") for s in (0, 1)]
    assert comparable(same) == (None, [])
    names, notes = comparable([profile(0, "mamba", tokenizer="a"), profile(0, "gpt2", tokenizer="b")])
    left_out = {"loss", "accuracy", "gain_per_mflop", "attention_distance", "attention_entropy"}
    assert names == set(quantities(same[0])) - left_out and "different tokenizers" in notes[0]
    names, notes = comparable([same[0], profile(0, "gpt2", prompts="q")])
    assert names is None and "different prompts" in notes[0]
    for other in ({"task": {"name": "recall"}}, {"metric": "logit_diff"}):
        with pytest.raises(MechintError, match="different tasks"):
            comparable([same[0], profile(0, "gpt2", **other)])


def test_a_training_run_counts_once_with_its_last_step() -> None:
    steps = [of_run(0, family, step) for family in ("mamba", "gpt2") for step in (100, 300, 200)]
    kept, notes = runs.last_of_each(steps)
    assert [(s.raw["label"][:4], s.raw["training"]["steps"]) for s in kept] == [("mamb", 300), ("gpt2", 300)]
    assert notes[0].startswith("6 checkpoints come from 2 training runs") and runs.several_steps(steps)
    apart = [of_run(0, "mamba", 100), of_run(1, "mamba", 100), of_run(0, "mamba", 100, lr=0.1), profile(3, "mamba")]
    assert runs.last_of_each(apart) == (apart, []) and not runs.several_steps(apart)
    unknown = [profile(0, "mamba", training={"seed": None, "budget": "b", "steps": s}) for s in (1, 1)]
    assert runs.last_of_each(unknown) == (unknown, [])


def test_each_family_is_compared_at_its_best_rate() -> None:
    losses = {
        ("mamba", 0.01): 2.0,
        ("mamba", 0.001): 2.4,
        ("gpt2", 0.1): 2.7,
        ("gpt2", 0.01): 2.5,
        ("gpt2", 0.001): 2.6,
    }
    studies = [of_run(seed, f, 100, loss + 0.1 * seed, lr) for (f, lr), loss in losses.items() for seed in range(2)]
    kept, notes = runs.at_best_rates(studies)
    assert [(s.raw["label"][:4], s.raw["training"]["lr"]) for s in kept] == [("mamb", 0.01)] * 2 + [("gpt2", 0.01)] * 2
    assert (
        "the best of 2" in notes[0]
        and "0.001: 2.45, 0.01: 2.05" in notes[0]
        and "the highest rate that was tried" in notes[0]
    )
    assert "the best of 3" in notes[1] and "try rates beyond" not in notes[1] and len(notes) == 2
    silent = [of_run(0, "mamba", 100, loss, lr) for loss, lr in ((2.0, 0.1), (1.0, 0.01))]
    silent[1].raw["training"]["held_out_loss"] = None
    assert runs.at_best_rates(silent) == (silent, [])
    one = [of_run(0, f, 100) for f in ("mamba", "gpt2")]
    kept, notes = runs.at_best_rates(one)
    assert kept == one and "one learning rate, 0.01." in notes[0]
    other = runs.at_best_rates([of_run(0, "mamba", 100), of_run(0, "gpt2", 100, lr=0.1)])[1]
    assert "not tried for both" in other[0]


def test_numbers_along_a_training_are_means_over_layers_with_mean_intervals() -> None:
    study = made()
    study.raw["curves"]["update"] = [entry(1.0, 9), {**entry(2.0, 7), "low": 0.0, "high": 6.0}]
    for cell in study.raw["sparsity"]:
        if cell["role"] == "added":
            cell["percentiles"] = {"p50": entry(0.25)}
    tracks = {track.name: track for track in runs.profile_tracks([study, made()], None)}
    [value, _] = tracks["update"].values
    assert value is not None and (value.value, value.low, value.high, value.n) == (1.5, 0.0, 4.0, 7)
    assert tracks["p50 added"].values[1] is None and tracks["p50 added"].values[0] is not None
    assert "p50 read" not in tracks and tracks["accuracy"].share and not tracks["loss"].share
    assert [track.name for track in runs.profile_tracks([study], {"loss"})] == ["loss"]
    bare = {**entry(1.0), "low": None, "high": None}
    alone = runs.mean_of([bare, entry(2.0)])
    assert alone is not None and alone.value == 1.5 and alone.alone and runs.mean_of([]) is None
