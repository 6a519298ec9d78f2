"""Functions that turn measured arrays into printed numbers and verdicts, each against a table made by hand.

``make mutants`` (``scripts/mutants``) changes one line of that code at a time and asks that a test here, or the one
that it names, notices. One file, past 500 lines, because it is the one that the tool runs.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechint.analyses import unit_effects
from mechint.analyses.circuits.bench import METRICS
from mechint.analyses.circuits.evidence import Evidence, share_needed
from mechint.analyses.circuits.results import beside_small_effect
from mechint.analyses.comparison.analyzer import scaled
from mechint.analyses.comparison.cost import parameters
from mechint.analyses.comparison.differences import compare
from mechint.analyses.comparison.options import lengths
from mechint.analyses.dictionaries import answer_auroc as sae_labels
from mechint.analyses.metrics import compare as answers_of
from mechint.analyses.neurons.results import circuit_numbers
from mechint.analyses.random_weights import beside
from mechint.analyses.sparsity import analyzer as sparsity
from mechint.analyses.study import ablation_tests as necessity
from mechint.analyses.study import claims as claims_
from mechint.analyses.study import steps_controls as study_controls
from mechint.analyses.study import steps_discovery as study_discovery
from mechint.analyses.study.report import interval as in_study
from mechint.analyses.tracing import results as trace_results
from mechint.analyses.tracing.panels import Panel
from mechint.ground_truth import score_units
from mechint.report.words import percent, percents
from mechint.scorecard.dictionaries import recovery
from mechint.scorecard.summary import by_chance, least_and_most, rate
from mechint.utils import multiple_tests, statistics
from mechint.utils.statistics import (
    ClusterBootstrap,
    alone,
    area,
    certain,
    chance_jaccard,
    exact,
    jaccard,
    number,
    said,
    said_share,
    stability,
)


def test_numbers() -> None:
    assert number(1, 0, 2, 3, "of it") == {"value": 1.0, "low": 0.0, "high": 2.0, "n": 3, "interval": "of it"}
    assert [certain(number(value, low, 9, 3, "")) for value, low in ((1, 0.1), (1, 0.0), (1, -0.1))] == [
        True,
        False,
        False,
    ]
    assert certain(alone(0.5, 1, "seed")) and not certain(alone(-0.5, 1, "seed"))
    assert said(number(0.9123, 0.8741, 0.9502, 5, "")) == "0.912 [0.874, 0.950]"
    assert said(alone(0.5, 3, "template")) == "0.500 (one template: no interval)"
    assert said(exact(3), ".0f") == "3 (exact count)"


def test_a_share_of_many_times_the_whole_is_written_as_a_multiple_with_all_that_stands_beside_it() -> None:
    """Per cent read well up to ten times the whole; a number and the edges of its interval have one form."""
    assert [percent(share) for share in (0.5, -9.99, 10.0, 10.01, -32.96)] == [
        "50.0 %", "−999.0 %", "1000.0 %", "10.0 times the whole", "−33.0 times the whole"
    ]  # fmt: skip
    assert percents(0.5, 0.25, 0.75) == ("50.0 %", "[25.0, 75.0]")
    assert percents(0.5, -11.0, 12.0) == ("0.5 times the whole", "[−11.0, 12.0]")
    assert percents(0.5, math.nan, math.nan) == ("50.0 %", "(no interval)")
    assert said(number(-32.96, -33.4, -32.5, 8, ""), ".0%") == "-33.0 [-33.4, -32.5] times the whole"
    assert said(number(0.5, -0.5, 12.0, 8, ""), ".0%") == "0.5 [-0.5, 12.0] times the whole"
    assert said(number(0.5, 0.25, 0.75, 8, ""), ".0%") == "50% [25%, 75%]"
    assert said(number(-32.96, -33.4, -32.5, 8, "")) == "-32.960 [-33.400, -32.500]"
    assert said(alone(-32.96, 1, "prompt"), ".0%") == "-33.0 (one prompt: no interval) times the whole"
    assert [said_share(share) for share in (0.5, -32.96)] == ["50%", "-33.0 times the whole"]
    assert in_study(number(-32.96, -33.4, -32.5, 8, ""), ".1%") == "-33.0 times the whole [-33.4, -32.5]"
    assert in_study(number(0.5, 0.25, 0.75, 8, ""), ".1%") == "50.0% [25.0%, 75.0%]"
    assert in_study(number(12.0, 11.0, 13.0, 8, ""), ".2g") == "12 [11, 13]"


def test_what_many_times_the_effect_is_in_the_metric_itself() -> None:
    """0.098 nats without any unit and 0 in the whole model: a share of -33 is 0.098 + 33 times 0.098 nats."""
    metrics = {
        "metric_full": alone(0.0, 8, ""), "metric_empty": alone(0.098, 8, ""), "faithfulness": alone(0.9, 8, ""),
        "mask_on_random_weights": alone(-33.0, 8, ""), "mask_for_exchanged_answers": alone(-40.0, 8, ""),
    }  # fmt: skip
    [note] = beside_small_effect({"metrics": metrics, "metric": "kl"})
    assert "the metric kl is 0 in the whole model and 0.098 with every unit dropped" in note
    assert "; the mask on random weights 3.33 (nats)." in note  # 0.098 · 34
    metrics["mask_on_random_weights"] = alone(-9.0, 8, "")
    assert beside_small_effect({"metrics": metrics, "metric": "kl"}) == []
    metrics["faithfulness_random"] = alone(21.0, 8, "")
    [note] = beside_small_effect(
        {
            "metrics": metrics | {"metric_full": alone(0.5, 8, ""), "metric_empty": alone(0.25, 8, "")},
            "metric": "accuracy",
        }
    )
    assert note.startswith("Shares of many times the whole") and "the median of the random circuits 5.5. Read" in note


def test_sets() -> None:
    assert [jaccard({1, 2, 3}, {2, 3, 4}), jaccard({1}, {2}), jaccard(set(), set())] == [0.5, 0.0, 1.0]
    found = stability([{1, 2}, {1, 2}, {2, 3}])
    assert found is not None and (found["low"], found["high"], found["n"]) == (1 / 3, 1.0, 3)
    assert found["value"] == pytest.approx((1 + 2 / 3) / 3)


def test_areas_under_curves() -> None:
    curve = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    assert area([0.1, 0.2, 1.1], curve).tolist() == pytest.approx([(0.05 + 0.9) / 1.0, (0.1 + 0.45) / 1.0])


def test_corrections_for_many_tests() -> None:
    """By hand: Holm multiplies by what is left, Benjamini and Hochberg divide by the rank from below."""
    assert multiple_tests.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert multiple_tests.holm([0.6, 0.5]) == [1.0, 1.0]
    assert multiple_tests.benjamini_hochberg(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.04, 0.04])


def test_draws_that_so_many_tests_need() -> None:
    assert [statistics.draws_needed(tests) for tests in (1, 10, 11)] == [19, 199, 219]


def test_rank_correlations_share_ranks() -> None:
    assert statistics.rank_correlation([1, 2, 3], [10, 200, 15]) == pytest.approx(0.5)
    assert statistics.rank_correlation([1, 1, 2], [3, 3, 4]) == pytest.approx(1.0)
    assert statistics.rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_intervals_of_shares_that_are_all_one_or_none() -> None:
    """Clopper and Pearson for four clusters: 0.025^(1/4)."""
    bootstrap = ClusterBootstrap([0, 0, 1, 1, 2, 3], 50, 0)
    far = 0.025**0.25
    right, wrong = (bootstrap.share(np.full(6, value)) for value in (1.0, 0.0))
    assert (right["low"], right["high"]) == pytest.approx((far, 1.0))
    assert (wrong["low"], wrong["high"]) == pytest.approx((0.0, 1 - far))


# --- measures of sparsity --------------------------------------------------------------------------------------------

SCALE = sparsity.Scale(torch.tensor([1.0, 1.0, 10.0, 1.0]), 0.5, 0.01, 0.1)
TABLE = [  # of the activations (0, 3, 0.4, −1): sizes 0, 0.4, 1, 3
    ("gini", (-3 * 0 - 1 * 0.4 + 1 * 1 + 3 * 3) / (4 * 4.4)),
    ("hoyer", (2 - 4.4 / math.sqrt(10.16)) / (2 - 1)),
    ("entropy", -sum(p * math.log(p) for p in (3 / 4.4, 0.4 / 4.4, 1 / 4.4)) / math.log(4)),
    ("participation", 10.16**2 / (4 * (81 + 0.4**4 + 1))),
    ("below_rms", 0.5),
    ("below_optimal", 0.5),
    ("below_fixed", 0.25),
]


@pytest.mark.parametrize(("name", "value"), TABLE)
def test_measures_of_sparsity(name: str, value: float) -> None:
    found = sparsity.MEASURES[name](torch.tensor([[0.0, 3.0, 0.4, -1.0]], dtype=torch.float64), SCALE)
    assert float(found) == pytest.approx(value)


def test_measures_agree_on_what_is_sparser() -> None:
    falling = ("entropy", "participation")
    cells = [
        {"measures": {name: {"value": -k if name in falling else k} for name in sparsity.MEASURES}} for k in range(4)
    ]
    assert all(value == pytest.approx(1.0) for row in sparsity.agreement(cells)["spearman"] for value in row)


def test_profiles_of_variances() -> None:
    """Variances 1, 2, 3, 6 of four units: multiples of their mean 3."""
    mean = np.ones((5, 4))
    found = sparsity.profile(ClusterBootstrap(range(5), 20, 0), mean, mean**2 + np.array([1.0, 2.0, 3.0, 6.0]))
    assert found["p50"]["value"] == pytest.approx(2.5 / 3) and found["p75"]["value"] == pytest.approx(3.75 / 3)


# --- candidates against random subspaces -----------------------------------------------------------------------------


def test_random_subspaces_move_as_far_as_the_candidate() -> None:
    move = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]], [[1.0, 0.0]]])
    like = torch.tensor([[[0.0, 10.0]], [[6.0, 8.0]], [[0.0, 0.0]]])
    assert necessity.same_norm(move, like).tolist() == [[[6.0, 8.0]], [[0.0, 10.0]], [[0.0, 0.0]]]
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)
    basis = torch.eye(6, dtype=torch.float64)[:, :2]
    candidate = SimpleNamespace(basis=basis, rank=2, name="c")
    own = delta.clone()
    own[..., 2:] = 0
    assert torch.equal(necessity.moved(delta, basis), own)
    for drawn in necessity.randoms(delta, candidate, 3, 0):  # type: ignore[arg-type]
        torch.testing.assert_close(drawn.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1))
        assert torch.linalg.matrix_rank(drawn.flatten(0, 1)) == 2 and not torch.allclose(drawn, own)


def held(shares: dict[str, list[float]]) -> Any:
    """Held-out prompts whose effect is 2 each; a move [1, prompts] loses its own size of it."""
    clean, twin = torch.zeros(4, 1, 2, dtype=torch.float64), torch.zeros(4, 1, 2, dtype=torch.float64)
    clean[..., 0], twin[..., 0] = 1.0, -1.0
    clean[..., 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]

    def measure(test: str, site: str, moves: Any, title: str) -> torch.Tensor:
        return torch.stack([move[:, 0, 0].abs() / 2 * torch.tensor(shares[test]) for move in moves])

    prompts = SimpleNamespace(template=torch.arange(4))
    return SimpleNamespace(
        clean={"s": clean},
        twin={"s": twin},
        measure=measure,
        prompts=prompts,
        effect=torch.full((4,), 2.0).double(),
        rounding=0.0,
    )


def test_a_candidate_s_effect_doses_and_p() -> None:
    """The candidate moves all of the effect, a random direction of the same norm only its part along it."""
    candidate = SimpleNamespace(basis=torch.eye(2, dtype=torch.float64)[:, :1], rank=1, name="c", site="s")
    for test in ("necessity", "sufficiency"):
        shares = {"necessity": [0.5, 0.5, 0.7, 0.7], "sufficiency": [0.5, 0.5, 0.7, 0.7]}
        done = necessity.necessity(held(shares), candidate, test, draws=39, bootstrap=50)  # type: ignore[arg-type]
        assert done.effect["value"] == pytest.approx(0.6) and done.monotone == pytest.approx(1.0)
        assert [dose["value"] for dose in done.dose] == pytest.approx([0.15, 0.3, 0.45, 0.6])
        assert done.p == 1 / 40 and done.random["high"] <= 0.6 and done.random["n"] == 39


def test_what_replacement_adds() -> None:
    some = held({})
    candidate: Any = SimpleNamespace(site="s")
    assert necessity.deltas(some, candidate, "sufficiency", None)[0, 0].tolist() == [2.0, 1.0]
    assert necessity.deltas(some, candidate, "necessity", None)[0, 0].tolist() == [-2.0, -1.0]
    assert necessity.deltas(some, candidate, "necessity", torch.zeros(1, 2))[0, 0].tolist() == [-1.0, -1.0]


def test_outliers_are_of_six_times_the_median_deviation() -> None:
    signs = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64).view(4, 4, 1)
    found = study_discovery.baseline(signs * torch.tensor([1.0, 1.0, 1.0, 5.9, 6.1, 0.0], dtype=torch.float64))
    assert found["outlier_units"] == [4] and found["dead_units"] == 1 and found["units"] == 6 and found["n"] == 16
    assert found["rank"] == pytest.approx(1.0) and found["rank_99"] == 1
    even = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    assert study_discovery.baseline(even)["rank"] == pytest.approx(3.0)


# --- traces ----------------------------------------------------------------------------------------------------------


def test_the_last_residual_is_never_the_strongest() -> None:
    """It holds the whole effect by definition; of other kinds the last layer counts."""
    effects = torch.zeros(2, 3, 2, 6, dtype=torch.float64)  # panel, layer, position, prompt
    effects[0, 0, 1], effects[0, 1, 0], effects[0, 2, 1] = 0.2, -0.4, 1.0
    effects[1, 2, 1], effects[1, 1, 0] = 0.7, 0.3
    found = [
        {"clean": torch.full((6,), 3.0).double(), "corrupted": torch.full((6,), 1.0).double(), "denoise": effects * 2}
    ]
    roles = [torch.tensor([[0, 1]] * 6)]
    plan = {"denoise": [Panel("resid_post", ((),) * 3), Panel("out", ((),) * 3)]}
    metrics: dict[str, Any] = {}
    everyone: Any = np.ones(6, bool)
    templates: Any = np.arange(6)
    section, notes, _ = trace_results.numbers(
        found, roles, ("first", "last"), plan, everyone, templates, 99, 0, metrics
    )
    best = section["strongest"]
    assert [(row["panel"], row["layer"], row["role"]) for row in best] == [
        ("resid_post", 1, "first"),
        ("out", 2, "last"),
    ]
    assert [row["value"] for row in best] == pytest.approx([-0.4, 0.7]) and not notes
    assert metrics["total_effect"]["value"] == 2.0 and section["unit"] == "share of the total effect"
    assert section["directions"]["denoise"]["panels"][0]["value"][2][1] == pytest.approx(1.0)


def test_role_means_leave_out_what_is_not_there() -> None:
    effects = np.arange(6.0).reshape(1, 1, 3, 2)  # positions 0, 1, 2 of two prompts
    found = trace_results.role_means(effects, np.array([[0, 1, 1], [0, 0, 0]]), [0, 1])
    assert found[0, 0, 0].tolist() == [0.0, 3.0] and found[1, 0, 0, 0] == 3.0 and np.isnan(found[1, 0, 0, 1])


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_a_difference_is_the_first_less_the_second() -> None:
    paired, p = compare([0.9, 0.8, 0.95], [0.5, 0.4, 0.6], True)
    assert paired["value"] == pytest.approx(0.38333333) and paired["low"] > 0 and p is not None and p < 0.01
    welch, _ = compare([1.0, 3.0], [0.0, 0.0, 0.0], False)
    half = 12.7062 * 1.0  # Student's t of one degree of freedom; variance 2, two of them: error 1
    assert welch["value"] == 2.0 and welch["high"] == pytest.approx(2 + half, rel=1e-4)
    assert compare([1.0], [0.25], True)[0]["value"] == 0.75 and compare([1.0], [0.0], True)[1] is None


def test_scaled_numbers_keep_their_ends_in_order() -> None:
    found = scaled(number(3.0, 1.0, 4.0, 5, ""), -2.0, 1.0)
    assert [found[key] for key in ("value", "low", "high")] == [-4.0, -6.0, 0.0]
    assert lengths("512,32") == [32, 512]


def test_parameters_below_a_share_of_the_rms_are_inactive() -> None:
    layer = torch.nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, 0.0, 0.009, 0.011]])  # RMS 1.0
    assert (parameters(layer).total, parameters(layer).active) == (4, 2)


# --- circuits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("answer_logprob", 1), ("logit_diff", 1)])
def test_faithfulness_is_a_share_of_the_way_from_empty_to_full(metric: str, sign: int) -> None:
    read = METRICS[metric].read
    evidence = SimpleNamespace(options=SimpleNamespace(metric=metric))
    share = Evidence.share(evidence, np.array([0.5]), np.array([0.9]), np.array([0.1]))  # type: ignore[arg-type]
    assert float(share[0]) == pytest.approx(0.5) and np.sign(read(np.array([0.9])) - read(np.array([0.1])))[0] == sign


def test_metrics_of_answers() -> None:
    """Two prompts: the first is right, the second puts its answer below a wrong one."""
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
    right, wrong = torch.tensor([[0], [1]]), torch.tensor([[2], [2]])
    (kl, logprob, accuracy, difference), _, _ = answers_of(logits, logits.flip(0).log_softmax(-1), right, wrong)
    assert accuracy.tolist() == [1.0, 0.0] and difference.tolist() == [1.0, -2.0]
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(logprob, torch.stack([expected[0, 0], expected[1, 1]]))
    other = expected.flip(0)
    torch.testing.assert_close(kl, (other.exp() * (other - expected)).sum(-1))


def test_the_share_of_units_that_are_needed() -> None:
    def entry(p: float, drop: float) -> dict[str, Any]:
        return {"p": p, "drop": {"value": drop}}

    tried = [entry(0.05, 0.2), entry(0.051, 0.2), entry(0.01, -0.2), entry(0.001, 0.1)]
    assert share_needed(tried, 4, 50, 0)["value"] == share_needed(tried, 9, 50, 0)["value"] == 0.5
    assert share_needed(tried, 4, 50, 0)["low"] == 0.5 > share_needed(tried, 9, 50, 0)["low"]


def test_faithfulness_and_completeness_of_top_units() -> None:
    done: Any = SimpleNamespace(bootstrap=ClusterBootstrap(range(4), 50, 0), main="gated")
    full, empty = [5.0, 6.0, 5.0, 6.0], [1.0, 2.0, 1.0, 2.0]
    values = {"full": full, "empty": empty, "top": [4.0, 5.0, 4.0, 5.0], "without": [2.0, 3.0, 2.0, 3.0]}
    metrics: dict[str, Any] = {}
    random = circuit_numbers(done, {**values, "random": [[1.0, 2.0, 1.0, 2.0], [3.0, 4.0, 3.0, 4.0]]}, metrics, [])
    assert metrics["faithfulness_top_k"]["value"] == pytest.approx(0.75)
    assert metrics["completeness_top_k"]["value"] == pytest.approx(0.75)
    assert random["random"] == pytest.approx([0.0, 0.5]) and metrics["effect_of_all_units"]["value"] == 4.0
    assert metrics["faithfulness_random"]["value"] == pytest.approx(0.25)
    notes: list[str] = []
    assert circuit_numbers(done, {**values, "full": [1.1, 1.9, 0.9, 2.1], "random": []}, {}, notes) == {"random": []}
    assert "may be nothing" in notes[0]


def test_estimates_are_slopes_times_what_changes() -> None:
    slope, value = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[2.0, 2.0], [1.0, 1.0]]])
    assert unit_effects.along(slope, value, 1.0)[:, 0].tolist() == [1.0, 2.0]
    assert unit_effects.along(slope, value, torch.zeros(2))[:, 0].tolist() == [5.0, 8.0]


# --- the scorecard and labels ----------------------------------------------------------------------------------------


def test_areas_and_p_values_of_latents() -> None:
    f = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0], [4.0, 0.0]])
    positive = torch.tensor([False, False, True, True])
    area = sae_labels.auroc(f, positive)
    assert area.tolist() == [1.0, 0.75]
    z = 0.5 / math.sqrt(5 / 48)  # four different values, two of each class
    assert sae_labels.mann_whitney(f, positive)[0] == pytest.approx(math.erfc(z / math.sqrt(2)))


def test_scores_of_units() -> None:
    found = score_units(torch.tensor([1, 0, 1, 0]), torch.tensor([0.9, 0.5, 0.5, 0.1]))
    assert found.auroc == pytest.approx((1 + 1 + 0.5 + 1) / 4) and not found.exact
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2) and (found.units, found.total) == (2, 4)


def test_rows_of_the_card() -> None:
    assert [least_and_most([1.0, 2.0, 6.0])[key] for key in ("value", "low", "high", "n")] == [3.0, 1.0, 6.0, 3]
    half = rate([True, False, True, False])
    spread = 1.96 * math.sqrt(0.25 / 4 + 1.96**2 / 64) / (1 + 1.96**2 / 4)
    assert half["low"] == pytest.approx(0.5 - spread) and half["high"] == pytest.approx(0.5 + spread)
    areas = [(0.4, 0.6), (0.6, 0.8)]  # of two models for each of two seeds
    parts = [{"seed": k, "random": [{"method": "m", "auroc": a} for a in pair]} for k, pair in enumerate(areas)]
    found = by_chance(parts, "m")
    assert found["value"] == pytest.approx(0.6) and found["n"] == 2
    assert found["high"] - 0.6 == pytest.approx(12.7062 * 0.1, rel=1e-4)


def test_a_dictionary_of_the_features_themselves() -> None:
    directions = torch.eye(3)[:2]
    strengths = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    sae: Any = SimpleNamespace(W_dec=2 * torch.eye(3)[[1, 0, 2]], encode=lambda x: x[:, [1, 0, 2]] / 2,
                               decode=lambda f: 2 * f[:, [1, 0, 2]])  # fmt: skip
    found = recovery(sae, strengths @ directions, directions, strengths)
    assert found == pytest.approx({"mean_cosine": 1.0, "f1": 1.0, "l0": 1.0, "explained": 1.0})
    blind: Any = SimpleNamespace(W_dec=sae.W_dec, encode=lambda x: x[:, [1, 0, 2]] / 2 * torch.tensor([1.0, 0, 0]),
                                 decode=lambda f: torch.zeros(4, 3))  # fmt: skip
    worse = recovery(blind, strengths @ directions, directions, strengths)
    assert worse["f1"] == pytest.approx(0.5) and worse["l0"] == pytest.approx(0.5)
    x = strengths @ directions
    assert worse["explained"] == pytest.approx(1 - float(x.square().sum() / (x - x.mean(0)).square().sum()))


# --- verdicts of a study ---------------------------------------------------------------------------------------------


def interval(value: float, low: float, high: float, n: int = 100) -> dict[str, Any]:
    return number(value, low, high, n, "made up")


def test_a_model_does_a_task_where_its_interval_lies_above_that_of_chance() -> None:
    chance = interval(0.25, 0.2, 0.3)
    assert [claims_.does_task(interval(0.5, low, 0.6), chance) for low in (0.31, 0.3, 0.29)] == [True, False, False]
    assert not claims_.does_task(alone(1.0, 1, "prompt"), chance)


def test_presence_at_a_checkpoint_needs_the_task_the_effect_and_the_share() -> None:
    right, chance = interval(0.9, 0.8, 1.0), interval(0.25, 0.2, 0.3)
    total, share = interval(3.0, 2.0, 4.0), interval(0.5, 0.2, 0.7)
    table = [
        ((right, chance, total, share, 0.2), True),
        ((right, chance, total, share, 0.21), False),
        ((interval(0.3, 0.25, 0.35), chance, total, share, 0.2), False),
        ((right, chance, interval(3.0, -0.1, 4.0), share, 0.2), False),
        ((right, chance, interval(-3.0, -4.0, -2.0), share, 0.2), False),
        ((right, chance, alone(3.0, 1, "prompt"), share, 0.2), False),
    ]
    assert [study_controls.present(*given) for given, _ in table] == [there for _, there in table]


def test_where_a_circuit_appears() -> None:
    def told(*there: bool) -> dict[str, Any]:
        return study_controls.appearance([{"checkpoint": f"c{k}", "present": is_} for k, is_ in enumerate(there)])

    assert told(False, True, True)["appears"] == "c1" and "every later" in told(False, True, True)["appearance"]
    assert told(False, True, False, True)["appears"] == "c1"
    assert "later not at c2." in told(False, True, False, True)["appearance"]
    assert told(False, False)["appears"] is None


def test_agreement_by_chance() -> None:
    """2 of 4 units twice share 1 of 3 on average: the mean shared over the mean union."""
    assert chance_jaccard([2], 4) == pytest.approx(1 / 3) and chance_jaccard([4], 4) == 1
    assert chance_jaccard([1, 1], 10) == pytest.approx(0.2 / 3.8) and chance_jaccard([0, 5], 5) == 1.0


def test_p_of_an_interval_is_five_percent_where_its_end_is() -> None:
    found = interval(0.5, 0.3, 0.9)
    assert claims_.p_above(found, 0.3) == pytest.approx(0.05, abs=1e-6)
    assert claims_.p_above(found, 0.29) < 0.05 < claims_.p_above(found, 0.31)
    assert claims_.p_above(found, 0.5) == claims_.p_above(found, 0.8) == 1.0
    assert claims_.p_above(alone(0.9, 1, "prompt"), 0.3) == 1.0


def test_conditions_of_claims() -> None:
    small = claims_.at_least("it", interval(0.1, 0.05, 0.19), 0.2)
    assert small.contrary and not claims_.at_least("it", interval(0.3, 0.1, 0.4), 0.2).contrary
    draws = interval(0.2, 0.0, 0.4, 199)
    assert claims_.beats_draws("d", "they", interval(0.1, 0.0, 0.19), draws, 0.7).contrary
    one = claims_.beats_draws("d", "they", interval(0.5, 0.3, 0.7), draws, 0.01)
    assert (one.contrary, one.p, one.draws) == ("", 0.01, 199)
    assert claims_.exceeds("c", "no more", interval(-0.2, -0.3, -0.1)).contrary
    above, open_ = (claims_.exceeds("c", "no more", interval(0.2, low, 0.5)) for low in (0.1, -0.1))
    assert above.p < 0.05 < open_.p and not above.contrary and not open_.contrary
    assert claims_.conjunction([small, one])["p"] == max(small.p, 0.01)


def test_readings_beside_random_models() -> None:
    def row(difference: dict[str, Any], mean: float) -> dict[str, Any]:
        return {"difference": difference, "random": [mean - 0.01, mean + 0.01], "error": 0.05, "freedom": 5}

    better = claims_.above_random_models(row(interval(0.4, 0.3, 0.5), 0.5))
    assert better.p == pytest.approx(statistics.t_tail(0.3 / 0.05, 5)) and not better.contrary and not better.open
    assert claims_.above_random_models(row(interval(0.05, 0.01, 0.09), 0.5)).contrary
    ceiling = claims_.above_random_models(row(interval(0.01, 0.0, 0.02), 0.99))
    assert "told apart" in ceiling.open and ceiling.p == 1.0 and not ceiling.contrary


def test_the_error_beside_random_models_is_of_models_and_prompts() -> None:
    found = beside(np.array([1.0, 1, 0, 0]), np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]]), np.arange(4))
    assert found["difference"]["value"] == pytest.approx(0.375) and found["random"] == [0.25, 0.0]
    assert found["error"] == pytest.approx(math.sqrt(0.03125 * 1.5 + 4 / 3 * 0.6875 / 16)) and found["freedom"] == 1


def test_probes_are_chosen_on_other_prompts_than_they_are_judged_on() -> None:
    rows = [{"label": "a", "across_folds": 0.6, "n": 0}, {"label": "a", "across_folds": 0.7, "n": 1},
            {"label": "b", "across_folds": 0.1, "n": 2}]  # fmt: skip
    assert [row["n"] for row in claims_.best_probes(rows)] == [1, 2]


def test_claims_are_judged_by_their_number_and_their_weakest_condition() -> None:
    def claim(name: str, *ps: float) -> dict[str, Any]:
        parts = [claims_.Condition(f"c{k}", "so", interval(0.5, 0.3, 0.7), p, least=0.2) for k, p in enumerate(ps)]
        return {"kind": "circuit", "claim": name, "effect": interval(0.5, 0.3, 0.7), **claims_.conjunction(parts)}

    found = claims_.judged([claim("one", 0.001, 0.03), claim("two", 0.01, 0.02), claim("three", 0.001)])
    assert found["verdicts"] == {"supported": 3, "refuted": 0, "underpowered": 0}
    holm = {c["claim"]: c["p_holm"] for c in found["claims"]}
    assert holm == pytest.approx({"three": 0.003, "two": 0.04, "one": 0.04})
    alone_ = claims_.judged([claim("one", 0.06)])["claims"][0]
    assert alone_["verdict"] == "underpowered" and "0.06" in alone_["why"]
    undone = claims_.judged([claim("one", 0.001)], "nothing is done")["claims"][0]
    assert (undone["verdict"], undone["why"]) == ("underpowered", "nothing is done")


def test_prompts_that_would_decide() -> None:
    """Twice as wide as the distance: four times the prompts."""
    assert claims_.needed_prompts(interval(0.5, 0.0, 1.0, 50), 0.25) == 200
