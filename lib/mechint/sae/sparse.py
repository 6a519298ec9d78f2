"""Training steps of TopK and BatchTopK that touch only the active latents: float32 on a CPU, with a C compiler.

Only the encoder's product is left of the five dense products of a step; decoding, the gradient by the latents and the
two weight gradients are sums over active latents, d_sae / k times less work. The dense path in plain torch stays the
oracle of the tests, and serves where there is no compiler, on a GPU and in mixed precision.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..utils import workers
from ..utils.compiled import Arguments, Unavailable, call, compile_library, reads, writes
from ..utils.errors import MechintError

SOURCE = Path(__file__).with_name("sparse.c")
CHUNK_FLOATS = 1 << 22
"""Pre-activations held at a time: enough rows for an efficient product, few enough to stay in the last cache."""
MIN_ROWS = 256
BLOCK = 1024
"""Entries that sparse_above gathers at a time."""
MARGIN = 0.8
"""BatchTopK gathers what exceeds this share of the last threshold, and looks for the new one among that."""
LARGEST = torch.finfo(torch.float32).max
SMALL = 1 << 16
"""Multiplications below which threads cost more than they save."""


class Codes(NamedTuple):
    """Active latents by rows: those of row b are ``at[start[b]:start[b + 1]]``, their activations beside them."""

    start: Tensor  # [batch + 1] int64
    at: Tensor  # [active] int32
    values: Tensor  # [active] float32
    rows: Tensor  # [active] int64


@functools.cache
def library() -> Any:
    """The compiled library.

    Raises:
        Unavailable: there is no compiler.
    """
    return compile_library(SOURCE)


@functools.cache
def missing() -> str:
    """Why the dense path must do, said once on stderr; '' when it need not."""
    try:
        library()
    except Unavailable as reason:
        print(f"dictionaries: dense products instead of sparse ones, because {reason}", file=sys.stderr)
        return str(reason)
    return ""


def usable(x: Tensor) -> bool:
    """True if a training step on x can use the sparse products."""
    mixed = torch.is_autocast_enabled(x.device.type)
    return x.device.type == "cpu" and x.dtype == torch.float32 and not mixed and not missing()


def _call(name: str, pieces: int | None, work: int, arguments: Arguments, scratch: int | None = None) -> None:
    """Calls a function of sparse.c on all its pieces, with threads where so many multiplications are worth them."""
    call(library(), name, arguments, pieces, torch.get_num_threads() if work >= SMALL else 1, scratch)


def chunks(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Pre-activations of some rows at a time, in one buffer: (first row, [rows, d_sae])."""
    width = W_enc.shape[1]
    rows = max(1, min(len(x), max(MIN_ROWS, CHUNK_FLOATS // width)))
    buffer = x.new_empty(rows, width)
    for first in range(0, max(len(x), 1), rows):  # one empty chunk of an empty batch
        part = x[first : first + rows]
        yield first, torch.addmm(b_enc, part, W_enc, out=buffer[: len(part)])


@torch.no_grad()
def top_codes(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Codes:
    """The k largest positive latents of each row: x [batch, d_in], already centred."""
    width = W_enc.shape[1]
    values = x.new_empty(len(x), k)
    at, count = x.new_empty(len(x), k, dtype=torch.int32), x.new_empty(len(x), dtype=torch.int32)
    for first, pre in chunks(x, W_enc, b_enc):
        rows, last = len(pre), first + len(pre)
        arguments: Arguments = {
            "pre": reads(pre, rows, width),
            "values": writes(values[first:last], rows, k),
            "at": writes(at[first:last], rows, k, dtype=torch.int32),
            "count": writes(count[first:last], rows, dtype=torch.int32),
            "width": width,
            "k": k,
        }
        _call("sparse_top", rows, pre.numel(), arguments, 8 * k + 512)
    there = torch.arange(k, device=count.device) < count[:, None]
    return codes(count, at[there], values[there])


@torch.no_grad()
def batch_codes(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, guess: float) -> tuple[Codes, Tensor]:
    """The k · batch largest positive latents of all processes' batches, and the smallest of them.

    NaN counts as larger than all numbers, so that a loss shows it.

    Args:
        guess: The last threshold, or a negative number when there is none.
    """
    if not len(x):
        raise MechintError("dictionary: a batch without rows has no largest latents; take a larger batch")
    if guess < 0:
        pre = torch.relu(torch.addmm(b_enc, x[:MIN_ROWS], W_enc))
        least = pre.flatten().topk(min(pre.numel(), k * len(pre)), sorted=False).values.min()
        guess = float(workers.mean_over(least))
    world = workers.team()[1]
    while True:
        guess = min(guess, LARGEST) * MARGIN if guess > 1e-6 else 0.0  # 0 also where it is not a number
        found = codes_above(x, W_enc, b_enc, guess)
        enough = int(workers.sum_over(torch.tensor(len(found.values)))) >= k * len(x) * world
        if enough or guess == 0:
            break
        guess /= 2
    least = workers.kth_largest(found.values, k * len(x))
    keep = ~(found.values < least)
    count = torch.bincount(found.rows[keep], minlength=len(x))
    return codes(count, found.at[keep], found.values[keep]), least


def codes_above(x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: float) -> Codes:
    """Every latent above a threshold ≥ 0."""
    width, limit = W_enc.shape[1], x.new_tensor(threshold)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for _, pre in chunks(x, W_enc, b_enc):
        rows, count = len(pre), x.new_empty(len(pre), dtype=torch.int32)
        given: Arguments = {"pre": reads(pre, rows, width), "threshold": reads(limit)}
        counts: Arguments = {"count": writes(count, rows, dtype=torch.int32), "width": width}
        _call("sparse_count", rows, pre.numel(), {**given, **counts})
        start = starts(count)
        active = int(start[-1])
        values, at = x.new_empty(active), x.new_empty(active, dtype=torch.int32)
        arguments: Arguments = {
            **given,
            "start": reads(start, rows + 1, dtype=torch.int64),
            "values": writes(values, active),
            "at": writes(at, active, dtype=torch.int32),
            "width": width,
        }
        _call("sparse_above", rows, pre.numel(), arguments, 2 * BLOCK)
        parts.append((count, at, values))
    return codes(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def jump(pre: Tensor, threshold: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """Pre-activations [batch, d_sae] become JumpReLU's activations, in place, in two passes.

    Returns:
        Places in ``pre``, flattened, and pre-activations of the entries within ``half`` of their thresholds.
    """
    (rows, width), limit = pre.shape, pre.new_tensor(half)
    count = pre.new_empty(rows, dtype=torch.int32)
    given: Arguments = {
        "pre": writes(pre, rows, width),
        "threshold": reads(threshold, width),
        "half": reads(limit),
    }
    _call("jump_count", rows, pre.numel(), {**given, "count": writes(count, rows, dtype=torch.int32), "width": width})
    start = starts(count)
    active = int(start[-1])
    at, values = pre.new_empty(active, dtype=torch.long), pre.new_empty(active)
    arguments: Arguments = {
        **given,
        "start": reads(start, rows + 1, dtype=torch.int64),
        "at": writes(at, active, dtype=torch.int64),
        "values": writes(values, active),
        "width": width,
    }
    _call("jump_apply", rows, pre.numel(), arguments)
    return at, values


@torch.no_grad()
def fired(f: Tensor) -> Tensor:
    """In how many rows of f [batch, d_sae] each latent is active, [d_sae]."""
    if not usable(f):
        return torch.count_nonzero(f, 0)
    rows, width = f.shape
    count = f.new_empty(width, dtype=torch.long)
    arguments: Arguments = {
        "f": reads(f, rows, width),
        "count": writes(count, width, dtype=torch.int64),
        "rows": rows,
        "width": width,
    }
    _call("column_count", width, f.numel(), arguments)
    return count


def starts(count: Tensor) -> Tensor:
    """Offsets of each row's entries, and after the last the number of all: [rows] -> [rows + 1] int64."""
    return torch.cat([count.new_zeros(1, dtype=torch.long), count.cumsum(0, dtype=torch.long)])


def codes(count: Tensor, at: Tensor, values: Tensor) -> Codes:
    return Codes(starts(count), at.contiguous(), values.contiguous(), torch.repeat_interleave(count.long()))


def check_codes(found: Codes, rows: int, latents: int) -> None:
    """Raises :class:`MechintError` where codes are not those of so many rows and latents: C follows them unseen."""
    start, at, active = found.start, found.at, len(found.values)
    ends = len(start) == rows + 1 and not int(start[0]) and int(start[-1]) == active == len(at) == len(found.rows)
    if not ends or bool((start.diff() < 0).any()):
        raise MechintError(f"dictionary: codes of {len(start) - 1} rows and {active} values for a batch of {rows}")
    if not active:
        return
    for name, part, size in (("a latent", at, latents), ("a row", found.rows, rows)):
        low, high = (int(end) for end in part.aminmax())
        if low < 0 or high >= size:
            raise MechintError(f"dictionary: codes name {name} {low if low < 0 else high} of {size}")


class Reconstruct(torch.autograd.Function):
    """f W_dec + b_dec for sparse f, with gradients of all four parameters, through f and through x − b_dec.

    The set of active latents is constant, as in the dense path. x [batch, d_in] is centred already and has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, found: Codes
    ) -> Tensor:
        (rows, width), latents, active = x.shape, len(W_dec), len(found.values)
        check_codes(found, rows, latents)
        out = x.new_empty(x.shape)
        arguments: Arguments = {
            "start": reads(found.start, rows + 1, dtype=torch.int64),
            "at": reads(found.at, active, dtype=torch.int32),
            "values": reads(found.values, active),
            "weight": reads(W_dec, latents, width),
            "bias": reads(b_dec, width),
            "out": writes(out, rows, width),
            "width": width,
        }
        _call("sparse_decode", rows, active * width, arguments)
        ctx.save_for_backward(x, W_enc, W_dec)
        ctx.found = found
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, W_enc, W_dec = ctx.saved_tensors
        found, (rows, width), latents, active = ctx.found, x.shape, len(W_dec), len(ctx.found.values)
        by_value = x.new_empty(active)
        arguments: Arguments = {
            "start": reads(found.start, rows + 1, dtype=torch.int64),
            "at": reads(found.at, active, dtype=torch.int32),
            "weight": reads(W_dec, latents, width),
            "grad": reads(grad, rows, width),
            "by_value": writes(by_value, active),
            "width": width,
        }
        _call("sparse_values", rows, active * width, arguments)
        start, order = (x.new_empty(size, dtype=torch.long) for size in (latents + 1, active))
        arguments = {
            "at": reads(found.at, active, dtype=torch.int32),
            "start": writes(start, latents + 1, dtype=torch.int64),
            "order": writes(order, active, dtype=torch.int64),
            "n": active,
            "latents": latents,
        }
        _call("sparse_order", None, 0, arguments)
        d_dec, d_enc, d_bias = x.new_empty(latents, width), x.new_empty(latents, width), x.new_empty(latents)
        arguments = {
            "start": reads(start, latents + 1, dtype=torch.int64),
            "order": reads(order, active, dtype=torch.int64),
            "rows": reads(found.rows, active, dtype=torch.int64),
            "values": reads(found.values, active),
            "by_value": reads(by_value, active),
            "grad": reads(grad, rows, width),
            "x": reads(x, rows, width),
            "d_dec": writes(d_dec, latents, width),
            "d_enc": writes(d_enc, latents, width),
            "d_bias": writes(d_bias, latents),
            "width": width,
        }
        _call("sparse_weights", latents, active * width, arguments)
        return None, d_enc.t(), d_bias, d_dec, grad.sum(0) - W_enc @ d_bias, None
