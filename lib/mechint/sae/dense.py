"""A training step of ReLU and JumpReLU with nothing but its five products and as few passes over the latents as can be.

Autograd would keep pre-activations, activations and masks, [batch, d_sae] each, and go over them ten times; here the
activations are all that is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import sparse


class Reconstruct(torch.autograd.Function):
    """f W_dec + b_dec for f = ReLU(x W_enc + b_enc) where it exceeds a threshold, Σ f, and the number of active ones.

    x [batch, d_in] is x − b_dec already, has no gradient itself, and gives b_dec's second one. With a threshold
    [d_sae], its gradients are the kernel estimates of :mod:`mechint.sae.jumprelu`.

    Returns:
        Reconstruction [batch, d_in], Σ f (a scalar; 0 with a threshold), Σ H (a scalar), and in how many rows each
        latent is active, [d_sae] (without a gradient).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, threshold: Tensor | None,
        bandwidth: float,
    ) -> Any:  # fmt: skip
        f = torch.addmm(b_enc, x, W_enc)  # [batch, d_sae]
        at, pre = None, None
        if threshold is None:
            torch.relu_(f)
        elif sparse.usable(f):
            at, pre = sparse.jump(f, threshold.detach().contiguous(), bandwidth / 2)
        else:
            at = ((f - threshold).abs_() < bandwidth / 2).view(-1).nonzero().squeeze(1)  # [near]: few
            pre = f.view(-1)[at]
            torch.relu_(f).mul_(f > threshold)
        ctx.save_for_backward(x, W_enc, W_dec, f, threshold, at, pre)
        ctx.bandwidth = bandwidth
        fired = sparse.fired(f)
        ctx.mark_non_differentiable(fired)
        total = f.sum() if threshold is None else f.new_zeros(())
        return torch.addmm(b_dec, f, W_dec), total, fired.sum().to(f.dtype), fired

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, by_total: Tensor, by_active: Tensor, _: Tensor) -> Any:
        x, W_enc, W_dec, f, threshold, at, pre = ctx.saved_tensors
        d_f = grad @ W_dec.t()  # [batch, d_sae]
        d_threshold = None
        if threshold is None:
            d_f += by_total
        else:
            latent = at % f.shape[1]
            edge = threshold[latent]
            through = torch.where(pre > 0, d_f.view(-1)[at] * edge, 0.0)
            slope = -(through + by_active) / ctx.bandwidth
            d_threshold = torch.zeros_like(threshold).index_add_(0, latent, slope)
        torch.ops.aten.threshold_backward.grad_input(d_f, f, 0, grad_input=d_f)
        d_bias = d_f.sum(0)
        d_enc = d_f.t() @ x  # [d_sae, d_in]
        return None, d_enc.t(), d_bias, f.t() @ grad, grad.sum(0) - W_enc @ d_bias, d_threshold, None
