"""Summaries of covariance matrices, and which sites and layers belong together, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mechint.analyses.spectra import alignment, effective_rank, participation_ratio
from mechint.interventions.model import layer_kinds, layer_sites
from mechint.interventions.sites import layer_windows
from mechint.utils.statistics import pearson
from tests.helpers.builders import tiny_gpt2, tiny_mamba

WIDE = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def test_alignment_by_hand() -> None:
    """(2² + 1²) / (√5 √5) of a matrix with itself; of cross-covariance [[1, 1]]: 2 / (1 √5)."""
    assert alignment(WIDE, WIDE, WIDE) == pytest.approx(1.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    assert alignment(torch.ones(1, 2, dtype=torch.float64), one, WIDE) == pytest.approx(2 / math.sqrt(5))
    assert math.isnan(alignment(0 * one, 0 * one, one))
    assert alignment(1e-4 * WIDE, 1e-4 * WIDE, 1e-4 * WIDE) == pytest.approx(1.0)  # whatever the scale


def test_dimensions_by_hand() -> None:
    """Eigenvalues 2 and 1: 9 / 5 directions; exp(log 3 - ⅔ log 2) of a width of 2."""
    assert participation_ratio(torch.tensor([2.0, 1.0])) == pytest.approx(9 / 5)
    assert participation_ratio(torch.zeros(3)) == 0.0
    assert effective_rank(WIDE) == pytest.approx(math.exp(math.log(3) - 2 / 3 * math.log(2)) / 2)


def test_pearson_by_hand() -> None:
    """Deviations (-1, 0, 1) and (-2, 1, 1): 3 / √(2 · 6)."""
    a = np.array([1.0, 2.0, 3.0])
    assert pearson(a, np.array([0.0, 3.0, 3.0])) == pytest.approx(3 / math.sqrt(12))
    assert pearson(a, np.ones(3)) is None and pearson(np.ones(3), a) is None
    assert pearson(a[:1], a[:1]) is None and pearson(a, np.array([1.0, np.nan, 2.0])) is None


def test_the_window_around_a_layer() -> None:
    names = ["a", "b", "c", "d"]
    assert layer_windows(names, 1) == (("a",), ("b",), ("c",), ("d",))
    assert layer_windows(names, 2) == (("a", "b"), ("b", "c"), ("c", "d"), ("d",))
    assert layer_windows(names, 3) == (("a", "b"), ("a", "b", "c"), ("b", "c", "d"), ("c", "d"))
    assert layer_windows([], 3) == ()


@pytest.mark.parametrize("build", [tiny_mamba, tiny_gpt2])
def test_the_kinds_of_site_of_a_layer(build: object) -> None:
    model = build()  # type: ignore[operator]
    kinds = layer_kinds(model)
    assert kinds and all(not kind.startswith("layers") for kind in kinds)
    assert [f"layers.0.{kind}" for kind in kinds] == [name for name in model.sites if name.startswith("layers.0.")]
    assert layer_sites(model, kinds[0]) == [f"layers.{layer}.{kinds[0]}" for layer in range(2)]
