"""p-values of one object among random ones: by hand, their least value, and that they are no smaller than they say."""

from __future__ import annotations

import numpy as np

from mechint.utils.multiple_tests import beside_draws


def test_one_cell_is_a_rank() -> None:
    draws = np.array([[1.0], [2.0], [3.0], [4.0]])
    assert beside_draws(np.array([9.0]), draws) == 1 / 5
    assert beside_draws(np.array([3.5]), draws) == 2 / 5  # 4 is at least as much, and so is the value itself
    assert beside_draws(np.array([0.0]), draws) == 1.0
    assert np.isnan(beside_draws(np.array([9.0, 1.0]), np.zeros((0, 2)))).all()


def test_many_cells_are_adjusted_and_cells_that_never_vary_are_not_significant() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(99, 50)) * np.logspace(-6, 6, 50)
    draws[:, 7] = 0.0
    values = np.zeros(50)
    values[3] = 100 * draws[:, 3].std()
    p = beside_draws(values, draws)
    assert p[3] == 0.01 and p[7] > 0.5 and (p[[k for k in range(50) if k != 3]] > 0.5).all()


def test_false_alarms_are_as_rare_as_they_say() -> None:
    rng, found = np.random.default_rng(1), 0
    for _ in range(400):
        every = rng.normal(size=(20, 6)) + rng.normal(size=(20, 1))  # correlated cells, value and draws alike
        found += beside_draws(every[0], every[1:]).min() <= 0.05
    assert found / 400 < 0.08
