"""The back end of mamba-ssm: against plain torch on a GPU that has it, and its dispatch with stand-ins elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mechint
from mechint import scan
from mechint.scan import choice, mamba_ssm_kernel
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_mamba, tokens
from tests.helpers.scans import inputs, with_gradients

STAND_IN = '''
"""What the packages' functions compute, by their documented arguments; calls are counted."""
import torch
CALLS = []

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):
    CALLS.append("scan")
    assert u.shape == delta.shape and u.shape[1] == len(A) and B.shape[1] == A.shape[1] and B.shape[2] == u.shape[2]
    h, ys = u.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        ys.append((h * C[:, None, :, t]).sum(-1))
    y = torch.stack(ys, 2) * FACTOR
    return (y, h) if return_last_state else y

def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None):
    CALLS.append("convolution")
    assert x.stride(1) == 1 and initial_states.stride(1) == 1 and x.shape[1] % 8 == 0
    whole = torch.cat([initial_states, x], 2)
    y = (whole.unfold(2, weight.shape[1], 1) * weight[:, None]).sum(-1)
    return y if bias is None else y + bias[:, None]
'''


CACHED = (choice._missing_mamba_ssm, mamba_ssm_kernel.kernel, mamba_ssm_kernel.convolution)


def given(batch: int, length: int, channels: int, states: int, begun: bool = True) -> tuple[torch.Tensor, ...]:
    """Arguments of a scan in float32; not ``begun`` from a state where that is to be zero."""
    *rest, initial = inputs(batch, length, channels, states, 0, torch.float32)
    return (*rest, initial if begun else torch.zeros_like(initial))


def ends(arguments: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Both results of a scan, and the gradients of what stands on both."""
    weights = tuple(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x) for x in
                    scan.selective_scan(*arguments))  # fmt: skip
    return with_gradients(scan.selective_scan, arguments, weights)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Stand-ins of both packages that run on the CPU; the calls that they got."""
    factor = getattr(request, "param", 1.0)
    for name in ("mamba_ssm/ops/selective_scan_interface.py", "causal_conv1d/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN + f"FACTOR = {factor}\n")
    for folder in ("mamba_ssm", "mamba_ssm/ops"):
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(mamba_ssm_kernel, "DEVICES", ("cpu",))
    forget()
    importlib.invalidate_caches()
    calls: list[str] = []
    for name in ("mamba_ssm.ops.selective_scan_interface", "causal_conv1d"):
        importlib.import_module(name).CALLS = calls
    scan.available()  # the back end's own check
    calls.clear()
    yield calls
    forget()


def forget() -> None:
    for cached in CACHED:
        cached.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mamba_ssm", "causal_conv1d")]:
        del sys.modules[name]


@pytest.mark.parametrize("begun", [False, True])
def test_the_scan_and_its_gradients_are_ours(installed: list[str], begun: bool) -> None:
    arguments = given(2, 9, 8, 3, begun)
    with scan.using("chunked"):
        expected = ends(arguments)
    with scan.using("mamba_ssm"):
        found = ends(arguments)
    assert installed == ["scan", "scan"]
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_a_whole_model_runs_by_both_packages(installed: list[str]) -> None:
    model = tiny_mamba(d_model=8, d_inner=16, d_conv=4)
    with scan.using("chunked"):
        expected = model(tokens(2, 7))
    with scan.using("mamba_ssm"), torch.no_grad():
        assert scan.chosen() == "mamba_ssm"
        found = mechint.run(model, tokens(2, 7)).logits
    assert installed.count("scan") == installed.count("convolution") == model.num_layers
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_the_packages_cannot_take_is_computed_all_the_same(installed: list[str]) -> None:
    with scan.using("mamba_ssm"):
        y, last = scan.selective_scan(*given(2, 0, 8, 3))
        assert y.shape == (2, 0, 8) and last.shape == (2, 8, 3)
        scan.selective_scan(*(x.double() for x in given(2, 5, 8, 3)))
        x, memory = torch.randn(1, 5, 6), torch.randn(1, 3, 6)
        scan.convolve(x, memory, torch.randn(6, 4), None)  # channels that are no multiple of 8
        assert installed == []


@pytest.mark.parametrize("installed", [1.01], indirect=True)
def test_a_kernel_that_gives_other_numbers_serves_nobody(installed: list[str]) -> None:
    assert "other numbers than plain torch" in scan.available()["mamba_ssm"]
    with pytest.raises(MechintError, match="'mamba_ssm' is not on this machine"), scan.using("mamba_ssm"):
        pass


def test_it_stands_in_for_triton_where_that_is_missing(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "USUAL", {"cpu": ("triton", "Triton")})
    monkeypatch.setattr(choice, "_missing_triton", lambda: "triton is not installed")
    assert scan.chosen() == "mamba_ssm"
    monkeypatch.setattr(choice, "_missing_mamba_ssm", lambda: "mamba-ssm is not installed")
    assert scan.chosen() == "chunked"


@pytest.mark.skipif(importlib.util.find_spec("mamba_ssm") is not None, reason="mamba-ssm is installed")
def test_without_the_package_it_is_named() -> None:
    assert scan.available()["mamba_ssm"] == "mamba-ssm is not installed"


@pytest.mark.skipif(bool(scan.available()["mamba_ssm"]), reason="no CUDA device with mamba-ssm")
@pytest.mark.parametrize("begun", [False, True])
def test_on_a_gpu_against_plain_torch(begun: bool) -> None:
    arguments = tuple(x.cuda() for x in given(3, 70, 16, 16, begun))
    with scan.using("chunked"):
        expected = ends(arguments)
    with scan.using("mamba_ssm"):
        found = ends(arguments)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
