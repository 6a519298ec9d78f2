"""Counts the bytes of tensors: those that values keep alive, and the most that a computation holds at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def size(held: Any, counted: set[int]) -> int:
    """Bytes that a tensor, or the tensors of a dataclass, list or dict, keep alive, without those counted before."""
    if isinstance(held, Tensor):
        storage = held.untyped_storage()
        fresh = storage._cdata not in counted
        counted.add(storage._cdata)
        return storage.nbytes() if fresh else 0
    inside = held if isinstance(held, dict) else getattr(held, "__dict__", {})
    parts: Iterable[Any] = held if isinstance(held, (list, tuple)) else inside.values()
    return sum(size(part, counted) for part in parts)


def mib(count: float) -> str:
    return f"{count / 2**20:.3g}"


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing here is compiled, and torch would import its whole compiler to skip it."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves(args) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:  # a view allocates nothing
                self.see(tensor.untyped_storage())
        return made

    def see(self, storage: Any) -> None:
        name, count = storage._cdata, storage.nbytes()
        if name in self.known:
            return
        self.known.add(name)
        self.now += count
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self.known.discard(name)
            self.now -= count

        weakref.finalize(storage, gone)


def peak_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """The most bytes that the tensors made by ``work(*arguments)`` held at once."""
    with _Live() as live:
        work(*arguments)
    return live.peak
