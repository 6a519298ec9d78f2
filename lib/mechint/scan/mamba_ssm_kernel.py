"""The scan of mamba-ssm and the convolution of causal-conv1d, for float32 on a CUDA device that has the packages.

Their kernel begins from no state, gives no gradient of the last state, and adds up the gradients of B and C in an order
that changes from run to run. So it computes forwards alone: what an initial state adds is added by the plain scan, as
the recurrence is linear in its state; and gradients are those of the plain scan.

Importing this module imports neither package.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import chunked
from .trial import check_equal, try_scan

SCAN, SCAN_NAME = "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"
CONVOLUTION, CONVOLUTION_NAME = "causal_conv1d", "causal_conv1d_fn"
DEVICES = ("cuda",)
"""Devices that the packages' kernels run on."""
MOST_STATES = 256
"""States of a channel that the kernel takes."""
TAPS = (2, 3, 4)
"""Widths of the convolution's kernel."""
MULTIPLE = 8
"""Channels of the convolution's kernel come in multiples of this, where neighbours in memory are channels."""


@functools.cache
def kernel() -> Callable[..., Any]:
    """``selective_scan_fn(u, delta, A, B, C, …)`` with positions last."""
    return getattr(importlib.import_module(SCAN), SCAN_NAME)


@functools.cache
def convolution() -> Callable[..., Any] | None:
    """``causal_conv1d_fn(x, weight, bias, initial_states=…)`` with positions last; None where it is not installed."""
    if importlib.util.find_spec(CONVOLUTION) is None:
        return None
    return getattr(importlib.import_module(CONVOLUTION), CONVOLUTION_NAME)


def check() -> None:
    """Runs a small scan, with a state to begin from and with gradients, and a convolution beside plain torch.

    Raises:
        Unavailable: they ran, but not to the same numbers. Where they can't run, they raise errors of many kinds.
    """
    u, dt, A, *_ = try_scan(Scan, 69, 8, DEVICES[0])
    if convolution() is not None:
        memory, weight = dt[:, :3], A.repeat(1, 2)
        plain = (torch.cat([memory, u], 1).unfold(1, 4, 1) * weight).sum(-1)
        check_equal([convolve(u, memory, weight, None)], [plain])


class Scan(torch.autograd.Function):
    """As :func:`mechint.scan.selective.selective_scan`, whose arguments are ours."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> Any:
        ctx.save_for_backward(u, dt, A, B, C, initial)
        if not u.numel() or A.shape[1] > MOST_STATES:
            return chunked.Scan.apply(u, dt, A, B, C, initial)
        last_axis = [x.transpose(1, 2).contiguous() for x in (u, dt, B, C)]  # [batch, …, position]
        y, last = kernel()(*last_axis[:2], A.contiguous(), *last_axis[2:], return_last_state=True)
        y, last = y.transpose(1, 2).contiguous(), last.contiguous()
        if bool(initial.any()):
            more, rest = chunked.Scan.apply(torch.zeros_like(u), dt, A, B, C, initial)
            y, last = y + more, last + rest
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            ends = chunked.Scan.apply(*leaves)
        return torch.autograd.grad(ends, leaves, (grad_y, grad_last))


def convolves(x: Tensor, weight: Tensor) -> bool:
    """True if the package can convolve x [batch, position, channel] with weights [channel, K] like these."""
    fits = weight.shape[1] in TAPS and len(weight) % MULTIPLE == 0 and x.numel() > 0
    return fits and convolution() is not None and not torch.is_grad_enabled()


def convolve(x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`mechint.scan.convolve` by causal-conv1d, without gradients."""
    by_package = convolution()
    assert by_package is not None
    before = memory.expand(len(x), -1, -1).contiguous().transpose(1, 2)  # channels stay next to each other in memory
    found: Tensor = by_package(x.contiguous().transpose(1, 2), weight.contiguous(), bias, initial_states=before)
    return found.transpose(1, 2).contiguous()
