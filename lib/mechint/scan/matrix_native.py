"""Matrix memories in C, for float32 on a CPU: the same bits whole, in pieces, and one step after another.

The gradients of a whole scan are in C, too, or in matrix products where nothing is erased (:mod:`.matrix_slopes`);
those of a single step are those of its plain torch form.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..utils.compiled import Arguments, Unavailable, call, compile_library, reads, writes
from . import matrix_slopes
from .choice import chosen

SOURCE = Path(__file__).with_name("matrix.c")
CHUNK = 32
"""Positions between two saved states for gradients in C, which make the states of a chunk again."""
BLOCK = 32
"""Columns of a state that go through a sequence together: WIDE · W of matrix.c."""
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
    return is_there()


@functools.cache
def is_there() -> bool:
    """True if the library can be used; if not, a line on stderr says why, once."""
    try:
        library()
    except Unavailable as reason:
        print(f"scan: matrix memories in plain torch, not in C, because {reason}", file=sys.stderr)
        return False
    return True


def _call(name: str, arguments: Arguments, pairs: int, updates: int, scratch: int | None) -> None:
    call(library(), name, arguments, pairs, torch.get_num_threads() if updates >= SMALL else 1, scratch)


class Sizes(NamedTuple):
    """Rows, positions, heads, groups of heads that share keys and queries, keys, values; does every key have its own
    decay, and is anything erased?"""

    B: int
    L: int
    H: int
    G: int
    K: int
    V: int
    own: bool
    erases: bool

    @staticmethod
    def of(decay: Tensor, key: Tensor, value: Tensor, erase: Tensor | None, *_: Tensor | None) -> Sizes:
        """The sizes of the inputs of :meth:`inputs`."""
        B, L, G, K = key.shape
        return Sizes(B, L, value.shape[2], G, K, value.shape[3], decay.dim() == 4, erase is not None)

    @property
    def updates(self) -> int:
        """Updates of entries of states."""
        return self.B * self.L * self.H * self.K * self.V

    @property
    def by_products(self) -> bool:
        """True if the gradients are those of :mod:`.matrix_slopes`."""
        return not self.own and not self.erases and matrix_slopes.pays(self.L, self.K * self.V, self.updates)

    @property
    def chunk(self) -> int:
        """Positions between two saved states."""
        return matrix_slopes.chunk_of(self.L) if self.by_products else CHUNK

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of the states before each chunk."""
        return self.B, self.H, -(-self.L // self.chunk), self.K, self.V

    def inputs(self, write: bool, *tensors: Tensor | None) -> Arguments:
        """decay, key, value, erase, erased and query as C takes them, or their gradients."""
        B, L, H, G, K, V, own, _ = self
        shapes = {
            "decay": (B, L, H, K) if own else (B, L, H), "key": (B, L, G, K), "value": (B, L, H, V),
            "erase": (B, L, H, K), "erased": (B, L, H, K), "query": (B, L, G, K),
        }  # fmt: skip
        array = writes if write else reads
        return {
            ("d" if write else "") + name: array(tensor, *shape)
            for (name, shape), tensor in zip(shapes.items(), tensors, strict=True)
        }

    def counts(self) -> Arguments:
        """The sizes as C takes them."""
        _, L, H, G, K, V, own, _ = self
        return {"L": L, "H": H, "G": G, "K": K, "V": V, "own": int(own), "chunk": self.chunk}


def each_head(x: Tensor, heads: int) -> Tensor:
    """Keys or queries of every head, [B, L, H, K], of those that neighbouring heads share, [B, L, G, K]."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2)


def scan(initial: Tensor, before: Tensor | None, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """y [B, L, H, V] and the last state [B, H, K, V]; the inputs are those of :meth:`Sizes.inputs`."""
    value, size = inputs[2], Sizes.of(*inputs)  # type: ignore[arg-type]
    assert value is not None
    B, L, H, _, K, V, _, _ = size
    y, end = value.new_empty(B, L, H, V), value.new_empty(B, H, K, V)
    arguments: Arguments = {
        **size.inputs(False, *inputs), "initial": reads(initial, B, H, K, V), "y": writes(y, B, L, H, V),
        "end": writes(end, B, H, K, V), "before": writes(before, *size.kept), **size.counts(),
    }  # fmt: skip
    _call("matrix_scan", arguments, B * H, size.updates, K * BLOCK)
    return y, end


class Scan(torch.autograd.Function):
    """y and the last state; the arguments are decay, key, value, erase, erased, query and the initial state."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Any:
        *inputs, initial = (None if tensor is None else tensor.contiguous() for tensor in tensors)
        assert initial is not None
        before = None
        if any(ctx.needs_input_grad):
            before = initial.new_empty(Sizes.of(*inputs).kept)  # type: ignore[arg-type]
            ctx.save_for_backward(before, *inputs)
        return scan(initial, before, *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> Any:
        before, *inputs = ctx.saved_tensors
        if Sizes.of(*inputs).by_products:
            decay, key, value, _, _, query = inputs
            *found, of_query, of_state = matrix_slopes.slopes(decay, key, value, query, before, dy, dlast)
            return *found, None, None, of_query, of_state
        shared = inputs[1].shape[2]
        inputs[1], inputs[5] = (each_head(inputs[k], inputs[2].shape[2]) for k in (1, 5))
        size = Sizes.of(*inputs)
        slopes = [None if tensor is None else torch.empty_like(tensor) for tensor in inputs]
        of_state = dlast.clone(memory_format=torch.contiguous_format)
        B, L, H, _, K, V, _, _ = size
        arguments: Arguments = {
            **size.inputs(False, *inputs), "before": reads(before, *size.kept), "dy": reads(dy, B, L, H, V),
            **size.inputs(True, *slopes), "dS": writes(of_state, B, H, K, V), **size.counts(),
        }  # fmt: skip
        _call("matrix_back", arguments, B * H, 3 * size.updates, (CHUNK + 1) * K * V + 3 * V)
        for k in (1, 5):
            slopes[k] = slopes[k].unflatten(2, (shared, -1)).sum(3)  # type: ignore[union-attr]
        return *slopes, of_state


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
