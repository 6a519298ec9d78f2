"""Compiled Mambas in which what is needed alone, what is needed together and what suffices are not the same units.

All have loud decoys, too (:mod:`.loud_mamba`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...interventions.unit_kinds import PATHS
from ...tasks.answers import Prompts
from ...tasks.base import draw_in_split
from ..blueprint import GAIN
from ..mamba.canvas import ON, SIGNAL, Canvas, Mixer, Size
from ..mamba.models import NO_STEP, Latch, channel, paths
from ..prompts import Latch as LatchTask
from ..prompts import Shift as ShiftTask
from ..questions import Questions, Share
from ..together import by_ways, units_of
from ..truth import Asked, Part
from .loud_mamba import LoudMamba

LEAST_SHARE = 0.3
"""The smaller of two ways' shares of the answer's logit is at least this."""


class TwoWays(LoudMamba):
    """The token two positions back, by two algorithms that each suffice, in shares that the seed sets.

    One reads it two taps back. The other reads one tap back in each of two layers: the first writes which token stood
    before, the second reads what it wrote at the position before.
    """

    name, active = "two_ways", 3
    without_layer, speaking = 1.0, 0

    def __init__(self, symbols: int = 8, length: int = 16) -> None:
        self.task: ShiftTask = ShiftTask(symbols, length, 2)
        self.share = 0.5
        """Share of the answer's logit that the first way gives, in the model that was drawn last."""
        super().__init__()
        self.codes |= {"before": symbols}

    @property
    def answers(self) -> range:
        return range(self.task.symbols)

    def circuit_needs(self) -> Size:
        return Size(d_inner=2 * self.task.symbols, d_state=1, d_conv=3, dt_rank=1)

    def draw_circuit(self, canvas: Canvas) -> list[Part]:
        (first, second), symbols = canvas.active, range(self.task.symbols)
        self.share = LEAST_SHARE + (1 - 2 * LEAST_SHARE) * float(torch.rand((), generator=canvas.random))
        self.said = self.share * GAIN
        parts = [*paths(first, "x z"), *unneeded(second, "x z", "two steps")]
        for v in symbols:
            e = self.speaker(first, v, self.share * GAIN, tap=2, skip=1.0)
            parts += channel(first, f"says symbol {v}", e, Asked(answer=v), tap=2, accuracy=1.0, way="one step")
            e = first.channel({canvas.at("token", v): SIGNAL}, {canvas.at("before", v): ON**-2}, tap=1, skip=1.0)
            meaning = f"writes that symbol {v} stood before"
            parts += channel(first, meaning, e, Asked(answer=v), tap=1, accuracy=1.0, blind=NO_STEP, way="two steps")
            says = {canvas.at("token", v): (1 - self.share) * GAIN / ON**2}
            e = second.channel({canvas.at("before", v): SIGNAL}, says, tap=1, skip=1.0)
            meaning = f"says what stood before, symbol {v}"
            parts += channel(second, meaning, e, Asked(answer=v), tap=1, accuracy=1.0, blind=NO_STEP, way="two steps")
        return parts

    def questions(self, parts: list[Part]) -> Questions:
        return by_ways(parts, "channel")

    def shares(self, parts: list[Part]) -> tuple[Share, ...]:
        of = lambda way: units_of([part for part in parts if part.way == way], "channel")
        return tuple(
            Share(f"the way of {way}", "channel", of(way), None, GAIN * share)
            for way, share in (("one step", self.share), ("two steps", 1 - self.share))
        )


class Backup(LoudMamba):
    """The token two positions back, and a backup that says it only where the first way does not.

    The first way writes the answer, and that it said it. The backup writes the same token into a code of its own; a
    later layer says what stands there, unless the first way said it: x = SIGNAL · (spare - INHIBITION · said).
    """

    name, active = "backup", 3
    without_layer, speaking = 1.0, 0
    INHIBITION = 6.0

    def __init__(self, symbols: int = 8, length: int = 16) -> None:
        self.task: ShiftTask = ShiftTask(symbols, length, 2)
        super().__init__()
        self.codes |= {"spare": symbols, "said": symbols}

    @property
    def answers(self) -> range:
        return range(self.task.symbols)

    def circuit_needs(self) -> Size:
        return Size(d_inner=2 * self.task.symbols, d_state=1, d_conv=3, dt_rank=1)

    def draw_circuit(self, canvas: Canvas) -> list[Part]:
        (first, second), at = canvas.active, canvas.at
        parts = [*paths(first, "x z"), *unneeded(second, "x z", "backup")]
        for v in range(self.task.symbols):
            reads = {at("token", v): SIGNAL}
            writes = {at("token", v): GAIN / ON**2, at("said", v): 1 / ON**2}
            e = first.channel(reads, writes, tap=2, skip=1.0)
            parts += channel(first, f"says symbol {v}", e, Asked(answer=v), tap=2, accuracy=1.0, way="first")
            e = first.channel(reads, {at("spare", v): 1 / ON**2}, tap=2, skip=1.0)
            parts += channel(first, f"keeps symbol {v}", e, Asked(answer=v), tap=2, accuracy=1.0, way="backup")
            inhibited = {at("spare", v): SIGNAL, at("said", v): -self.INHIBITION * SIGNAL}
            e = second.channel(inhibited, {at("token", v): GAIN / ON**2}, skip=1.0)
            meaning = f"says symbol {v} unless it is said"
            parts += channel(second, meaning, e, Asked(answer=v), accuracy=1.0, blind=NO_STEP, way="backup")
        return parts

    def questions(self, parts: list[Part]) -> Questions:
        return by_ways(parts, "channel")


class Cancelling(LoudMamba, Latch):
    """Latch, with pairs of channels that cancel: without one of a pair the answer is wrong, without both it is right.

    For each symbol one channel says it, and twice as loudly the next symbol; another says the same with other signs.
    """

    name, active = "cancelling", Latch.active + 1
    SIZE = 1.5
    """Logit that a channel of a pair says a symbol with, as a multiple of the circuit's."""

    @property
    def answers(self) -> range:
        return range(self.task.symbols)

    def circuit_needs(self) -> Size:
        needs = Latch.needs(self)
        return Size(needs.d_inner + 2 * self.task.symbols, needs.d_state, needs.d_conv, 1, 2, needs.dt_rank)

    def draw_circuit(self, canvas: Canvas) -> list[Part]:
        parts = Latch.draw(self, canvas)
        (mixer,), symbols = canvas.active, self.task.symbols
        originals = [self.original(canvas, v) for v in range(symbols)]
        for v, original in enumerate(originals):
            for sign in (1.0, -1.0):
                size = sign * self.SIZE * GAIN * original.writes
                said = {canvas.at("token", v): size, canvas.at("token", (v + 1) % symbols): 2 * size}
                e = mixer.channel(original.reads, said)
                original.copy_steps(e)
                meaning = f"{'says' if sign > 0 else 'takes back'} symbol {v} and the next one"
                parts += channel(mixer, meaning, e, Asked(answer=v), way="pair")
        return parts

    def questions(self, parts: list[Part]) -> Questions:
        return by_ways(parts, "channel", harmless="pair")


class RareTask(LatchTask):
    """Latch, whose symbol 0 is drawn, and asked for, in one of 50 cases."""

    name = "rare"
    SHARE = 0.02

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        weights = torch.full((self.symbols,), (1 - self.SHARE) / (self.symbols - 1))
        weights[0] = self.SHARE

        def symbols(n: int) -> Tensor:
            return torch.multinomial(weights, n * self.length, True, generator=random).view(n, self.length)

        tokens, template = draw_in_split(symbols, count, split)
        changed = symbols(count)
        changed = torch.where(changed == tokens, tokens % (self.symbols - 1) + 1, changed)
        return self.ask(tokens, changed, template, random)


class Rare(LoudMamba, Latch):
    """Latch, with a symbol, and so a channel, that matters on 2 % of the prompts only."""

    name, active = "rare", Latch.active + 1

    def __init__(self, symbols: int = 8, length: int = 20) -> None:
        super().__init__()
        self.task = RareTask(symbols, length)

    @property
    def answers(self) -> range:
        return range(self.task.symbols)


def unneeded(mixer: Mixer, names: str, way: str) -> list[Part]:
    """Paths of a layer that only one of several ways takes."""
    return [
        Part("the path", "path", mixer.layer, (PATHS.index(name),), accuracy=1.0, way=way) for name in names.split()
    ]
