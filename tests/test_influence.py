"""Influence curves: fits of known decays, intervals, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechint.errors import MechintError
from mechint.influence import decay_fit, influence, long_range, mean_lag, run_temporal_causality_analysis
from mechint.temporal import jacobian, linearise
from tests.builders import tiny_mamba, tokens


def test_fits_find_the_decay_that_is_there() -> None:
    lag = np.arange(20)
    fit = decay_fit(3 * np.exp(-lag / 4.5))
    assert fit is not None and fit["better"] == "exponential" and fit["tau"] == pytest.approx(4.5)
    fit = decay_fit(np.concatenate([[9.0], 2.0 * np.arange(1, 20) ** -1.7]))
    assert fit is not None and fit["better"] == "power" and fit["power"] == pytest.approx(1.7)
    growing = decay_fit(np.exp(lag / 3.0))
    assert growing is not None and growing["tau"] is None
    assert decay_fit(np.zeros(20)) is None and decay_fit(np.array([1.0, 0.5, 0.2])) is None


def test_shares_of_a_flat_curve() -> None:
    flat = np.ones((2, 11))
    assert long_range(flat, 5) == pytest.approx([0.5, 0.5]) and mean_lag(flat) == pytest.approx([5.5, 5.5])


def test_curves_and_maps_are_the_jacobians() -> None:
    model = tiny_mamba(1, torch.float64)
    row = tokens(3, 9, 2)
    found = influence(model, row, 1, 5, [[1, 4]])
    whole = jacobian(linearise(model, row, 1), [1, 4], 5, "y", "u")
    for path in ("direct", "total"):
        norm = whole[path].norm(dim=-1)  # [prompt, position, lag, chosen]
        for k in range(6):
            np.testing.assert_allclose(found.curves[path][:, k][:, [1, 4]], norm[:, k:, k].mean(1), atol=1e-9)
        at = norm[0].square().mean(-1).sqrt()
        assert found.maps[path][0, 7, 4] == pytest.approx(float(at[7, 3]), rel=1e-6)
        assert np.isnan(found.maps[path][0, 4, 7]) and np.isnan(found.maps[path][0, 8, 1])


def test_the_documented_call() -> None:
    model = tiny_mamba(2)
    found = run_temporal_causality_analysis(
        model=model, inputs=tokens(4, 10), layer_idx=0, circuit_indices=[3, 5], max_lag=6
    )
    assert set(found["groups"]) == {"circuit", "all channels", "channel 3", "channel 5"} and found["n"] == 4
    curve = found["groups"]["circuit"]["total"]["curve"]
    assert len(curve) == 7 and all(entry["low"] <= entry["value"] <= entry["high"] for entry in curve)
    assert set(found["maps"]["total"]) == {"circuit"}
    with pytest.raises(MechintError, match="channels 0 to 13"):
        run_temporal_causality_analysis(model, tokens(2, 10), 0, [14], 3)
    with pytest.raises(MechintError, match="lower max_lag or give longer prompts"):
        run_temporal_causality_analysis(model, tokens(2, 10), 0, [1], 10)
