"""The parts of a mixer around the scan: their numbers and gradients, and one pass against step by step, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mechint
from mechint import Edit, scan
from mechint.interventions.taps import Scope, Tap
from mechint.models import mamba
from mechint.models.parts.mamba2 import Mamba2Mixer
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.examples import examples
from tests.helpers.scans import drawn

native = pytest.mark.skipif(bool(scan.available()["native"]), reason="no C compiler")


@native
@pytest.mark.parametrize(("ours", "exact"), [(scan.silu, F.silu), (scan.softplus, F.softplus)])
def test_elementwise_parts_over_their_range(ours: Any, exact: Any) -> None:
    """Relative to what comes out: a step size of 1e-6 has as many digits as one of 1."""
    x = torch.cat([torch.linspace(-80, 80, 100_001), torch.logspace(-30, 0, 1000), -torch.logspace(-30, 0, 1000)])
    wide = x.double().sigmoid() * x.double() if ours is scan.silu else torch.logaddexp(x.double(), x.double() * 0)
    assert float(((ours(x) - wide) / wide).abs().max()) < 4e-7
    odd = torch.tensor([-torch.inf, -1e9, 1e9, torch.inf])
    torch.testing.assert_close(ours(odd)[1:], exact(odd)[1:])
    assert ours(torch.tensor([torch.nan, 1.0])).isnan().tolist() == [True, False]


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 19), st.integers(1, 5)),
    biased=st.booleans(),
    seed=st.integers(0, 999),
)
@example(sizes=(2, 150, 19, 4), biased=True, seed=0)
@settings(max_examples=examples(40), deadline=None)
def test_the_convolution_and_its_gradients(sizes: tuple[int, ...], biased: bool, seed: int) -> None:
    """Against torch's own, in float64 (its plain form here) and float32 (C, where there is a compiler)."""
    batch, length, channels, taps = sizes
    x_shape = (batch, length, channels)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x, memory, weight, bias, weights = (
            drawn(*shape, seed=seed + k).to(dtype).requires_grad_()
            for k, shape in enumerate([x_shape, (batch, taps - 1, channels), (channels, taps), (channels,), x_shape])
        )
        given = [x, memory, weight, bias] if biased else [x, memory, weight]
        conv = scan.convolve(x, memory, weight, bias if biased else None)
        whole = torch.cat([memory, x], 1).transpose(1, 2)
        theirs = F.conv1d(whole, weight[:, None], bias if biased else None, groups=channels).transpose(1, 2)
        torch.testing.assert_close(conv, theirs, rtol=tolerance, atol=tolerance)
        both = [torch.autograd.grad((out * weights).sum(), given) for out in (conv, theirs)]
        for got, expected in zip(*both, strict=True):
            torch.testing.assert_close(got, expected, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("part", [scan.silu, scan.softplus])
def test_gradients_of_elementwise_parts(part: Any) -> None:
    x = torch.linspace(-30, 30, 4001, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    plain = F.silu if part is scan.silu else F.softplus
    (got,), (expected,) = (torch.autograd.grad(f(y).sum(), y) for f, y in ((part, x), (plain, wide)))
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-7)


@native
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 19), st.integers(1, 5), st.integers(1, 4)),
    rows=st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3), (3, 3)]),
    go_on=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=examples(60), deadline=None)
def test_one_pass_is_step_by_step_to_the_bit(
    sizes: tuple[int, ...], rows: tuple[int, int], go_on: bool, seed: int
) -> None:
    """Memories that serve the batch in turn, z and x as halves of one tensor, any number of channels and taps."""
    (length, channels, states, taps), (batch, own) = sizes, rows
    both, low = drawn(batch, length, 2 * channels, seed=seed), 3 * drawn(batch, length, channels, seed=seed + 1)
    x, z = both.chunk(2, -1)
    weight, bias, D = (
        drawn(channels, taps, seed=seed + 2),
        drawn(channels, seed=seed + 3),
        drawn(channels, seed=seed + 4),
    )
    A = -drawn(channels, states, seed=seed + 5).exp()
    B, C = (drawn(batch, length, states + 3, seed=seed + k)[..., 3:] for k in (6, 7))
    memory, initial = drawn(own, taps - 1, channels, seed=seed + 8), drawn(own, channels, states, seed=seed + 9)
    repeated = memory.repeat(batch // own, 1, 1), initial.repeat(batch // own, 1, 1)

    u = scan.silu(scan.convolve(x.contiguous(), repeated[0], weight, bias))
    y, last = scan.selective_scan(u, scan.softplus(low), A, B, C, repeated[1])
    expected = (y + D * u) * scan.silu(z.contiguous())

    assert torch.equal(scan.convolved(x, memory, weight, bias), u)
    got, end = scan.gated(u, low, A, B, C, D, z, initial, go_on)
    assert torch.equal(got, expected)
    assert torch.equal(end, last) if go_on else end is None


@native
def test_a_forward_takes_one_pass_only_where_nobody_looks_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """And comes to the same bits: recorded or not, with gradients or without, at once or on from a cache."""
    model, ids = tiny_mamba(), tokens(3, 11)
    layers, calls = len(model.layers), []
    inside = mamba.Layer.mix_in_one_pass
    monkeypatch.setattr(mamba.Layer, "mix_in_one_pass", lambda *a: (calls.append(1), inside(*a))[1])

    def count(run: Any, gradients: bool = False) -> tuple[torch.Tensor, int]:
        calls.clear()
        with torch.set_grad_enabled(gradients):
            return run(), len(calls)

    plain, n = count(lambda: mechint.run(model, ids).logits)
    assert n == layers
    for site, expected in (("layers.0.gated", layers), ("layers.0.out", layers), ("layers.0.dt", layers - 1)):
        logits, n = count(lambda s=site: mechint.run(model, ids, [s], [Edit(s, "scale", 1.0)]).logits)
        assert n == expected and torch.equal(logits, plain), site
    cut = Edit("layers.1.out", "cut", positions=[5], sources=[0])
    assert count(lambda: mechint.run(model, ids, [], [cut]).logits)[1] == layers - 1
    trained, n = count(lambda: model(ids), gradients=True)  # its weights take gradients
    assert n == 0 and torch.equal(trained, plain)
    first = mechint.run(model, ids[:, :2])
    rest, n = count(lambda: mechint.run(model, ids[:, 2:], cache=first.cache).logits)
    assert n == layers
    torch.testing.assert_close(rest, plain[:, 2:], rtol=1e-5, atol=1e-5)


@native
def test_memories_behind_one_pass_are_those_of_the_steps() -> None:
    model, ids = tiny_mamba(), tokens(2, 5)
    for length in range(1, 6):
        with torch.no_grad():
            fast = model.trace(ids[:, :length], Tap())[1]
        slow = model.trace(ids[:, :length], Tap())[1]
        for ours, theirs in zip(fast.layers, slow.layers, strict=True):
            assert torch.equal(ours.conv, theirs.conv) and torch.equal(ours.state, theirs.state)


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 19)),
    norm_first=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=examples(30), deadline=None)
def test_the_gated_norm_and_its_gradients(sizes: tuple[int, ...], norm_first: bool, seed: int) -> None:
    """Against the formula in float64, one group after another."""
    batch, length, groups, each = sizes
    shape = batch, length, groups * each
    y, gate, weight = (drawn(*size, seed=seed + k) for k, size in enumerate((shape, shape, shape[-1:])))
    slope = drawn(*shape, seed=seed + 3)
    found = []
    for dtype in (torch.float32, torch.float64):
        given_ = [x.detach().to(dtype).requires_grad_() for x in (y, gate, weight)]
        if dtype == torch.float32:
            out = scan.gated_norm(*given_, 1e-3, groups, norm_first)
        else:
            pieces = []
            for own_y, own_gate, own_weight in zip(*(x.split(each, -1) for x in given_), strict=True):
                read = own_y if norm_first else own_y * own_gate
                normed = own_weight * read / ((read**2).sum(-1, keepdim=True) / each + 1e-3).sqrt()
                pieces.append(normed * own_gate if norm_first else normed)
            out = torch.cat(pieces, -1)
        found.append([out, *torch.autograd.grad((out * slope.to(dtype)).sum(), given_)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(
            one.double(), other, rtol=2e-5, atol=2e-5 * max(1.0, float(other.detach().abs().max()))
        )


def mamba2(norm: str, norm_groups: int, **more: Any) -> Mamba2Mixer:
    torch.manual_seed(1)
    return Mamba2Mixer(10, 6, 5, 7, 3, 4, norm=norm, norm_groups=norm_groups, **more).requires_grad_(False)


@native
@pytest.mark.parametrize(("norm", "norm_groups"), [("product", 1), ("product", 3), ("first", 2), ("none", 1)])
@pytest.mark.parametrize("more", [{}, {"scales": (0.5, 2.0, 1.5, 0.7, 1.1), "in_scale": 0.5, "out_scale": 3.0}])
def test_mamba2_in_one_pass_is_step_by_step_to_the_bit(norm: str, norm_groups: int, more: dict[str, Any]) -> None:
    """Every site inside is recorded or nothing is; whole, and in pieces behind a cache, also shorter than the taps."""
    mixer, n = mamba2(norm, norm_groups, **more), drawn(2, 9, 10)
    scope = lambda *names: Scope(Tap(tuple(f"at.{name}" for name in names), ()), "at.")
    found = []
    for at in (scope("gated"), scope(*mixer.inside)):
        out, cache = mixer(n, mixer.empty_cache(2), at)
        pieces, between = [], mixer.empty_cache(2)
        for piece in n.split([2, 6, 1], 1):
            own, between = mixer(piece, between, scope("gated") if at.wants("gated") else scope(*mixer.inside))
            pieces.append(own)
        found.append((out, cache.conv, cache.state, between.conv, between.state, torch.cat(pieces, 1)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found[0][5], found[0][0], rtol=1e-5, atol=1e-6)


@native
def test_mamba2_takes_one_pass_only_where_nobody_looks_inside_and_nobody_asks_for_gradients() -> None:
    mixer, z = mamba2("product", 1), drawn(1, 3, 30)
    none, gated, inside = (Scope(Tap(record, ()), "at.") for record in ((), ("at.gated",), ("at.dt",)))
    assert mixer.in_one_pass(z, none) and mixer.in_one_pass(z, gated)
    assert not mixer.in_one_pass(z, inside) and not mixer.in_one_pass(z.double(), none)
    assert not mixer.in_one_pass(z.requires_grad_(), none)
    assert not mixer.requires_grad_().in_one_pass(drawn(1, 3, 30), none)
    cut = Scope(Tap((), [Edit("at.state", "cut", positions=[1], sources=[0])]), "at.")
    assert not mixer.requires_grad_(False).in_one_pass(drawn(1, 3, 30), cut)
