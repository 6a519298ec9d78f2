"""Influence curves: fits of known decays, intervals, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechint.attribution.jacobians import jacobian, linearise
from mechint.attribution.lag_influence import (
    FLOOR,
    Influence,
    decay_fit,
    influence,
    long_range,
    mean_lag,
    reference,
    run_temporal_causality_analysis,
    shares,
    summarise,
)
from mechint.utils.errors import MechintError
from mechint.utils.statistics import ClusterBootstrap
from tests.helpers.builders import tiny_mamba, tokens


def test_fits_find_the_decay_that_is_there() -> None:
    lag = np.arange(20)
    fit = decay_fit(3 * np.exp(-lag / 4.5))
    assert fit is not None and fit["better"] == "exponential" and fit["tau"] == pytest.approx(4.5)
    fit = decay_fit(np.concatenate([[9.0], 2.0 * np.arange(1, 20) ** -1.7]))
    assert fit is not None and fit["better"] == "power" and fit["power"] == pytest.approx(1.7)
    growing = decay_fit(np.exp(lag / 3.0))
    assert growing is not None and growing["tau"] is None
    assert decay_fit(np.zeros(20)) is None and decay_fit(np.array([1.0, 0.5, 0.2])) is None


def test_how_well_a_curve_fits_by_hand() -> None:
    """Logarithms 0, -1, -1, -2: slope -0.6, residuals 0.1, 0.3, 0.3, 0.1 of a total of 2. Against log lag: Σxx is
    1.0843 and Σxy -1.3863."""
    fit = decay_fit(np.exp([5.0, 0.0, -1.0, -1.0, -2.0]))
    assert fit is not None and fit["tau"] == pytest.approx(1 / 0.6) and fit["r2_exponential"] == pytest.approx(0.9)
    assert fit["power"] == pytest.approx(1.3863 / 1.0843, rel=1e-4) and not fit["extrapolated"] and fit["lags"] == 4
    assert fit["r2_power"] == pytest.approx(1.3863**2 / 1.0843 / 2, rel=1e-4) and fit["better"] == "exponential"


def test_a_curve_that_does_not_fall_is_fitted_without_a_rest() -> None:
    """Logarithms that are all alike leave nothing to explain."""
    fit = decay_fit(np.ones(6))
    assert fit is not None and fit["r2_exponential"] == fit["r2_power"] == 1.0


def test_small_influence_has_shares_and_none_has_none() -> None:
    bootstrap = ClusterBootstrap(range(8), 100, 0)
    found = shares(bootstrap, mean_lag, np.full((8, 4), 1e-3))
    assert found is not None and found["value"] == pytest.approx(2.0)
    assert shares(bootstrap, mean_lag, np.eye(4)[[0] * 8]) is None


def test_shares_of_a_flat_curve() -> None:
    flat = np.ones((2, 11))
    assert long_range(flat, 5) == pytest.approx([0.5, 0.5]) and mean_lag(flat) == pytest.approx([5.5, 5.5])


def test_shares_say_what_they_are_shares_of() -> None:
    """By hand: of 14 earlier tokens 7 are further back than 7; of lags 1 to 8, 4 of 8, and 6 are left out."""
    whole, part, odd = reference(14, 15), reference(8, 15), reference(5, 15)
    assert whole["left_out"] == 0 and whole["long_range_beyond"] == 7 and whole["flat_long_range"] == 0.5
    assert part["left_out"] == 6 and part["lags"] == [1, 8] and part["flat_mean_lag"] == 4.5
    assert odd["long_range_beyond"] == 2 and odd["flat_long_range"] == pytest.approx(3 / 5)
    assert reference(0, 15)["flat_long_range"] is None
    # a flat profile over 14 lags: cut at 8, its share beyond 4 is half, and not the 10/14 that is really there
    assert long_range(np.ones(15)[:9], 4) == 0.5 and long_range(np.ones(15), 4) == pytest.approx(10 / 14)
    slow, quick = decay_fit(np.exp(-np.arange(15) / 40.0)), decay_fit(np.exp(-np.arange(15) / 2.0))
    assert slow is not None and slow["extrapolated"] and quick is not None and not quick["extrapolated"]


def test_curves_and_maps_are_the_jacobians() -> None:
    model = tiny_mamba(1, torch.float64)
    row = tokens(3, 9, 2)
    found = influence(model, row, 1, 5, [[1, 4]])
    whole = jacobian(linearise(model, row, 1), [1, 4], 5, "y", "u")
    for path in ("direct", "total"):
        norm = whole[path].norm(dim=-1)  # [prompt, position, lag, chosen]
        for k in range(6):
            np.testing.assert_allclose(found.curves[path][:, k][:, [1, 4]], norm[:, k:, k].mean(1), atol=1e-9)
        own = torch.stack([whole[path][..., 0, 1], whole[path][..., 1, 4]], -1).abs()  # by the channel's own u
        for k in range(6):
            np.testing.assert_allclose(found.own[path][:, k][:, [1, 4]], own[:, k:, k].mean(1), atol=1e-9)
        at = norm[0].square().mean(-1).sqrt()
        assert found.maps[path][0, 7, 4] == pytest.approx(float(at[7, 3]), rel=1e-6)
        assert np.isnan(found.maps[path][0, 4, 7]) and np.isnan(found.maps[path][0, 8, 1])


def test_a_group_s_curve_is_the_root_mean_square_over_its_channels() -> None:
    """Two prompts, lags 0 to 2, three channels of which the first two are the group."""
    curves = np.array([[[3.0, 4.0, 9.0], [1.0, 7.0, 9.0], [0.0, 0.0, 9.0]]] * 2)
    found = Influence("y", {"direct": curves, "total": 2 * curves}, {}, {})
    group = summarise(found, {"circuit": [0, 1]}, [0, 1], 50, 0)["circuit"]
    expected = [12.5**0.5, 5.0, 0.0]
    assert [entry["value"] for entry in group["direct"]["curve"]] == pytest.approx(expected)
    assert [entry["value"] for entry in group["total"]["curve"]] == pytest.approx([2 * value for value in expected])
    assert group["direct"]["long_range_beyond"] == 1 and group["direct"]["long_range"]["value"] == 0.0
    assert group["direct"]["mean_lag"]["value"] == 1.0 and group["direct"]["fit"] is None


def test_a_value_at_the_floor_of_rounding_is_not_fitted() -> None:
    assert decay_fit(np.array([1.0, 0.5, 0.25, 0.125, FLOOR])) is None
    fit = decay_fit(np.array([1.0, 0.5, 0.25, 0.125, 2 * FLOOR]))
    assert fit is not None and fit["lags"] == 4


def test_the_documented_call() -> None:
    model = tiny_mamba(2)
    found = run_temporal_causality_analysis(
        model=model, inputs=tokens(4, 10), layer_idx=0, circuit_indices=[3, 5], max_lag=6
    )
    assert set(found["groups"]) == {"circuit", "all channels", "channel 3", "channel 5"} and found["n"] == 4
    curve = found["groups"]["circuit"]["total"]["curve"]
    assert len(curve) == 7 and all(entry["low"] <= entry["value"] <= entry["high"] for entry in curve)
    assert set(found["maps"]["total"]) == {"circuit"}
    assert found["reference"] == reference(6, 10) and found["reference"]["left_out"] == 3
    alike = run_temporal_causality_analysis(model, tokens(4, 10), 0, [3], 6, clusters=[0, 0, 1, 1])
    curve = alike["groups"]["circuit"]["total"]["long_range"]
    assert curve["value"] == found["groups"]["channel 3"]["total"]["long_range"]["value"] and curve["n"] == 4
    with pytest.raises(MechintError, match="channels 0 to 13"):
        run_temporal_causality_analysis(model, tokens(2, 10), 0, [14], 3)
    with pytest.raises(MechintError, match="channels 0 to 13"):  # one of several is enough
        run_temporal_causality_analysis(model, tokens(2, 10), 0, [1, 14], 3)
    with pytest.raises(MechintError, match="lower max_lag or give longer prompts"):
        run_temporal_causality_analysis(model, tokens(2, 10), 0, [1], 10)
