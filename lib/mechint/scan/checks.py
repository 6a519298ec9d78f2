"""Checks the arguments of every scan: shapes that agree, numbers in range, one precision for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.errors import MechintError

Shapes = dict[str, tuple[Tensor | None, tuple[str, ...]]]
"""For each argument the tensor, or None where it was left out, and the names of its axes."""
CHANNELS, SHARED = ("batch", "position", "channel"), ("batch", "position", "state")
RATES, STATE, STATES = ("channel", "state"), ("batch", "channel", "state"), ("batch", "position", "channel", "state")


def check_sizes(name: str, tensors: Shapes, empty: bool = False) -> None:
    """Raises :class:`MechintError` for the first axis that disagrees with an earlier one of its name.

    Or, unless it may be ``empty``, has size 0.
    """
    sizes: dict[str, int] = {}
    for key, (tensor, axes) in tensors.items():
        if tensor is None:
            continue
        shape = tensor.shape
        if len(shape) != len(axes):
            raise MechintError(f"{name}: {key} must be [{', '.join(axes)}]; got shape {list(shape)}")
        for axis, size in zip(axes, shape, strict=True):
            if sizes.setdefault(axis, size) != size or not (size or empty):
                first = next(other for other, (given, names) in tensors.items() if given is not None and axis in names)
                other = f"but {sizes[axis]} in {first}" if size != sizes[axis] else "where at least 1 is needed"
                raise MechintError(f"{name}: the {axis} axis is {size} in {key} {other}")


def check_range(name: str, what: str, numbers: Sequence[int], low: int, high: int) -> list[int]:
    """The numbers, counted from 0; raises :class:`MechintError` for one below ``low`` or not below ``high``."""
    for k in numbers:
        if not low <= k < high:
            raise MechintError(f"{name}: {what} {k} is outside {low} … {high - 1}")
    return [k % high for k in numbers]


def widest(*tensors: Tensor | None) -> torch.dtype:
    """The precision to compute in: float64 where one of them has it, else float32, never half."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def accumulate(tensor: Tensor) -> Tensor:
    """At least float32: sums over positions and the residual stream are never held in half precision."""
    return tensor if tensor.dtype.itemsize > 2 else tensor.float()
