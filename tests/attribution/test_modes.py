"""Time scales, Gramians and drop errors against brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.attribution.dynamics import dynamics
from mechint.attribution.jacobians import jacobian, linearise
from mechint.attribution.modes import (
    Gramians,
    ModeGram,
    effective_memory,
    effective_order,
    gramians,
    memory_of,
    mode_gram,
    time_scales,
)
from mechint.utils.errors import MechintError
from mechint.utils.statistics import ClusterBootstrap
from tests.helpers.builders import SIZES, tiny_mamba, tokens
from tests.helpers.examples import examples


def test_the_gram_predicts_ten_thousand_real_drops() -> None:
    """Random models, prompts and sets of modes; the real drop is an edit of what C reads, in the model's own run."""
    worst, tried = 0.0, 0
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        model = tiny_mamba(seed, torch.float64, n_layer=1, d_state=1 + seed % 7, d_inner=2 + seed % 13)
        row = tokens(1, 2 + seed % 6, seed)
        local = linearise(model, row, 0)
        gram = mode_gram(local, chunk=1 + seed % 4)
        clean = mechint.run(model, row, ["layers.0.scan_out"])["layers.0.scan_out"]
        keep = (torch.rand(200, 1, *local.A.shape, generator=generator) < torch.rand((), generator=generator)).double()
        many = row.repeat(200, 1)
        edit = mechint.Edit("layers.0.readout", "mask", keep)
        with torch.no_grad():
            real = mechint.run(model, many, ["layers.0.scan_out"], [edit])["layers.0.scan_out"] - clean
        real = real.square().mean(1)  # [setting, channel]
        found = gram.drop(1 - keep[:, 0])
        # where the dropped modes cancel in the scan, what is left is a difference of rounded logits
        scale = gram.gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        told = real > 1e-12 * scale
        worst = max(worst, float(((found - real).abs() / real.clamp(min=1e-300))[told].max()))
        assert float((found - real).abs()[~told].max() if (~told).any() else 0) <= float(1e-12 * scale.max())
        tried += len(keep)
    assert tried >= 10_000 and worst <= 5e-7


@settings(max_examples=examples(10), deadline=None)
@given(SIZES, st.integers(2, 8), st.data())
def test_gramians_are_sums_over_impulse_responses(sizes: dict[str, Any], length: int, data: Any) -> None:
    sizes["n_layer"] = 1
    model = tiny_mamba(1, torch.float64, **sizes)
    local = linearise(model, tokens(2, length, 4), 0)
    at = data.draw(st.integers(0, length - 1))
    found = gramians(local, at)
    J = jacobian(local, range(sizes["d_inner"]), length - 1, "state", "u")["direct"]
    own = torch.stack([J[:, at, :, e, :, e] for e in range(sizes["d_inner"])], 1)  # [B, E, lag, N]
    torch.testing.assert_close(found.controllability, own.mT @ own, atol=1e-12, rtol=1e-9)
    total = local.dt.cumsum(1)
    read = [
        torch.exp((total[:, s] - total[:, at]).unsqueeze(-1) * local.A) * local.C[:, s, None] for s in range(at, length)
    ]
    seen = torch.stack(read, 2)  # [B, E, s, N]
    torch.testing.assert_close(found.observability, seen.mT @ seen, atol=1e-12, rtol=1e-9)
    singular = torch.linalg.svdvals(seen @ own.mT)  # of the Hankel map from past inputs to future outputs
    ours = found.hankel()[..., : singular.shape[-1]]
    torch.testing.assert_close(ours, singular[..., : ours.shape[-1]], atol=1e-7, rtol=1e-6)


def test_a_mode_without_decay_has_the_time_scale_it_was_given() -> None:
    model = tiny_mamba(2, torch.float64, n_layer=1)
    with torch.no_grad():
        layer = model.layers[0]
        layer.dt_proj.weight.zero_()
        layer.dt_proj.bias.fill_(float(torch.log(torch.expm1(torch.tensor(0.5, dtype=torch.float64)))))
        layer.A_log.copy_(torch.log(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)).expand(14, 5))
    local = linearise(model, tokens(2, 6), 0)
    scales = time_scales(local)
    expected = 2 / torch.tensor([1.0, 2, 4, 8, 16], dtype=torch.float64).expand(14, 5)
    torch.testing.assert_close(scales["mean"], expected)
    torch.testing.assert_close(scales["quantiles"][1], expected)
    assert float(scales["variation"].abs().max()) < 1e-9
    memory = effective_memory(local)
    assert memory.shape == (2, 14) and bool(((memory >= expected.min()) & (memory <= expected.max())).all())


def test_kept_modes_take_over_what_they_can() -> None:
    model = tiny_mamba(3, torch.float64, n_layer=1)
    local = linearise(model, tokens(4, 12), 0)
    gram = mode_gram(local)
    dropped = torch.zeros(14, 5)
    dropped[:, 2] = 1
    plain, refitted = gram.drop(dropped), gram.drop_refitted(dropped)
    assert bool((refitted <= plain * (1 + 1e-9)).all()) and bool((refitted < 0.9 * plain).any())
    # by least squares on the read-outs themselves
    h = mechint.run(model, tokens(4, 12), ["layers.0.state"])["layers.0.state"].detach()
    read = (h * local.C.unsqueeze(2)).flatten(0, 1)[:, 6]  # [rows, N]
    kept = read[:, [0, 1, 3, 4]]
    rest = read[:, 2] - kept @ torch.linalg.lstsq(kept, read[:, 2:3]).solution.squeeze(-1)
    torch.testing.assert_close(refitted[6], rest.square().mean(), rtol=1e-6, atol=1e-12)
    everything = gram.drop(torch.ones(14, 5))
    scan = mechint.run(model, tokens(4, 12), ["layers.0.scan_out"])["layers.0.scan_out"].detach()
    torch.testing.assert_close(everything, scan.square().mean((0, 1)))


def test_directions_of_rounding_are_none() -> None:
    """A channel of 16 states has no more directions than its past and its future have positions."""
    local = linearise(tiny_mamba(7, n_layer=1, d_state=16), tokens(2, 9, 1), 0)
    for at, most in ((0, 1), (2, 3), (4, 5), (8, 1)):
        ours = gramians(local, at).hankel()
        assert int((ours > 0).sum(-1).max()) <= most and bool((ours[..., 0] > 0).all())
    assert len(dynamics(local, {})["hankel"]) <= 5


def test_time_constants_are_of_each_prompt_and_may_be_longer_than_it() -> None:
    """By hand: where Δ is 1/2 and the one state decays at 1/100, the time constant is 200 tokens on any prompt."""
    model = tiny_mamba(2, torch.float64, n_layer=1, d_state=1)
    with torch.no_grad():
        layer = model.layers[0]
        layer.dt_proj.weight.zero_()
        layer.dt_proj.bias.fill_(float(torch.log(torch.expm1(torch.tensor(0.5, dtype=torch.float64)))))
        layer.A_log.fill_(float(torch.log(torch.tensor(0.01, dtype=torch.float64))))
    found = dynamics(linearise(model, tokens(4, 6), 0), {"one": [3]})["groups"]["one"]["memory"]
    assert found["value"] == pytest.approx(200.0) and found["extrapolated"]
    memory = torch.tensor([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])
    boot = ClusterBootstrap(range(3), 100, 0)
    assert memory_of(memory, [0, 1], 3, boot)["value"] == 3.0 and not memory_of(memory, [0, 1], 3, boot)["extrapolated"]
    assert memory_of(memory, [1], 3, boot)["value"] == 4.0 and memory_of(memory, [1], 3, boot)["extrapolated"]


def test_every_number_of_the_summary_by_loops() -> None:
    """Three prompts of five tokens, three channels of two modes; the states are the model's own."""
    model = tiny_mamba(5, torch.float64, n_layer=1, d_inner=3, d_state=2)
    local, at, group = linearise(model, tokens(3, 5, 2), 0), 2, [2, 0]
    found = dynamics(local, {"mine": group}, draws=20)
    h = mechint.run(model, tokens(3, 5, 2), ["layers.0.state"])["layers.0.state"].detach()
    read = h * local.C.unsqueeze(2)  # [prompt, position, channel, mode]
    rate = local.dt.unsqueeze(-1) * local.A.abs()
    tau = 1 / rate.mean((0, 1))  # [channel, mode]
    assert (found["position"], found["n"], found["length"], found["states"]) == (at, 3, 5, 2)
    assert found["tau"] == pytest.approx([sum(float(tau[e, n]) for e in range(3)) / 3 for n in range(2)])
    assert found["decay_now"] == pytest.approx(torch.exp(-rate).mean((0, 1, 2)).tolist())

    squares = read.square().sum(1)  # [prompt, channel, mode]
    memory = [
        [sum(float(squares[b, e, n] / squares[b, e].sum() / rate[b, :, e, n].mean()) for n in range(2)) for e in group]
        for b in range(3)
    ]
    of_prompts = [sum(row) / 2 for row in memory]
    mine = found["groups"]["mine"]
    assert mine["memory_tokens"] == pytest.approx([sum(row[k] for row in memory) / 3 for k in range(2)])
    assert mine["memory"]["value"] == pytest.approx(sum(of_prompts) / 3)
    assert mine["memory"]["extrapolated"] == (sum(of_prompts) / 3 > 5)
    torch.testing.assert_close(effective_memory(local, chunk=2)[:, group], torch.tensor(memory).double())

    own = squares.sum(0)[group]  # [channel of the group, mode]
    share = own / own.sum(1, keepdim=True)
    assert mine["mode_use"] == pytest.approx(share.mean(0).tolist())
    energy = float(read[:, :, group].sum(-1).square().mean((0, 1)).sum())
    assert mine["drop_error"] == pytest.approx([float(own[:, n].sum()) / 15 / energy for n in range(2)])
    rest = [0.0, 0.0]
    for e in group:
        for n in range(2):
            lost, kept = read[:, :, e, n].flatten(), read[:, :, e, 1 - n].flatten()
            rest[n] += float((lost - kept * (kept @ lost) / (kept @ kept)).square().mean())
    assert mine["drop_error_refitted"] == pytest.approx([each / energy for each in rest])
    ranked = sorted((float(tau[e, n]), float(share[k, n]) / 2) for k, e in enumerate(group) for n in range(2))
    middle = next(value for k, (value, _) in enumerate(ranked) if sum(use for _, use in ranked[: k + 1]) >= 0.5)
    assert mine["tau_used_median"] == pytest.approx(middle)
    for e, variation in zip(group, mine["tau_variation"], strict=True):
        low, half, high = (float(1 / torch.quantile(local.dt[..., e].flatten(), share)) for share in (0.9, 0.5, 0.1))
        assert variation == pytest.approx((high - low) / half)

    singular = torch.zeros(3, 2, dtype=torch.float64)  # of the map from inputs up to ``at`` to outputs from it on
    for b in range(3):
        for e in range(3):
            held = lambda first, last, e=e, b=b: torch.exp(-rate[b, first + 1 : last + 1, e].sum(0))
            past = torch.stack([held(s, at) * local.dt[b, s, e] * local.B[b, s] for s in range(at + 1)], 1)
            future = torch.stack([held(at, t) * local.C[b, t] for t in range(at, 5)])
            singular[e] += torch.linalg.svdvals(future @ past)[:2] / 3
    assert found["hankel"] == pytest.approx(singular.mean(0).tolist()) and found["hankel_rank"] == 2
    order = singular.sum(1).square() / singular.square().sum(1)
    assert mine["order"] == pytest.approx(order[group].tolist())


def test_what_rounding_leaves_is_neither_negative_nor_a_direction() -> None:
    """Modes that do the same can stand in for each other wholly; one position before has one direction."""
    generator = torch.Generator().manual_seed(0)
    same = torch.rand(200, 1, 3, generator=generator, dtype=torch.float64)
    gram = ModeGram(same * same.mT, 9)
    lost = gram.drop_refitted(torch.tensor([1.0, 0.0, 0.0]).expand(200, 3))
    assert float(lost.min()) >= 0 and float(lost.max()) < 1e-12
    whole = torch.eye(4, dtype=torch.float64)[None, None]
    count = lambda at: int((Gramians(at, 6, whole, whole).hankel() > 0).sum())
    assert [count(at) for at in range(6)] == [1, 2, 3, 3, 2, 1]
    assert Gramians(3, 7, 4 * whole, 9 * whole).hankel().tolist() == [[[6.0] * 4]]


def test_order_and_summary() -> None:
    assert effective_order(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])).tolist() == [1.0, 2.0, 0.0]
    local = linearise(tiny_mamba(4), tokens(4, 9), 1)
    found = dynamics(local, {"mine": [2, 7]})
    assert set(found["groups"]) == {"mine", "all channels"}
    mine = found["groups"]["mine"]
    assert len(mine["memory_tokens"]) == 2 and len(mine["drop_error"]) == found["states"] == 5
    assert all(a >= b - 1e-9 for a, b in zip(mine["drop_error"], mine["drop_error_refitted"], strict=True))
    # position 4 of 9 has 5 positions before it and 5 after it; there are 5 states
    assert len(found["hankel"]) == found["hankel_rank"] <= 5 and min(found["hankel"]) > 0
    assert mine["memory"]["low"] <= mine["memory"]["value"] <= mine["memory"]["high"] and mine["memory"]["n"] == 4
    assert mine["memory"]["value"] == pytest.approx(sum(mine["memory_tokens"]) / 2)
    with pytest.raises(MechintError, match="position 9 does not exist"):
        gramians(local, 9)
