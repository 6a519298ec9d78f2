"""The scan in Triton against the plain recurrence in float64: on a CUDA device, else in Triton's interpreter.

Triton looks for its interpreter's variable when it is imported, so without a device one test runs this file again in a
process that has it set.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mechint
from mechint import scan
from mechint.scan import recurrence
from mechint.scan.selective import selective_scan
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.scans import inputs, plain, with_gradients

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INSIDE
DEVICE = "cuda" if CUDA else "cpu"
runs_kernels = pytest.mark.skipif(not INSIDE and not CUDA, reason="run by test_in_the_interpreter")
SHAPES = [
    # batch, positions, channels, states; CHUNK, BLOCK_E
    (2, 11, 13, 5, 4, 8),  # blocks and chunks that are not full
    (1, 1, 1, 1, 4, 32),
    (3, 8, 16, 4, 4, 16),  # all full
    (1, 9, 37, 3, 64, 32),
    (1, 13, 5, 17, 5, 4),
    (1, 6, 3, 2, 1, 4),
]


def kernels() -> Any:
    from mechint.scan import triton_kernel

    return triton_kernel


@pytest.fixture
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int, int]:
    """The sizes of one of SHAPES, with its CHUNK and BLOCK_E set."""
    *shape, chunk, block = request.param
    monkeypatch.setattr(kernels(), "CHUNK", chunk)
    monkeypatch.setattr(kernels(), "BLOCK_E", block)
    return tuple(shape)


def narrow(tensors: Any) -> tuple[torch.Tensor, ...]:
    return tuple(x.to(DEVICE, torch.float32) for x in tensors)


def close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    # sums of terms of about 1: where they cancel, as a single number may, what is left keeps their rounding
    error = float((ours.cpu() - exact).abs().max() / exact.abs().max().clamp(min=0.1))
    assert ours.shape == exact.shape
    assert error < (1e-5 if CUDA else 2e-6), error


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    """To the bit in the interpreter, to rounding on a device."""
    if CUDA:
        close(a, b.double().cpu())
    else:
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.skipif(INSIDE or CUDA, reason="the kernels' tests run in this very process")
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@runs_kernels
@pytest.mark.parametrize("sizes", SHAPES, indirect=True)
def test_values_and_gradients_equal_the_recurrence_in_float64(sizes: tuple[int, ...]) -> None:
    args = inputs(*sizes, 7, torch.float64)  # type: ignore[call-arg, arg-type]
    torch.manual_seed(0)
    weights = tuple(torch.randn_like(x) for x in plain(*args))
    with scan.using("triton"):
        ours = with_gradients(selective_scan, narrow(args), narrow(weights))
        alone = selective_scan(*narrow(args))
    assert len(ours) == 8
    for got, reference in zip(ours, with_gradients(plain, args, weights), strict=True):
        close(got, reference)
    for a, b in zip(alone, ours, strict=False):  # without gradients no state is saved, and nothing else changes
        assert torch.equal(a, b)


@runs_kernels
@pytest.mark.parametrize("sizes", SHAPES, indirect=True)
def test_chosen_states(sizes: tuple[int, ...]) -> None:
    args = inputs(*sizes, 3, torch.float64)  # type: ignore[call-arg, arg-type]
    u, dt, A, B, _, initial = args
    length = sizes[1]
    states = recurrence(torch.exp(dt[..., None] * A), (dt * u)[..., None] * B[:, :, None], initial)
    u, dt, A, B, _, initial = narrow(args)
    for positions in ([length - 1], [0], list(range(length)), [length // 2, 0, length // 2]):
        close(kernels().states_at(u, dt, A, B, initial, positions), states[:, positions])
    assert kernels().states_at(u, dt, A, B, initial, []).shape == (sizes[0], 0, *A.shape)
    for positions in ([length], [0, -1]):
        with pytest.raises(MechintError, match=f"of a sequence of {length}"):
            kernels().states_at(u, dt, A, B, initial, positions)


@runs_kernels
@pytest.mark.parametrize("sizes", SHAPES, indirect=True)
def test_the_pieces_are_the_whole(sizes: tuple[int, ...]) -> None:
    u, dt, A, B, C, h = narrow(inputs(*sizes, 3, torch.float32))  # type: ignore[call-arg, arg-type]
    half = sizes[1] // 2
    with scan.using("triton"):
        y, last = selective_scan(u, dt, A, B, C, h)
        states = recurrence(scan.decays(dt, A), (dt * u)[..., None] * B[:, :, None], h)
        same(scan.read_out(states, C), y)
        same(states[:, -1], last)
        same(kernels().states_at(u, dt, A, B, h, [half])[:, 0], states[:, half])
        first, middle = selective_scan(u[:, :half], dt[:, :half], A, B[:, :half], C[:, :half], h)
        second, end = selective_scan(u[:, half:], dt[:, half:], A, B[:, half:], C[:, half:], middle)
        same(torch.cat([first, second], 1), y)
        same(end, last)


@runs_kernels
def test_gradients_of_the_pieces() -> None:
    _, dt, A, _, C, _ = inputs(2, 6, 5, 3, 1, torch.float64)
    states = torch.randn(2, 6, 5, 3, dtype=torch.float64)
    pairs: list[tuple[Any, Any, Any]] = [
        (scan.decays, lambda dt, A: torch.exp(dt[..., None] * A), (dt, A)),
        (scan.read_out, lambda h, C: (h * C[:, :, None]).sum(-1), (states, C)),
    ]
    for function, exact, args in pairs:
        weights = (torch.randn_like(exact(*args)),)
        with scan.using("triton"):
            ours = with_gradients(lambda *x, f=function: (f(*x),), narrow(args), narrow(weights))
        for got, reference in zip(ours, with_gradients(lambda *x, f=exact: (f(*x),), args, weights), strict=True):
            close(got, reference)


@runs_kernels
def test_training_keeps_one_state_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels(), "CHUNK", 4)
    args = [x.requires_grad_() for x in narrow(inputs(2, 18, 4, 3, 1, torch.float32))]
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x)
    with hooks, scan.using("triton"):
        selective_scan(*args)
    assert sum(kept) == sum(x.numel() for x in args[:5]) + 5 * args[5].numel()


@runs_kernels
def test_nan_is_not_hidden_and_stays_in_its_channel() -> None:
    args = narrow(inputs(2, 9, 5, 3, 6, torch.float32))
    args[1][0, 5, 1] = torch.nan
    with scan.using("triton"):
        y, last = selective_scan(*args)
    assert y[0, 5:, 1].isnan().all() and last[0, 1].isnan().all()
    y[0, 5:, 1], last[0, 1] = 0, 0
    assert torch.isfinite(y).all() and torch.isfinite(last).all()


@runs_kernels
def test_a_model_and_its_edits() -> None:
    model, ids = tiny_mamba().to(DEVICE), tokens(2, 7).to(DEVICE)
    with torch.no_grad():
        with scan.using("chunked"):
            exact = model(ids)
        with scan.using("triton"):
            logits = model(ids)
            recorded = mechint.run(model, ids, record=["*"])
            name = "layers.1.state"
            edited = mechint.run(model, ids, edits=[mechint.Edit(name, "replace", recorded[name])]).logits
    close(logits, exact.double().cpu())
    same(recorded.logits, logits)
    same(edited, logits)


@runs_kernels
def test_which_tensors_it_takes() -> None:
    here, wide = torch.zeros(1, device=DEVICE), torch.zeros(1, device=DEVICE, dtype=torch.float64)
    assert scan.available()["triton"] == ""
    assert scan.chosen(torch.zeros(1)) != "triton"  # unless asked for, not on a CPU
    assert (scan.chosen(here) == "triton") == CUDA
    with scan.using("triton"):
        assert scan.chosen(here) == "triton"
        assert scan.chosen(wide) == "chunked"
        assert scan.chosen(torch.zeros(1)) == ("chunked" if CUDA else "triton")
    with scan.using("chunked"):
        assert scan.chosen(here) == "chunked"


@runs_kernels
def test_a_kernel_that_does_not_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no C compiler\nmore")

    monkeypatch.setattr(kernels(), "Scan", SimpleNamespace(apply=fail))
    scan.choice._missing_triton.cache_clear()
    try:
        assert scan.available()["triton"] == "its kernel fails (no C compiler)"
        assert scan.chosen(torch.zeros(1, device=DEVICE)) != "triton"
    finally:
        scan.choice._missing_triton.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(INSIDE, reason="Triton's compiler is not its interpreter")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_device(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes Python that the compiler does not; and no product may be fused with a sum."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    k = kernels()
    integers = {"stop", "L", "E", "N", "chunks", "places", "rows"}
    no_reads = ("C", "y", "last", "boundaries")
    for kernel, missing, ones in [
        (k._forward, ("slots", "marked", "boundaries"), ()),
        (k._forward, ("slots", "marked"), ()),
        (k._forward, no_reads, ()),
        (k._backward, (), ()),
        (k._decays, (), ()),
        (k._reads, (), ()),
        # Triton compiles anew for an integer that is 1.
        (k._forward, ("slots", "marked"), integers),
        (k._backward, (), integers),
    ]:
        names = kernel.arg_names
        constants = {"CHUNK": 64, "BLOCK_E": 32, "BLOCK_N": 16, **dict.fromkeys(missing), **dict.fromkeys(ones, 1)}
        constants = {name: value for name, value in constants.items() if name in names}
        kinds = {name: "i32" if name in integers else "*i32" if name == "slots" else "*fp32" for name in names}
        signature = {**kinds, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        options = {"num_warps": 1, "enable_fp_fusion": False}
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert "fma.rn" not in built.asm["ptx"], kernel.fn.__name__


@pytest.mark.skipif(INSIDE or CUDA, reason="there is one")
def test_without_a_device_a_line_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_device: Any = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for find, reason in ((importlib.util.find_spec, "no CUDA device"), (lambda _: None, "triton is not installed")):
        monkeypatch.setattr(importlib.util, "find_spec", find)
        monkeypatch.setattr(scan.choice, "_told_of_triton", False)
        scan.choice._missing_triton.cache_clear()
        try:
            assert scan.available()["triton"] == reason
            assert scan.chosen(on_device) == scan.chosen(on_device) == "chunked"
            said = f"scan: plain torch in place of the Triton one, because {reason}\n"
            assert capsys.readouterr().err == said
            with pytest.raises(MechintError, match=f"'triton' is not on this machine: {reason}"), scan.using("triton"):
                pass
        finally:
            scan.choice._missing_triton.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(INSIDE, reason="told once, outside")
def test_nothing_is_imported_for_nothing() -> None:
    code = "import sys, mechint; mechint.scan.chosen(); assert 'mechint.scan.triton_kernel' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": "lib"})
