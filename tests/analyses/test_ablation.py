"""Means that replace dropped units, against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import mechint
from mechint.analyses.ablation import Ablation, means, of_all, of_position, of_role, others
from mechint.analyses.circuits.methods.delta import mean_step
from mechint.interventions.units import Units
from mechint.tasks import Prompts
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_mamba, tokens


def batch(ids: list[list[int]]) -> Prompts:
    """Prompts whose only answer is after the last token."""
    rows = torch.tensor(ids)
    last = torch.full((len(rows), 1), rows.shape[1] - 1)
    return Prompts(rows, last, last, None, None, torch.arange(len(rows)))


def read(prompts: Prompts) -> dict[str, Tensor]:
    """A site of two units that hold a token's number and its square."""
    value = prompts.tokens.float()
    return {"site": torch.stack([value, value**2], -1)}


SAME = [batch([[1, 2, 3], [5, 6, 7]]), batch([[9, 10, 20]])]
"""Batches of unequal size."""
OTHER = [batch([[1, 2, 3], [5, 6, 7]]), batch([[9, 10]])]
"""Batches of unequal length."""


def test_means_over_all_tokens() -> None:
    found, count = means(OTHER, read, of_all)
    assert count == 8 and found["site"].dtype == torch.float64
    assert found["site"].tolist() == [[43 / 8, (1 + 4 + 9 + 25 + 36 + 49 + 81 + 100) / 8]]


def test_means_of_each_position() -> None:
    found, count = means(SAME, read, of_position)
    assert count == 3
    assert found["site"].tolist() == [[5.0, 107 / 3], [6.0, 140 / 3], [10.0, (9 + 49 + 400) / 3]]


def test_means_of_each_role() -> None:
    """Odd tokens, even tokens below 10, tokens without a role, and a role that no token has."""
    roles = lambda prompts: torch.where(prompts.tokens >= 10, -1, 1 - prompts.tokens % 2)
    found, count = means(OTHER, read, of_role(roles, 3))
    assert isinstance(count, Tensor) and count.tolist() == [5, 2, 0]
    odd, even, nobody = found["site"].tolist()
    assert odd == [5.0, (1 + 9 + 25 + 49 + 81) / 5] and even == [4.0, 20.0]
    assert all(math.isnan(value) for value in nobody)


@pytest.mark.parametrize("by_position", [True, False])
def test_a_dropped_unit_takes_its_mean(by_position: bool) -> None:
    """The replacement that :class:`Ablation` gives is the mean of the recorded site, one prompt after the other."""
    model = tiny_mamba(2).requires_grad_(False)
    ids = tokens(5, 6, 3)
    batches = [batch(ids[:3].tolist()), batch(ids[3:].tolist())]
    units = Units(model, next(iter(model.unit_kinds.values())))
    fills = Ablation(model, units, "mean", batches, by_position).fills(batches[0])
    for site in units.sites:
        rows = [mechint.run(model, row[None], record=[site])[site][0].double() for row in ids]
        expected = sum(rows) / len(rows)
        assert isinstance(expected, Tensor)
        expected = expected if by_position else expected.mean(0, keepdim=True)
        torch.testing.assert_close(fills[site].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_step_is_over_prompts_and_tokens() -> None:
    model = tiny_mamba(2).requires_grad_(False)
    ids = tokens(5, 6, 3)
    found = mean_step(model, [batch(ids[:3].tolist()), batch(ids[3:].tolist())], [1])
    every = mechint.run(model, ids, record=["layers.1.dt"])["layers.1.dt"].double()
    torch.testing.assert_close(found["layers.1.dt"], every.mean((0, 1)), rtol=1e-6, atol=1e-7)


def test_resampling_takes_a_prompt_that_differs() -> None:
    """Of two equal prompts side by side neither gives the other its own values."""
    ids = torch.tensor([[1, 2], [1, 2], [3, 4], [1, 2], [5, 6], [5, 6]])
    assert others(ids).tolist() == [5, 5, 1, 2, 3, 3]
    assert others(ids[[0, 2, 4]]).tolist() == [2, 0, 1]  # where all differ, the one before
    model = tiny_mamba(2).requires_grad_(False)
    units = Units(model, model.unit_kinds["channel"])
    fills = Ablation(model, units, "resample", SAME, False).fills(batch(ids.tolist()))
    for site in units.sites:
        own = mechint.run(model, ids, record=[site])[site]
        assert torch.equal(fills[site], mechint.run(model, ids[[5, 5, 1, 2, 3, 3]], record=[site])[site])
        assert ((fills[site] - own).flatten(1).abs().amax(1) > 0).all()
    with pytest.raises(MechintError, match="one of 2 tokens is alone there"):
        others(ids[:2])


def test_a_prompt_that_is_alone_of_its_length_has_no_other_to_take_values_from() -> None:
    """A larger batch would not help it, so that is not all that the error says."""
    model = tiny_mamba()
    units = Units(model, model.unit_kinds["channel"])
    ablation = Ablation(model, units, "resample", SAME, False)
    assert ablation.fills(OTHER[0])
    with pytest.raises(
        MechintError, match="one of 2 tokens is alone there; give more prompts of this length that differ"
    ):
        ablation.fills(OTHER[1])
