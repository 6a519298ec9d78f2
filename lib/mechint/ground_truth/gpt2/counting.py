"""The two compiled GPT-2s that count: ticks since the last marker, and a running sum whose remainder is asked for.

Attention shares out 1 among what it reads, so it counts by shares: beside a source of weight W, the first position, n
sources of weight 1 have n / (W + n) together, a *level* that neurons of the same layer decode.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..blueprint import ALWAYS, TWINS
from ..mamba.counting import CountTask, SumTask
from ..truth import Asked, Part, Where
from .canvas import STEEP, Block, GPT2Canvas
from .models import GAIN, STEP, GPT2Blueprint, match, value, whole

MATCH = 2 * STEP
"""Score that makes weights e^-20 of others; no more, since weights that are compared err by the rounding of scores."""
NUMBER = 1.5 * STEP
"""The same of a number that is added: a larger sum is told from the next by less."""
OPEN = 8.0
"""A ramp GELU(x) is x to the bit from 6 on, and 0 below -6; levels are at least this far from where it opens."""
FLAT = 0.15
"""Share of the way between two levels that is flat, on either side."""


class Decoder(NamedTuple):
    """A neuron that decodes a level; without it counts from ``low`` to ``high`` are read as ``says``."""

    meaning: str
    neuron: int
    says: int
    low: int
    high: int


class Counting(GPT2Blueprint):
    """A head that counts by its shares, and neurons that decode.

    Attributes:
        heavy: W, the weight of the first position.
    """

    active = 2
    idle = ()
    heavy: float

    def level(self, count: int) -> float:
        """The values that the head writes for a count."""
        return self.heavy * count / (self.heavy + count)

    def decode(self, block: Block, most: int, token: Callable[[int], int]) -> list[Decoder]:
        """Draws neurons that say ``token(n)`` where the direction ``level`` holds the level of n, for n up to ``most``.

        Between the levels of n - 1 and n is a step, the difference of two ramps in the middle of the way: flat at both
        levels, so that rounding is not heard. Steps of small counts open upwards (the count is at least n),
        those of large ones downwards (it is less), and what is said is the sum of both, less a constant. Were all of
        one sort, the last ramp would level nothing that ever occurs.
        """
        at, said = block.canvas.at("level"), lambda count: block.canvas.at("token", token(count))
        half = most // 2
        constant = added((said(0), GAIN), (said(half), -GAIN), (said(most), GAIN))
        block.add(constant)
        decoders = []
        for n in range(1, most + 1):
            last, next_ = self.level(n - 1), self.level(n)
            way = next_ - last
            knots, steep = (last + FLAT * way, next_ - FLAT * way), OPEN / (FLAT * way)
            meaning, shut, opened, reach = f"at least {n}", n - 1, n, ((n, most), (n + 1, most))
            if n > half:
                knots, steep = knots[::-1], -steep
                meaning, shut, opened, reach = f"less than {n}", n, n - 1, ((0, n - 1), (0, n - 2))
            says = GAIN * FLAT / OPEN / (1 - 2 * FLAT)
            writes = added((said(opened), says), (said(shut), -says))
            rises = block.neuron({at: steep}, -steep * knots[0], writes)
            levels = block.neuron({at: steep}, -steep * knots[1], {to: -weight for to, weight in writes.items()})
            decoders.append(Decoder(meaning, rises, shut, *reach[0]))
            decoders.append(Decoder(f"{meaning}, and no more than that", levels, opened, *reach[1]))
        return decoders


def heavy(task: SumTask) -> float:
    """Weight of the first position beside the numbers of a sum."""
    return 1.25 * task.most


def added(*terms: tuple[int, float]) -> dict[int, float]:
    """Weights by direction, those of the same direction added up."""
    found: dict[int, float] = {}
    for to, weight in terms:
        found[to] = found.get(to, 0.0) + weight
    return found


def of(parts: Iterable[Part], asked: Iterable[Asked]) -> list[Part]:
    """The same parts, which matter for these answers."""
    return [dataclasses.replace(part, asked=tuple(asked)) for part in parts]


class Count(Counting):
    """Ticks since the last marker: every position learns where that is, and the query counts ticks that say the same.

    In the first layer a head reads the last marker and writes where it stands, in binary digits. A position that has
    none before it reads itself, and where it is a tick it takes that back. The first position has no digits: so it has
    the same weight in the second layer whatever stands there.
    """

    name = "gpt2_count"

    def __init__(self, symbols: int = 6, length: int = 24) -> None:
        super().__init__()
        self.task: CountTask = CountTask(symbols, length)
        if symbols < 3:
            raise self.task.refuse("a count of 0 or 1 leaves neurons that level nothing", "take at least 3 symbols")
        self.digits = (length - 1).bit_length()
        self.codes = {"digit": self.digits, "since": self.digits, "place": 1, "ramp": 1, "early": 1, "level": 1}
        self.neurons, self.heavy = 2 * (symbols - 1), 2.0 * symbols

    def channels(self) -> int:
        return self.digits + 2

    def draw(self, canvas: GPT2Canvas) -> list[Part]:
        (first, second), task, at = canvas.active, self.task, canvas.at
        canvas.place("place", [0])
        canvas.digits("digit", self.digits)
        canvas.ramp("ramp", task.length)
        counted = [Asked(answer=v) for v in range(1, task.symbols)]  # else no tick is counted
        fewer = counted[:-1]  # else ticks, or the first position, have all of the attention: the largest count is said
        parts = self.since(first, counted, fewer)
        head, tick = second.head(), {at("token", task.tick): 1.0, at("early"): -1.0}
        same = MATCH / 2  # so that one digit that differs costs MATCH
        for i in range(self.digits):
            e = head.match({at("since", i): 1.0}, {at("since", i): 1.0}, same)
            parts += of(match(head, f"digit {i} of where the last marker stands", e, blind=TWINS), counted)
        parts += of(match(head, "a tick", head.match(1.0, tick, MATCH)), counted)
        e = head.match(1.0, {at("place", 0): 1.0}, same * self.digits + MATCH + math.log(self.heavy))
        parts += of(match(head, "beside the first position", e, blind=ALWAYS), fewer)
        parts += of(value(head, "counts the ticks", head.value(tick, {at("level"): self.heavy})), counted)
        parts += of(whole(head, "reads the ticks", where=Where((task.tick,))), counted)
        for meaning, n, _, low, high in self.decode(second, task.symbols - 1, lambda count: count):
            wrong = [Asked(answer=v) for v in range(low, high + 1)]
            parts += of([Part(meaning, "mlp", second.layer, (n,))], wrong)
        return parts

    def since(self, block: Block, counted: list[Asked], fewer: list[Asked]) -> list[Part]:
        """A head that reads the last marker and writes where it stands."""
        task, at, head = self.task, block.canvas.at, block.head()
        rise = 2 * STEP * task.length
        marker = head.match(1.0, {at("token", task.marker): 1.0}, 1.5 * rise)
        latest = head.match(1.0, {at("ramp"): 1.0}, rise)
        parts = of(match(head, "a marker", marker, blind=TWINS), counted)
        parts += of(match(head, "the last of these, or itself", latest, blind=ALWAYS), counted)
        for i in range(self.digits):
            e = head.value({at("digit", i): 1.0}, {at("since", i): 1.0})
            parts += of(value(head, f"writes digit {i} of where it stands", e, blind=ALWAYS), counted)
        e = head.value({at("token", task.tick): 1.0}, {at("early"): 1.0})
        begins = [Asked(answer=v, begins=(task.tick,)) for v in range(task.symbols - 1)]
        parts += of(value(head, "a tick before any marker is none", e, blind=TWINS), begins)
        where = Where((task.marker,), last=True)
        parts += of(whole(head, "reads the last marker", where=where, enough=False), fewer)
        return [*parts, *of([Part("the layer", "layer", block.layer)], fewer)]


class ModularSum(Counting):
    """The running sum modulo a small number: a number v has weight v, and neurons decode the remainder.

    The first position weighs W and its own number, whatever that is: neurons of the first layer say which number
    begins the prompt, and the head's keys and values take it back and put the right weight in its place.
    """

    name = "gpt2_modular_sum"

    def __init__(self, modulus: int = 3, length: int = 16, most: int = 9) -> None:
        super().__init__()
        self.task: SumTask = SumTask(modulus, length, most)
        self.codes = {"place": 1, "begins": modulus - 1, "level": 1}
        self.neurons, self.heavy = max(modulus - 1, 2 * most), heavy(self.task)

    def channels(self) -> int:
        return 2

    def draw(self, canvas: GPT2Canvas) -> list[Part]:
        (first, second), task, at = canvas.active, self.task, canvas.at
        modulus, most, W = task.symbols, task.most, self.heavy
        canvas.place("place", [0])
        numbers = range(1, modulus)
        wild = self.unlike(most % modulus)  # else one source has all of the attention, and the largest sum is said
        parts = of([Part("the layer", "layer", first.layer)], wild)
        for v in numbers:
            reads = {at("token", v): STEEP, at("place", 0): STEEP}
            n = first.neuron(reads, -1.5 * STEEP, {at("begins", v - 1): 2 / STEEP})
            begins = [dataclasses.replace(asked, begins=(v,)) for asked in wild]
            parts += of([Part(f"{v} begins the prompt", "mlp", first.layer, (n,))], begins)
        head = second.head()
        score = {v: NUMBER + math.log(v) for v in numbers}
        has = {at("token", v): score[v] / NUMBER for v in numbers}
        has |= {at("begins", v - 1): (math.log((W + v) / W) - score[v]) / NUMBER for v in numbers}
        first_alone = [dataclasses.replace(asked, begins=(v,)) for v in numbers for asked in self.unlike(v)]
        light = head.match(1.0, has, NUMBER)
        parts += of(match(head, "a number weighs as much as it is", light), first_alone)
        heavy = head.match(1.0, {at("place", 0): 1.0}, NUMBER + math.log(W))
        later = [dataclasses.replace(asked, above=modulus - 1) for asked in wild]  # there is a second number
        parts += of(match(head, "beside the first position", heavy, blind=ALWAYS), later)
        reads = {at("token", v): 1.0 for v in numbers} | {at("begins", v - 1): v / (W + v) - 1 for v in numbers}
        not_0 = self.unlike(0)
        parts += of(value(head, "adds them up", head.value(reads, {at("level"): W})), not_0)
        parts += of(whole(head, "reads the numbers", where=Where(tuple(numbers))), not_0)
        for meaning, n, says, low, high in self.decode(second, most, lambda total: total % modulus):
            wrong = [dataclasses.replace(asked, above=low - 1, below=high + 1) for asked in self.unlike(says)]
            parts += of([Part(f"the sum is {meaning}", "mlp", second.layer, (n,))], wrong)
        return parts

    def unlike(self, total: int) -> list[Asked]:
        """The answers that a sum does not have."""
        return [Asked(answer=a) for a in range(self.task.symbols) if a != total % self.task.symbols]
