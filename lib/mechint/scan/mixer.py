"""The elementwise parts of a mixer around its scan, and all of them in one pass where no site inside is asked for.

A forward at which no site inside a mixer is recorded or edited spends as long on temporaries as on the scan. In float32
on a CPU the convolution with its SiLU is then one pass (:func:`convolved`), and so is the scan with the softplus before
it and the skip and the gate behind it (:func:`gated`). Step by step come the same operations on the same numbers, hence
the same bits. Elsewhere the steps are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..utils.compiled import plain
from . import mamba_ssm_kernel, native
from .choice import chosen


def silu(x: Tensor) -> Tensor:
    """x σ(x)."""
    return _Elementwise.apply(x, "silu") if chosen(x) == "native" else F.silu(x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return _Elementwise.apply(x, "softplus") if chosen(x) == "native" else F.softplus(x)


def convolve(x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """c_t = b + Σ_k w[:, k] ⊙ x_{t-K+1+k}: causal and depthwise, in a fixed order: the same bits at any L.

    Args:
        x: [batch, position, channel].
        memory: The K - 1 inputs before, oldest first, [batch, K - 1, channel].
        weight: [channel, K]; the last tap is the current position's.
        bias: [channel], or None.

    Returns:
        [batch, position, channel].
    """
    if chosen(x) == "native":
        return _Convolution.apply(x, memory, weight, bias)
    if chosen(x) == "mamba_ssm" and mamba_ssm_kernel.convolves(x, weight):
        return mamba_ssm_kernel.convolve(x, memory, weight, bias)
    whole, K = torch.cat([memory, x], 1), weight.shape[1]
    conv = whole[:, : x.shape[1]] * weight[:, 0] if bias is None else bias + whole[:, : x.shape[1]] * weight[:, 0]
    for k in range(1, K):
        conv = torch.addcmul(conv, whole[:, k : k + x.shape[1]], weight[:, k])
    return conv


def one_pass(x: Tensor) -> bool:
    """True if :func:`convolved` and :func:`gated` can take tensors like this one."""
    return chosen(x) == "native"


def convolved(x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of :func:`convolve` in one pass, without gradients; a shorter memory serves the batch in turn."""
    return _convolve(x, memory, weight, bias, True)


def gated(
    u: Tensor, low: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, initial: Tensor, go_on: bool
) -> tuple[Tensor, Tensor | None]:
    """(scan(u, softplus(low), A, B, C) + D ⊙ u) ⊙ SiLU(z) in one pass, without gradients.

    Args:
        u, low: Input of the scan, and what the step size is the softplus of, [batch, position, channel].
        A, B, C: As in :func:`mechint.scan.selective.selective_scan`.
        D: [channel].
        z: [batch, position, channel]; may be half of a wider tensor.
        initial: [rows, channel, state]; fewer rows than the batch has serve it in turn.
        go_on: True if the last state is wanted.

    Returns:
        [batch, position, channel], and the last state [batch, channel, state] or None.
    """
    u, low, B, C, D, initial = (x.contiguous() for x in (u, low, B, C, D, initial))
    z = _spaced(z)
    y = torch.empty_like(u)
    last = u.new_empty(len(u), *A.shape) if go_on else None
    native.forward(u, low, A, B, C, initial, D, z, y, last, None)
    return y, last


def _spaced(x: Tensor) -> Tensor:
    """x whose rows are a whole number of equally spaced positions: of a slice of channels as it is, else a copy."""
    x = plain(x)
    fits = x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1)
    return x if fits else x.contiguous()


def _neighbours(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Both with neighbouring channels, and the memory with neighbouring positions."""
    x, memory = plain(x), plain(memory)
    fits = memory.stride(2) == 1 and memory.stride(1) == memory.shape[2]
    return x if x.stride(2) == 1 else x.contiguous(), memory if fits else memory.contiguous()


def _convolve(x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    x, memory = _neighbours(x, memory)
    out = x.new_empty(x.shape)
    native.convolve(x, memory, weight.t().contiguous(), bias, out, activate)
    return out


class _Elementwise(torch.autograd.Function):
    """``silu`` or ``softplus``, by name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.name = name
        return native.elementwise(f"mix_{name}", x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return (torch.ops.aten.silu_backward(grad, x) if ctx.name == "silu" else grad * x.sigmoid()), None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, memory, weight)
        ctx.biased = bias is not None
        return _convolve(x, memory, weight, bias, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, memory, weight = ctx.saved_tensors
        x, memory = _neighbours(x, memory)
        d_x, d_memory, d_weight, d_bias = native.convolve_back(grad.contiguous(), x, memory, weight.t().contiguous())
        return d_x, d_memory, d_weight.t(), d_bias if ctx.biased else None
