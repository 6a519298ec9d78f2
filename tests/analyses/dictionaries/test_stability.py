"""Matching of dictionaries: every permutation as the judge, known rotations, and bad input."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint import MechintError
from mechint.analyses.dictionaries.stability import agreement, best_matching, stability


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), more=st.integers(0, 2), seed=st.integers(0, 10_000), whole=st.booleans())
def test_no_permutation_is_better(rows: int, more: int, seed: int, whole: bool) -> None:
    random = np.random.default_rng(seed)
    shape = (rows, rows + more)
    score = random.integers(0, 3, shape).astype(float) if whole else random.normal(size=shape)  # with ties, and without
    found = best_matching(score)
    assert len(set(found.tolist())) == rows
    best = max(
        sum(score[r, c] for r, c in enumerate(columns)) for columns in itertools.permutations(range(shape[1]), rows)
    )
    assert score[np.arange(rows), found].sum() == pytest.approx(best)


def test_large_matching_is_optimal() -> None:
    """Complementary slackness can't be seen from outside; a planted optimum can: score minus a positive cost off it."""
    random = np.random.default_rng(1)
    order, n = random.permutation(300), 300
    u, v = random.normal(size=n), random.normal(size=n)
    slack = random.exponential(size=(n, n))
    slack[np.arange(n), order] = 0
    assert (best_matching(u[:, None] + v[None, :] - slack) == order).all()
    with pytest.raises(ValueError, match="3 rows"):
        best_matching(np.zeros((3, 2)))


def test_a_shuffled_copy_agrees_and_random_directions_do_not() -> None:
    a = torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
    copy = a[torch.randperm(64)] * torch.rand(64, 1).add(0.1)
    assert agreement(a, copy) == pytest.approx({"largest": 1, "shared": 1, "matched": 1})
    found = stability(
        [SimpleNamespace(W_dec=a), SimpleNamespace(W_dec=copy), SimpleNamespace(W_dec=torch.randn(64, 32))]
    )
    assert found["pairs"] == 3 and found["matched"]["high"] == pytest.approx(1)
    assert found["random"]["matched"]["value"] < 0.6 and found["matched"]["low"] < 0.6
    assert found["random"]["largest"]["value"] >= found["random"]["matched"]["value"]  # each takes the best, unhindered


def test_only_living_latents_count() -> None:
    a, b = torch.eye(6), torch.eye(6).flip(0)
    a[4:], b[:2] = 0, 0
    alive = [a.any(1), b.any(1)]
    sides = [SimpleNamespace(W_dec=a), SimpleNamespace(W_dec=b)]
    assert stability(sides, alive)["matched"]["value"] == pytest.approx(1)
    assert stability(sides)["matched"]["value"] < 1


def test_refusals() -> None:
    one = SimpleNamespace(W_dec=torch.eye(3))
    with pytest.raises(MechintError, match="at least two"):
        stability([one])
    with pytest.raises(MechintError, match=r"widths \[3, 4\]"):
        stability([one, SimpleNamespace(W_dec=torch.eye(4))])
    with pytest.raises(MechintError, match="no living latent"):
        stability([one, one], [torch.ones(3).bool(), torch.zeros(3).bool()])
