"""The base of blueprints on stacks of parts: which layers the circuit has, and where they stand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ...utils.errors import MechintError
from ..blueprint import GAIN, Blueprint
from ..truth import Asked, Part
from .canvas import COPIES, SAYS, Canvas, Painter, StackSize


class StackBlueprint(Blueprint):
    """A circuit that can be drawn on a stack of parts.

    Attributes:
        family: Name of the family.
        wanted: Kinds of the circuit's layers, in their order.
        kinds: Kinds that idle layers may be of.
    """

    family: ClassVar[str]
    wanted: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[str, ...]]
    tolerance = 0.1  # rounding, which a trap's slope multiplies

    @abstractmethod
    def needs(self) -> StackSize:
        """The least size but for d_model and n_layer, which follow from the codes and :attr:`wanted`."""

    @abstractmethod
    def config(self, size: StackSize, kinds: tuple[str, ...]) -> Any:
        """The configuration of that size whose layers are of these kinds."""

    def least(self) -> StackSize:
        """The smallest model that holds the circuit, with one residual direction left for idle units to write."""
        needs, directions = self.needs(), 2 + self.task.vocab_size + sum(self.codes.values())
        return StackSize(**{**vars(needs), "d_model": directions, "n_layer": len(self.wanted)})

    def canvas(self, size: StackSize, seed: int) -> Canvas:
        random = torch.Generator().manual_seed(seed)
        layers = torch.randperm(size.n_layer, generator=random)[: len(self.wanted)].sort().values.tolist()
        idle = torch.randint(len(self.kinds), (size.n_layer,), generator=random).tolist()
        kinds = [self.kinds[kind] for kind in idle]
        for layer, kind in zip(layers, self.wanted, strict=True):
            kinds[layer] = kind
        config = self.config(size, tuple(kinds))
        return Canvas(self.family, config, self.task.vocab_size, self.codes, layers, random)


def painter(canvas: Canvas, layer: int, kind: type[Any]) -> Any:
    """The painter of a kind that a layer has.

    Raises:
        MechintError: it has none.
    """
    found = [painter for painter in canvas.painters[layer].values() if isinstance(painter, kind)]
    if not found:
        raise MechintError(f"layer {layer} has no part that {kind.__name__} draws on")
    return found[0]


def memory(layer: int, head: int, meaning: str, *asked: Asked, kind: str, unit: tuple[int, ...] = ()) -> Part:
    """A head of a recurrence, one of its value channels, or a (key, value) mode of it."""
    return Part(meaning, kind, layer, (head, *unit), asked or (Asked(),))


def echoes(canvas: Canvas, group: str, count: int) -> list[list[int]]:
    """The directions that the echoes of each of some units write into, [unit][copy]."""
    return [[canvas.at(group, COPIES * k + copy) for copy in range(COPIES)] for k in range(count)]


def set_traps(canvas: Canvas, where: Painter, group: str, tokens: list[int], says: float = SAYS) -> None:
    """Draws a trap for every echo of the units that say these tokens."""
    codes = echoes(canvas, group, len(tokens))
    where.traps({code: canvas.at("token", v) for own, v in zip(codes, tokens, strict=True) for code in own}, says)


def says(canvas: Canvas, weights: Mapping[int, float], by: float) -> dict[int, float]:
    """Writes of tokens, each a share of the gain, by units whose 1 is ``by``."""
    return {canvas.at("token", token): GAIN * weight / by for token, weight in weights.items()}
