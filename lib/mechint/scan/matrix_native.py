"""Matrix memories in C, for float32 on a CPU: the same bits whole, in pieces, and one step after another.

Gradients are those of the plain torch recurrence on the same numbers, made when they are asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..utils.compiled import Arguments, Unavailable, call, compile_library, reads, writes
from .choice import chosen

SOURCE = Path(__file__).with_name("matrix.c")
SMALL = 1 << 16
"""State updates below which threads cost more than they save."""

Plain = Callable[..., Any]
"""The torch function whose gradients are taken: of the same tensors, to the same results."""


@functools.cache
def library() -> Any:
    """The compiled library, from the cache or from a compiler.

    Raises:
        Unavailable: no compiler, or it could not compile or write.
    """
    return compile_library(SOURCE)


def serves(*tensors: Tensor | None) -> bool:
    """True if the native back end computes tensors like these, and its library is there."""
    if any(tensor is not None and chosen(tensor) != "native" for tensor in tensors):
        return False
    try:
        library()
    except Unavailable:
        return False
    return True


def _call(name: str, arguments: Arguments, pairs: int, updates: int, scratch: int | None) -> None:
    call(library(), name, arguments, pairs, torch.get_num_threads() if updates >= SMALL else 1, scratch)


def scan(
    decay: Tensor, key: Tensor, value: Tensor, erase: Tensor | None, erased: Tensor | None, query: Tensor,
    initial: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y [B, L, H, V] and the last state [B, H, K, V]; the arguments are those of :mod:`mechint.scan.matrix`."""
    (B, L, H, K), V = key.shape, value.shape[3]
    y, end = value.new_empty(B, L, H, V), value.new_empty(B, H, K, V)
    own = decay.dim() == 4
    arguments: Arguments = {
        "decay": reads(decay, *((B, L, H, K) if own else (B, L, H))), "key": reads(key, B, L, H, K),
        "value": reads(value, B, L, H, V), "erase": reads(erase, B, L, H, K), "erased": reads(erased, B, L, H, K),
        "query": reads(query, B, L, H, K), "initial": reads(initial, B, H, K, V), "y": writes(y, B, L, H, V),
        "end": writes(end, B, H, K, V), "L": L, "H": H, "K": K, "V": V, "own": int(own),
    }  # fmt: skip
    _call("matrix_scan", arguments, B * H, B * L * H * K * V, K * V + V)
    return y, end


def decayed(decay: Tensor, erase: Tensor | None, erased: Tensor | None, state: Tensor) -> Tensor:
    """T (a ⊙ S) of one position: decay [B, H] or [B, H, K], erase and erased [B, H, K], state [B, H, K, V]."""
    (B, H, K, V), own = state.shape, decay.dim() == 3
    out = torch.empty_like(state, memory_format=torch.contiguous_format)
    arguments: Arguments = {
        "decay": reads(decay, *((B, H, K) if own else (B, H))), "erase": reads(erase, B, H, K),
        "erased": reads(erased, B, H, K), "state": reads(state, B, H, K, V), "out": writes(out, B, H, K, V),
        "K": K, "V": V, "own": int(own),
    }  # fmt: skip
    _call("matrix_decayed", arguments, B * H, state.numel(), V)
    return out


def read(query: Tensor, state: Tensor) -> Tensor:
    """qᵀ S of one position, [B, H, V]: query [B, H, K], state [B, H, K, V]."""
    B, H, K, V = state.shape
    y = state.new_empty(B, H, V)
    arguments: Arguments = {
        "query": reads(query, B, H, K), "state": reads(state, B, H, K, V), "y": writes(y, B, H, V), "K": K, "V": V,
    }  # fmt: skip
    _call("matrix_read", arguments, B * H, state.numel(), None)
    return y


class Native(torch.autograd.Function):
    """A function of this file, with the gradients of its plain torch form."""

    @staticmethod
    def forward(ctx: Any, function: Plain, plain: Plain, *tensors: Tensor | None) -> Any:
        ctx.plain = plain
        ctx.there = [tensor is not None for tensor in tensors]
        ctx.save_for_backward(*(tensor for tensor in tensors if tensor is not None))
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        wanted = iter(ctx.needs_input_grad[2:])
        tensors: list[Tensor | None] = []
        for there, asked in zip(ctx.there, wanted, strict=True):
            tensors.append(next(saved).detach().requires_grad_(asked) if there else None)
        with torch.enable_grad():
            made = ctx.plain(*tensors)
        made = made if isinstance(made, tuple) else (made,)
        asked_of = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
        pairs = [(one, slope) for one, slope in zip(made, slopes, strict=True) if one.requires_grad]
        found = iter(_slopes(pairs, asked_of))
        return None, None, *(next(found) if t is not None and t.requires_grad else None for t in tensors)


def _slopes(pairs: Sequence[tuple[Tensor, Tensor]], of: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return torch.autograd.grad([one for one, _ in pairs], of, [slope for _, slope in pairs], allow_unused=True)
