"""Layers and parts: a layer is steps on the residual stream, and a step is parts that read it through a norm.

Axes: B batch, L position, D model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...interventions.sites import RESIDUAL
from ...interventions.taps import Scope
from ...interventions.unit_kinds import UnitKind
from ...scan.checks import accumulate
from .norms import tell_readers


class PartSite(NamedTuple):
    """A site of a part: its name within the layer, its axes, and the sizes behind batch and position."""

    name: str
    axes: tuple[str, ...]
    units: tuple[int, ...]
    absent: float = 0.0
    """The value at the sources that come after the position."""


class Part(nn.Module, ABC):
    """A part of a layer: reads the normed residual stream [B, L, D], and gives what is added to it.

    A subclass says which tensors can be read and edited on the way, and what analyses ask about them.
    """

    out: str = ""
    """The site of what it adds to the residual stream."""
    mixes = False
    """True if a position reads earlier ones."""
    carried: Sequence[str] = ()
    """Sites whose recorded tensor is not the one that is read on: gradients are taken at a shift added there."""
    local: Sequence[str] = ()
    """Sites whose edits no later position of the same layer sees."""
    late: Mapping[str, tuple[str, str]] = MappingProxyType({})
    """Sites that a linear map alone takes to the output: a site they are multiplied by before it ("" for none), and the
    map's module within the part."""
    mediators: Sequence[str] = ()
    """Sites that are usually traced."""
    paths: Sequence[str] = ()
    """Sites where a cut of the flow between two positions is usually made."""
    patched: Sequence[str] = ()
    """Sites whose units are usually patched one by one."""
    single: Sequence[str] = ()
    """Sites whose units are usually ablated one by one."""
    ranked: str = ""
    """The site whose units are usually ranked; empty for none."""
    memory: Sequence[str] = ()
    """Sites that hold what later positions read: states, inputs of a convolution, values and keys."""
    projected: Sequence[str] = ()
    """Sites that the output projection reads."""
    unit_kinds: Mapping[str, UnitKind] = MappingProxyType({})
    """The kinds of unit that a circuit can be made of, by name."""
    border = 0
    """The longest run that it reads as a short one, where it reads every position of longer ones otherwise; 0 where
    it reads all alike."""
    scored_unit: str = ""
    """The kind of unit that methods are asked to rank on models whose circuit is known; empty for none."""

    @abstractmethod
    def sites(self) -> Sequence[PartSite]:
        """The sites between the norm and :attr:`out`, in the order of the forward."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.parameters()).dtype

    def empty_cache(self, rows: int) -> Any:
        """The memory before the first position; None where there is nothing to remember."""
        return None

    @abstractmethod
    def forward(self, n: Tensor, cache: Any, at: Scope) -> tuple[Tensor, Any]:
        """n [B, L, D] -> the output [B, L, D], before its site, and the memory behind these positions."""


@dataclass(frozen=True)
class Branch:
    """Parts that read the residual stream through one norm.

    Attributes:
        norm: The norm's attribute of the layer; empty where the parts read the stream itself.
        site: The site of what the norm gives.
        parts: The parts' attributes of the layer, in their order.
        behind: For some parts the attribute of a norm of their output.
        scale: The number that their outputs are multiplied by before they are added to the stream.
    """

    norm: str
    site: str
    parts: tuple[str, ...]
    behind: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0


class LayerMemory(dict[str, Any]):
    """The memory of each part of a layer, by attribute; None where a part remembers nothing."""

    def repeat(self, times: int) -> LayerMemory:
        """The same memory for that many copies of the batch, one copy after another."""
        return LayerMemory((name, memory and memory.repeat(times)) for name, memory in self.items())

    def taking(self, other: LayerMemory, kinds: Collection[str]) -> LayerMemory:
        """This memory with the keys or values of another one, where a part has them; kinds are their sites."""
        return LayerMemory(
            (name, memory.taking(other[name], kinds) if hasattr(memory, "taking") else memory)
            for name, memory in self.items()
        )

    def before(self, position: int) -> LayerMemory:
        """The memory of the positions before this one, where every part holds all of them."""
        return LayerMemory((name, memory and memory.before(position)) for name, memory in self.items())


class Layer(nn.Module):
    """Steps on the residual stream; the branches of a step read the same stream, and their outputs are summed.

    Args:
        modules: Norms and parts by attribute, in the order of the forward.
        steps: The branches of each step.
    """

    def __init__(self, modules: Mapping[str, nn.Module], *steps: Sequence[Branch]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.steps = [tuple(branches) for branches in steps]
        self.parts = {name: self[name] for step in self.steps for branch in step for name in branch.parts}
        """The parts by attribute, in the order of the forward."""
        self.mixing = [any(self.parts[name].mixes for branch in step for name in branch.parts) for step in self.steps]
        """For each step whether positions read earlier ones in it."""
        for branch in (branch for step in self.steps for branch in step if branch.norm):
            tell_readers(self[branch.norm], self.parts[branch.parts[0]])

    def __getitem__(self, name: str) -> Any:
        """The norm or part with this attribute."""
        return self.get_submodule(name)

    def sites(self, d_model: int) -> list[PartSite]:
        """Every site of this layer, in the order of the forward."""
        stream = lambda name: PartSite(name, RESIDUAL, (d_model,))
        found = [stream("resid_pre")]
        for number, step in enumerate(self.steps):
            for branch in step:
                found += [stream(branch.site)] if branch.site else []
                for name in branch.parts:
                    part = self.parts[name]
                    found += [*part.sites(), stream(part.out)]
            found.append(stream(self.behind_step(number)))
        return found

    def local_sites(self) -> Iterator[tuple[str, bool]]:
        """Every site but ``resid_pre``, and whether no later position of this layer sees an edit of it.

        That is so behind the last step in which positions read earlier ones, and in it where its part says so.
        """
        last = max((number for number, mixing in enumerate(self.mixing) if mixing), default=-1)
        for number, step in enumerate(self.steps):
            for branch in step:
                if branch.site:
                    yield branch.site, number > last
                for part in (self.parts[name] for name in branch.parts):
                    for site in (*(one.name for one in part.sites()), part.out):
                        yield site, number >= last and site in part.local
            yield self.behind_step(number), number >= last

    def behind_step(self, number: int) -> str:
        """The site of the residual stream behind a step."""
        return "resid_post" if number == len(self.steps) - 1 else middle(number)

    def empty_cache(self, rows: int) -> LayerMemory:
        """The memory of every part before the first position."""
        return LayerMemory((name, part.empty_cache(rows)) for name, part in self.parts.items())

    def forward(self, r: Tensor, cache: Any, at: Scope) -> tuple[Tensor, LayerMemory]:
        """The residual stream [B, L, D] through the layer, and the memory of every part behind these positions.

        Forwards side by side each have a memory of their own, a list of which is given; none is returned then.
        """
        r, memory = at("resid_pre", r), LayerMemory()
        for number, step in enumerate(self.steps):
            added = None
            mixing = self.mixing[number]
            for branch in step:
                n = self[branch.norm](r) if branch.norm else r.to(self.parts[branch.parts[0]].dtype)
                n = at(branch.site, n) if branch.site else n
                for name in branch.parts:
                    part = self.parts[name]
                    own = [one[name] for one in cache] if isinstance(cache, list) else cache[name]
                    out, memory[name] = part(n if part.mixes or not mixing else at.wanted(n), own, at)
                    out = self[branch.behind[name]](accumulate(out)) if name in branch.behind else out
                    out = at(part.out, out if branch.scale == 1.0 else out * branch.scale)
                    added = out if added is None else added + out
            assert added is not None
            r = (at.wanted(r) if mixing else r) + added
            r = at(self.behind_step(number), r)
        return r, memory


def middle(step: int) -> str:
    """The site of the residual stream behind a step that is not the last."""
    return "resid_mid" if step == 0 else f"resid_mid_{step + 1}"
