"""Two circuits that count: by how far a state has decayed, and by a running sum whose remainder is asked for.

A remainder itself cannot be a state of a Mamba-1: its decays exp(Δ A) lie between 0 and 1, and the state of a token
that comes again and again then moves one way, towards a limit or without end, where a remainder must turn around. For
prompts of any length and numbers of finite precision no such model has one (Sarrof, Veitsman & Hahn 2024, on parity;
Grazzi et al. 2024). Here the state is the sum, which is at most ``ModularSum.most``, and a second layer decodes it: one
channel for each value of it, so the circuit grows with the largest sum.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ...tasks.answers import Prompts
from ...tasks.base import draw_in_split
from ..blueprint import ALWAYS, GAIN, TWINS
from ..prompts import SymbolTask, query_places
from ..truth import Asked, Part, Where
from .canvas import ON, SHUT, SIGNAL, Canvas, Size
from .models import CONSTANT, NO_STEP, MambaBlueprint, channel, paths

STEEP = 10.0
"""x of a ramp SiLU(x) one knot further on: SiLU(10 s) is 10 max(0, s) to 5e-4 at whole numbers s."""


class CountTask(SymbolTask):
    """``. ! | . ! . | a | ? →`` 2 at the query: how many ticks (|) since the last of two markers (!).

    Symbols are numbers; those in the prompt are noise. The twin has another number of ticks.
    """

    name = "count"

    def __init__(self, symbols: int, length: int) -> None:
        super().__init__(symbols, length, ("marker", "tick", "query"))
        if length < 2 * symbols + 6:
            least = 2 * symbols + 6
            raise self.refuse(f"a prompt of {length} tokens has no room for {symbols - 1} ticks", f"take {least}")
        self.marker, self.tick, self.query = range(symbols, symbols + 3)
        self.description = f"Count: {length} tokens; how many of up to {symbols - 1} ticks since the last marker"

    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        (n, length), most = symbols.shape, self.symbols - 1
        query, at = query_places(symbols, random), torch.arange(length)
        last = (torch.rand(n, 1, generator=random) * (query - most - 2)).long() + 2  # 2 … query - most - 1
        first = (torch.rand(n, 1, generator=random) * last).long()
        count = torch.randint(self.symbols, (n, 1), generator=random)
        other = (count + torch.randint(1, self.symbols, (n, 1), generator=random)) % self.symbols
        order = torch.rand(n, length, generator=random)  # who ticks first
        rank = order.masked_fill((at <= last) | (at >= query), 2.0).argsort(1).argsort(1)
        before = (at < last) & (order < 0.4)  # ticks that the last marker must clear

        def prompt(ticks: Tensor) -> Tensor:
            tokens = symbols.masked_fill((rank < ticks) | before, self.tick)
            return tokens.scatter(1, torch.cat([first, last], 1), self.marker).scatter(1, query, self.query)

        return Prompts(prompt(count), query, count, prompt(other), other, template)


class Count(MambaBlueprint):
    """The number of ticks since the last marker, as the decay of what the marker wrote.

    In the first layer a marker writes 1 and clears what was there, each tick lets it decay by ``RATIO``, and everything
    else leaves it alone; the query reads RATIO^ticks. In the second, ramps SiLU(c · (level − knot)) make of that level
    a one-hot code of the number, and say it.
    """

    name = "count"
    active = 2
    margin = GAIN - 1.6
    RATIO = 0.75

    def __init__(self, symbols: int = 6, length: int = 24) -> None:
        super().__init__()
        self.task: CountTask = CountTask(symbols, length)
        self.codes = {"level": 1}

    def needs(self) -> Size:
        return Size(d_inner=max(3, self.task.symbols), d_state=1, d_conv=1, dt_rank=1)

    def draw(self, canvas: Canvas) -> list[Part]:
        (first, second), task = canvas.active, self.task
        step, rate, closed = 4.0, 4.0, inverse_softplus(SHUT)  # a marker's step decays by exp(-16)
        level = canvas.at("level")
        keeper = first.channel(
            {canvas.at("token", task.marker): SIGNAL}, {level: 1 / (step * ON**2)}, step=SHUT, rate=rate
        )
        tick, query = (self.reader(first, "token", token) for token in (task.tick, task.query))
        n = first.state({keeper: 1 / ON}, {query: 1 / ON})
        opened = {keeper: step, tick: -math.log(self.RATIO) / rate}
        first.rank({e: (inverse_softplus(by) - closed) / ON for e, by in opened.items()}, [keeper], 1.0)
        parts = [*paths(first, "x z dt B C"), *paths(second, "x z")]
        counted = [Asked(answer=v) for v in range(1, task.symbols)]
        parts += channel(first, "a marker begins the count, which is its decay", keeper)
        parts += channel(first, "a tick opens the step", tick, *counted, blind=NO_STEP)
        parts += channel(first, "opens C at the query", query, blind=TWINS + NO_STEP)
        parts.append(Part("the level", "mode", first.layer, (keeper, n)))
        levels = [self.RATIO**v for v in range(task.symbols + 1)]
        knots = levels[1:]  # ramp v is open where the count is at most v
        scale = STEEP / (levels[-2] - levels[-1])  # the narrowest step is one STEEP wide
        for v, knot in enumerate(knots):
            writes = {canvas.at("token", w): GAIN * c / (scale * ON) for w, c in self.tents(levels, v).items()}
            e = second.channel({level: scale}, writes, bias=-scale * knot, skip=1.0)
            least = v if v == task.symbols - 1 else 0  # without it those below say v + 1, where there is such an answer
            wrong = [Asked(answer=w) for w in range(least, v + 1)]
            parts += channel(second, f"the count is at most {v}", e, *wrong, blind=NO_STEP)
        parts.append(Part("ticks decay it, markers clear it", "decay", first.layer, asked=tuple(counted)))
        where = Where((task.marker,), last=True)
        return [*parts, Part("the last marker", "write", first.layer, where=where)]

    @staticmethod
    def tents(levels: list[float], v: int) -> dict[int, float]:
        """The slopes with which the ramp from levels[v + 1] on enters the tents of the counts, by count.

        The tent of count w is 1 at levels[w] and 0 at its neighbours; that of count 0 goes on rising.
        """
        up = lambda w: 1 / (levels[w] - levels[w + 1])
        slopes = {v: up(v)}
        if v + 1 < len(levels) - 1:
            slopes[v + 1] = -(up(v + 1) + up(v))
        if v + 2 < len(levels) - 1:
            slopes[v + 2] = up(v + 1)
        return slopes


def inverse_softplus(step: float) -> float:
    return math.log(math.expm1(step))


class SumTask(SymbolTask):
    """``2 0 1 1 →`` at each position, the remainder of the sum so far; symbols are the numbers below the modulus.

    Sums are at most ``most``, and all up to it are as likely. The twin's first number is 0, so all its answers differ.
    """

    name = "modular_sum"
    order_matters = False

    def __init__(self, modulus: int, length: int, most: int) -> None:
        super().__init__(modulus, length, ())
        self.most = most
        if not modulus <= most <= length * (modulus - 1) // 2:
            raise self.refuse(
                f"a largest sum of {most} in {length} numbers below {modulus}",
                f"take {modulus} to {length * (modulus - 1) // 2}",
            )
        self.description = f"Modular sum: of {length} numbers, each sum so far (at most {most}) modulo {modulus}"

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        numbers, template = draw_in_split(lambda n: self.numbers(n, random), count, split)
        return self.ask(numbers, numbers, template, random)

    def numbers(self, count: int, random: torch.Generator) -> Tensor:
        """Ones in random places of [length, modulus - 1], as many as a random sum, added up; the first is not 0."""
        places = torch.rand(count, self.length, self.symbols - 1, generator=random)
        places[:, 0, 0] = -1.0
        total = torch.randint(1, self.most + 1, (count, 1), generator=random)
        ones = places.flatten(1).argsort(1).argsort(1) < total
        return ones.view(places.shape).sum(-1)

    def ask(self, symbols: Tensor, changed: Tensor, template: Tensor, random: torch.Generator) -> Prompts:
        twins = symbols.clone()
        twins[:, 0] = 0
        answers, wrong = (tokens.cumsum(1) % self.symbols for tokens in (symbols, twins))
        positions = torch.arange(self.length).expand(len(symbols), -1)
        return Prompts(symbols, positions, answers, twins, wrong, template)


class ModularSum(MambaBlueprint):
    """The running sum modulo a small number: the first layer adds up, the second decodes.

    A channel for each number keeps count of it, in a state that does not decay; together they write the sum, and one
    more adds 1, so that no sum is silence. In the second layer ramps SiLU(STEEP·(sum + 1 − k)), as good as
    STEEP·max(0, sum + 1 − k), make a zigzag for each remainder: 1 at the sums that have it, 0 at other whole numbers.
    """

    name = "modular_sum"
    active = 2
    margin = GAIN - 1.5

    def __init__(self, modulus: int = 3, length: int = 16, most: int = 9) -> None:
        super().__init__()
        self.task: SumTask = SumTask(modulus, length, most)
        self.codes = {"sum": 1}

    def needs(self) -> Size:
        return Size(d_inner=max(self.task.symbols, self.task.most) + 1, d_state=1, d_conv=1, dt_rank=1)

    def draw(self, canvas: Canvas) -> list[Part]:
        (first, second), modulus, most = canvas.active, self.task.symbols, self.task.most
        parts = [*paths(first, "x z"), *paths(second, "x z")]
        at, not_0 = canvas.at("sum"), tuple(Asked(answer=a) for a in range(1, modulus))
        parts += [dataclasses.replace(part, asked=not_0) for part in paths(first, "dt B C")]  # the sum is 0
        one = first.channel({canvas.pin: SIGNAL}, {at: ON**-2}, skip=1.0, step=SHUT)
        parts += channel(first, "adds 1", one, blind=ALWAYS + NO_STEP)
        counters = [
            first.channel({canvas.at("token", v): SIGNAL}, {at: v / ON**2} if v else None) for v in range(modulus)
        ]
        n = first.state({e: 1 / ON for e in counters[1:]}, dict.fromkeys(counters, 1 / ON))
        for v, e in enumerate(counters):
            said = [dataclasses.replace(asked, token=v) for asked in not_0]  # no C here: the sum reads as 0
            meaning, without = (f"counts {v}", CONSTANT) if v else ("opens C at a 0", NO_STEP)
            parts += channel(first, meaning, e, *said, blind=without)
            if v:
                often = (Asked(token=v),)  # right again where the number stood so often that it makes no difference
                parts.append(Part(f"how often {v}", "mode", first.layer, (e, n), often, 1 / modulus + 0.25))
        for k in range(most + 1):  # the tent of sum s has knots at s, s + 1 and s + 2
            slopes: dict[int, float] = {}
            for s, slope in ((k, 1.0), (k - 1, -2.0), (k - 2, 1.0)):
                if 0 <= s <= most:
                    slopes[s % modulus] = slopes.get(s % modulus, 0.0) + slope
            writes = {canvas.at("token", r): GAIN * c / (STEEP * ON) for r, c in slopes.items()}
            e = second.channel({at: STEEP}, writes, bias=-STEEP * k, skip=1.0)
            # without it larger sums say the remainder of k - 1, and where there is none such nothing says 0
            wrong = [Asked(answer=a, above=k - 1) for a in range(modulus) if a != (k - 1) % modulus]
            asked = wrong if k else [Asked(answer=0)]
            parts += channel(second, f"the sum is at least {k}", e, *asked, blind=NO_STEP)
        where = Where(tuple(range(1, modulus)))
        return [*parts, Part("the numbers", "write", first.layer, asked=not_0, where=where)]
