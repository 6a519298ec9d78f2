"""Training steps of TopK and BatchTopK that touch only the active latents: float32 on a CPU, with a C compiler.

Of the five dense products of a step only the encoder's is left; decoding, the gradient by the latents and the two
weight gradients are sums over active latents, d_sae / k times less work. The dense path in plain torch stays the
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

from .. import workers
from ..compiled import Unavailable, compile_library, pointers, share

SOURCE = Path(__file__).with_name("sparse.c")
CHUNK_FLOATS = 1 << 22
"""Pre-activations held at a time: enough rows for an efficient product, few enough to stay in the last cache."""
MIN_ROWS = 256
BLOCK = 1024
"""Entries that sparse_above gathers at a time."""
MARGIN = 0.8
"""BatchTopK gathers what exceeds this share of the last threshold, and looks for the new one among that."""
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
        print(f"dictionaries: dense products in place of sparse ones, because {reason}", file=sys.stderr)
        return str(reason)
    return ""


def usable(x: Tensor) -> bool:
    """Whether a step on x can be sparse."""
    mixed = torch.is_autocast_enabled(x.device.type)
    return x.device.type == "cpu" and x.dtype == torch.float32 and not mixed and not missing()


def _call(name: str, pieces: int, work: int, scratch: int, *arguments: Tensor | int | None) -> None:
    """Calls a function of sparse.c on all its pieces, with scratch floats for each thread."""
    function, fixed = getattr(library(), name), pointers(*arguments)

    def one(first: int, last: int) -> None:
        held = torch.empty(scratch)
        function(*fixed, *pointers(first, last, *([held] if scratch else [])))

    share(one, pieces, torch.get_num_threads() if work >= SMALL else 1)


def chunks(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Pre-activations of some rows at a time, in one buffer: (first row, [rows, d_sae])."""
    width = W_enc.shape[1]
    rows = min(len(x), max(MIN_ROWS, CHUNK_FLOATS // width))
    buffer = x.new_empty(rows, width)
    for first in range(0, len(x), rows):
        part = x[first : first + rows]
        yield first, torch.addmm(b_enc, part, W_enc, out=buffer[: len(part)])


@torch.no_grad()
def top_codes(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> Codes:
    """The k largest positive latents of each row: x [batch, d_in], already centred."""
    width = W_enc.shape[1]
    values = x.new_empty(len(x), k)
    at, count = x.new_empty(len(x), k, dtype=torch.int32), x.new_empty(len(x), dtype=torch.int32)
    for first, pre in chunks(x, W_enc, b_enc):
        last, scratch = first + len(pre), 8 * k + 512
        arguments = (pre, values[first:last], at[first:last], count[first:last], width, k)
        _call("sparse_top", len(pre), pre.numel(), scratch, *arguments)
    there = torch.arange(k) < count[:, None]
    return codes(count, at[there], values[there])


@torch.no_grad()
def batch_codes(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, guess: float) -> tuple[Codes, Tensor]:
    """The k · batch largest positive latents of all processes' batches, and the smallest of them.

    Args:
        guess: The last threshold, or a negative number when there is none.
    """
    if guess < 0:
        pre = torch.relu(torch.addmm(b_enc, x[:MIN_ROWS], W_enc))
        least = pre.flatten().topk(min(pre.numel(), k * len(pre)), sorted=False).values.min()
        guess = float(workers.mean_over(least))
    world = workers.team()[1]
    while True:
        guess = guess * MARGIN if guess > 1e-6 else 0.0
        found = codes_above(x, W_enc, b_enc, guess)
        enough = int(workers.sum_over(torch.tensor(len(found.values)))) >= k * len(x) * world
        if enough or guess == 0:
            break
        guess /= 2
    least = workers.kth_largest(found.values, k * len(x))
    keep = found.values >= least
    count = torch.bincount(found.rows[keep], minlength=len(x))
    return codes(count, found.at[keep], found.values[keep]), least


def codes_above(x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: float) -> Codes:
    """Every latent above a threshold ≥ 0."""
    width, limit = W_enc.shape[1], torch.tensor(threshold)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for _, pre in chunks(x, W_enc, b_enc):
        count = torch.empty(len(pre), dtype=torch.int32)
        _call("sparse_count", len(pre), pre.numel(), 0, pre, limit, count, width)
        start = torch.cat([torch.zeros(1, dtype=torch.long), count.cumsum(0)])
        value, at = torch.empty(int(start[-1])), torch.empty(int(start[-1]), dtype=torch.int32)
        _call("sparse_above", len(pre), pre.numel(), 2 * BLOCK, pre, limit, start, value, at, width)
        parts.append((count, at, value))
    return codes(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def jump(pre: Tensor, threshold: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """Pre-activations [batch, d_sae] become JumpReLU's activations, in place, in two passes.

    Returns:
        Places in ``pre``, flattened, and pre-activations of the entries within ``half`` of their thresholds.
    """
    width, limit = pre.shape[1], torch.tensor(half)
    count = torch.empty(len(pre), dtype=torch.int32)
    _call("jump_count", len(pre), pre.numel(), 0, pre, threshold, limit, count, width)
    start = torch.cat([torch.zeros(1, dtype=torch.long), count.cumsum(0)])
    at, values = torch.empty(int(start[-1]), dtype=torch.long), torch.empty(int(start[-1]))
    _call("jump_apply", len(pre), pre.numel(), 0, pre, threshold, limit, start, at, values, width)
    return at, values


@torch.no_grad()
def fired(f: Tensor) -> Tensor:
    """In how many rows of f [batch, d_sae] each latent is active, [d_sae]."""
    if not usable(f):
        return torch.count_nonzero(f, 0)
    count = torch.empty(f.shape[1], dtype=torch.long)
    _call("column_count", f.shape[1], f.numel(), 0, f.contiguous(), count, len(f), f.shape[1])
    return count


def codes(count: Tensor, at: Tensor, values: Tensor) -> Codes:
    start = torch.cat([torch.zeros(1, dtype=torch.long), count.long().cumsum(0)])
    return Codes(start, at.contiguous(), values.contiguous(), torch.repeat_interleave(count.long()))


class Reconstruct(torch.autograd.Function):
    """f W_dec + b_dec for sparse f, with gradients of all four parameters, through f and through x − b_dec.

    Which latents are active is constant, as in the dense path. x [batch, d_in] is centred already and has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, found: Codes
    ) -> Tensor:
        out = torch.empty_like(x)
        width = x.shape[1]
        work = len(found.values) * width
        _call("sparse_decode", len(x), work, 0, found.start, found.at, found.values, W_dec, b_dec, out, width)
        ctx.save_for_backward(x, W_enc, W_dec)
        ctx.found = found
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, W_enc, W_dec = ctx.saved_tensors
        found, grad, width = ctx.found, grad.contiguous(), x.shape[1]
        latents, active = len(W_dec), len(found.values)
        by_value = torch.empty(active)
        _call("sparse_values", len(x), active * width, 0, found.start, found.at, W_dec, grad, by_value, width)
        start, order = torch.empty(latents + 1, dtype=torch.long), torch.empty(active, dtype=torch.long)
        library().sparse_order(*pointers(found.at, start, order, active, latents))
        d_dec, d_enc, d_bias = torch.empty(latents, width), torch.empty(latents, width), torch.empty(latents)
        inputs = (start, order, found.rows, found.values, by_value, grad, x)
        _call("sparse_weights", latents, active * width, 0, *inputs, d_dec, d_enc, d_bias, width)
        return None, d_enc.t(), d_bias, d_dec, grad.sum(0) - W_enc @ d_bias, None
