"""Exactly these tensors, or an error that names them: what the loading of every family has in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import MechintError

Claims = Mapping[str, tuple[str, ...]]
"""A field of a family's configuration, and under which names a checkpoint's configuration may state it."""


def listing(names: Iterable[str], most: int = 3) -> str:
    """'4 (a, b, c …)'."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:most])}{' …' if len(names) > most else ''})"


def read_claims(
    places: Sequence[Mapping[str, Any]], claims: Claims, kinds: Mapping[str, type], where: str
) -> dict[str, Any]:
    """What a configuration says about the fields, the first place and name that says it counts; unsaid ones are absent.

    Args:
        places: The configuration, and parts of it that may hold fields too.
        kinds: Types of the fields that are no whole numbers.

    Raises:
        MechintError: a value has the wrong type.
    """
    said: dict[str, Any] = {}
    for field, names in claims.items():
        kind = kinds.get(field, int)
        for name in names:
            value = next((place[name] for place in places if place.get(name) is not None), None)
            if value is None:
                continue
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise MechintError(
                    f"{where}: the configuration has {name} = {value!r}, which is no {kind.__name__}; correct it"
                )
            said[field] = value
            break
    return said


def check_claims(said: Mapping[str, Any], sizes: Mapping[str, int], claims: Claims, where: str) -> None:
    """Raises :class:`MechintError` where the tensors have another size than the configuration says."""
    for field, size in sizes.items():
        claimed = said.get(field, size)
        padded = field == "vocab_size" and 0 <= size - claimed < 128  # rows padded to a multiple of up to 128
        if claimed != size and not padded:
            raise MechintError(
                f"{where}: the configuration says {claims[field][0]} = {claimed}, but the tensors have {size}"
            )


def is_tied(state: Mapping[str, Tensor], embedding: str, said: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding: there is none of its own, or it holds the same numbers."""
    head, rows = state.get("lm_head.weight"), state.get(embedding)
    if head is None:
        return said.get("tied", True)
    return rows is not None and head.shape == rows.shape and torch.equal(head, rows)


def check_names(state: Collection[str], wanted: Collection[str], ignored: Collection[str], what: str) -> None:
    """Raises :class:`MechintError` when tensors are missing or left over; it names the first of them.

    Args:
        what: "m.pt is not exactly a Mamba of 2 layers".
    """
    missing = [name for name in wanted if name not in state]
    left = sorted(set(state) - set(wanted) - set(ignored))
    parts = [f"tensors missing: {listing(missing)}"] * bool(missing)
    parts += [f"tensors not used: {listing(left)}"] * bool(left)
    if parts:
        raise MechintError(f"{what}; {'; '.join(parts)}")


def commonest(tensors: Iterable[Tensor], axis: int) -> int | None:
    """The size that most of the tensors have on an axis, so that the odd one is named later; None where none has it."""
    votes = Counter(tensor.shape[axis] for tensor in tensors if tensor.dim() > axis)
    return votes.most_common(1)[0][0] if votes else None


def check_shapes(state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], where: str) -> None:
    """Raises :class:`MechintError` naming the first tensors of another shape than the model's.

    Args:
        shapes: By the file's names, as the file should have them.
    """
    wrong = [
        f"{name} is {list(state[name].shape)} and should be {list(shape)}"
        for name, shape in shapes.items()
        if list(state[name].shape) != list(shape)
    ]
    if wrong:
        raise MechintError(f"{where} has tensors of the wrong shape: {listing(wrong, 2)}")
