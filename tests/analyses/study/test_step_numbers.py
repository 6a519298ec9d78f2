"""Numbers that steps of a study report, by hand: statistics of activations, quality of dictionaries, cost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechint.analyses.study import steps_tests
from mechint.analyses.study.steps_controls import at, scale
from mechint.analyses.study.steps_discovery import baseline, sae_numbers
from tests.helpers.builders import tiny_mamba


def test_statistics_of_activations_by_numpy() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(6, 5, 8)) * np.array([1, 2, 0.5, 3, 0, 1, 100, 1]) + 7
    found = baseline(torch.from_numpy(values))
    rows = values.reshape(30, 8)
    z = (rows - rows.mean(0)) / np.where(rows.std(0, ddof=1) > 0, rows.std(0, ddof=1), np.nan)
    assert found["kurtosis_median"] == pytest.approx(sorted(np.nanmean(z[:, [0, 1, 2, 3, 5, 6, 7]] ** 4, 0))[3])
    assert found["variance"] == pytest.approx(rows.var(0, ddof=1).mean()) and found["mean"] == pytest.approx(
        rows.mean()
    )
    eigen = np.sort(np.linalg.eigvalsh(np.cov(rows.T, bias=True)))[::-1]
    assert found["rank"] == pytest.approx(eigen.sum() ** 2 / (eigen**2).sum())
    assert found["rank_99"] == int(np.searchsorted(eigen.cumsum() / eigen.sum(), 0.99)) + 1
    assert found["dead_units"] == 1 and found["outlier_units"] == [6] and found["units"] == 8 and found["n"] == 30
    assert found["norm_by_position"] == pytest.approx(np.linalg.norm(values, axis=2).mean(0).tolist())
    assert found["spectrum"] == pytest.approx((eigen / eigen.sum()).tolist(), abs=1e-12)


def test_the_median_of_an_even_number_of_units_is_between_the_two_in_the_middle() -> None:
    """torch's own is the lower of the two, by which a unit of 6.5 times it would be an outlier of 6 times."""
    draw = np.random.default_rng(0)
    z = draw.normal(size=(400, 4))
    z = (z - z.mean(0)) / z.std(0, ddof=1)
    values = z * np.array([1.0, 1.0, 1.2, 6.5])
    found = baseline(torch.from_numpy(values.reshape(40, 10, 4)))
    assert found["kurtosis_median"] == pytest.approx(np.median((z**4).mean(0)))
    assert found["outlier_units"] == []  # 6.5 is less than 6 times 1.1


class Halves:
    """A dictionary whose latents are the positive units, and which gives back half of each."""

    config = SimpleNamespace(d_sae=4)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        return f / 2


def test_the_variance_that_a_dictionary_explains_and_its_active_latents_by_hand() -> None:
    draw = np.random.default_rng(1)
    values = draw.normal(size=(5, 3, 4)) - np.array([0, 0, 0, 9])
    made: Any = Halves()
    found = sae_numbers(made, torch.from_numpy(values), np.arange(5), 100, 0)
    rest = ((np.maximum(values, 0) / 2 - values) ** 2).sum(2).mean()
    total = ((values - values.mean((0, 1))) ** 2).sum(2).mean()
    assert found["variance_explained"]["value"] == pytest.approx(1 - rest / total, rel=1e-5)
    assert found["l0"]["value"] == pytest.approx((values > 0).sum(2).mean())
    assert (found["latents"], found["silent"]) == (4, 1)


def test_the_cost_counts_the_random_subspaces_that_were_drawn() -> None:
    """Two tests of each candidate; of more draws than asked for where the claims need them."""
    model = tiny_mamba()
    context: Any = SimpleNamespace(
        model=model, config=SimpleNamespace(draws=20, trajectory=""), draws=60, tested=[1, 2, 3],
        val=SimpleNamespace(batches=[SimpleNamespace(tokens=torch.zeros(2, 7))]),
        held=SimpleNamespace(prompts=[0] * 5),
    )  # fmt: skip
    report = scale(context)["report"]
    assert report["runs_of_one_prompt"] == 3 * 2 * 60 * 5 and report["length"] == 7
    size = sum(p.numel() for p in model.parameters())
    assert report["flops"] == 2.0 * size * 7 * 1800 and report["parameters"] == size


def test_tests_that_beat_random_subspaces_are_counted_after_holm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tests of a candidate with p = 0.02 and 0.03: 0.04 after Holm, both."""
    shown = lambda p: SimpleNamespace(p=p, report=lambda: {"p": p})
    made = {name: shown(p) for name, p in zip(steps_tests.DIRECTIONS, (0.02, 0.03), strict=True)}
    monkeypatch.setattr(steps_tests, "necessity", lambda held, candidate, test, **options: made[test])
    context: Any = SimpleNamespace(
        config=SimpleNamespace(draws=20, bootstrap=100, metric="logit_diff", ablation="mean"), draws=60, seed=0,
        tested=[SimpleNamespace(site="layers.0.u")], held=SimpleNamespace(prompts=[0] * 5), mean=lambda site: None,
    )  # fmt: skip
    report = steps_tests.tests(context)["report"]
    assert [row["p_holm"] for row in report["tests"]] == pytest.approx([0.04, 0.04])
    assert report["said"].startswith("2 tests of 1 candidates on 5 answered prompts; 2 beat 60 random subspaces")
    assert "20 subspaces were asked for" in report["said"]


def test_values_are_read_where_the_last_answer_is() -> None:
    held: Any = SimpleNamespace(prompts=SimpleNamespace(positions=torch.tensor([[0, 2], [1, 3]])))
    assert at(torch.arange(16.0).view(2, 4, 2), held).tolist() == [[4, 5], [14, 15]]
