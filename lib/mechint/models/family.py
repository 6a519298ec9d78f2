"""Families of layers made of parts: what a file in ``families/`` declares."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .parts.base import Layer
from .sizes import Trained
from .stack import Stack

Split = Callable[[Tensor, Any], Sequence[Tensor]]
Join = Callable[[Sequence[Tensor], Any], Tensor]


@dataclass(frozen=True)
class Fused:
    """Several of our tensors that a file holds as one.

    Attributes:
        ours: Ends of our names, behind what they share: ``("q_proj", "k_proj", "v_proj")``. A ``*`` stands for 0, 1 and
            so on, as far as there are: all ends with 0, all with 1, ….
        theirs: The end of the file's name: ``query_key_value``.
        split: The file's tensor and the configuration -> ours, in their order.
        join: Our tensors and the configuration -> the file's.
        bare: True if the file's name has no ``.weight`` behind that.
        sometimes: True if some files hold these tensors so and others apart or under another name; never written.
    """

    ours: tuple[str, ...]
    theirs: str
    split: Split
    join: Join
    bare: bool = False
    sometimes: bool = False

    def held(self, name: str, names: Collection[str]) -> tuple[str, tuple[str, ...]] | None:
        """The tensor that holds this one of ours, as we would call it, and all that it holds; None for none.

        Args:
            name: The first of those that are held together.
            names: All of ours.
        """
        stem, _, suffix = name.rpartition(".")
        first = self.ours[0].replace("*", "0")
        if not stem.endswith("." + first):
            return None
        front = stem.removesuffix(first)
        ours, number = [], 0
        while f"{front}{self.ours[0].replace('*', str(number))}.{suffix}" in names:
            ours += [f"{front}{end.replace('*', str(number))}.{suffix}" for end in self.ours]
            number += 1
            if "*" not in self.ours[0]:
                break
        if not set(ours) <= set(names):
            return None
        return f"{front}{self.theirs}" + f".{suffix}" * (not self.bare), tuple(ours)


def stacked(ours: Sequence[str], theirs: str, bare: bool = False, sometimes: bool = False) -> Fused:
    """All experts' matrices as one tensor [expert, rows of these matrices in turn, column].

    Args:
        ours: ``experts.*.gate_proj`` and ``experts.*.up_proj``, say.
    """
    each = len(ours)

    def split(tensor: Tensor, config: object) -> list[Tensor]:
        return [piece for expert in tensor for piece in expert.chunk(each)]

    def join(pieces: Sequence[Tensor], config: object) -> Tensor:
        return torch.stack([torch.cat(list(pieces[i : i + each])) for i in range(0, len(pieces), each)])

    return Fused(tuple(ours), theirs, split, join, bare, sometimes)


def chunked(ours: Sequence[str], theirs: str) -> Fused:
    """Matrices of equally many rows as one, one below the other."""
    return Fused(
        tuple(ours), theirs, lambda tensor, config: tensor.chunk(len(ours)), lambda pieces, config: torch.cat([*pieces])
    )


@dataclass(frozen=True)
class Pieces:
    """One tensor of ours that a file holds in several, one behind another along the first axis.

    Attributes:
        ours: The end of our name: ``linear_attn.conv1d.weight``.
        theirs: The ends of the file's names, in their order.
        rows: The configuration -> the rows of each.
        anywhere: True if files are cut at other rows, too.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: Callable[[Any], Sequence[int]]
    anywhere: bool = False


@dataclass(frozen=True)
class Names:
    """The names of tensors on disk.

    Attributes:
        bodies: Prefixes that every name but the head's may have; the first is written.
        renamed: Patterns in our names -> what stands there in the file's, without the body; all, in this order.
        fused: Tensors that a file holds as one.
        pieces: Tensors that a file holds in several.
        others: Patterns of other names that a file may have -> what stands there in those that are written.
        left_out: Pattern of the file's names that belong to no part of the language model; "" for none.
        heads: Prefixes that the head's names may have; the first is written.
        constants: Pattern of the file's names of what is computed here (masks, say); "" for none.
    """

    bodies: tuple[str, ...] = ("model.",)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[Fused, ...] = ()
    pieces: tuple[Pieces, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""
    heads: tuple[str, ...] = ("lm_head.",)
    constants: str = ""

    def theirs(self, ours: str, body: str) -> str:
        """The file's name of a tensor of ours that is not fused."""
        if ours.startswith("lm_head."):
            return self.heads[0] + ours.removeprefix("lm_head.")
        for pattern, new in self.renamed.items():
            ours = re.sub(pattern, new, ours)
        return body + ours

    def in_pieces(self, ours: str, body: str) -> tuple[Pieces, list[str]] | None:
        """The pieces that a file holds a tensor of ours in, and their names there; None where it is one."""
        for pieces in self.pieces:
            if ours.endswith("." + pieces.ours):
                front = ours.removesuffix(pieces.ours)
                return pieces, [self.theirs(front + end, body) for end in pieces.theirs]
        return None

    def plan(
        self, names: Sequence[str], body: str, there: Collection[str] = ()
    ) -> dict[str, tuple[tuple[str, ...], Fused | None]]:
        """The file's names, each with the names of our tensors that it holds and how they are joined.

        Args:
            names: Ours.
            body: The prefix of the file's.
            there: The file's names, which decide how tensors are held that files hold in several ways.
        """
        found: dict[str, tuple[tuple[str, ...], Fused | None]] = {}
        taken: set[str] = set()
        known = set(names)
        for name in names:
            if name in taken:
                continue
            ways = [(fused, held) for fused in self.fused if (held := fused.held(name, known))]
            ways.sort(key=lambda way: (self.theirs(way[1][0], body) not in there, way[0].sometimes))
            if ways and (not ways[0][0].sometimes or self.theirs(ways[0][1][0], body) in there):
                fused, (theirs, ours) = ways[0]
                found[self.theirs(theirs, body)] = (ours, fused)
                taken.update(ours)
            else:
                found[self.theirs(name, body)] = ((name,), None)
        return found


@dataclass(frozen=True)
class StackFamily:
    """A family whose layers are made of parts.

    Attributes:
        name: The family's ``model_type``.
        title: As messages call it.
        read: A reader of a configuration -> the family's configuration; asks for every key that counts.
        layer: The configuration and a number -> the layer.
        norm: The configuration -> the norm behind the last layer.
        write: The configuration -> the ``config.json`` that transformers reads.
        names: The names of its tensors on disk.
        also: Other values of ``model_type`` that are this family.
        model: The class, where it is more than a stack.
        trained: The words for its layers, and its way from sizes that are asked for to a configuration; None where it
            is not trained here.
        knows: True of a configuration without ``model_type`` that is this family's; None where there are none.
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
    trained: Trained | None = None
    knows: Callable[[Mapping[str, Any]], bool] | None = None

    def build(self, config: Any) -> Stack:
        """The model with its initial weights; without memory on the meta device."""
        return self.model(config, lambda i: self.layer(config, i), self.norm(config))
