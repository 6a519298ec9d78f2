"""Influence by lag: how much a layer's channels depend on earlier positions, from exact derivatives
(:mod:`.attribution.jacobians`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interventions.model import Model
from ..interventions.run import check_tokens
from ..utils.errors import MechintError
from ..utils.statistics import ClusterBootstrap, Number
from .jacobians import PATHS, lags, linearise

Array = NDArray[np.float64]
FLOOR = 1e-12
"""Influence below this share of the largest is rounding, and is in no fit."""


@dataclass(frozen=True)
class Influence:
    """Mean influence of each lag, in units of y (or of the state's length) for a unit of u.

    Attributes:
        curves: ``direct`` and ``total``, [prompt, lag, channel]: the length of the derivative by all channels' u (of a
            matrix memory by all that its head is given, :mod:`.memory_jacobians`), mean over the positions that the lag
            leaves.
        own: The same of the derivative by the channel's own u (sizes, for the mean would cancel).
        maps: ``direct`` and ``total``, [group, position, source position], the root mean square over the group's
            channels, of the first prompt; NaN beyond the largest lag.
    """

    of: str
    curves: dict[str, Array]
    own: dict[str, Array]
    maps: dict[str, Array]


def influence(
    model: Model, tokens: Tensor, layer: int, max_lag: int, groups: Sequence[Sequence[int]] = (), of: str = "y"
) -> Influence:
    """Streams a layer's derivatives into curves and maps; tokens [prompt, position].

    Raises:
        MechintError: as :func:`mechint.attribution.jacobians.lags`; a group's channel does not exist.
    """
    local = linearise(model, tokens, layer)
    rows, length, width = len(tokens), local.length, local.width
    for group in groups:
        if not len(group) or min(group) < 0 or max(group) >= width:
            raise MechintError(
                f"a group of channels {list(group)[:5]} does not fit layer {layer}, which has channels 0 to {width - 1}"
            )
    shape = (rows, max_lag + 1, width)
    curves, own = ({path: np.zeros(shape) for path in PATHS} for _ in range(2))
    maps = {path: np.full((len(groups), length, length), np.nan) for path in PATHS}
    for slab in lags(local, max_lag, of):
        for path in PATHS:
            norm = slab.norm[path].double()
            curves[path][slab.rows, slab.lag] += norm.sum(1).cpu().numpy()
            own[path][slab.rows, slab.lag] += slab.own[path].double().abs().sum(1).cpu().numpy()
            if slab.rows.start:  # maps are of the first prompt
                continue
            at = np.arange(slab.first, slab.first + norm.shape[1])
            for k, group in enumerate(groups):
                maps[path][k, at, at - slab.lag] = norm[0][:, list(group)].square().mean(-1).sqrt().cpu().numpy()
    count = (length - np.arange(max_lag + 1))[:, None]
    for path in PATHS:
        curves[path] /= count
        own[path] /= count
    return Influence(of, curves, own, maps)


def long_range(curve: Any, beyond: int) -> Any:
    """Share of the influence of the lags 1 to the last one that comes from further back than ``beyond``, [..., lag] ->
    [...]; the own position, lag 0, is not counted, nor is any lag that the curve does not have."""
    past = curve[..., 1:].sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return curve[..., beyond + 1 :].sum(-1) / past


def mean_lag(curve: Any) -> Any:
    """Centre of the influence of lags ≥ 1, in tokens, [..., lag] -> [...]."""
    lag = np.arange(curve.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return (curve * lag).sum(-1) / curve[..., 1:].sum(-1)


def decay_fit(curve: Array) -> dict[str, Any] | None:
    """Fits of log influence at lags ≥ 1 by least squares: exp(-k/τ) and k^-p; None for fewer than four lags above
    rounding.

    Returns:
        ``tau`` in tokens (None where influence does not fall), ``extrapolated``: whether τ is longer than the lags that
        were fitted, ``power``, R² of each on the logarithm, ``lags`` used, and ``better``: the one with the larger R².
    """
    lag = np.arange(1, len(curve))
    used = curve[1:] > FLOOR * curve.max()
    if curve.max() <= 0 or used.sum() < 4:
        return None
    y, found = np.log(curve[1:][used]), {}
    total = float(((y - y.mean()) ** 2).sum())
    for name, x in (("exponential", lag[used].astype(float)), ("power", np.log(lag[used]))):
        slope, begin = np.polyfit(x, y, 1)
        rest = float(((y - slope * x - begin) ** 2).sum())
        found[name] = (float(slope), 1 - rest / total if total > 0 else 1.0)
    (rate, r2_exponential), (power, r2_power) = found["exponential"], found["power"]
    tau = -1 / rate if rate < 0 else None
    return {
        "tau": tau,
        "extrapolated": tau is not None and tau > int(lag[used].max()),
        "power": -power,
        "r2_exponential": r2_exponential,
        "r2_power": r2_power,
        "lags": int(used.sum()),
        "better": "exponential" if r2_exponential >= r2_power else "power",
    }


def summarise(
    found: Influence, groups: dict[str, Sequence[int]], clusters: Sequence[int], draws: int, seed: int
) -> dict[str, Any]:
    """Curves, fits and long-range shares of each group of channels, with intervals over prompts.

    A group's curve is the root mean square over its channels. Long-range means beyond half of the lags; lags that were
    not taken are not covered: :func:`reference` has the range, and the values of a flat curve.
    """
    bootstrap = ClusterBootstrap(clusters, draws, seed)
    lag_count = next(iter(found.curves.values())).shape[1]
    beyond = (lag_count - 1) // 2
    result: dict[str, Any] = {}
    for name, channels in groups.items():
        entry: dict[str, Any] = {"channels": [int(c) for c in channels]}
        for path in PATHS:
            curve = np.sqrt((found.curves[path][..., list(channels)] ** 2).mean(-1))  # [prompt, lag]
            entry[path] = {
                "curve": [
                    bootstrap.interval(lambda mean: mean, np.ascontiguousarray(curve[:, k])) for k in range(lag_count)
                ],
                "fit": decay_fit(curve.mean(0)),
                "long_range_beyond": beyond,
                "long_range": shares(bootstrap, functools.partial(long_range, beyond=beyond), curve),
                "mean_lag": shares(bootstrap, mean_lag, curve),
            }
        result[name] = entry
    return result


def reference(max_lag: int, length: int) -> dict[str, Any]:
    """The scale of shares and centres of influence: their lags, [1, max_lag], the number of lags of the prompts that
    were left out, and the values of a flat curve, which has no memory of its own."""
    flat, beyond = np.ones(max_lag + 1), max_lag // 2
    return {
        "lags": [1, max_lag],
        "length": length,
        "left_out": length - 1 - max_lag,
        "long_range_beyond": beyond,
        "flat_long_range": float(long_range(flat, beyond)) if max_lag else None,
        "flat_mean_lag": float(mean_lag(flat)) if max_lag else None,
    }


def shares(bootstrap: ClusterBootstrap, statistic: Any, curve: Array) -> Number | None:
    """None where nothing comes from the past at all."""
    return bootstrap.interval(statistic, curve) if curve[:, 1:].sum() > 0 else None


@torch.no_grad()
def run_temporal_causality_analysis(
    model: Model,
    inputs: Tensor,
    layer_idx: int = 0,
    circuit_indices: Sequence[int] = (),
    max_lag: int = 10,
    draws: int = 1000,
    seed: int = 0,
    clusters: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Influence of the past on chosen channels of one layer, and on all of them.

    Args:
        model: From :func:`mechint.load`.
        inputs: Token ids, [prompt, position].
        circuit_indices: Channels of the layer; empty for none beside all.
        max_lag: In tokens.
        draws, seed: Draws and seed of the bootstrap over prompts.
        clusters: The template of each prompt, which are drawn together; None where each is its own.

    Returns:
        ``groups`` (``all channels``, ``circuit``, and each channel of it) with curves, fits and long-range shares;
        ``reference``: the lags that these are of, and what a flat curve gives; ``maps`` [position][source position] of
        the first prompt, None beyond the largest lag.

    Raises:
        MechintError: the layer or a channel does not exist; more lags than tokens.
    """
    check_tokens(model, inputs)
    groups: dict[str, Sequence[int]] = {"circuit": list(circuit_indices)} if len(circuit_indices) else {}
    found = influence(model, inputs, layer_idx, max_lag, list(groups.values()))
    groups["all channels"] = range(found.curves["total"].shape[-1])
    groups |= {f"channel {c}": [c] for c in circuit_indices}
    maps = {
        path: {
            name: [[None if np.isnan(v) else float(v) for v in row] for row in found.maps[path][k]]
            for k, name in enumerate(list(groups)[: len(found.maps[path])])
        }
        for path in PATHS
    }
    return {
        "layer": layer_idx,
        "max_lag": max_lag,
        "of": found.of,
        "n": len(inputs),
        "reference": reference(max_lag, inputs.shape[1]),
        "groups": summarise(found, groups, range(len(inputs)) if clusters is None else clusters, draws, seed),
        "maps": maps,
    }
