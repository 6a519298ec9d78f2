"""Temporal Jacobians against autograd and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechint import scan
from mechint.attribution.jacobians import Grams, Linearised, jacobian, lags, linearise
from mechint.models.mamba import Mamba
from mechint.utils.errors import MechintError
from tests.helpers.builders import SIZES, tiny_gpt2, tiny_mamba, tokens
from tests.helpers.examples import examples

EXACT = {"atol": 1e-11, "rtol": 1e-9}


def layer_of(model: Mamba, local: Linearised, layer: int, held: bool, source: str) -> Any:
    """(states, y) as functions of u or x [1, L, E], by the forward's own modules; ``held``: Δ, B, C are constants."""
    mixer, c = model.layers[layer], model.config

    def forward(given: Tensor) -> tuple[Tensor, Tensor]:
        u = given
        if source == "x":
            padded = F.pad(given.mT, (c.d_conv - 1, 0))
            bias = mixer.conv1d.bias
            u = F.silu(F.conv1d(padded, mixer.conv1d.weight, bias, groups=c.d_inner)).mT
        low, B, C = mixer.x_proj(u).split([c.dt_rank, c.d_state, c.d_state], -1)
        dt = F.softplus(mixer.dt_proj(low))
        if held:
            dt, B, C = local.dt, local.B, local.C
        h, out = torch.zeros(1, c.d_inner, c.d_state, dtype=u.dtype), []
        for t in range(u.shape[1]):
            h = torch.exp(dt[:, t, :, None] * local.A) * h + (dt * u)[:, t, :, None] * B[:, t, None]
            out.append(h)
        h = torch.stack(out, 1)
        return h, (h * C.unsqueeze(2)).sum(-1) + mixer.D * u

    return forward


def reference(forward: Any, given: Tensor, of: str, lag: int) -> Tensor:
    """[position, channel, (state,) input channel] by autograd, zeros before the start."""
    which = 0 if of == "state" else 1
    whole = torch.autograd.functional.jacobian(lambda x: forward(x)[which][0], given)
    whole = whole.squeeze(whole.dim() - 3)  # [L, E, (N), L, E]
    found = torch.zeros_like(whole.select(-2, 0))
    for t in range(lag, len(whole)):
        found[t] = whole[t].select(-2, t - lag)
    return found


def prepared(model: Mamba, row: Tensor, layer: int) -> tuple[Linearised, dict[str, Tensor]]:
    import mechint

    local = linearise(model, row, layer)
    found = mechint.run(model, row, [f"layers.{layer}.x", f"layers.{layer}.u"])
    return local, {name: found[f"layers.{layer}.{name}"].detach() for name in ("x", "u")}


@pytest.mark.slow
@settings(max_examples=examples(8), deadline=None)
@given(SIZES, st.integers(2, 7), st.sampled_from(["u", "x"]), st.sampled_from(["y", "state"]), st.data())
def test_jacobians_are_autograds(sizes: dict[str, Any], length: int, source: str, of: str, data: Any) -> None:
    model = tiny_mamba(1, torch.float64, **sizes)
    row = tokens(1, length, data.draw(st.integers(0, 99)))
    layer = data.draw(st.integers(0, sizes["n_layer"] - 1))
    local, values = prepared(model, row, layer)
    channels = data.draw(st.lists(st.integers(0, sizes["d_inner"] - 1), min_size=1, max_size=4, unique=True))
    max_lag = data.draw(st.integers(0, length - 1))
    found = jacobian(local, channels, max_lag, of, source)
    for path, held in (("direct", True), ("total", False)):
        if path == "direct" and source == "x":  # Δ, B and C held at the values that they have
            forward = layer_of(model, local, layer, True, "x")
        else:
            forward = layer_of(model, local, layer, held, source)
        for lag in range(max_lag + 1):
            expected = reference(forward, values[source], of, lag)[:, channels]
            torch.testing.assert_close(found[path][0, :, lag], expected, **EXACT)


@settings(max_examples=examples(8), deadline=None)
@given(SIZES, st.integers(2, 9), st.integers(1, 5), st.sampled_from(["y", "state"]), st.data())
def test_streamed_norms_are_those_of_the_whole(
    sizes: dict[str, Any], length: int, chunk: int, of: str, data: Any
) -> None:
    model = tiny_mamba(2, torch.float64, **sizes)
    local = linearise(model, tokens(2, length, 3), 0)
    max_lag = data.draw(st.integers(0, length - 1))
    channels = range(sizes["d_inner"])
    whole = jacobian(local, channels, max_lag, of, "u")
    seen = torch.zeros(max_lag + 1, length, dtype=torch.bool)
    for slab in lags(local, max_lag, of, chunk):
        at = slice(slab.first, slab.first + slab.norm["total"].shape[1])
        assert not seen[slab.lag, at].any()
        seen[slab.lag, at] = True
        for path in ("direct", "total"):
            J = whole[path][:, at, slab.lag]
            own = torch.stack([J[:, :, e, ..., e] for e in channels], 2)
            own = own.norm(dim=-1) if of == "state" else own
            norm = J.flatten(3).norm(dim=-1)
            torch.testing.assert_close(slab.own[path], own, **EXACT)
            torch.testing.assert_close(slab.norm[path], norm, atol=1e-7 * float(norm.max() + 1), rtol=1e-7)
    assert bool((seen == (torch.arange(length) >= torch.arange(max_lag + 1)[:, None])).all())


def test_jacobians_are_finite_differences_of_the_models_own_forward() -> None:
    model = tiny_mamba(3, torch.float64)
    row, layer, s, f, step = tokens(1, 8, 5), 1, 2, 3, 1e-5
    import mechint

    local = linearise(model, row, layer)
    site = f"layers.{layer}.x"
    moved = []
    for sign in (1, -1):
        edit = mechint.Edit(site, "add", sign * step, positions=[s], units=[f])
        found = mechint.run(model, row, [f"layers.{layer}.y", f"layers.{layer}.state"], [edit])
        moved.append((found[f"layers.{layer}.y"].detach()[0], found[f"layers.{layer}.state"].detach()[0]))
    for k, of in enumerate(("y", "state")):
        slope = (moved[0][k] - moved[1][k]) / (2 * step)
        found = jacobian(local, range(14), 5, of, "x")["total"][0]
        for t in range(s, 8):
            torch.testing.assert_close(found[t, t - s, ..., f], slope[t], atol=1e-7, rtol=1e-6)


def test_float32_is_close_to_float64() -> None:
    wide, narrow = tiny_mamba(4, torch.float64), tiny_mamba(4, torch.float64).float()
    row = tokens(1, 12, 6)
    a, b = (jacobian(linearise(model, row, 0), [0, 5], 8, "y", "x") for model in (wide, narrow))
    for path in ("direct", "total"):
        assert float((a[path] - b[path]).abs().max()) <= 1e-5 * float(a[path].abs().max())


def test_the_scans_own_backward_agrees_in_float32() -> None:
    model = tiny_mamba(5)
    local = linearise(model, tokens(1, 10, 1), 0)
    u = local.u.clone().requires_grad_()
    y = scan.selective_scan(u, local.dt, local.A, local.B, local.C)[0] + local.D * u
    slabs = {(slab.first, slab.lag): slab for slab in lags(local, 6)}
    (slope,) = torch.autograd.grad(y[0, 9, 4], u)
    for lag in range(7):
        slab = slabs[0 if lag == 0 else lag, lag]
        assert abs(float(slab.own["direct"][0, -1, 4]) - float(slope[0, 9 - lag, 4])) < 1e-5


def test_bad_requests_are_refused() -> None:
    local = linearise(tiny_mamba(), tokens(1, 6), 0)
    with pytest.raises(MechintError, match="max_lag is 6, and the prompts have 6 tokens"):
        jacobian(local, [0], 6)
    with pytest.raises(MechintError, match="max_lag is 9"):
        next(lags(local, 9))
    with pytest.raises(MechintError, match="channel 14 does not exist"):
        jacobian(local, [14], 2)
    with pytest.raises(MechintError, match="MiB, more than"):
        jacobian(local, [0], 2, memory_mib=1e-4)
    with pytest.raises(MechintError, match="layer 2 does not exist"):
        linearise(tiny_mamba(), tokens(1, 6), 2)
    with pytest.raises(MechintError, match="has none"):
        linearise(tiny_gpt2(), tokens(1, 6), 0)


@pytest.mark.parametrize("of", ["y", "state"])
def test_what_cancels_has_no_length(of: str) -> None:
    """One channel whose path through Δ undoes the others: a square of rounding, which may lie below zero."""
    generator = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1
    weights = {"W_B": rand(1, 1), "W_C": rand(1, 1), "W_dt": rand(1, 1)}
    none = torch.zeros(1, 1, 1, dtype=torch.float64)
    local = Linearised(conv=none, u=none, dt=none, B=none, C=none, A=none[0], D=none[0, 0], taps=none[0], **weights)
    dt, du, B, product = rand(1, 500, 1), rand(1, 500, 1), rand(1, 500, 1), rand(1, 500, 1, 1)
    rest = product[..., 0] * (dt * B + du * weights["W_B"])
    through_dt = (-rest / weights["W_dt"]).unsqueeze(-1)
    grams = Grams.of(local, of)
    _, norm = (
        grams.y(dt, du, B, through_dt, product, None) if of == "y" else grams.state(dt, du, B, through_dt, product)
    )
    assert bool((norm["total"] >= 0).all()) and float(norm["total"].max()) < 1e-7


def test_the_memory_that_a_jacobian_takes_is_that_of_its_two_results() -> None:
    local = linearise(tiny_mamba(1, torch.float64), tokens(2, 6), 0)
    found = jacobian(local, [1, 4], 3, "state")
    mib = sum(part.numel() * part.element_size() for part in found.values()) / 2**20
    jacobian(local, [1, 4], 3, "state", memory_mib=mib)
    with pytest.raises(MechintError, match="take fewer channels"):
        jacobian(local, [1, 4], 3, "state", memory_mib=mib * 0.999)
