"""Matching of dictionaries: every permutation as the judge, known rotations, and bad input."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint import MechintError
from mechint.analyses.dictionaries.stability import agreement, stability
from tests.helpers.examples import examples


@settings(max_examples=examples(60), deadline=None)
@given(rows=st.integers(1, 5), more=st.integers(0, 2), seed=st.integers(0, 10_000))
def test_no_one_to_one_matching_is_better(rows: int, more: int, seed: int) -> None:
    """The mean cosine under the best of all matchings, each tried; the larger side may keep directions for itself."""
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 4, generator=random, dtype=torch.float64) for n in (rows, rows + more))
    cosine = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    best = max(
        float(cosine[torch.arange(rows), list(columns)].mean())
        for columns in itertools.permutations(range(rows + more), rows)
    )
    assert [agreement(a, b)["matched"], agreement(b, a)["matched"]] == pytest.approx([best, best], abs=1e-6)


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
