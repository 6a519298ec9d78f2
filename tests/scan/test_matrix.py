"""Matrix memories: the C form against the torch form and a float64 loop, whole and in steps, with its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechint import scan
from mechint.scan import matrix, matrix_native, matrix_slopes
from mechint.scan.matrix import Writes
from mechint.scan.matrix_native import each_head
from mechint.utils.errors import MechintError
from tests.helpers.examples import examples

needs_native = pytest.mark.skipif("native" not in [k for k, why in scan.available().items() if not why], reason="no C")
SHAPES = st.tuples(*(st.integers(1, most) for most in (3, 7, 3, 9, 19)))  # B, L, H, K, V


def drawn(shape: tuple[int, ...], key_decay: bool, erases: bool, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """decay, key, value, query, initial and, where something is erased, erase and the direction."""
    B, L, H, K, V = shape
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *size: torch.randn(*size, generator=generator, dtype=dtype)
    decay = torch.sigmoid(normal(B, L, H, K) if key_decay else normal(B, L, H))
    keys = torch.nn.functional.normalize(normal(B, L, H, K), dim=-1)
    found = [decay, keys, normal(B, L, H, V), normal(B, L, H, K), normal(B, H, K, V)]
    return [*found, 0.7 * keys, keys.clone()] if erases else found


def writes(tensors: list[Tensor]) -> tuple[Writes, Tensor, Tensor]:
    decay, key, value, query, initial, *erased = tensors
    return Writes(decay, key, value, *erased), query, initial


def by_loops(tensors: list[Tensor]) -> Tensor:
    """The formula, one number after another, in float64."""
    w, query, state = writes([tensor.double() for tensor in tensors])
    read = []
    for t in range(w.key.shape[1]):
        a = w.decay[:, t] if w.decay.dim() == 4 else w.decay[:, t, :, None]
        state = a[..., None] * state
        if w.erase is not None and w.erased is not None:
            gone = torch.einsum("bhk,bhkv->bhv", w.erased[:, t], state)
            state = state - torch.einsum("bhk,bhv->bhkv", w.erase[:, t], gone)
        state = state + torch.einsum("bhk,bhv->bhkv", w.key[:, t], w.value[:, t])
        read.append(torch.einsum("bhk,bhkv->bhv", query[:, t], state))
    return torch.stack(read, 1)


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(shape=SHAPES, key_decay=st.booleans(), erases=st.booleans(), seed=st.integers(0, 99))
@example(shape=(2, 5, 2, 3, 2 * matrix_native.BLOCK + 9), key_decay=False, erases=False, seed=0)
@example(shape=(1, 4, 2, 3, matrix_native.BLOCK + 5), key_decay=True, erases=True, seed=1)
def test_the_scan_is_the_formula(shape: tuple[int, ...], key_decay: bool, erases: bool, seed: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        tensors = drawn(shape, key_decay, erases, dtype, seed)
        w, query, initial = writes(tensors)
        y, last = matrix.matrix_scan(w, query, initial)
        expected = by_loops(tensors)
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
        *_, state = matrix.states(w, initial)
        assert torch.equal(last, state)


@needs_native
@pytest.mark.parametrize("key_decay", [False, True])
@pytest.mark.parametrize("erases", [False, True])
@pytest.mark.parametrize("values", [17, 2 * matrix_native.BLOCK + 11])
def test_the_c_form_has_the_same_bits_whole_in_pieces_and_in_steps(key_decay: bool, erases: bool, values: int) -> None:
    """The columns go through a sequence in blocks, of which the last may be narrow."""
    w, query, initial = writes(drawn((2, 11, 3, 8, values), key_decay, erases, torch.float32))
    assert matrix_native.serves(*w, query, initial)
    y, last = matrix.matrix_scan(w, query, initial)
    cut = lambda x, here: None if x is None else x[:, here]
    first = slice(0, 4), slice(4, 11)
    pieces, state = [], initial
    for here in first:
        piece, state = matrix.matrix_scan(Writes(*(cut(x, here) for x in w)), query[:, here], state)  # type: ignore[arg-type]
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, 1), y) and torch.equal(state, last)
    steps = [matrix.read_at(query, state, t) for t, state in enumerate(matrix.states(w, initial))]
    assert torch.equal(torch.stack(steps, 1), y)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(matrix.matrix_scan(w, query, initial)[0], y)
    finally:
        torch.set_num_threads(threads)


@needs_native
@pytest.mark.parametrize("length", [1, 5, 2 * matrix_native.CHUNK, 2 * matrix_native.CHUNK + 3])
@pytest.mark.parametrize("key_decay", [False, True])
@pytest.mark.parametrize("erases", [False, True])
def test_gradients_of_the_c_form_are_those_of_torch(key_decay: bool, erases: bool, length: int) -> None:
    tensors = drawn((2, length, 3, 4, 6), key_decay, erases, torch.float32)
    slopes = {}
    for name in ("native", "chunked"):
        own = [tensor.clone().requires_grad_() for tensor in tensors]
        w, query, initial = writes(own)
        with scan.using(name):
            y, last = matrix.matrix_scan(w, query, initial)
            whole = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + (last**2).sum()
            *_, state = matrix.states(w, initial)
            whole = whole + state.sum() + (matrix.read_at(query, state, length - 1) ** 3).sum()
        slopes[name] = torch.autograd.grad(whole, own)
    for found, expected in zip(slopes["native"], slopes["chunked"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def chunked_states(w: Writes, initial: Tensor) -> Tensor:
    """The states before each chunk of the gradients in products, [B, H, C, K, V]."""
    length = w.decay.shape[1]
    before = [initial, *matrix.states(w, initial)][: length : matrix_slopes.chunk_of(length)]
    return torch.stack(before, 2)


@settings(max_examples=examples(40), deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (3, 30, 3, 3, 5, 6))), longest=st.integers(1, 9),
    held=st.integers(1, 400), seed=st.integers(0, 99),
)  # fmt: skip
@example(shape=(2, 2 * matrix_slopes.LONGEST + 1, 1, 2, 3, 2), longest=matrix_slopes.LONGEST, held=1 << 20, seed=0)
@example(shape=(3, 23, 2, 2, 3, 4), longest=4, held=100, seed=1)
def test_gradients_in_products_are_those_of_the_formula(
    shape: tuple[int, ...], longest: int, held: int, seed: int
) -> None:
    """In float64, of keys that heads share, over decays of any size and sign, in pieces of any size."""
    B, L, G, E, K, V = shape
    decay, key, value, query, initial = drawn((B, L, G * E, K, V), False, False, torch.float64, seed)
    decay[:, 1::3] = 0.0
    decay[:, 2::5] *= -1.5
    own = [x.requires_grad_() for x in (decay, key[:, :, :G].clone(), value, query[:, :, :G].clone(), initial)]
    decay, key, value, query, initial = own
    each = Writes(decay, each_head(key, G * E), value)
    y, last = matrix.plain_scan(*each, each_head(query, G * E), initial)
    of_y, of_last = torch.sin(torch.arange(y.numel()).view_as(y)).double(), torch.randn_like(last)
    expected = torch.autograd.grad((y * of_y).sum() + (last * of_last).sum(), own)
    with pytest.MonkeyPatch.context() as changed, torch.no_grad():
        changed.setattr(matrix_slopes, "LONGEST", longest)
        changed.setattr(matrix_slopes, "HELD", held)
        before = chunked_states(each, initial)
        found = matrix_slopes.slopes(decay, key, value, query, before, of_y, of_last)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13 * float(1 + other.abs().max()))


@needs_native
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 5, matrix_slopes.LONGEST, 2 * matrix_slopes.LONGEST + 3])
def test_gradients_in_products_are_taken_where_they_pay(
    length: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradients as in C, behind a forward of the same bits; a real size takes them."""
    size = matrix_native.Sizes(1, 1024, 24, 1, 128, 64, own=False, erases=False)
    assert size.by_products and not size._replace(own=True).by_products and not size._replace(erases=True).by_products
    assert not size._replace(L=1).by_products and not size._replace(K=8, V=8).by_products
    decay, key, value, query, initial = drawn((2, length, 4, 6, 5), False, False, torch.float32)
    own = [
        x.requires_grad_() for x in (decay, key[:, :, :groups].clone(), value, query[:, :, :groups].clone(), initial)
    ]
    results = []
    for pays in (False, True):
        monkeypatch.setattr(matrix_slopes, "pays", lambda *sizes, pays=pays: pays)
        calls = counted(monkeypatch)
        decay, key, value, query, initial = own
        y, last = matrix.matrix_scan(Writes(decay, key, value), query, initial)
        whole = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + (last**2).sum()
        results.append((y, last, *torch.autograd.grad(whole, own)))
        assert len(calls) == pays
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    for one, other in zip(results[1][2:], results[0][2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every call of :func:`matrix_slopes.slopes`."""
    calls: list[int] = []
    slopes = matrix_slopes.slopes
    monkeypatch.setattr(matrix_slopes, "slopes", lambda *tensors: (calls.append(1), slopes(*tensors))[1])
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_heads_that_share_keys_and_queries_read_as_if_each_had_its_own(dtype: torch.dtype, groups: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in drawn((2, 9, 6, 4, 5), False, False, dtype)]
    decay, key, value, query, initial = tensors
    shared = lambda x: x[:, :, :groups]
    every = lambda x: shared(x).repeat_interleave(6 // groups, 2)
    found = []
    for each in (shared, every):
        y, last = matrix.matrix_scan(Writes(decay, each(key), value), each(query), initial)
        slopes = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + last.sum(), tensors)
        found.append((y, last, *slopes))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("keys", "queries"), [(4, 4), (2, 3), (5, 6)])
def test_groups_that_do_not_divide_the_heads_are_refused(keys: int, queries: int) -> None:
    decay, key, value, query, initial = drawn((1, 3, 6, 4, 5), False, False, torch.float32)
    with pytest.raises(MechintError, match="the head axis is"):
        matrix.matrix_scan(Writes(decay, key[:, :, :keys], value), query[:, :, :queries], initial)


@settings(max_examples=examples(20), deadline=None, derandomize=True)
@given(shape=SHAPES, key_decay=st.booleans(), erases=st.booleans())
def test_the_map_of_what_is_read_adds_up_to_the_read_out(shape: tuple[int, ...], key_decay: bool, erases: bool) -> None:
    tensors = drawn(shape, key_decay, erases, torch.float64)
    w, query, initial = writes(tensors)
    y, _ = matrix.matrix_scan(w, query, torch.zeros_like(initial))
    read = torch.einsum("bhij,bjhv->bihv", matrix.matrix_map(w, query), w.value)
    torch.testing.assert_close(read, y, rtol=1e-11, atol=1e-11 * float(y.abs().max()) + 1e-300)
