"""Exactly these tensors, or an error that names them: what the loading of every family has in common."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import MechintError, short, shown

Claims = Mapping[str, tuple[str, ...]]
"""A field of a family's configuration, and under which names a checkpoint's configuration may state it."""
LARGEST = 2**31
"""No size of a model is larger: a number beyond it is refused before anything is counted with it."""


def listing(names: Iterable[str], most: int = 3) -> str:
    """'4 (a, b, c …)'."""
    names = list(names)
    return f"{len(names)} ({', '.join(short(name) for name in names[:most])}{' …' if len(names) > most else ''})"


def read_claims(
    places: Sequence[Mapping[str, Any]], claims: Claims, kinds: Mapping[str, type], where: str
) -> dict[str, Any]:
    """Reads the fields from a configuration; the first place and name that has one counts, and missing ones are absent.

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
            found = [place[name] for place in places if place.get(name) is not None]
            value: Any = found[0] if found else None
            if value is None:
                continue
            is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not is_kind and not (kind is float and type(value) is int):
                raise MechintError(
                    f"{where}: the configuration has {name} = {shown(value)}, which is no {kind.__name__}; correct it"
                )
            if kind is float and not 0 < value < math.inf:
                raise MechintError(f"{where}: the configuration has {name} = {shown(value)}; it must be above 0")
            if kind is int and not 0 <= value <= LARGEST:
                raise MechintError(
                    f"{where}: the configuration has {name} = {shown(value)}, which is no size of a model; correct it"
                )
            said[field] = value
            break
    return said


def count_layers(numbers: Sequence[int], said: Mapping[str, Any], where: str, least: int = 1) -> int:
    """Layers of a model: what the configuration says, or what the names show.

    Args:
        numbers: Those in the names, counted from 0.
        least: The number taken where the names show none.

    Raises:
        MechintError: the names show many fewer than are said, so that a list of all missing tensors would be endless.
    """
    shows = max(numbers, default=-1) + 1
    n_layer = int(said.get("n_layer", shows))
    if n_layer > 2 * shows + 100 or shows > 100 + 2 * len(set(numbers)):
        raise MechintError(
            f"{where}: the configuration says {n_layer} layers, and the tensors are of {len(set(numbers))}"
        )
    return max(least, n_layer)


def check_claims(said: Mapping[str, Any], sizes: Mapping[str, int], claims: Claims, where: str) -> None:
    """Raises :class:`MechintError` where the tensors have another size than the configuration says."""
    for field, size in sizes.items():
        claimed = said.get(field, size)
        padded = field == "vocab_size" and 0 <= size - claimed < 128  # rows padded to a multiple of up to 128
        if claimed != size and not padded:
            raise MechintError(
                f"{where}: the configuration says {claims[field][0]} = {claimed}, but the tensors have {size}"
            )


def is_tied(state: Mapping[str, Tensor], embedding: str, said: Mapping[str, Any], default: bool = True) -> bool:
    """True if the head is the embedding: there is none of its own, or it holds the same numbers.

    Args:
        default: True if the family's heads are the embedding where the configuration does not say: a missing head is
            then no error.
    """
    head, rows = state.get("lm_head.weight"), state.get(embedding)
    if head is None:
        return bool(said.get("tied", default))
    return rows is not None and head.shape == rows.shape and torch.equal(head, rows)


def check_names(state: Collection[str], wanted: Collection[str], ignored: Collection[str], what: str) -> None:
    """Raises :class:`MechintError` when tensors are missing or left over; it names the first of them.

    Args:
        what: "m.pt is not exactly a Mamba of 2 layers".
    """
    missing = [name for name in wanted if name not in state]
    left = sorted(set(state) - set(wanted) - set(ignored))
    hint = prefix_hint(missing, left)
    parts = [f"tensors missing: {listing(missing)}"] * bool(missing)
    parts += [f"tensors not used: {listing(left)}"] * bool(left)
    if parts:
        raise MechintError(f"{what}; {'; '.join(parts)}{hint}")


def prefix_hint(missing: Collection[str], left: Collection[str]) -> str:
    """The prefix of most of the left-over names under which the missing ones would fit, or the other way round."""

    def in_front(longer: Collection[str], shorter: Collection[str]) -> tuple[str, int]:
        ends = set(shorter)
        found = Counter(
            ".".join(parts[:k]) + "."
            for name in longer
            for parts in [name.split(".")]
            for k in range(1, len(parts))
            if ".".join(parts[k:]) in ends
        )
        return found.most_common(1)[0] if found else ("", 0)

    for (prefix, count), said in (
        (in_front(left, missing), "most of the names have {} in front; save them without it"),
        (in_front(missing, left), "most of the names lack {} in front; save them with it"),
    ):
        if count > 1 and 2 * count > len(missing):
            return "; " + said.format(f"the prefix {short(prefix, 60)!r}")
    return ""


def without_lead(state: dict[str, Tensor], layers: str, body: str) -> dict[str, Tensor]:
    """The same tensors without what stands in front of all names of a model that is a part of another module.

    ``mamba.backbone.layers.0…`` is Mamba's as the attribute ``mamba`` of a trainer's module has it.

    Args:
        layers: Pattern of a layer's name: ``layers\\.\\d+\\.``.
        body: The prefix of the family's names, which may stay: ``backbone``.

    Returns:
        ``state`` itself where there is nothing to take away, or where a name would then be there twice.
    """
    fronts = Counter(found[1] for name in state if (found := re.match(rf"((?:[^.]+\.)*?){layers}", name)))
    front = fronts.most_common(1)[0][0] if fronts else ""
    lead = front.removesuffix(f"{body}.") if front == f"{body}." or front.endswith(f".{body}.") else front
    bare = [name.removeprefix(lead) for name in state]
    if not lead or len(set(bare)) < len(bare):
        return state
    return dict(zip(bare, state.values(), strict=True))


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
