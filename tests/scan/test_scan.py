"""The chunked scan against the plain recurrence: values, gradients, memory, long sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint import scan
from mechint.scan import chunked, native, recurrence
from mechint.scan.selective import selective_scan
from mechint.utils.errors import MechintError
from mechint.utils.memory import peak_bytes
from tests.helpers.examples import examples
from tests.helpers.scans import Inputs, inputs, plain, with_gradients

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 5), st.integers(1, 4), st.integers(0, 999))
BACK_ENDS = [name for name, reason in scan.available().items() if not reason]


@given(shape=SHAPES, steps=st.integers(1, 5))
@settings(max_examples=examples(40), deadline=None)
def test_chunked_values_and_gradients_equal_the_recurrence(shape: tuple[int, ...], steps: int) -> None:
    args = inputs(*shape, torch.float64)  # type: ignore[arg-type]
    saved, chunked.CHUNK_BYTES = chunked.CHUNK_BYTES, steps * args[5].numel() * 8
    try:
        weights = tuple(torch.randn_like(x) for x in plain(*args))
        got = [with_gradients(function, args, weights) for function in (selective_scan, plain)]
    finally:
        chunked.CHUNK_BYTES = saved
    for ours, reference in zip(*got, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif("native" not in BACK_ENDS, reason="no C compiler")
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 150), st.integers(1, 40), st.integers(1, 20), st.integers(0, 99)),
    threads=st.integers(1, 3),
    groups=st.integers(1, 6),
)
@settings(max_examples=examples(40), deadline=None)
def test_native_values_and_gradients_equal_the_recurrence_in_float64(
    shape: tuple[int, ...], threads: int, groups: int
) -> None:
    """Also with channels that fill no block, more than one chunk, more threads than blocks, and fewer.

    The error is a share of the sum of the terms' absolute values: no float32 sum of terms that cancel does better.
    """
    args = tuple(x.float() for x in inputs(*shape, torch.float64))  # type: ignore[arg-type]
    weights = tuple(torch.randn(x.shape) for x in plain(*args))
    before, small, usual = torch.get_num_threads(), native.SMALL, native.GROUPS
    native.SMALL, native.GROUPS = 0, groups
    try:
        with scan.using("native"):
            alone = with_gradients(selective_scan, args, weights)
            torch.set_num_threads(threads)
            ours = with_gradients(selective_scan, args, weights)
    finally:
        torch.set_num_threads(before)
        native.SMALL, native.GROUPS = small, usual
    assert all(torch.equal(a, b) for a, b in zip(ours, alone, strict=True))  # whatever the number of threads
    exact = tuple(x.double() for x in args)
    reference = with_gradients(plain, exact, tuple(w.double() for w in weights))
    u, dt, A, *rest = exact
    scales = with_gradients(plain, (u.abs(), dt, A, *(x.abs() for x in rest)), tuple(w.double().abs() for w in weights))
    scales[3] = scales[3].abs() + 2 * scales[2] * u.abs() / dt  # of the two terms of dt, one is below zero
    for got, expected, scale in zip(ours, reference, scales, strict=True):
        error = float((got - expected).abs().max() / scale.abs().max())
        assert error < 1e-5, error


def test_gradients_against_finite_differences() -> None:
    args = [x.requires_grad_() for x in inputs(2, 5, 3, 2, 7, torch.float64)]
    assert torch.autograd.gradcheck(selective_scan, args)


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_chunks_do_not_change_a_bit(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = inputs(2, 16, 7, 5, 3, torch.float32)
    with scan.using("chunked"):
        whole = selective_scan(*args)
        monkeypatch.setattr(chunked, "CHUNK_BYTES", steps * args[5].numel() * 4)
        for a, b in zip(whole, selective_scan(*args), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize("shape", [(2, 70, 19, 5), (1, 3, 1, 1), (3, 20, 48, 17)])
def test_the_pieces_are_the_whole_to_the_bit(name: str, shape: tuple[int, ...]) -> None:
    """Decays, recurrence and read-outs apart, and a sequence in two pieces, give the scan's own bits."""
    u, dt, A, B, C, h = inputs(*shape, 3, torch.float32)  # type: ignore[arg-type]
    with scan.using(name):
        y, last = selective_scan(u, dt, A, B, C, h)
        states = recurrence(scan.decays(dt, A), (dt * u)[..., None] * B[:, :, None], h)
        assert torch.equal(scan.read_out(states, C), y)
        assert torch.equal(states[:, -1], last)
        half = shape[1] // 2
        first, middle = selective_scan(u[:, :half], dt[:, :half], A, B[:, :half], C[:, :half], h)
        second, end = selective_scan(u[:, half:], dt[:, half:], A, B[:, half:], C[:, half:], middle)
        assert torch.equal(torch.cat([first, second], 1), y)
        assert torch.equal(end, last)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_gradients_of_the_pieces(name: str) -> None:
    _, dt, A, _, C, _ = inputs(2, 6, 5, 3, 1, torch.float32)
    states = torch.randn(2, 6, 5, 3)
    for function, args in ((scan.decays, (dt, A)), (scan.read_out, (states, C))):
        exact = {
            scan.decays: lambda dt, A: torch.exp(dt[..., None] * A),
            scan.read_out: lambda h, C: (h * C[:, :, None]).sum(-1),
        }[function]
        weights = (torch.randn_like(exact(*args)),)
        with scan.using(name):
            ours = with_gradients(lambda *x, f=function: (f(*x),), args, weights)
        wide = with_gradients(lambda *x, f=exact: (f(*x),), tuple(a.double() for a in args), (weights[0].double(),))
        for got, reference in zip(ours, wide, strict=True):
            torch.testing.assert_close(got, reference.float(), rtol=2e-5, atol=2e-6)


@pytest.mark.skipif("native" not in BACK_ENDS, reason="no C compiler")
def test_the_native_exponential() -> None:
    """As exact as its rounded argument; beyond its range infinite or 0, and what is not a number stays so."""
    x = torch.cat([torch.linspace(-87, 88, 200_001), torch.logspace(-30, 0, 1000).neg()])
    with scan.using("native"):
        got = scan.decays(x.view(1, -1, 1), torch.ones(1, 1)).flatten()
        odd = scan.decays(torch.tensor([[[0.0], [-200.0], [-torch.inf], [torch.nan], [100.0]]]), torch.ones(1, 1))
    exact = torch.exp(x.double())
    assert bool((((got - exact) / exact).abs() <= 1e-7 + 8e-8 * x.abs()).all())
    assert odd.flatten()[[0, 1, 2, 4]].tolist() == [1.0, 0.0, 0.0, float("inf")]
    assert odd.flatten()[3].isnan()


def published(length: int, channels: int, states: int, seed: int) -> Inputs:
    """As in a Mamba at its published initialisation: Δ from 1e-3 to 1e-1, A = -1 … -N, u behind a SiLU; float64."""
    u, dt, _, B, C, h = inputs(1, length, channels, states, seed, torch.float64)
    bias = torch.logspace(-3, -1, channels, dtype=torch.float64).expm1().log()
    A = -torch.arange(1.0, states + 1, dtype=torch.float64).repeat(channels, 1)
    return torch.nn.functional.silu(u), torch.nn.functional.softplus(dt.expm1().log() + bias), A, B, C, h


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize(
    ("length", "args"),
    [
        (2048, inputs(1, 2048, 8, 4, 5, torch.float64)),
        *((2048, published(2048, 96, 16, seed)) for seed in range(3)),
        (32768, published(32768, 4, 16, 0)),
    ],
)
def test_float32_stays_close_over_a_long_sequence(name: str, length: int, args: Inputs) -> None:
    """Beside float64, of the largest; 0.7 … 1.9e-7 were measured."""
    exact = selective_scan(*args)
    with scan.using(name):
        single = selective_scan(*(x.float() for x in args))
    for ours, reference in zip(single, exact, strict=True):
        assert ours.isfinite().all()
        assert float((ours - reference).abs().max() / reference.abs().max()) <= 5e-7


@pytest.mark.parametrize("name", BACK_ENDS)
def test_very_long_sequences_stay_finite_and_nan_is_not_hidden(name: str) -> None:
    args = [x.float() for x in inputs(1, 32768, 2, 2, 6, torch.float64)]
    with scan.using(name):
        assert all(torch.isfinite(x).all() for x in selective_scan(*args))
        args[1][0, 5, 1] = torch.nan
        y, last = selective_scan(*args)
    assert y[0, 5:, 1].isnan().all()
    assert last[0, 1].isnan().all()
    assert torch.isfinite(y[0, :, 0]).all()


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_anything_is_summed(name: str, half: torch.dtype) -> None:
    """To the bit the scan of the same numbers in float32; A may come in float32, as models keep it."""
    args = published(300, 5, 4, 1)
    narrow = tuple(x.to(half) for x in args)
    wide = tuple(x.float() for x in narrow)
    with scan.using(name):
        for given, expected in ((narrow, wide), ((*narrow[:2], wide[2], *narrow[3:]), wide)):
            for ours, reference in zip(selective_scan(*given), selective_scan(*expected), strict=True):
                assert ours.dtype == torch.float32 and torch.equal(ours, reference)
        u, dt, A, B, C, h = narrow
        assert torch.equal(scan.decays(dt, A), scan.decays(dt.float(), A.float()))
        assert scan.read_out(h.unsqueeze(1), C[:, :1]).dtype == torch.float32
        at = scan.states(u, dt, A, B, h, positions=[-1])
        assert at.dtype == torch.float32 and torch.equal(at[:, 0], selective_scan(*narrow)[1])
    leaves = [x.clone().requires_grad_() for x in narrow]
    selective_scan(*leaves)[0].sum().backward()
    assert all(x.grad is not None and x.grad.dtype == half for x in leaves)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_one_wide_argument_widens_all(name: str) -> None:
    args = inputs(2, 9, 3, 4, 0, torch.float64)
    mixed = [x if k == 2 else x.float() for k, x in enumerate(args)]
    with scan.using(name):
        y, last = selective_scan(*mixed)
    assert y.dtype == last.dtype == torch.float64
    torch.testing.assert_close(y, selective_scan(*(x.double() for x in mixed))[0], rtol=1e-12, atol=1e-12)


def test_shapes_that_disagree_name_the_axis() -> None:
    u, dt, A, B, C, h = inputs(2, 6, 4, 3, 0, torch.float32)
    bad: list[tuple[str, Any]] = [
        ("selective_scan: the position axis is 5 in dt but 6 in u", lambda: selective_scan(u, dt[:, :5], A, B, C)),
        ("the channel axis is 3 in A but 4 in u", lambda: selective_scan(u, dt, A[:3], B, C)),
        ("the state axis is 2 in B but 3 in A", lambda: selective_scan(u, dt, A, B[..., :2], C)),
        ("the batch axis is 1 in C but 2 in u", lambda: selective_scan(u, dt, A, B, C[:1])),
        ("the state axis is 2 in initial but 3 in A", lambda: selective_scan(u, dt, A, B, C, h[..., :2])),
        (r"initial must be \[batch, channel, state\]; got shape", lambda: selective_scan(u, dt, A, B, C, h[0])),
        ("the position axis is 6 in B but 0 in u", lambda: selective_scan(u[:, :0], dt[:, :0], A, B, C)),
        ("decays: the channel axis is 3 in A but 4 in dt", lambda: scan.decays(dt, A[:3])),
        ("read_out: the position axis is 6 in C but 1 in states", lambda: scan.read_out(h.unsqueeze(1), C)),
    ]
    for message, call in bad:
        for name in BACK_ENDS:
            with pytest.raises(MechintError, match=message) as caught, scan.using(name):
                call()
            assert "\n" not in str(caught.value)
    for name in BACK_ENDS:  # no position at all is no mistake
        with scan.using(name):
            y, last = selective_scan(u[:, :0], dt[:, :0], A, B[:, :0], C[:, :0], h)
        assert y.shape == (2, 0, 4) and torch.equal(last, h)


def test_training_keeps_one_state_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    args = [x.requires_grad_() for x in inputs(2, 640, 4, 3, 1, torch.float32)]
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 64 * args[5].numel() * 4)
    for name in BACK_ENDS:
        kept: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x, k=kept: k.append(x.numel()) or x, lambda x: x)
        with hooks, scan.using(name):
            selective_scan(*args)
        assert sum(kept) == sum(x.numel() for x in args[:5]) + 10 * args[5].numel(), name


@pytest.mark.parametrize("name", BACK_ENDS)
def test_memory_of_a_training_step_does_not_grow_with_the_states(name: str) -> None:
    """Beside y, ∂y and the gradients, a position costs at most a twentieth of its states: the chunks' boundaries."""

    def step(*args: torch.Tensor) -> Inputs:
        leaves = [x.requires_grad_() for x in args]
        return torch.autograd.grad(selective_scan(*leaves)[0].sum(), leaves)

    beside = {}
    with scan.using(name):
        for length in (256, 1024):
            u, dt, A, B, C, _ = (x.float() for x in published(length, 1536, 16, 0))
            beside[length] = peak_bytes(step, u, dt, A, B, C) - 4 * u.nbytes - 2 * B.nbytes
    assert beside[1024] - beside[256] <= 0.05 * (1024 - 256) * 1536 * 16 * 4, beside


@pytest.mark.parametrize("name", BACK_ENDS)
def test_memory_of_streamed_states_does_not_grow_at_all(name: str) -> None:
    def stream(*args: torch.Tensor) -> None:
        for _, part in scan.states(*args, chunk=16):
            del part

    with scan.using(name), torch.no_grad():
        peaks = {n: peak_bytes(stream, *(x.float() for x in published(n, 64, 16, 0)[:4])) for n in (64, 256, 1024)}
    assert len(set(peaks.values())) == 1 and peaks[64] <= 24 * 64 * 16 * 4, peaks


def test_back_ends_are_named_and_a_missing_one_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(MechintError, match="no scan back end 'cuda'"), scan.using("cuda"):
        pass
    assert scan.chosen(torch.zeros(1, dtype=torch.float64)) == "chunked"
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(scan.choice, "_told", False)
    native.library.cache_clear()
    try:
        assert scan.chosen() == scan.chosen() == "chunked"
        assert capsys.readouterr().err.count("plain torch in place of the faster C one") == 1
        with pytest.raises(MechintError, match="'native' is not on this machine"), scan.using("native"):
            pass
        monkeypatch.setenv("CC", "false")
        native.library.cache_clear()
        assert "could not compile" in scan.available()["native"]
        assert not list(tmp_path.rglob("*.so"))
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
