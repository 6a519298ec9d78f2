"""Families of layers made of parts: what a file in ``families/`` declares."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .parts.base import Layer
from .stack import Stack

Split = Callable[[Tensor, Any], Sequence[Tensor]]
Join = Callable[[Sequence[Tensor], Any], Tensor]


@dataclass(frozen=True)
class Fused:
    """Several of our tensors that a file holds as one.

    Attributes:
        ours: Ends of our names, behind what they share: ``("q_proj", "k_proj", "v_proj")``.
        theirs: The end of the file's name: ``query_key_value``.
        split: The file's tensor and the configuration -> ours, in their order.
        join: Our tensors and the configuration -> the file's.
    """

    ours: tuple[str, ...]
    theirs: str
    split: Split
    join: Join


@dataclass(frozen=True)
class Names:
    """The names of tensors on disk.

    Attributes:
        bodies: What may stand in front of every name but the head's; the first is written.
        renamed: Patterns in our names -> what stands there in the file's, without the body; all, in this order.
        fused: Tensors that a file holds as one.
        left_out: Pattern of the file's names that belong to no part of the language model; "" for none.
    """

    bodies: tuple[str, ...] = ("model.",)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[Fused, ...] = ()
    left_out: str = ""

    def theirs(self, ours: str, body: str) -> str:
        """The file's name of a tensor of ours that is not fused."""
        if ours.startswith("lm_head."):
            return ours
        for pattern, new in self.renamed.items():
            ours = re.sub(pattern, new, ours)
        return body + ours

    def plan(self, names: Sequence[str], body: str) -> dict[str, tuple[tuple[str, ...], Fused | None]]:
        """The file's names, each with the names of our tensors that it holds and how they are joined."""
        found: dict[str, tuple[tuple[str, ...], Fused | None]] = {}
        taken: set[str] = set()
        for name in names:
            if name in taken:
                continue
            stem, _, suffix = name.rpartition(".")
            for fused in self.fused:
                if stem.endswith("." + fused.ours[0]):
                    front = stem.removesuffix(fused.ours[0])
                    ours = tuple(f"{front}{end}.{suffix}" for end in fused.ours)
                    if set(ours) <= set(names):
                        found[self.theirs(f"{front}{fused.theirs}.{suffix}", body)] = (ours, fused)
                        taken.update(ours)
                        break
            else:
                found[self.theirs(name, body)] = ((name,), None)
        return found


@dataclass(frozen=True)
class StackFamily:
    """A family whose layers are made of parts.

    Attributes:
        name: Of the family: its ``model_type``.
        title: As messages call it.
        read: A reader of a configuration -> the family's configuration; asks for every key that counts.
        layer: The configuration and a number -> the layer.
        norm: The configuration -> the norm behind the last layer.
        write: The configuration -> the ``config.json`` that transformers reads.
        names: Of the tensors on disk.
        also: Other values of ``model_type`` that are this family.
        model: The class, where it is more than a stack.
    """

    name: str
    title: str
    read: Callable[[Any], Any]
    layer: Callable[[Any, int], Layer]
    norm: Callable[[Any], nn.Module]
    write: Callable[[Any], dict[str, Any]]
    names: Names = Names()
    also: tuple[str, ...] = ()
    model: type[Stack] = Stack

    def build(self, config: Any) -> Stack:
        """The model with its initial weights; without memory on the meta device."""
        return self.model(config, lambda i: self.layer(config, i), self.norm(config))
