"""Pretended devices: real numbers in CPU memory that an operation refuses to mix, as it does between two GPUs.

``cpu:0`` and ``cpu:1`` are such devices within :func:`pretended_devices`. A tensor on one of them says so, keeps its
numbers in a plain tensor, and meets plain tensors under the rules of an accelerator: a number of no axis and an index
may be plain, everything else has to be moved. Results are those of plain tensors to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default, aten.copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)


def pretended(device: Any) -> bool:
    """True of a CPU with a number."""
    device = None if device is None else torch.device(device)
    return device is not None and device.type == "cpu" and device.index is not None


class There(Tensor):
    """A tensor on a pretended device."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> There:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=device,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made: Any = There(self.inner.clone(), self.device)
        made = nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file holds the plain tensor."""
        return self.inner.__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.inner}, {self.device})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()


def computed(function: Any, args: Any, kwargs: Any) -> Any:
    """An operation on plain tensors, and its result on the device of what it was given."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    target = kwargs.get("device")
    if function in MOVES:
        target = given[0].device if target is None else torch.device(target)
    else:
        strict = [given[0]] if function in INDEXED else given
        strict += [x for x in given[1:] if isinstance(x, There)] if function in INDEXED else []
        strict += [args[2]] if function in INDEXED and len(args) > 2 else []  # what is put there
        there = {x.device for x in given if isinstance(x, There)}
        plain = any(x.dim() for x in strict if not isinstance(x, There))
        if len(there) > 1 or (there and plain):
            raise RuntimeError(f"{function}: tensors of {', '.join(map(str, [*there, *['plain'] * plain]))} meet")
        target = next(iter(there), None) if target is None else torch.device(target)
    inside = tree_map_only(There, lambda x: x.inner, (args, kwargs))
    named = {**inside[1], **({"device": torch.device("cpu")} if kwargs.get("device") is not None else {})}
    found = function(*inside[0], **named)
    if not pretended(target):
        return found
    found = tree_map_only(Tensor, lambda x: There(x, target), found)
    return return_and_correct_aliasing(function, args, kwargs, found)


class Dispatch(TorchDispatchMode):
    """Sees what makes a tensor on a pretended device from none."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would import its whole compiler to skip it."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if pretended(kwargs.get("device")) or any(isinstance(x, There) for x in tree_leaves((args, kwargs))):
            return computed(function, args, kwargs)
        return function(*args, **kwargs)


class Functions(TorchFunctionMode):
    """Makes tensors of plain values where torch does so out of sight of every dispatch."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(*args[1:], dtype=args[0].dtype).to(args[0].device)
        if function in (torch.tensor, torch.as_tensor) and (
            pretended(kwargs.get("device")) or isinstance(args[0], There)
        ):
            device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
            value = args[0]
            made = value if isinstance(value, Tensor) else function(value, *args[1:], **kwargs)
            return made.to(device=device or made.device, dtype=dtype or made.dtype)
        return function(*args, **kwargs)


@contextlib.contextmanager
def pretended_devices() -> Iterator[list[torch.device]]:
    """Within it ``cpu:0`` and ``cpu:1`` are devices of their own, whose tensors do not mix."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter may become one of another class
    try:
        with Functions(), Dispatch():
            yield [torch.device("cpu:0"), torch.device("cpu:1")]
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
