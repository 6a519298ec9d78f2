"""A back end of the scan is tried beside plain torch before it serves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.compiled import Unavailable
from . import chunked


def try_scan(scan: type[torch.autograd.Function], length: int, channels: int, device: str) -> tuple[Tensor, ...]:
    """Runs a small scan, with a state to begin from and with gradients, beside plain torch's.

    Args:
        scan: Its ``apply`` takes u, dt, A, B, C and the initial state, and gives y and the last state.
        length, channels: Sizes of its inputs, which have two rows and two states a channel.

    Returns:
        The inputs u, dt, A, B, C and the initial state, for further trials.

    Raises:
        Unavailable: it gives other numbers.
    """
    g = torch.Generator().manual_seed(0)
    shapes = [(2, length, channels)] * 2 + [(channels, 2)] + [(2, length, 2)] * 2 + [(2, channels, 2)]
    u, dt, A, B, C, h = (torch.randn(shape, generator=g).to(device) for shape in shapes)
    given = (u, dt.exp(), -A.exp(), B, C, h)
    found: list[list[Tensor]] = []
    for each in (scan, chunked.Scan):
        with torch.enable_grad():
            leaves = [x.clone().requires_grad_() for x in given]
            ends = each.apply(*leaves)
            found.append([*ends, *torch.autograd.grad(sum(end.square().sum() for end in ends), leaves)])
    check_equal(*found)
    return given


def check_equal(ours: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """Raises :class:`Unavailable` where a tensor is not plain torch's, within float32's rounding."""
    for one, other in zip(ours, plain, strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.detach().abs().max())):
            raise Unavailable("it gives other numbers than plain torch on this device")
