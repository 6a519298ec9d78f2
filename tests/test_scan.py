"""The chunked scan against the plain recurrence: values, gradients, memory, long sequences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint.scan import chunked, recurrence, selective_scan

Inputs = tuple[torch.Tensor, ...]


def inputs(batch: int, length: int, channels: int, states: int, seed: int, dtype: torch.dtype) -> Inputs:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return (
        rand(batch, length, channels),
        torch.nn.functional.softplus(rand(batch, length, channels)),
        -torch.exp(rand(channels, states)),
        rand(batch, length, states),
        rand(batch, length, states),
        rand(batch, channels, states),
    )


def plain(
    u: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, h: torch.Tensor
) -> Inputs:
    states = recurrence(torch.exp(dt[..., None] * A), (dt * u)[..., None] * B[:, :, None], h)
    return (states * C[:, :, None]).sum(-1), states[:, -1]


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 5), st.integers(1, 4), st.integers(0, 999))


@given(shape=SHAPES, steps=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_equal_the_recurrence(shape: tuple[int, ...], steps: int) -> None:
    args = inputs(*shape, torch.float64)  # type: ignore[arg-type]
    per_step = args[5].numel() * 8
    saved, chunked.CHUNK_BYTES = chunked.CHUNK_BYTES, steps * per_step
    try:
        weights = [torch.randn_like(x) for x in plain(*args)]
        got = []
        for function in (selective_scan, plain):
            leaves = [x.clone().requires_grad_() for x in args]
            out = function(*leaves)
            sum((o * w).sum() for o, w in zip(out, weights, strict=True)).backward()  # type: ignore[union-attr]
            got.append([*(o.detach() for o in out), *(x.grad for x in leaves)])
    finally:
        chunked.CHUNK_BYTES = saved
    for ours, reference in zip(*got, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_gradients_against_finite_differences() -> None:
    args = [x.requires_grad_() for x in inputs(2, 5, 3, 2, 7, torch.float64)]
    assert torch.autograd.gradcheck(selective_scan, args)


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_chunks_do_not_change_a_bit(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = inputs(2, 16, 7, 5, 3, torch.float32)
    whole = selective_scan(*args)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", steps * args[5].numel() * 4)
    for a, b in zip(whole, selective_scan(*args), strict=True):
        assert torch.equal(a, b)


def test_float32_stays_close_over_a_long_sequence() -> None:
    args = inputs(1, 2048, 8, 4, 5, torch.float64)
    exact = selective_scan(*args)[0]
    single = selective_scan(*(x.float() for x in args))[0]
    assert float((single - exact).abs().max() / exact.abs().max()) <= 5e-7


def test_very_long_sequences_stay_finite() -> None:
    args = [x.float() for x in inputs(1, 32768, 2, 2, 6, torch.float64)]
    assert all(torch.isfinite(x).all() for x in selective_scan(*args))


def test_training_keeps_one_state_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    args = [x.requires_grad_() for x in inputs(2, 64, 4, 3, 1, torch.float32)]
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 16 * args[5].numel() * 4)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        selective_scan(*args)
    assert sum(kept) == sum(x.numel() for x in args[:5]) + 4 * args[5].numel()
