"""A stack of layers made of parts on which circuits are drawn by hand, with idle weights of like size elsewhere.

* Norms: the configuration's ε is 2^40, so a norm divides by 2^20 whatever is written, to a relative size² / 2^41 (in
  float32 exactly, as long as the stream stays below some hundreds). With weights of 2^20 it is the identity: a part
  reads exactly what stands in the residual stream.
* One direction of the stream holds 1 at every position: biases, for parts that have none.
* Each kind of part has a :class:`Painter`, which hands out its units in random order and gives idle ones their weights.

A unit is idle because nothing of the circuit reads it. Idle units read like others and write into directions that
nothing of the circuit reads (``unread``); half of them copy what a unit of the circuit reads. *Echoes* and *traps* are
those of :mod:`mechint.ground_truth.hard`: an echo copies a unit of the circuit, is louder, and writes into a direction
of its own; a trap reads that direction where it is flat in size and steep in slope, so that the answers' logits have a
gradient with respect to the echo, and neither matters.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...interventions.taps import Tap
from ...models.families import declared
from ...models.parts.base import Layer, Part
from ...models.stack import Stack
from ...utils.errors import MechintError
from ..blueprint import Sizes

EPS = 2.0**40
"""ε of every norm whose ε the configuration says."""
SCALE = EPS**0.5
"""The number that such a norm divides by."""
SIGNAL = 4.0
"""Input of a SiLU that is on."""
ON = SIGNAL / (1 + 2.718281828459045**-SIGNAL)
"""SiLU(SIGNAL)."""
COPIES = 2
"""Echoes of each unit of the circuit that is copied."""
LOUDNESS = 3.0
"""Size of what an echo reads, relative to the unit that it copies."""
LOUD = LOUDNESS * SIGNAL / (1 + 2.718281828459045 ** -(LOUDNESS * SIGNAL))
"""SiLU(LOUDNESS · SIGNAL)."""
SLOPE = 24.0
"""K of a trap, SiLU(K · (echo − 1))."""
SAYS = 6.0
"""Logit that a trap would write for each 1 of its SiLU."""


@dataclass(frozen=True)
class StackSize(Sizes):
    """Sizes of a stack, all of them in total; what the circuit does not need is idle.

    Attributes:
        heads, keys, values: Heads of a recurrence, and the key and value channels of each.
        readers, width: Attention heads and the dimensions of each, where a layer attends.
        neurons: Neurons of each feed-forward part, where layers have one.
        expand: Width of all heads of a recurrence, as a multiple of d_model; 0 where neither follows from the other.
    """

    d_model: int = 64
    n_layer: int = 3
    heads: int = 8
    keys: int = 8
    values: int = 8
    readers: int = 0
    width: int = 0
    neurons: int = 0
    expand: int = 0

    def comfortable(self) -> StackSize:
        """This least size with about as much idle: twice the heads and neurons, more channels, one layer more."""
        d_model = self.d_model + 16
        d_model += -d_model % 8
        size = StackSize(
            d_model, self.n_layer + 1, 2 * self.heads, self.keys, self.values, self.readers and self.readers + 1,
            self.width, 2 * self.neurons, self.expand,
        )  # fmt: skip
        return replace(size, heads=self.expand * d_model // self.values) if self.expand else size

    def wide(self, d_model: int) -> StackSize:
        """This size with a residual stream of so many directions, and as many times more heads and neurons."""
        more = lambda count: -(-count * d_model // self.d_model)
        heads = self.expand * d_model // self.values if self.expand else more(self.heads)
        return replace(self, d_model=d_model, heads=heads, readers=more(self.readers), neurons=more(self.neurons))


class Canvas:
    """A stack with the circuit drawn and nothing else, until :meth:`fill`.

    Args:
        family: Name of the family.
        config: Its configuration.
        tokens: Vocabulary; residual direction ``("token", v)`` holds 1 where v stands, and the tied head reads it.
        codes: More named groups of residual directions and their sizes; zero until something is drawn there.
        layers: Numbers of the circuit's layers.
        random: All places and all idle weights are drawn from it.
    """

    def __init__(
        self,
        family: str,
        config: Any,
        tokens: int,
        codes: Mapping[str, int],
        layers: list[int],
        random: torch.Generator,
    ) -> None:
        self.random, self.layers, self.width = random, layers, int(config.d_model)
        self.model: Stack = declared()[family].build(config).requires_grad_(False).eval()
        order = torch.randperm(self.width, generator=random).tolist()
        self.one = order.pop()
        """The direction that holds 1 at every position."""
        self.names = {(group, i): order.pop() for group, n in {"token": tokens, **codes}.items() for i in range(n)}
        self.unread = torch.tensor(sorted(order))
        """Residual directions that nothing of the circuit reads or writes."""
        for parameter in self.model.parameters():
            parameter.zero_()
        token = [self.names["token", v] for v in range(tokens)]
        embedding = self.model.embed_tokens.weight
        embedding[:, self.unread] = self.normal(tokens, len(self.unread))
        embedding[range(tokens), token] = 1.0
        embedding[:, self.one] = 1.0
        for norm in self.norms():
            set_weights(norm, slice(None), SCALE)
        set_weights(self.model.norm, slice(None), 0.0)
        set_weights(self.model.norm, token, SCALE)
        self.out_norms: list[Tensor] = []
        """Lengths of the output weights that were drawn."""
        self.painters: list[dict[str, Painter]] = [
            {name: painter_of(part, self, i) for name, part in self.layer(i).parts.items()}
            for i in range(len(self.model.layers))
        ]

    def layer(self, i: int) -> Layer:
        return cast(Layer, self.model.layers[i])

    def norms(self) -> list[nn.Module]:
        """The norms in front of the parts."""
        every = [self.layer(i) for i in range(len(self.model.layers))]
        return [layer[branch.norm] for layer in every for step in layer.steps for branch in step]

    def at(self, group: str, index: int = 0) -> int:
        """Number of a named residual direction."""
        return self.names[group, index]

    # ---- random weights ----

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def jitter(self, count: int) -> Tensor:
        """Factors from 2/3 to 4/3, or equal lengths would tell, [count, 1]."""
        return torch.empty(count, 1).uniform_(2 / 3, 4 / 3, generator=self.random)

    def rows(self, count: int, length: float = SIGNAL) -> Tensor:
        """Random rows of an input of about this length, [count, width]."""
        rows = self.normal(count, self.width)
        return length * self.jitter(count) * rows / rows.norm(dim=1, keepdim=True)

    def outputs(self, count: int) -> Tensor:
        """Random columns of an output along unread directions, as long as those that were drawn, [width, count]."""
        known = torch.stack(self.out_norms)
        lengths = known[torch.randint(len(known), (count,), generator=self.random)] * self.jitter(count)[:, 0]
        free, columns = self.normal(len(self.unread), count), torch.zeros(self.width, count)
        columns[self.unread] = lengths * free / free.norm(dim=0)
        return columns

    def write(self, weight: Tensor, column: int, writes: Mapping[int, float]) -> None:
        """Draws a column of an output."""
        weight[list(writes), column] = torch.tensor(list(writes.values()))
        self.out_norms.append(weight[:, column].norm())

    # ---- everything idle ----

    def fill(self, tokens: Tensor, noise: float) -> None:
        """Gives everything idle its weights.

        Layer by layer: the norm weights of the unread directions, and in an idle layer of all but the constant one, are
        set so that they read as at most 1.5, whatever the layers before wrote there: this norm does not divide.

        Args:
            tokens: Prompts to take these sizes from, [batch, position].
            noise: Standard deviation of what is added to each projection of inputs of size 1.
        """
        r = self.model.begin(tokens, Tap())
        for i, painters in enumerate(self.painters):
            layer, stream = self.layer(i), r
            drawn = any(painter.drawn for painter in painters.values())
            free = self.unread if drawn else torch.arange(self.width) != self.one
            for number, step in enumerate(layer.steps):
                for branch in step:
                    set_weights(layer[branch.norm], free, 1.5 * SCALE / largest(stream[..., free]).clamp(min=1.0))
                    for name in branch.parts:
                        painters[name].fill()
                        self.add_noise(layer.parts[name], noise)
                stream = self.through(i, r, layer.behind_step(number))
            r = stream

    def through(self, i: int, r: Tensor, site: str) -> Tensor:
        """The residual stream at a site of a layer."""
        tap = Tap([f"layers.{i}.{site}"])
        self.model.block(i, r, self.model.empty_cache(i, len(r)), tap)
        return tap.values[f"layers.{i}.{site}"]

    def add_noise(self, part: Part, noise: float) -> None:
        for module in part.modules() if noise else ():
            if isinstance(module, nn.Linear):
                module.weight += noise / module.in_features**0.5 * self.normal(*module.weight.shape)


def set_weights(norm: nn.Module, where: Any, value: float | Tensor) -> None:
    """Sets what a norm multiplies by; some norms store it less one."""
    norm.weight[where] = value - getattr(norm, "plus", 0.0)  # type: ignore[operator]


def largest(values: Tensor) -> Tensor:
    """The largest size of each of the last axis."""
    return values.abs().flatten(0, -2).amax(0)


class Painter(ABC):
    """Draws on one part of a layer, and fills what was not drawn.

    Attributes:
        drawn: True if a unit of the circuit, an echo or a trap is drawn here.
    """

    drawn = False

    def __init__(self, canvas: Canvas, layer: int) -> None:
        self.canvas, self.layer = canvas, layer

    @abstractmethod
    def fill(self) -> None:
        """Gives idle units their weights."""

    def order(self, count: int) -> list[int]:
        """Numbers below ``count`` in random order."""
        found: list[int] = torch.randperm(count, generator=self.canvas.random).tolist()
        return found

    def take(self, free: list[int], what: str) -> int:
        """The next of some free units.

        Raises:
            MechintError: none is left.
        """
        if not free:
            raise MechintError(f"layer {self.layer} has no {what} left to draw on; take a larger size")
        self.drawn = True
        return free.pop()

    def traps(self, codes: Mapping[int, int], says: float = SAYS) -> None:
        """Draws a trap for each direction that an echo writes; it would write the token's direction given with it."""
        for code, token in codes.items():
            self.trap({code: SLOPE, self.canvas.one: -SLOPE}, {token: says})

    def trap(self, reads: Mapping[int, float], writes: Mapping[int, float]) -> None:
        """Draws a SiLU of what is read, and writes it.

        Raises:
            MechintError: this part has no such unit.
        """
        raise MechintError(f"{type(self).__name__} draws no traps; draw them on another part")


@functools.singledispatch
def painter_of(part: nn.Module, canvas: Canvas, layer: int) -> Painter:
    """The painter of a part.

    Raises:
        MechintError: no rule says how to draw on parts of this kind.
    """
    raise MechintError(f"no rule draws circuits on {type(part).__name__}; register one with painter_of")
