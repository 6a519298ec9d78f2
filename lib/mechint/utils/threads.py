"""How many threads a computation is worth, in programs of this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from . import program

WORTH = 1 << 26
"""Multiply-adds of a layer below which a second thread costs as much as it saves; see docs/speed.md."""


@contextlib.contextmanager
def suited(work: int) -> Iterator[None]:
    """One thread for little work; elsewhere, and in programs that only use the package, as many as before.

    The choice depends on the work alone, so that two runs have the same bytes.

    Args:
        work: Multiply-adds of a layer.
    """
    before = torch.get_num_threads()
    if before == 1 or work >= WORTH or not program.gives_way:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
