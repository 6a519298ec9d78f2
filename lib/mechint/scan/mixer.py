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
from torch import Tensor, nn
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


def one_pass(x: Tensor, mixer: nn.Module) -> bool:
    """True if :func:`convolved`, :func:`gated` and :func:`finished` take tensors like x without gradients."""
    if chosen(x) != "native":
        return False
    return not torch.is_grad_enabled() or not (x.requires_grad or any(p.requires_grad for p in mixer.parameters()))


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


def gated_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, norm_first: bool) -> Tensor:
    """The RMS norm of each group of y ⊙ gate, or of y and then ⊙ gate.

    Args:
        y, gate: [..., channel], in at least float32; the gate is behind its activation.
        weight: [channel].
        eps: Added to the mean square.
        groups: Groups of neighbouring channels that are normed apart.
        norm_first: True if the gate multiplies what the norm gives.

    Returns:
        [..., channel].
    """
    if chosen(y) == chosen(gate) == chosen(weight) == "native":
        return _GatedNorm.apply(y, gate, weight, eps, groups, norm_first)
    return plain_gated_norm(y, gate, weight, eps, groups, norm_first)


def plain_gated_norm(y: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, norm_first: bool) -> Tensor:
    """:func:`gated_norm` in torch."""
    wide = y if norm_first else y * gate
    parts = wide.unflatten(-1, (groups, -1))
    normed = weight * (parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    return normed * gate if norm_first else normed


def finished(y: Tensor, u: Tensor, skip: Tensor, z: Tensor, norm: tuple[Tensor, float, int, bool] | None) -> Tensor:
    """(y + skip ⊙ u) ⊙ SiLU(z), normed, in one pass without gradients.

    Args:
        y, u, z: [batch, position, channel]; u and z may be slices of wider tensors.
        skip: [channel].
        norm: Weight, eps, groups and norm_first of :func:`gated_norm`; None where there is no norm.
    """
    shape, channels = y.shape, y.shape[-1]
    weight, eps, groups, norm_first = norm or (skip, 0.0, 1, False)
    order = 0 if norm is None else 2 if norm_first else 1
    rows = lambda x: _spaced(x).as_strided((len(x) * x.shape[1], channels), (x.stride(1), 1), x.storage_offset())
    u, z = _spaced(u), _spaced(z)
    return native.finish(
        y.reshape(-1, channels), rows(u), skip, rows(z), weight, eps, channels // groups, True, order
    ).view(shape)


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


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, norm_first: bool) -> Tensor:
        ctx.save_for_backward(y, gate, weight)
        ctx.rest = eps, groups, norm_first
        channels = y.shape[-1]
        rows = (x.reshape(-1, channels).contiguous() for x in (y, gate))
        order = 2 if norm_first else 1
        return native.finish(next(rows), None, None, next(rows), weight, eps, channels // groups, False, order).view(
            y.shape
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        asked = zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        tensors = [x.detach().requires_grad_(wanted) for x, wanted in asked]
        with torch.enable_grad():
            out = plain_gated_norm(*tensors, *ctx.rest)
        found = iter(torch.autograd.grad(out, [x for x in tensors if x.requires_grad], grad))
        return *(next(found) if x.requires_grad else None for x in tensors), None, None, None


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
