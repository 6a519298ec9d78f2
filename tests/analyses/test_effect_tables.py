"""Tables of effects by hand: shares of the total, correlations of estimates, notes on few prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mechint.analyses import effect_tables
from mechint.analyses.effect_tables import correlation, few_notes, plain, ratio, shareless, table
from mechint.utils.statistics import ClusterBootstrap


def test_shares_are_of_the_total_of_the_prompts_that_have_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Effects of 8 prompts on two cells; the second has no role in the last two. The third no prompt has."""
    random = np.random.default_rng(0)
    total, cells = random.uniform(1, 2, 8), random.uniform(0, 1, (8, 1, 1, 3))
    cells[6:, 0, 0, 1] = cells[:, 0, 0, 2] = np.nan
    bootstrap, there = ClusterBootstrap(range(8), 50, 0), ~np.isnan(cells)
    shares, low, high, p = ratio(bootstrap, cells, there, total)
    expected = [cells[:, 0, 0, 0].sum() / total.sum(), cells[:6, 0, 0, 1].sum() / total[:6].sum()]
    assert shares[0, 0, :2] == pytest.approx(expected) and math.isnan(shares[0, 0, 2]) and shares.shape == (1, 1, 3)
    assert (low[0, 0, :2] < shares[0, 0, :2]).all() and (shares[0, 0, :2] < high[0, 0, :2]).all()
    assert np.isfinite(p[0, 0, :2]).all() and math.isnan(p[0, 0, 2])
    whole, *_ = ratio(bootstrap, cells, there, None)
    assert whole[0, 0, :2] == pytest.approx([cells[:, 0, 0, 0].mean(), cells[:6, 0, 0, 1].mean()])
    monkeypatch.setattr(effect_tables, "ROOM", 60)  # one cell at a time
    again = ratio(bootstrap, cells, there, total)
    for one, other in zip(again, (shares, low, high, p), strict=True):
        assert one == pytest.approx(other, nan_ok=True)


def test_a_cell_whose_own_prompts_may_have_no_effect_has_no_share() -> None:
    """The total effect of 24 prompts is certainly above zero, that of the first six may be nothing: 0.5 of it is no
    3535 %. A cell of the other 18 prompts, and one of all, have the shares of a plain loop."""
    random = np.random.default_rng(0)
    total = np.where(np.arange(24) < 6, random.normal(0.01, 0.05, 24), 2 + random.normal(0, 0.1, 24))
    cells = random.normal(0.5, 0.1, (24, 1, 1, 4))
    cells[6:, ..., 1], cells[:6, ..., 2], cells[:, ..., 3] = np.nan, np.nan, np.nan
    bootstrap, there = ClusterBootstrap(range(24), 200, 0), ~np.isnan(cells)
    assert bootstrap.interval(lambda mean: mean, total)["low"] > 0
    found = ratio(bootstrap, cells, there, total)
    by_hand = []
    for cell in (0, 2):
        own = [k for k in range(24) if not math.isnan(cells[k, 0, 0, cell])]
        by_hand.append(sum(cells[k, 0, 0, cell] for k in own) / sum(total[k] for k in own))
    assert found[0][0, 0, [0, 2]] == pytest.approx(by_hand)
    assert all(np.isfinite(part[0, 0, [0, 2]]).all() and np.isnan(part[0, 0, [1, 3]]).all() for part in found)
    [note] = shareless(there, found[0])
    assert note.startswith("1 cell has no number") and shareless(there[..., [0, 2]], found[0][..., [0, 2]]) == []
    assert np.isfinite(ratio(bootstrap, cells, there, None)[0][0, 0, :3]).all()  # an effect that is no share stays
    # without intervals the number itself is what can be said: below zero there is no share, above there is
    few = ClusterBootstrap(np.arange(24) % 3, 200, 0)
    for sign, known in ((-1.0, False), (1.0, True)):
        ends = np.where(np.arange(24) < 6, sign * 0.1, total)
        assert np.isfinite(ratio(few, cells, there, ends)[0][0, 0, 1]) == known


def test_estimates_are_correlated_over_the_answered_prompts_of_all_batches() -> None:
    """Layers, tokens and prompts together, each panel alone; what was not answered says nothing."""
    exact = torch.tensor([[[[1.0, 9.0]], [[2.0, 9.0]]], [[[0.0, 9.0]], [[1.0, 9.0]]]])  # [panel, layer, token, prompt]
    guess = torch.tensor([[[[2.0, 0.0]], [[4.0, 5.0]]], [[[0.0, 0.0]], [[1.0, 5.0]]]])
    more = {"denoise": exact[..., :1] + 2, "denoise estimates": guess[..., :1] + 4, "right": torch.tensor([True])}
    more["denoise estimates"][1] = torch.tensor([[[0.0]], [[1.0]]])
    batch = {"denoise": exact, "denoise estimates": guess, "right": torch.tensor([True, False])}
    found = correlation([batch, more], "denoise", np.array([True, False, True]))
    # of the second panel (0, 1, 2, 3) with (0, 1, 0, 1): Σxy 1, Σxx 5, Σyy 1
    assert found == pytest.approx([1.0, 1 / math.sqrt(5)])
    assert correlation([{"noise": exact, "right": batch["right"]}], "noise", np.array([True, False])) == [None, None]


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([1], "One prompt was traced"), ([2], "one subject or template"), ([1, 2], "2 different subjects"),
        ([1, 1, 1], "no interval (it takes 4) and no p-value (it takes 6)"),
        ([1] * 4, "Only 4 different subjects"),
        ([1] * 5, "Only 5 different"),
        ([1] * 5, "no p-value (it takes 6)"),
        ([1] * 6, "Only 6"), ([1] * 7, "Only 7"), ([2] * 8, ""), ([1] * 9, ""),
        # (40 + 8)² / (40² + 8) of one size
        ([40, *[1] * 8], "1.4 of"),
        ([6, 5, 6, 5, 6, 5, 6], "Only 7 different"),
    ],
)  # fmt: skip
def test_notes_on_few_prompts(sizes: list[int], says: str) -> None:
    notes = few_notes(np.repeat(np.arange(len(sizes)), sizes), "traced")
    assert len(notes) == bool(says) and all(says in note for note in notes)
    assert all(("no p-value" in note) == (len(sizes) < 6) for note in notes)


def test_what_is_not_there_is_none_in_json() -> None:
    assert table(np.array([[1.5, np.nan], [-2.0, 0.0]])) == [[1.5, None], [-2.0, 0.0]]
    assert plain(np.nan) is None and plain(np.float64(0.25)) == 0.25
