"""Compiled Mambas with loud decoys: idle channels that are larger than the circuit's and have a gradient.

Each *echo* copies a channel that says an answer. It has larger weights and larger values, and writes into a direction
of its own. Each *trap*, in a later layer, reads the echo as SiLU(K · (echo - 1)), which is zero where the echo is 0 and
where it is 1, with slope K/2 at 1: the answer's logit has a gradient with respect to the echo, and neither the echo nor
the trap changes any answer. An echo is on exactly where its answer is right, so probes find it, too.

Recall has no such model: a key that is asked for twice has an echo of 2. Nor has induction, whose gradients are larger.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from ..blueprint import GAIN
from ..mamba.canvas import ON, SIGNAL, Canvas, Mixer, Size
from ..mamba.models import Latch, MambaBlueprint, SelectiveCopy, Shift
from ..truth import Part

COPIES = 2
"""Echoes of each channel that says an answer."""
LOUDNESS = 3.0
"""Size of an echo's values relative to those of the circuit's channel."""
SLOPE = 24.0
"""K of a trap."""
SAYS = 6.0
"""Logit that a trap would write for each 1 of its SiLU: the gradient at an echo is SAYS · SLOPE / 2 for each 1 of its
code, six times that of what the circuit's channel says; twice for each 1 of its values, which are larger."""


class LoudMamba(MambaBlueprint):
    """A circuit of another blueprint, echoes of what says its answers, and traps behind them.

    Attributes:
        speaking: Number among the circuit's layers of the one whose channels are copied.
        said: Logit that such a channel says its answer with.
    """

    speaking: ClassVar[int] = -1
    said: float = GAIN

    def __init__(self) -> None:
        super().__init__()
        self.codes = {**self.codes, "echo": COPIES * len(self.answers)}

    @property
    @abstractmethod
    def answers(self) -> range:
        """Tokens that the circuit says."""

    def needs(self) -> Size:
        needs = self.circuit_needs()
        return replace(needs, d_inner=needs.d_inner + COPIES * len(self.answers))

    def circuit_needs(self) -> Size:
        """Returns the sizes that the circuit needs without echoes and traps."""
        needs: Size = super().needs()  # type: ignore[safe-super]
        return needs

    def draw(self, canvas: Canvas) -> list[Part]:
        traps = canvas.active.pop()
        canvas.layers = [layer for layer in canvas.layers if layer != traps.layer]
        parts = self.draw_circuit(canvas)
        for k, v in enumerate(self.answers):
            original = self.original(canvas, v)
            for copy in range(COPIES):
                code = canvas.at("echo", COPIES * k + copy)
                original.echo(code)
                traps.channel({code: SLOPE, canvas.pin: -SLOPE}, {canvas.at("token", v): SAYS / ON}, skip=1.0)
        return parts

    def draw_circuit(self, canvas: Canvas) -> list[Part]:
        """Draws the circuit alone, on all active layers but that of the traps."""
        drawn: list[Part] = super().draw(canvas)  # type: ignore[safe-super]
        return drawn

    def original(self, canvas: Canvas, v: int) -> Original:
        """Returns the first channel of the speaking layer that says ``v``, which its echoes copy."""
        at, mixer = canvas.at("token", v), canvas.active[self.speaking]
        e = next(e for e in mixer.written if mixer.weights.out_proj.weight[at, e] != 0)
        reads = mixer.weights.in_proj.weight[e]
        there = reads.nonzero().flatten().tolist()
        writes = float(mixer.weights.out_proj.weight[at, e]) / self.said
        return Original(mixer, e, {direction: float(reads[direction]) for direction in there}, writes)


@dataclass(frozen=True)
class Original:
    """A channel that echoes copy.

    Attributes:
        mixer, channel: Where it is; the convolution, the steps, the rates and D are its own.
        reads: Residual directions and weights of x, of which one is on where the answer is right.
        writes: The output weight by which the values of such a channel become 1.
    """

    mixer: Mixer
    channel: int
    reads: dict[int, float]
    writes: float

    def echo(self, code: int) -> None:
        """Draws a louder copy that writes 1 into direction ``code``."""
        # SiLU of what the echo reads over that of what the channel reads
        size = LOUDNESS * (1 + math.exp(-SIGNAL)) / (1 + math.exp(-LOUDNESS * SIGNAL))
        louder = {direction: LOUDNESS * weight for direction, weight in self.reads.items()}
        self.copy_steps(self.mixer.channel(louder, {code: self.writes / size}))

    def copy_steps(self, other: int) -> None:
        """Gives another channel of the layer the same convolution, steps, rates and D."""
        w = self.mixer.weights
        for weight in (w.conv1d.weight, w.conv1d.bias, w.dt_proj.weight, w.dt_proj.bias, w.A_log, w.D):
            assert weight is not None
            weight[other] = weight[self.channel]


class LoudShift(LoudMamba, Shift):
    """Shift, with echoes and traps."""

    name, active = "loud_shift", Shift.active + 1

    @property
    def answers(self) -> range:
        return range(self.task.symbols)


class LoudLatch(LoudMamba, Latch):
    """Latch, with echoes and traps."""

    name, active = "loud_latch", Latch.active + 1

    @property
    def answers(self) -> range:
        return range(self.task.symbols)


class LoudSelectiveCopy(LoudMamba, SelectiveCopy):
    """Selective copy, with echoes and traps; ramps make its echoes 0 or 1 only to 5e-4, and a trap shows that."""

    name, active = "loud_selective_copy", SelectiveCopy.active + 1
    tolerance = 0.1

    @property
    def answers(self) -> range:
        return range(self.task.values)
