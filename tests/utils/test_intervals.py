"""Numbers without an interval, and samples of which a bootstrap would give one of no width."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mechint.analyses.effect_tables import few_notes, ratio
from mechint.analyses.probes.fitting import Labelled, probe
from mechint.runner import command_line
from mechint.utils.errors import MechintError
from mechint.utils.statistics import FEWEST, ClusterBootstrap, certain, said
from tests.helpers.own_prompts import PROMPT, checkpoint, says

__all__ = ["checkpoint"]  # a fixture
ONE = ["--subject=Eiffel Tower", "--device=cpu", "--trace-draws=2", "--trace-bootstrap=100", "--patch-bootstrap=100"]


def test_shares_of_all_right_cover_the_truth_as_often_as_they_say() -> None:
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for trial in range(300):
        right = (rng.random(20) < 0.96).astype(float)  # all 20 are right in 44 % of the samples
        bootstrap = ClusterBootstrap(np.arange(20), 200, trial)
        ours, old = bootstrap.share(right), bootstrap.interval(lambda mean: mean, right)
        covered += ours["low"] <= 0.96 <= ours["high"]
        naive += old["low"] <= 0.96 <= old["high"]
    assert covered >= 285 and naive < 200


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_exact_interval_is_of_as_many_trials_as_there_are_clusters(value: float) -> None:
    """At its inner edge, that many trials all come out so in one sample of 40."""
    found = ClusterBootstrap(np.repeat(np.arange(4), 10), 100, 0).share(np.full(40, value))
    inner = found["low"] if value else 1 - found["high"]
    assert inner**4 == pytest.approx(0.025) and (found["value"], found["n"]) == (value, 40)
    assert found["high" if value else "low"] == value and "exact" in found["interval"]


@pytest.mark.parametrize(("share", "clusters", "each"), [(0.5, 4, 1), (0.9, 8, 1), (0.96, 16, 4), (0.8, 12, 8)])
def test_a_share_of_both_holds_the_truth_and_stays_from_0_to_1(share: float, clusters: int, each: int) -> None:
    """Also where answers of a cluster are alike; where no more than the clusters vary it is the exact interval."""
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        right = rng.random((clusters, each)) < rng.beta(2 * share, 2 - 2 * share, (clusters, 1))
        right = right if each > 1 else rng.random((clusters, 1)) < share
        found = ClusterBootstrap(np.repeat(np.arange(clusters), each), 100, trial).share(right.ravel().astype(float))
        covered += found["low"] <= share <= found["high"]
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert covered >= 183


def test_a_share_of_clusters_of_any_size_by_hand() -> None:
    """Korn and Graubard's steps in their order, on ten answers of four clusters."""
    clusters, right = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3], [1.0, 1, 0, 1, 1, 0, 1, 0, 1, 1]
    share, without = 0.7, [5 / 7, 5 / 8, 7 / 9, 4 / 6]
    variance = 3 / 4 * sum((each - sum(without) / 4) ** 2 for each in without)
    effective_clusters = 100 / (9 + 4 + 1 + 16)
    correction = (stats.t.ppf(0.975, 9) / stats.t.ppf(0.975, effective_clusters - 1)) ** 2
    trials = share * (1 - share) / variance * correction
    assert trials < 10
    found = ClusterBootstrap(clusters, 50, 0).share(np.array(right))
    low, high = (
        stats.beta.ppf(0.025, 7 / 10 * trials, 0.3 * trials + 1),
        stats.beta.ppf(0.975, 0.7 * trials + 1, 0.3 * trials),
    )
    assert (found["value"], found["low"], found["high"]) == pytest.approx((share, low, high))
    assert (found["clusters"], found["clusters_effective"]) == (4, 3.333) and "Korn & Graubard" in found["interval"]
    alike = ClusterBootstrap([0, 0, 1, 1, 2, 2, 3, 3], 50, 0).share(np.array([1.0, 0] * 4))
    assert alike["low"] == pytest.approx(stats.beta.ppf(0.025, 4, 5))  # never more trials than answers


@pytest.mark.parametrize(("n", "why"), [(1, "one prompt: no interval"), (3, "one template: no interval")])
def test_one_cluster_has_no_interval(n: int, why: str) -> None:
    bootstrap = ClusterBootstrap([7] * n, 100, 0)
    for found in (bootstrap.share(np.ones(n)), bootstrap.interval(lambda a, b: a / b, np.ones(n), np.ones(n))):
        assert (found["value"], found["low"], found["high"], found["n"], found["interval"]) == (1, None, None, n, why)
        assert certain(found) and said(found, ".1f") == f"1.0 ({why})"
    assert not certain(bootstrap.share(np.zeros(n)))
    assert not certain({"value": 1.0, "low": -0.1, "high": 2.0})
    every = {"value": 0.5, "low": 0.5, "high": 0.5, "interval": "every unit was tried"}
    assert said(every, ".1f") == "0.5 (every unit was tried)"


def test_a_cell_of_one_cluster_has_neither_interval_nor_p_value() -> None:
    means = np.random.default_rng(0).normal(1, 0.1, (9, 1, 2, 2))
    means[1:, :, 0, 1] = np.nan  # one prompt alone has it
    means[3:, :, 1, 1] = np.nan  # three prompts of one subject have it
    means[:, :, 1, 0] = np.nan  # nobody has it
    bootstrap = ClusterBootstrap([0, 0, 0, 1, 2, 3, 4, 5, 6], 200, 0)
    point, low, high, p = ratio(bootstrap, means, ~np.isnan(means), np.ones(9))
    assert point[0, 0, 1] == pytest.approx(means[0, 0, 0, 1]) and point[0, 1, 1] == pytest.approx(
        means[:3, 0, 1, 1].mean()
    )
    for one in (low, high, p):
        assert np.isnan(one)[0].tolist() == [[False, True], [True, True]]
    assert low[0, 0, 0] < point[0, 0, 0] < high[0, 0, 0]


def test_few_clusters_have_no_interval_and_the_number_says_so() -> None:
    """Three have none; of a cell that three of eight have, neither; four have one, and its number says of how many."""
    for count in (2, FEWEST - 1):
        found = ClusterBootstrap(np.arange(count), 100, 0).interval(lambda mean: mean, np.arange(count))
        why = f"{count} templates: no interval, which takes {FEWEST}"
        assert (found["low"], found["high"], found["interval"], found["clusters"]) == (None, None, why, count)
    found = ClusterBootstrap([0, 0, 0, 1, 2, 3], 100, 0).interval(lambda mean: mean, np.arange(6))
    assert found["low"] < 2.5 < found["high"] and (found["clusters"], found["clusters_effective"]) == (4, 3.0)
    assert found["interval"] == "95 % bootstrap-t over 4 templates (effectively 3.0)"
    assert few_notes(np.array([0, 0, 0, 1, 2, 3]), "traced")[0].startswith(
        "Only 4 different subjects or templates were traced, which carry as much information as 3.0 of equal size"
    )
    assert "no interval (it takes 4) and no p-value (it takes 6)" in few_notes(np.arange(3), "traced")[0]
    assert not few_notes(np.arange(8), "traced")
    values = np.random.default_rng(0).normal(1, 0.1, (8, 1, 1, 2))
    values[3:, ..., 1] = np.nan
    bootstrap = ClusterBootstrap(np.arange(8), 100, 0)
    for edge in ratio(bootstrap, values, ~np.isnan(values), None)[1:]:
        assert np.isnan(edge).ravel().tolist() == [False, True]
    with np.errstate(all="ignore"):
        rare = bootstrap.interval(lambda a, b: a / b, *np.eye(8)[:2])  # without one template there is no number
    assert rare["low"] is None and rare["interval"] == "no number without one of the templates: no interval"


def test_a_probe_that_is_always_right_is_not_certain() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = np.concatenate([(y * 8.0 - 4)[:, None] + 0.2 * rng.normal(size=(60, 1)), rng.normal(size=(60, 5))], 1)
    train, test = (Labelled(X[at], y[at], np.arange(60)[at]) for at in (np.arange(40), np.arange(40, 60)))
    found = probe(train, test, "logistic", shuffles=9, draws=100)
    assert found.score["value"] == found.score["high"] == 1.0 and found.score["low"] == pytest.approx(0.025**0.05)
    assert found.selectivity["low"] < found.selectivity["value"]


@pytest.mark.usefixtures("no_figures")
def test_one_prompt_has_no_interval_anywhere(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        shutil.copytree(checkpoint, tmp_path / "models" / name)
    answer = f"--answer={says(checkpoint)}"
    where = [f"--checkpoint={tmp_path}/models", f"--output-dir={tmp_path}/out", "--trace-sites=resid_post",
             "--trace-sever=", "--trace-direction=denoise", "--patch-flow=out", "--no-visualize-heatmaps"]  # fmt: skip
    command_line.main(None, [f"--prompt={PROMPT}", answer, *ONE, *where, "--patch"])
    told = capsys.readouterr().out
    assert "(one prompt: no interval) answer_logprob" in told and "nan" not in told.lower()
    for name in ("trace", "patch"):
        found = json.loads((tmp_path / "out/a" / name / "results.json").read_text())
        assert {entry["n"] for entry in found["metrics"].values()} == {1}
        for key, entry in found["metrics"].items():
            alone = (entry["low"], entry["high"], entry["interval"]) == (None, None, "one prompt: no interval")
            assert alone == (key not in ("prompts_used", "prompts_failed")), key
        section = found["trace"]["directions"]["denoise"]["panels"] if name == "trace" else found["flow"]["paths"]
        for panel in section:
            assert {value for key in ("low", "high", "p") for row in panel[key] for value in row} == {None}
        assert any("no interval and no p-value" in note for note in found["notes"])
        for page in ("report.html", f"{name}_report.md"):
            text = re.sub('base64,[^"]*', "", (tmp_path / "out/a" / name / page).read_text())
            shown = re.sub("<script>.*?</script>", "", text, flags=re.DOTALL)  # scripts say NaN and isNaN
            assert "ne prompt: no interval" in text and "nan" not in shown.lower().replace("finan", "")
    differences = json.loads((tmp_path / "out/trace/comparison.json").read_text())["differences"]
    assert differences and {entry[edge] for entry in differences for edge in ("low", "high")} == {None}


def test_an_analysis_that_lives_by_intervals_refuses_one_prompt(checkpoint: Path, tmp_path: Path) -> None:
    where = [f"--checkpoint={checkpoint}", f"--output-dir={tmp_path}"]
    with pytest.raises(MechintError, match="no number would have an interval; give prompts of several"):
        command_line.main(None, [f"--prompt={PROMPT}", *ONE[:2], *where, "--no-trace", "--ssm"])
    assert not list(tmp_path.rglob("*.json"))
