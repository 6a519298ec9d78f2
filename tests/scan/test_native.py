"""Arrays handed to C: any layout, size and value gives the right numbers or one line, and never leaves its memory.

``test_under_sanitizers`` runs this file and the other tests of C code once more, compiled with AddressSanitizer and
UBSan, in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechint import scan
from mechint.sae import sparse
from mechint.sae.base import Step
from mechint.sae.topk import top
from mechint.scan import matrix, matrix_native, native
from mechint.scan.matrix import Writes, matrix_scan
from mechint.scan.selective import selective_scan
from mechint.utils import compiled
from mechint.utils.compiled import Arguments, reads, steps_through, writes
from mechint.utils.errors import MechintError
from tests.helpers.paths import ROOT
from tests.helpers.sae import inputs as activations
from tests.helpers.sae import small
from tests.helpers.scans import drawn, inputs

INSIDE = bool(os.environ.get("MECHINT_SANITIZED"))
pytestmark = pytest.mark.skipif(bool(scan.available()["native"]), reason="no C compiler")
MANY = 80 if INSIDE else 30
"""Examples of each property: more where every access to memory is checked."""


def among_nan(x: Tensor) -> Tensor:
    """x as a slice of a wider tensor whose other numbers are none."""
    beside = torch.full_like(x, torch.nan)
    return torch.cat([beside, x, beside], -1)[..., x.shape[-1] : 2 * x.shape[-1]]


def expanded(x: Tensor, axis: int) -> Tensor:
    """x with its first slice along an axis in place of the others, in the memory of one."""
    return x.narrow(axis, 0, min(1, x.shape[axis])).expand(x.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "every other": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "a slice": among_nan,
    "first axis expanded": lambda x: expanded(x, 0),
    "last axis expanded": lambda x: expanded(x, -1),
    "one number": lambda x: expanded(expanded(expanded(x, 0), 1), -1),
    "negated": lambda x: torch.imag(torch.complex(torch.zeros_like(x), -x).conj()),
}
laid_out = st.sampled_from(sorted(LAYOUTS))


def at_an_odd_byte(x: Tensor) -> Tensor:
    """A copy of x at an address that is no multiple of its numbers' size."""
    held = bytearray(b"\0") + x.contiguous().numpy().tobytes()
    return torch.frombuffer(held, dtype=torch.float32, offset=1).view(x.shape)


def agree(ours: list[Tensor], exact: list[Tensor], least: float = 1e-4) -> None:
    for got, expected in zip(ours, exact, strict=True):
        assert got.shape == expected.shape
        scale = 1 + float(expected.detach().abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=least * scale)


def results(function: Any, leaves: list[Tensor], layouts: tuple[str, ...], weights: tuple[str, ...]) -> list[Tensor]:
    """Returns a function's results for arguments in these layouts, and the gradients through the layouts."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    out = function(*(LAYOUTS[layout](x) for layout, x in zip(layouts, leaves, strict=True)))
    grads = [LAYOUTS[w](drawn(*o.shape, seed=k).to(o.dtype)) for k, (w, o) in enumerate(zip(weights, out, strict=True))]
    found = torch.autograd.grad(out, leaves, grads, allow_unused=True)
    return [*out, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True))]


def reference(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, of no position too."""
    read = []
    for t in range(u.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt * u)[:, t, :, None] * B[:, t, None]
        read.append((state * C[:, t, None]).sum(-1))
    return torch.stack(read, 1) if read else u * 0, state


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(0, 20), st.integers(0, 6), st.integers(0, 99)),
    layouts=st.tuples(*[laid_out] * 6),
    weights=st.tuples(laid_out, laid_out),
)
@example(
    shape=(2, 5, 64, 16, 0), layouts=("plain",) * 2 + ("first axis expanded",) + ("plain",) * 3, weights=("plain",) * 2
)
@example(shape=(2, 0, 9, 3, 0), layouts=("plain",) * 6, weights=("plain",) * 2)
@settings(max_examples=MANY, deadline=None)
def test_the_scan_takes_any_layout_and_size(
    shape: tuple[int, ...], layouts: tuple[str, ...], weights: tuple[str, ...]
) -> None:
    """Values and gradients of the recurrence in float64."""
    args = [x.float() for x in inputs(*shape, torch.float64)]  # type: ignore[arg-type]
    with scan.using("native"):
        ours = results(selective_scan, args, layouts, weights)
    agree(ours, results(reference, [x.double() for x in args], layouts, weights))


def test_an_expanded_rate_has_its_gradient() -> None:
    """Every channel with the rates −1 … −16, in the memory of one channel's."""
    u, dt, _, B, C, _ = inputs(2, 6, 64, 16, 0, torch.float32)
    row = -torch.arange(1.0, 17)
    found = []
    for dtype, function in ((torch.float32, selective_scan), (torch.float64, reference)):
        leaf = row.to(dtype).requires_grad_()
        args = [x.to(dtype) for x in (u, dt)] + [leaf.expand(64, 16)] + [x.to(dtype) for x in (B, C)]
        y, _ = function(*args, torch.zeros(2, 64, 16, dtype=dtype))
        found.append(torch.autograd.grad(y.square().sum(), leaf)[0])
    assert found[0].isfinite().all()
    agree(found[:1], found[1:])


@given(
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 19), st.integers(1, 5)),
    layouts=st.tuples(*[laid_out] * 3),
    weight=laid_out,
)
@settings(max_examples=MANY, deadline=None)
def test_the_convolution_takes_any_layout_and_size(
    sizes: tuple[int, ...], layouts: tuple[str, ...], weight: str
) -> None:
    batch, length, channels, taps = sizes
    shapes = [(batch, length, channels), (batch, taps - 1, channels), (channels, taps)]
    args = [drawn(*shape, seed=k) for k, shape in enumerate(shapes)]

    def convolve(x: Tensor, memory: Tensor, weight: Tensor) -> tuple[Tensor]:
        return (scan.convolve(x, memory, weight, None),)

    agree(
        results(convolve, args, layouts, (weight,)),
        results(convolve, [x.double() for x in args], layouts, (weight,)),  # float64 is torch's
    )


@given(
    sizes=st.lists(st.integers(0, 9), min_size=2, max_size=4),
    layout=laid_out,
    part=st.sampled_from(["silu", "softplus"]),
)
@settings(max_examples=MANY, deadline=None)
def test_elementwise_parts_take_any_layout_and_size(sizes: list[int], layout: str, part: str) -> None:
    x, function = drawn(*sizes), getattr(scan, part)
    ours, exact = ([function(LAYOUTS[layout](y))] for y in (x, x.double()))
    agree(ours, exact)


@given(
    sizes=st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 19), st.integers(0, 5)),
    layouts=st.tuples(laid_out, laid_out),
)
@settings(max_examples=MANY, deadline=None)
def test_decays_and_read_outs_take_any_layout_and_size(sizes: tuple[int, ...], layouts: tuple[str, ...]) -> None:
    batch, length, channels, states = sizes
    rates, steps = -drawn(channels, states).exp(), drawn(batch, length, channels).exp()
    held, C = drawn(batch, length, channels, states), drawn(batch, length, states)
    for function, args in ((scan.decays, [steps, rates]), (scan.read_out, [held, C])):
        both = [
            results(lambda *x, f=function: (f(*x),), [x.to(dtype) for x in args], layouts, ("plain",))
            for dtype in (torch.float32, torch.float64)
        ]
        agree(*both)


@given(rows=st.integers(1, 9), layout=laid_out, seed=st.integers(0, 99))
@settings(max_examples=MANY, deadline=None)
def test_one_pass_takes_any_layout(rows: int, layout: str, seed: int) -> None:
    u, dt, A, B, C, h = inputs(2, rows, 9, 3, seed, torch.float32)
    z, D = drawn(2, rows, 9, seed=seed), drawn(9, seed=seed)
    args = [LAYOUTS[layout](x) if x.dim() > 1 else x for x in (u, dt, A, B, C, D, z, h)]
    ours = scan.gated(*args, True)  # type: ignore[arg-type, call-arg]
    u, low, A, B, C, D, z, h = (x.double() for x in args)
    y, last = reference(u, torch.nn.functional.softplus(low), A, B, C, h)
    agree([*ours], [(y + D * u) * torch.nn.functional.silu(z), last])  # type: ignore[list-item]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("where", range(6))
def test_the_scan_ends_on_any_value(value: float, where: int) -> None:
    args = [x.clone() for x in inputs(2, 9, 5, 3, 0, torch.float32)]
    args[where].view(-1)[1::7] = value
    with scan.using("native"):
        y, _ = results(lambda *x: selective_scan(*x), args, ("plain",) * 6, ("plain",) * 2)[:2]
    assert y.shape == (2, 9, 5)
    if value != value:
        assert y.isnan().any()


def test_what_is_not_aligned_is_copied() -> None:
    args = inputs(2, 9, 5, 3, 0, torch.float32)
    with scan.using("native"):
        assert torch.equal(selective_scan(*map(at_an_odd_byte, args))[0], selective_scan(*args)[0])
    assert torch.equal(scan.silu(at_an_odd_byte(args[0])), scan.silu(args[0]))


def test_a_memory_of_no_rows_is_one_line() -> None:
    u, dt, A, B, C, h = inputs(2, 9, 5, 3, 0, torch.float32)
    with pytest.raises(MechintError, match="initial has no row for a batch of 2"):
        scan.gated(u, dt, A, B, C, drawn(5), u, h[:0], True)
    with pytest.raises(MechintError, match="a memory of 0 rows for a batch of 2"):
        scan.convolved(u, drawn(0, 3, 5), drawn(5, 4), None)
    with pytest.raises(MechintError, match="the memory has 1 rows for a batch of 2"):
        scan.convolve(u.requires_grad_(), drawn(1, 3, 5), drawn(5, 4), None).sum().backward()
    with pytest.raises(MechintError, match=r"memory must be float32 .* got float64"):
        scan.convolve(u.detach(), drawn(2, 3, 5).double(), drawn(5, 4), None)
    with pytest.raises(MechintError, match=r"mix_conv: bias must be float32 \[5\]"):
        scan.convolve(u.detach(), drawn(2, 3, 5), drawn(5, 4), drawn(6))


# --- the sparse step of dictionaries ---------------------------------------------------------------------------------

VALUES = st.sampled_from([0.0, 1.0, -1.0, 3.4e38, -3.4e38, float("inf"), -float("inf"), float("nan"), 1e-45])


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 200),
    k=st.integers(1, 20),
    odd=st.lists(st.tuples(st.integers(0, 10**6), VALUES), max_size=300),
    guess=st.sampled_from([-1.0, 0.0, 0.5, float("inf"), float("nan"), 3e38]),
    seed=st.integers(0, 99),
)
@example(rows=4, width=64, k=2, odd=[(i, float("inf")) for i in range(256)], guess=-1.0, seed=0)
@example(rows=4, width=64, k=2, odd=[(i, float("nan")) for i in range(256)], guess=-1.0, seed=0)
@example(rows=4, width=64, k=2, odd=[(0, float("inf"))], guess=float("inf"), seed=0)
@settings(max_examples=MANY, deadline=None)
def test_searches_for_the_largest_latents_end_on_any_value(
    rows: int, width: int, k: int, odd: list[tuple[int, float]], guess: float, seed: int
) -> None:
    """And find what the dense search finds; what is not a number is larger than all, so that a loss shows it."""
    k, pre = min(k, width), drawn(rows, width, seed=seed)
    for place, value in odd:
        pre.view(-1)[place % pre.numel()] = value
    x = torch.ones(rows, 1)

    def given_pre(*_: Any) -> Any:
        yield 0, pre

    patch = pytest.MonkeyPatch()
    patch.setattr(sparse, "chunks", given_pre)
    try:
        found = sparse.top_codes(x, torch.zeros(1, width), torch.zeros(width), k)
        first = sparse.codes_above(x, torch.zeros(1, width), torch.zeros(width), 0.5)
        patch.setattr(torch, "addmm", lambda *_, **__: pre[: sparse.MIN_ROWS])
        most, least = sparse.batch_codes(x, torch.zeros(1, width), torch.zeros(width), k, guess)
    finally:
        patch.undo()
    dense = dense_of(found, rows, width)
    torch.testing.assert_close(
        dense.nan_to_num(5e38, 4e38).sort(-1).values, top(pre, k).nan_to_num(5e38, 4e38).sort(-1).values, rtol=0, atol=0
    )
    above = (pre > 0.5) | pre.isnan()
    assert torch.equal(dense_of(first, rows, width).isnan() | (dense_of(first, rows, width) > 0), above)
    positive = torch.relu(pre)
    order = positive.flatten().topk(min(k * rows, pre.numel())).values
    if not order.isnan().any():
        assert float(least) == float(order.min())
        expected = positive * (positive >= least)
        assert torch.equal(
            dense_of(most, rows, width), torch.where(positive >= least, expected.nan_to_num(0, torch.inf), 0.0)
        )
    elif bool((order > 0).any()) or order.isnan().any():
        assert most.values.isnan().any()


def dense_of(found: sparse.Codes, rows: int, width: int) -> Tensor:
    sparse.check_codes(found, rows, width)
    return torch.zeros(rows, width).index_put((found.rows, found.at.long()), found.values)


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "jumprelu"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "x"])
def test_a_step_on_what_is_no_number_ends_and_shows_it(architecture: str, value: float, name: str) -> None:
    made, x = small(architecture, 12, 40, 5), activations(30, 12)
    with torch.no_grad():
        where = x if name == "x" else getattr(made, name)
        where[..., 7] = value  # of W_enc and b_enc one latent, of W_dec one number of each latent
    loss = made.loss(x, Step())
    loss.total.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in made.parameters() if p.grad is not None])
    assert not norm.isfinite()


def test_an_empty_batch() -> None:
    W, b = drawn(6, 10), drawn(10)
    assert len(sparse.top_codes(drawn(0, 6), W, b, 3).values) == 0
    assert len(sparse.codes_above(drawn(0, 6), W, b, 0.5).values) == 0
    with pytest.raises(MechintError, match="a batch without rows"):
        sparse.batch_codes(drawn(0, 6), W, b, 3, 0.5)
    at, values = sparse.jump(drawn(0, 10), b, 0.1)
    assert len(at) == len(values) == 0
    assert sparse.fired(drawn(0, 10)).tolist() == [0] * 10


@given(layout=laid_out, seed=st.integers(0, 99))
@settings(max_examples=MANY, deadline=None)
def test_the_sparse_step_takes_any_layout(layout: str, seed: int) -> None:
    x, W_enc, W_dec, b = drawn(20, 6, seed=seed), drawn(6, 30, seed=seed), drawn(30, 6, seed=seed), drawn(6, seed=seed)
    found = sparse.top_codes(LAYOUTS[layout](x), LAYOUTS[layout](W_enc), drawn(30), 4)
    f = dense_of(found, 20, 30).double()

    def ours(W_dec: Tensor) -> tuple[Tensor]:
        return (sparse.Reconstruct.apply(LAYOUTS[layout](x), LAYOUTS[layout](W_enc), drawn(30), W_dec, b, found),)

    def exact(W_dec: Tensor) -> tuple[Tensor]:
        return (f @ W_dec + b,)

    agree(results(ours, [W_dec], (layout,), (layout,)), results(exact, [W_dec.double()], (layout,), (layout,)))


def test_codes_that_do_not_fit_are_one_line() -> None:
    x, W_enc, W_dec, b = drawn(4, 6), drawn(6, 10), drawn(10, 6), drawn(6)
    found = sparse.top_codes(x, W_enc, drawn(10), 3)
    for bad, message in [
        (found._replace(at=found.at + 10), "name a latent"),
        (found._replace(at=found.at - 11), "name a latent -"),
        (found._replace(rows=found.rows + 4), "name a row"),
        (found._replace(start=found.start[:-1]), "codes of 3 rows"),
        (found._replace(start=found.start.flip(0)), "codes of 4 rows"),
        (found._replace(values=found.values[1:]), "values for a batch of 4"),
        (found._replace(at=found.at.long()), "at must be int32"),
    ]:
        with pytest.raises(MechintError, match=message):
            sparse.Reconstruct.apply(x, W_enc, drawn(10), W_dec, b, bad)


# --- the one place where C is called ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_one_line_that_names_it() -> None:
    x = drawn(3, 4)
    bad: list[tuple[str, Any]] = [
        (r"f: x must be float32 \[3, 4\] on cpu; got float64 \[3, 4\]", reads(x.double(), 3, 4)),
        (r"got float32 \[4, 3\] on cpu", reads(x.t(), 3, 4)),
        (r"got float32 \[3, 4\] on meta", reads(x.to("meta"), 3, 4)),
        (r"got float32 \[3, 4\] on cpu", reads(x.to_sparse(), 3, 4)),
        ("laid out with strides", writes(x.t().contiguous().t(), 3, 4)),
        ("laid out with strides", writes(x[:1].expand(3, 4), 3, 4)),
        ("laid out with strides", steps_through(x[:, ::2], (4, 1), 3, 2)),
        ("x is -1; at least 0", -1),
    ]
    for message, argument in bad:
        with pytest.raises(MechintError, match=message):
            compiled.call(None, "f", {"x": argument}, 1)


def prototypes() -> dict[str, list[str]]:
    """For each function of the C files that others call the names of its parameters."""
    text = "\n".join(source.read_text() for source in (native.SOURCE, sparse.SOURCE, matrix_native.SOURCE))
    found = re.findall(r"^void (\w+)\(([^)]*)\)", text, re.MULTILINE)
    return {name: [part.split()[-1].lstrip("*") for part in parameters.split(",")] for name, parameters in found}


def test_arguments_have_the_names_and_the_order_of_c(monkeypatch: pytest.MonkeyPatch) -> None:
    names, seen = prototypes(), set()

    def check(
        library: Any, name: str, arguments: Arguments, pieces: Any, threads: int = 1, scratch: Any = None
    ) -> None:
        behind = len(names[name]) - len(arguments)
        assert list(arguments) == names[name][: len(arguments)], name
        assert behind == (0 if pieces is None else 2 + (scratch is not None)), name
        seen.add(name)
        real(library, name, arguments, pieces, threads, scratch)

    real = compiled.call
    monkeypatch.setattr(native, "call", check)
    monkeypatch.setattr(sparse, "call", check)
    monkeypatch.setattr(matrix_native, "call", check)
    args = [x.requires_grad_() for x in inputs(2, 9, 5, 3, 0, torch.float32)]
    y, _ = selective_scan(*args)
    decay = scan.decays(args[1], args[2])
    loss = y.sum() + decay.sum() + scan.read_out(decay, args[4]).sum() + scan.silu(y).sum() + scan.softplus(y).sum()
    (loss + scan.convolve(y, drawn(2, 2, 5), drawn(5, 3).requires_grad_(), None).sum()).backward()
    normed = y.detach().requires_grad_()
    scan.gated_norm(normed, normed, drawn(5), 1e-5, 1, True).sum().backward()
    key, initial = drawn(1, 3, 2, 4).requires_grad_(), drawn(1, 2, 4, 3)
    w = Writes(drawn(1, 3, 2), key, drawn(1, 3, 2, 3), key, key)
    matrix_scan(w, key, initial)[0].sum().backward()
    *_, state = matrix.states(w, initial)
    matrix.read_at(key, state, 0)
    for architecture in ("topk", "batch_topk", "jumprelu"):
        small(architecture, 12, 40, 5).loss(activations(30, 12), Step()).total.backward()
    assert seen == set(names)


@pytest.mark.exhaustive
@pytest.mark.skipif(INSIDE, reason="it runs in here")
def test_under_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or "gcc"
    try:
        where = [compiler, "-print-file-name=libasan.so"]
        asan = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no gcc")
    if not Path(asan).is_absolute():
        pytest.skip("gcc has no libasan here")
    checks = "-g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
    env = {
        **os.environ,
        "CC": f"{compiler} {checks}",
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": f"{asan} libstdc++.so.6",  # without it no exception of C++ is caught
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        "MECHINT_SANITIZED": "1",
        "PYTHONPATH": str(ROOT / "lib"),
    }
    files = [
        "tests/scan/test_native.py",
        "tests/scan/test_scan.py",
        "tests/scan/test_mixer.py",
        "tests/sae/test_architectures.py",
        "tests/utils/test_compiled.py",
    ]
    chosen = "not memory_of and not long_sequence and not missing_one and not without_a_compiler"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-s",
        "-p",
        "no:cacheprovider",
        "-k",
        chosen,
        *files,
    ]  # -s: they say it there
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[:4000]
    print(f"under sanitizers: {done.stdout.splitlines()[-1]}")
    assert list(tmp_path.rglob("scan-*.so")) and list(tmp_path.rglob("sae-*.so"))
