"""A tensor in the wanted precision and place, refused where its numbers are not finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...utils.errors import MechintError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def convert(tensor: Tensor, dtype: torch.dtype, device: torch.device, what: str) -> Tensor:
    """A copy in the wanted precision and place.

    Raises:
        MechintError: the tensor is no tensor of real numbers, has NaN or infinite entries, or overflows ``dtype``.
    """
    if tensor.dtype not in DTYPES.values():
        raise MechintError(
            f"{what} is {str(tensor.dtype).removeprefix('torch.')}; weights are one of {', '.join(DTYPES)}"
        )
    if not is_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise MechintError(
            f"{what} has {bad} NaN or infinite entries of {tensor.numel()}: a diverged training or a damaged file"
        )
    copy = tensor.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
    if copy.dtype.itemsize < tensor.dtype.itemsize and not is_finite(copy):
        raise MechintError(
            f"{what} has entries too large for {str(dtype).removeprefix('torch.')}; load it as bfloat16 or float32"
        )
    return copy


def is_finite(tensor: Tensor) -> bool:
    """True if no entry is NaN or infinite; one pass that allocates nothing."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in torch.stack(torch.aminmax(tensor)).tolist())
