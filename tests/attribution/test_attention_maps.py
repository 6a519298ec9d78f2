"""The hidden attention against explicit loops, and states on demand against the plain recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechint import run
from mechint.attribution.attention import attention_map
from mechint.scan import recurrence
from mechint.scan.attention_weights import hidden_attention, states
from mechint.utils.errors import MechintError
from mechint.utils.memory import peak_bytes
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.examples import examples

MODEL = 3


def inputs(
    batch: int, length: int, channels: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "dt": torch.nn.functional.softplus(rand(batch, length, channels)),
        "A": -torch.exp(rand(channels, size)),
        "B": rand(batch, length, size),
        "C": rand(batch, length, size),
        "u": rand(batch, length, channels),
        "gate": rand(batch, length, channels),
        "W_out": rand(MODEL, channels),
        "direction": rand(MODEL),
        "weights": rand(channels),
        "initial": rand(batch, channels, size),
    }


def maps_of(x: dict[str, torch.Tensor], reduce: str, **options: Any) -> torch.Tensor:
    needs = {
        "direction": ("u", "gate", "W_out", "direction"),
        "energy": ("u", "gate", "W_out"),
        "weights": ("weights",),
    }
    given = {name: x[name] for name in needs.get(reduce, ())}
    return hidden_attention(x["dt"], x["A"], x["B"], x["C"], reduce, **given, **options)


def slow(x: dict[str, torch.Tensor]) -> torch.Tensor:
    """α [batch, channel, i, j] by its definition, one product of decays after another."""
    dt, A, B, C = (x[name] for name in ("dt", "A", "B", "C"))
    batch, length, channels = dt.shape
    alpha = torch.zeros(batch, channels, length, length, dtype=dt.dtype)
    for b in range(batch):
        for e in range(channels):
            for j in range(length):
                held = dt[b, j, e] * B[b, j]
                for i in range(j, length):
                    if i > j:
                        held = held * torch.exp(dt[b, i, e] * A[e])
                    alpha[b, e, i, j] = C[b, i] @ held
    return alpha


def slow_states(x: dict[str, torch.Tensor]) -> torch.Tensor:
    decay = torch.exp(x["dt"][..., None] * x["A"])
    return recurrence(decay, (x["dt"] * x["u"])[..., None] * x["B"][:, :, None], x["initial"])


SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 11), st.integers(1, 4), st.integers(1, 3), st.integers(0, 999))


@given(shape=SHAPES, tile=st.one_of(st.none(), st.integers(1, 12)))
@settings(max_examples=examples(60), deadline=None)
def test_every_reduction_equals_explicit_loops(shape: tuple[int, ...], tile: int | None) -> None:
    x = inputs(*shape)  # type: ignore[arg-type]
    alpha, size = slow(x), shape[2]
    chosen = [size - 1, 0, size - 1]
    vectors = torch.einsum("de,bie,beij,bje->bijd", x["W_out"], x["gate"], alpha, x["u"])
    expected = {
        "weights": torch.einsum("e,beij->bij", x["weights"], alpha),
        "direction": vectors @ x["direction"],
        "energy": vectors.norm(dim=-1),
        "channels": alpha[:, chosen],
    }
    for reduce, value in expected.items():
        found = maps_of(x, reduce, tile=tile, **({"channels": chosen} if reduce == "channels" else {}))
        torch.testing.assert_close(found, value, rtol=1e-11, atol=1e-12, msg=lambda m, r=reduce: f"{r}: {m}")
        assert not found.triu(1).any()
    ones = hidden_attention(x["dt"], x["A"], x["B"], x["C"], tile=tile)
    torch.testing.assert_close(ones, alpha.sum(1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("layer", [0, 1])
def test_attention_times_input_is_the_recorded_scan(layer: int, dtype: torch.dtype, bound: float) -> None:
    model, ids = tiny_mamba(3, dtype), tokens(2, 37)
    found = run(model, ids, record=[f"layers.{layer}.{name}" for name in ("u", "scan_out", "gate")])
    u, scan_out, gate = (found[f"layers.{layer}.{name}"] for name in ("u", "scan_out", "gate"))
    alpha = attention_map(model, ids, layer, "channels", channels=range(14), tile=8)
    y = torch.einsum("beij,bje->bie", alpha, u)
    assert (y - scan_out).abs().max() <= bound * scan_out.abs().max()
    d = torch.randn(10, dtype=dtype)
    along = attention_map(model, ids, layer, "direction", direction=d, tile=8).sum(-1)
    expected = (scan_out * gate) @ (model.layers[layer].out_proj.weight.T @ d)
    assert (along - expected).abs().max() <= 5 * bound * expected.abs().max()
    assert attention_map(model, ids, layer, "energy").shape == (2, 37, 37)
    assert not attention_map(model, ids, layer).requires_grad


@pytest.mark.slow
def test_long_sequences_stay_finite_and_exact() -> None:
    x = inputs(1, 4096, 2, 2, dtype=torch.float32)
    jumps = x["dt"] * torch.where(torch.arange(4096) % 3 == 0, 300.0, 1e-3)[:, None]  # the sum is about 4e5
    slow_decay = torch.full_like(jumps, 1e-4)  # the far past comes through many tiles
    for dt in (jumps, x["dt"], slow_decay):
        x = {**x, "dt": dt}
        alpha = maps_of(x, "channels", channels=[0, 1])
        assert alpha.isfinite().all()
        y = torch.einsum("beij,bje->bie", alpha.double(), x["u"].double())
        wide = {name: value.double() for name, value in x.items()} | {"initial": torch.zeros(1, 2, 2).double()}
        exact = (slow_states(wide) * wide["C"][:, :, None]).sum(-1)
        assert (y - exact).abs().max() <= 5e-7 * exact.abs().max()


@pytest.mark.slow_except("(300-None-40-(energy|weights)|300-48-12-direction)")
@pytest.mark.parametrize("reduce", ["weights", "direction", "energy", "channels"])
@pytest.mark.parametrize(("length", "tile", "memory_mib"), [(300, None, 40), (300, 48, 12), (257, 32, 1)])
def test_memory_stays_below_what_was_given(reduce: str, length: int, tile: int | None, memory_mib: int) -> None:
    x = inputs(1, length, 200, 16, dtype=torch.float32)
    options: dict[str, Any] = {"channels": range(3)} if reduce == "channels" else {}
    result = maps_of(x, reduce, tile=tile, **options)
    peak = peak_bytes(lambda: maps_of(x, reduce, tile=tile, memory_mib=memory_mib, **options))
    assert peak - result.nbytes <= memory_mib * 2**20
    tight = maps_of(x, reduce, tile=tile, memory_mib=memory_mib, **options)
    torch.testing.assert_close(tight, result, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_computed_in_float32() -> None:
    x = {name: value.bfloat16() for name, value in inputs(1, 20, 4, 3).items()}
    found = maps_of(x, "energy", tile=7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, maps_of({k: v.float() for k, v in x.items()}, "energy"), rtol=1e-5, atol=1e-5)


@given(shape=SHAPES, chunk=st.integers(1, 12), data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=examples(60), deadline=None)
def test_states_equal_the_recurrence(shape: tuple[int, ...], chunk: int, data: Any, dtype: torch.dtype) -> None:
    x = inputs(*shape, dtype=dtype)  # type: ignore[arg-type,misc]
    every, length = slow_states({name: value.double() for name, value in x.items()}).to(dtype), shape[1]
    wanted = data.draw(st.lists(st.integers(-length, length - 1), max_size=6))
    args = (x["u"], x["dt"], x["A"], x["B"], x["initial"])
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    for reduce, axis in ((None, None), ("channel", 2), ("state", 3)):
        expected = every if axis is None else every.square().mean(axis)
        torch.testing.assert_close(states(*args, positions=wanted, reduce=reduce), expected[:, wanted], **close)
        parts = list(states(*args, reduce=reduce, chunk=chunk))
        assert [first for first, _ in parts] == list(range(0, length, chunk))
        torch.testing.assert_close(torch.cat([part for _, part in parts], 1), expected, **close)


def test_states_are_those_a_run_records_and_have_gradients() -> None:
    model, ids = tiny_mamba(1), tokens(2, 9)
    with torch.no_grad():
        found = run(model, ids, record=["layers.1.*"])
        x = {name: found[f"layers.1.{name}"] for name in ("u", "dt", "B", "state")}
        A = -torch.exp(model.layers[1].A_log)
    assert torch.equal(states(x["u"], x["dt"], A, x["B"], positions=[4, 0, 8]), x["state"][:, [4, 0, 8]])
    y = inputs(1, 5, 2, 2)
    leaves = [y[name].requires_grad_() for name in ("u", "dt", "A", "B", "initial")]
    assert torch.autograd.gradcheck(lambda *a: states(*a, positions=[3, 1]), leaves)


def test_streamed_states_hold_a_chunk_at_a_time() -> None:
    x = inputs(1, 512, 64, 16, dtype=torch.float32)
    state = 64 * 16 * 4

    def stream(reduce: str | None, chunk: int) -> None:
        walk = states(x["u"], x["dt"], x["A"], x["B"], reduce=reduce, chunk=chunk)
        while next(walk, None) is not None:
            pass

    assert peak_bytes(stream, None, 16) <= (16 + 8) * state
    assert peak_bytes(stream, "channel", 16) <= 12 * state
    far = peak_bytes(lambda: states(x["u"], x["dt"], x["A"], x["B"], positions=[511]))
    assert far <= 60 * state + 3 * x["u"].nbytes


def test_bad_input_is_one_clear_line() -> None:
    x = inputs(2, 6, 4, 3)
    dt, A, B, C = (x[name] for name in ("dt", "A", "B", "C"))
    bad: list[tuple[str, Any]] = [
        ("the position axis is 5 in C but 6 in dt", lambda: hidden_attention(dt, A, B, C[:, :5])),
        ("the state axis is 2 in B but 3 in A", lambda: hidden_attention(dt, A, B[..., :2], C)),
        ("the channel axis is 3 in A but 4 in dt", lambda: hidden_attention(dt, A[:3], B, C)),
        ("the batch axis is 1 in B but 2 in dt", lambda: hidden_attention(dt, A, B[:1], C)),
        (r"B must be \[batch, position, state\]; got shape", lambda: hidden_attention(dt, A, B[0], C)),
        ("the position axis is 0 in dt", lambda: hidden_attention(dt[:, :0], A, B[:, :0], C[:, :0])),
        ("the model axis is", lambda: maps_of({**x, "direction": x["direction"][:2]}, "direction")),
        ("the channel axis is 3 in weights", lambda: maps_of({**x, "weights": x["weights"][:3]}, "weights")),
        ("channel 4 is outside 0 … 3", lambda: maps_of(x, "channels", channels=[0, 4])),
        ("channel -1 is outside 0 … 3", lambda: maps_of(x, "channels", channels=[-1])),
        ("no reduce 'enregy'.*energy", lambda: maps_of(x, "enregy")),
        ("'direction' takes direction u gate W_out; got \\[\\]", lambda: hidden_attention(dt, A, B, C, "direction")),
        ("'channels' takes channels; got \\[\\]", lambda: hidden_attention(dt, A, B, C, "channels")),
        (r"channels are \[\]; at least 1", lambda: maps_of(x, "channels", channels=[])),
        ("'weights' takes at most weights; got \\['u'\\]", lambda: hidden_attention(dt, A, B, C, u=x["u"])),
        ("tile is 0", lambda: maps_of(x, "weights", tile=0)),
        ("memory_mib of at least 1, not 0.001", lambda: maps_of(x, "weights", memory_mib=0.001)),
        ("layer 2 is outside 0 … 1", lambda: attention_map(tiny_mamba(), tokens(1, 3), 2)),
        ("position 6 is outside -6 … 5", lambda: states(x["u"], dt, A, B, positions=[6])),
        ("the channel axis is 3 in dt but 4 in u", lambda: states(x["u"], dt[..., :3], A, B)),
        ("the batch axis is 1 in initial", lambda: states(x["u"], dt, A, B, x["initial"][:1])),
        ("reduce is 'model'", lambda: states(x["u"], dt, A, B, reduce="model")),
        ("chunk 0", lambda: states(x["u"], dt, A, B, chunk=0)),
    ]
    for message, call in bad:
        with pytest.raises(MechintError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
