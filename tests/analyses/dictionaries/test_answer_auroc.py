"""Latents that tell a label, and planted directions, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mechint.analyses.dictionaries.answer_auroc import label_scores, mann_whitney, p_values
from mechint.analyses.dictionaries.planted import Planted, PlantedConfig, score
from mechint.analyses.dictionaries.report import few_templates
from mechint.utils.errors import MechintError
from mechint.utils.statistics import auroc_over_clusters, cluster_shuffles
from tests.helpers.examples import examples


def by_trials(area: float, above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """DeLong's standard error, and the interval of as many trials (Korn & Graubard), of independent prompts."""
    parts = [values.var(ddof=1) / len(values) for values in (above, below)]
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (above, below), strict=True))
    n = len(above) + len(below)
    trials = min(area * (1 - area) / sum(parts) * (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, freedom)) ** 2, n)
    right, wrong = area * trials, (1 - area) * trials
    ends = stats.beta.ppf(0.025, right, wrong + 1), stats.beta.ppf(0.975, right + 1, wrong)
    return float(sum(parts) ** 0.5), *map(float, ends)


def test_the_scores_of_a_class_by_hand() -> None:
    """Latent 2 tells class 1 but for one pair of 25, latent 0 the other way round but for five; 1 is constant."""
    labels = torch.tensor([0] * 5 + [1] * 5)
    f = torch.zeros(10, 3, dtype=torch.float64)
    f[:, 1] = 3.0
    f[:, 2] = torch.tensor([0.0, 1, 2, 3, 5, 4, 6, 7, 8, 9])
    f[:, 0] = -torch.tensor([0.0, 1, 2, 3, 9, 4, 5, 6, 7, 8])
    held = f.clone()
    held[:, 2] = torch.tensor([0.0, 1, 2, 7.5, 8.5, 4, 6, 7, 8, 9])  # 5 pairs out of order
    found = label_scores(f, labels, held, labels, shuffles=30, best=2, seed=3, names={0: "zero"})
    zero, one = found["classes"]
    assert (zero["name"], one["name"], one["label"], one["prompts"]) == ("zero", "1", 1, 5)
    first, second = one["features"]
    assert (first["id"], second["id"]) == (2, 0) and [first["discovery"], second["discovery"]] == [0.96, 0.2]
    below = 3 + 4  # of 7.5 three of class 1 are smaller, of 8.5 four
    area = 1 - below / 25
    assert first["auroc"]["value"] == pytest.approx(area) and first["auroc"]["n"] == 10
    above, below = np.array([3, 3, 3, 4, 5]) / 5, np.array([5, 5, 5, 2, 1]) / 5  # shares of the other side
    error, low, high = by_trials(area, above, below)
    assert above.mean() == pytest.approx(area) and error > 0.1
    assert (first["auroc"]["low"], first["auroc"]["high"]) == (pytest.approx(low), pytest.approx(high))
    assert second["auroc"]["value"] == pytest.approx(0.2) and 0 < second["auroc"]["low"] < 0.2
    p = [2 * stats.norm.sf(abs(25 * a - 12.5) / (25 * 11 / 12) ** 0.5) for a in (0.96, 0.2)]
    assert mann_whitney(f, labels == 1) == pytest.approx([p[1], 1.0, p[0]])
    assert [first["q"], second["q"]] == pytest.approx([3 * p[0], 1.5 * p[1]])
    assert one["significant"] == 1 and zero["significant"] == 1 and zero["features"][0]["discovery"] == 0.04
    random = torch.Generator().manual_seed(3)
    largest = []
    for _ in range(30):
        mine = (labels == 1)[torch.randperm(10, generator=random)]
        pairs = f[mine][:, None] - f[~mine][None]
        areas = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean((0, 1))
        largest.append(float((areas - 0.5).abs().max()) + 0.5)
    largest.sort()
    control = one["shuffled"]
    assert control["median"] == pytest.approx((largest[14] + largest[15]) / 2) and control["shuffles"] == 30
    assert control["high"] == pytest.approx(largest[27] + 0.55 * (largest[28] - largest[27]))


def test_an_auroc_over_clusters_by_hand() -> None:
    """Obuchowski (1997): sums over clusters, one of which has both sides, from every pair."""
    random = np.random.default_rng(0)
    cluster = np.array([7, 7, 7, 2, 2, 5, 9, 9, 4, 1])
    positive = np.array([True, True, False, True, True, True, False, False, False, False])
    x = random.integers(0, 6, 10).astype(float) + positive
    pair = lambda i, j: float(x[i] > x[j]) + 0.5 * float(x[i] == x[j])
    ours, others = np.flatnonzero(positive), np.flatnonzero(~positive)
    area = np.mean([pair(i, j) for i in ours for j in others])
    first = {
        c: sum(np.mean([pair(i, j) for j in others]) - area for i in ours if cluster[i] == c) for c in set(cluster)
    }
    second = {
        c: sum(np.mean([pair(i, j) for i in ours]) - area for j in others if cluster[j] == c) for c in set(cluster)
    }
    m, n = len(ours), len(others)
    s10 = 3 / (2 * m) * sum(first[c] ** 2 for c in (7, 2, 5))
    s01 = 4 / (3 * n) * sum(second[c] ** 2 for c in (7, 9, 4, 1))
    s11 = 6 / 5 * sum(first[c] * second[c] for c in first)
    varies = s10 / m + s01 / n + 2 * s11 / (m * n)
    kish = 25 / (2**2 + 2**2 + 1), 25 / (1 + 2**2 + 1 + 1)
    freedom = (s10 / m + s01 / n) ** 2 / ((s10 / m) ** 2 / (kish[0] - 1) + (s01 / n) ** 2 / (kish[1] - 1))
    trials = area * (1 - area) / varies * (stats.t.ppf(0.975, 9) / stats.t.ppf(0.975, freedom)) ** 2
    found = auroc_over_clusters(x, positive, cluster, "templates")
    assert found["value"] == pytest.approx(area) and found["clusters"] == 6
    assert found["low"] == pytest.approx(stats.beta.ppf(0.025, area * trials, (1 - area) * trials + 1))
    assert found["high"] == pytest.approx(stats.beta.ppf(0.975, area * trials + 1, (1 - area) * trials))


def test_sides_that_are_apart_have_a_trial_for_each_pair_of_clusters() -> None:
    cluster = np.repeat(np.arange(8), 5)
    positive = cluster < 3
    found = auroc_over_clusters(positive.astype(float), positive, cluster, "templates")
    assert (found["value"], found["high"]) == (1.0, 1.0) and found["low"] == pytest.approx(0.025 ** (1 / 3))
    assert auroc_over_clusters(1.0 - positive, positive, cluster, "templates")["high"] == pytest.approx(
        1 - 0.025 ** (1 / 3)
    )
    mixed = auroc_over_clusters(
        np.tile([0.0, 1.0], 4), np.tile([False, True], 4), np.repeat(np.arange(4), 2), "templates"
    )
    assert mixed["low"] == pytest.approx(0.025**0.5)  # of four clusters with both sides two pairs are disjoint
    few = auroc_over_clusters(positive.astype(float), cluster < 2, cluster, "templates")
    assert few["low"] is None and few["interval"] == "8 templates, 2 with the class and 6 with others: no interval"


@settings(max_examples=examples(30), deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_shuffles_keep_the_labels_of_a_cluster_together(sizes: list[int], seed: int) -> None:
    cluster = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    for order in cluster_shuffles(cluster, 5, seed):
        donors = [set(cluster[order[cluster == c]]) for c in range(len(sizes))]
        assert all(len(donor) == 1 for donor in donors)
        assert sorted(donor.pop() for donor in donors) == list(range(len(sizes)))
        for c in range(len(sizes)):  # all of the donor's, each once, as far as they go
            taken = order[cluster == c]
            assert len(set(taken)) == min(sizes[c], sizes[cluster[taken[0]]])


def test_p_values_over_clusters_are_those_of_all_exchanges() -> None:
    """Eight clusters of three prompts, four of a class: of 70 ways two are as far apart as can be."""
    cluster = np.repeat(np.arange(8), 3)
    positive = torch.tensor(cluster < 4)
    f = torch.tensor(np.stack([cluster, cluster % 2, np.ones(24)], 1)).double()
    first, second, constant = p_values(f, positive, cluster_shuffles(cluster, 2000, 0))
    assert first == pytest.approx(2 / 70, abs=0.015) and second == pytest.approx(1.0) and constant == 1.0
    assert mann_whitney(f, positive)[0] < 1e-4  # as if there were 24 of them
    assert p_values(f, positive, None) == pytest.approx(mann_whitney(f, positive))


def test_latents_that_are_alike_within_clusters_tell_no_class() -> None:
    """Sixteen clusters with a class each and 40 latents of cluster and prompt: found by a test of prompts alone."""
    random = np.random.default_rng(1)
    cluster = np.repeat(np.arange(16), 6)
    f = torch.tensor(random.normal(size=(16, 40))[cluster] + 0.5 * random.normal(size=(96, 40)))
    labels, place = torch.tensor(cluster % 2), torch.tensor(cluster)
    found = label_scores(f, labels, f, labels, shuffles=20, clusters=(place, place), over="templates")["classes"]
    blind = label_scores(f, labels, f, labels, shuffles=20)["classes"]
    assert [told["significant"] for told in found] == [0, 0] and blind[0]["significant"] > 0
    assert found[0]["shuffled"]["median"] > blind[0]["shuffled"]["median"] + 0.05
    wide, narrow = (told[0]["features"][0]["auroc"] for told in (found, blind))
    assert wide["high"] - wide["low"] > 1.3 * (narrow["high"] - narrow["low"])
    assert wide["interval"] == "95 % Korn & Graubard over 16 templates"
    with pytest.raises(MechintError, match="96 prompts have 95 clusters"):
        label_scores(f, labels, f, labels, clusters=(place[1:], place))


def test_the_page_names_answers_of_too_few_templates() -> None:
    told = lambda name, clusters: {
        "name": name,
        "features": [{"auroc": {"value": 0.7, "low": 0.5, "clusters": clusters}}],
    }
    grid = lambda *classes: SimpleNamespace(raw={"sae": {"read": [{"labels": {"classes": classes}}, {"labels": None}]}})
    found = few_templates(grid(told("yes", 11), told("no", 12)))  # type: ignore[arg-type]
    assert "yes (11);" in found and "no (" not in found
    assert few_templates(grid(told("no", 12))) == ""  # type: ignore[arg-type]


def test_a_class_needs_five_prompts_and_five_others_in_both_halves() -> None:
    f, labels = torch.rand(12, 2), torch.tensor([0] * 5 + [1] * 7)
    few = torch.tensor([0] * 4 + [1] * 8)
    told = lambda y, held: [c["label"] for c in label_scores(f, y, f, held, shuffles=2)["classes"]]
    assert told(labels, labels) == [0, 1]
    third = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    assert told(third, third) == [0] and told(third, labels) == [0]
    with pytest.raises(Exception, match="no class has 5"):
        told(labels, few)


def test_a_dictionary_of_planted_directions_by_hand() -> None:
    """Two of three directions are there, one of them at half of the times that it is on; one latent is another."""
    source = Planted(PlantedConfig(d_in=8, features=3, active=1.0, seed=5))
    source.directions = torch.eye(3, 8)
    strengths = source.features(10**6)
    assert strengths.shape == (8192, 3)
    on = strengths[strengths > 0]
    assert (
        0.5 <= float(on.min()) < 0.51
        and 1.49 < float(on.max()) < 1.5
        and float(on.mean()) == pytest.approx(1, abs=0.01)
    )
    assert float((strengths > 0).double().mean()) == pytest.approx(1 / 3, abs=0.01)
    torch.testing.assert_close(source.pool(3)["planted"], source.features(3) @ source.directions)
    assert not torch.equal(source.features(0), source.features(1))

    class Dictionary:
        W_dec = torch.zeros(3, 8)

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0], (x[:, 1] - 1.0).relu(), x[:, 7]], 1)

    sae = Dictionary()
    sae.W_dec[0, 0], sae.W_dec[1, 1] = 2.0, 3.0
    sae.W_dec[2, 6], sae.W_dec[2, 2] = 4.0, 3.0  # cosine 3 / 5 with the third
    found = score(sae, source)  # type: ignore[arg-type]
    half = float((strengths[:, 1] > 1).sum() / (strengths[:, 1] > 0).sum())
    assert found["mean_cosine"] == pytest.approx((1 + 1 + 0.6) / 3)
    assert found["f1"] == pytest.approx((1 + 2 * half / (1 + half) + 0) / 3, rel=1e-5)
    assert found["l0"] == pytest.approx(float(((strengths[:, 0] > 0).double() + (strengths[:, 1] > 1)).mean()))
    assert found["recovered"]["value"] == pytest.approx(2 / 3) and found["best_cosine"]["value"] == pytest.approx(1)
