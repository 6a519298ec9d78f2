"""The closed forms by hand, in float64: the constraint, the least change, and the normal equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechint.analyses.editing.update import memit_update, rome_direction, rome_update, solver
from mechint.utils.errors import MechintError


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment_of(width: int, seed: int = 0) -> Tensor:
    keys = drawn(seed, 5 * width, width) * torch.arange(1, width + 1)
    return keys.T @ keys / len(keys)


@settings(max_examples=20)
@given(st.integers(2, 9), st.integers(1, 7), st.integers(0, 99))
def test_rome_meets_its_key_with_the_least_change_of_all_others(width: int, out: int, seed: int) -> None:
    weight, key, value, moment = drawn(seed, out, width), drawn(seed + 1, width), drawn(seed + 2, out), moment_of(width)
    update = rome_update(key, value - weight @ key, solver(moment, "a map"))
    assert torch.allclose((weight + update) @ key, value, rtol=0, atol=1e-9)
    by_hand = np.outer(value - weight @ key, np.linalg.inv(moment.numpy()) @ key.numpy())
    by_hand /= key.numpy() @ np.linalg.inv(moment.numpy()) @ key.numpy()
    assert np.abs(update.numpy() - by_hand).max() < 1e-8 * max(1.0, np.abs(by_hand).max())
    change = lambda delta: float((delta @ moment * delta).sum())
    for k in range(3):
        aside = drawn(seed + 10 + k, out, width)
        aside -= torch.outer(aside @ key, key) / (key @ key)  # another change that meets the key as well
        assert abs(float((update @ moment * aside).sum())) < 1e-7 * max(1.0, change(update))
        assert change(update + aside) > change(update)


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 6), st.floats(0.01, 100.0))
def test_memit_solves_its_normal_equations(width: int, out: int, pairs: int, weight: float) -> None:
    keys, changes, moment = drawn(1, pairs, width), drawn(2, pairs, out), moment_of(width)
    update = memit_update(keys, changes, moment, weight).requires_grad_()
    assert torch.allclose(update @ (weight * moment + keys.T @ keys), changes.T @ keys, atol=1e-8)
    loss = weight * (update @ moment * update).sum() + ((keys @ update.T - changes) ** 2).sum()
    [slope] = torch.autograd.grad(loss, [update])
    assert float(slope.abs().max()) < 1e-6 * max(1.0, float(loss.detach()))


def test_memit_of_one_pair_is_rome_where_nothing_else_counts() -> None:
    key, change, moment = drawn(1, 6), drawn(2, 4), moment_of(6)
    one = rome_update(key, change, solver(moment, "a map"))
    assert torch.allclose(memit_update(key[None], change[None], moment, 1e-9), one, atol=1e-6)
    assert float(memit_update(key[None], change[None], moment, 1e6).norm()) < 1e-3 * float(one.norm())
    assert float(rome_direction(key, solver(moment, "a map")) @ key) == pytest.approx(1.0)


def test_a_singular_second_moment_is_refused() -> None:
    with pytest.raises(MechintError, match="out_proj is singular"):
        solver(torch.zeros(3, 3), "layers.0.out_proj")
