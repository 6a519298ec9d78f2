"""The compiled GPT-2s, twins of the compiled Mambas: the same tasks, through attention.

A query that finds no match goes to the first position (a *sink*, as in trained models), so that what is left when a
part is removed does not answer by half a match.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

from ...tasks.config import TaskConfig
from ...tasks.induction import Induction as InductionTask
from ...tasks.recall import Recall as RecallTask
from ...tasks.selective_copy import SelectiveCopy as SelectiveCopyTask
from ..blueprint import ALWAYS, TWINS, Blueprint, by_chance
from ..prompts import Latch as LatchTask
from ..prompts import MostRecent as MostRecentTask
from ..prompts import Shift as ShiftTask
from ..truth import Asked, Part, Where
from .canvas import STEEP, Block, GPT2Canvas, GPT2Size, Head

GAIN = 8.0
"""Logit that one answer is written with."""
MATCH = 80.0
"""Score of a full match; the sink has three quarters, half a match has half: each is e^-20 of the one above."""
SINK = 0.75 * MATCH
STEP = 10.0
"""Gain of a position's score over the one before, where the last of several is wanted."""


class GPT2Blueprint(Blueprint):
    """A circuit that can be drawn on a GPT-2: one head in each layer that it has."""

    idle: ClassVar[tuple[str, ...]] = ("mlp",)
    margin = GAIN - 1.1
    tolerance = 4e-3  # rounding by LayerNorm in float32, in directions that no unit reads

    @abstractmethod
    def channels(self) -> int:
        """Key or value channels that a head needs, whichever are more."""

    neurons: int = 0

    def least(self) -> GPT2Size:
        """The smallest model that holds the circuit, with two residual directions left for idle units to write."""
        return self.least_beside(None)

    def least_beside(self, size: GPT2Size | None) -> GPT2Size:
        d_head = max(self.channels(), size.d_head if size else 0)
        directions = 4 + self.task.vocab_size + sum(self.codes.values())
        heads = -(-directions // d_head)
        return GPT2Size(heads, self.channels(), self.active, max(1, self.neurons), self.task.length)

    def canvas(self, size: GPT2Size, seed: int) -> GPT2Canvas:
        return GPT2Canvas(size, self.task.vocab_size, self.codes, self.active, seed)

    # ---- what several circuits draw ----

    def speak(self, head: Head, token: int, meaning: str, *asked: Asked, accuracy: float = 0.0) -> list[Part]:
        """A value channel that holds a token and says it."""
        at = head.block.canvas.at("token", token)
        return value(head, meaning, head.value({at: 1.0}, {at: GAIN}), *asked, accuracy=accuracy)

    def sink(self, head: Head, asks: dict[int, float] | float, start: int, score: float) -> None:
        """The target of a query that finds nothing else: the first position, where direction ``start`` holds 1."""
        head.match(asks, {start: 1.0}, score)

    def before(self, head: Head, places: list[int], asked: dict[int, Asked], accuracy: float = 0.0) -> list[Part]:
        """Lets the position after each of some places read that place alone."""
        at, parts = head.block.canvas.at, []
        for place in places:
            e = head.match({at("place", place + 1): 1.0}, {at("place", place): 1.0}, MATCH)
            meaning = f"position {place + 1} reads the one before"
            parts += match(head, meaning, e, asked[place], accuracy=accuracy, blind=ALWAYS)
        return parts


def match(
    head: Head,
    meaning: str,
    e: int,
    *asked: Asked,
    accuracy: float = 0.0,
    blind: tuple[str, ...] = (),
) -> list[Part]:
    """A key channel and the query channel that reads it."""
    asked, layer = asked or (Asked(),), head.block.layer
    return [
        Part(meaning, "kv", layer, (0, head.number, e), asked, accuracy, blind=blind),
        Part(meaning, "q", layer, (head.number, e), asked, accuracy),
    ]


def value(
    head: Head, meaning: str, e: int, *asked: Asked, accuracy: float = 0.0, blind: tuple[str, ...] = ()
) -> list[Part]:
    return [Part(meaning, "kv", head.block.layer, (1, head.number, e), asked or (Asked(),), accuracy, blind=blind)]


def whole(
    head: Head, meaning: str, accuracy: float = 0.0, where: Where | None = None, enough: bool = True
) -> list[Part]:
    """A head, and the positions whose values are read by it."""
    layer, unit = head.block.layer, (head.number,)
    parts = [Part(meaning, "head", layer, unit, accuracy=accuracy)]
    if where is not None:
        parts.append(Part(meaning, "source", layer, unit, accuracy=accuracy, where=where, enough=enough))
    return parts


class Shift(GPT2Blueprint):
    """The token ``by`` positions back: queries and keys are codes of positions, values are tokens."""

    name = "gpt2_shift"

    def __init__(self, symbols: int = 8, length: int = 16, by: int = 2) -> None:
        super().__init__()
        self.task: ShiftTask = ShiftTask(symbols, length, by)
        self.codes = {"place": length}

    def channels(self) -> int:
        return max(self.task.symbols, self.task.length - self.task.by)

    def draw(self, canvas: GPT2Canvas) -> list[Part]:
        (block,), task, parts = canvas.active, self.task, []
        canvas.place("place", range(task.length))
        head = block.head()
        for j in range(task.length - task.by):
            e = head.match({canvas.at("place", j + task.by): 1.0}, {canvas.at("place", j): 1.0}, MATCH)
            # without it attention is even, and says what was seen most often
            asked, chance = Asked(slot=j), by_chance(task.symbols)
            parts += match(head, f"position {j + task.by} reads {j}", e, asked, accuracy=chance, blind=ALWAYS)
        for v in range(task.symbols):
            parts += self.speak(head, v, f"says symbol {v}", Asked(answer=v))
        return [*parts, *whole(head, f"reads {task.by} back")]


class Latch(GPT2Blueprint):
    """The symbol after the last marker: a head marks what follows a marker, a second reads the last that is marked."""

    name = "gpt2_latch"
    active = 2

    def __init__(self, symbols: int = 8, length: int = 20) -> None:
        super().__init__()
        self.task: LatchTask = LatchTask(symbols, length)
        self.without_layer = by_chance(symbols)
        self.codes = {"place": length, "marked": 1, "ramp": 1}

    def channels(self) -> int:
        return max(self.task.symbols, self.task.length - 4, 3)

    def draw(self, canvas: GPT2Canvas) -> list[Part]:
        (first, second), task = canvas.active, self.task
        at, length = canvas.at, task.length
        canvas.place("place", range(length))
        canvas.ramp("ramp", length)
        head = first.head()
        places = list(range(2, length - 2))  # of the last marker
        asked = {place: Asked(last=(task.marker, place)) for place in places}
        chance, query = by_chance(task.symbols), {at("token", task.query): 1.0}
        parts = self.before(head, places, asked, accuracy=chance)
        e = head.value({at("token", task.marker): 1.0}, {at("marked"): 1.0})
        parts += value(head, "marks what follows a marker", e, accuracy=chance, blind=TWINS)
        parts += whole(head, "reads one back", chance, Where((task.marker,), last=True), enough=False)
        head, rise, fall = second.head(), STEP * length, 0.05  # so that without the rise the first one wins
        reads = {at("marked"): 1.0, at("token", task.marker): -1.0, at("ramp"): -fall}
        e = head.match(query, reads, 4 * rise)
        parts += match(head, "the query reads what is marked", e, accuracy=chance, blind=TWINS)
        e = head.match(query, {at("ramp"): 1.0}, (1 + 4 * fall) * rise)
        parts += match(head, "the last of these", e, accuracy=0.6, blind=ALWAYS)
        self.sink(head, query, at("place", 0), 3.5 * rise)
        for v in range(task.symbols):
            parts += self.speak(head, v, f"says symbol {v}", Asked(answer=v))
        where = Where((task.marker,), back=1, last=True)
        return [*parts, *whole(head, "reads what is marked", where=where)]


class MostRecent(GPT2Blueprint):
    """The last symbol among noise: every symbol is a match, and of these the last has the highest score."""

    name = "gpt2_most_recent"

    def __init__(self, symbols: int = 8, length: int = 20) -> None:
        super().__init__()
        self.task: MostRecentTask = MostRecentTask(symbols, length)
        self.codes = {"ramp": 1}

    def channels(self) -> int:
        return max(self.task.symbols, 2)

    def draw(self, canvas: GPT2Canvas) -> list[Part]:
        (block,), task, at = canvas.active, self.task, canvas.at
        rise = 2 * STEP * task.length
        canvas.ramp("ramp", task.length)
        head, query = block.head(), {at("token", task.query): 1.0}
        symbols = {at("token", v): 1.0 for v in range(task.symbols)}
        parts = match(head, "a symbol", head.match(query, symbols, 1.5 * rise), blind=TWINS)
        e = head.match(query, {at("ramp"): 1.0}, rise)
        # without it the symbol seen most often wins, without the last symbol the one before it
        parts += match(head, "the last of these", e, accuracy=0.8, blind=ALWAYS)
        for v in range(task.symbols):
            parts += self.speak(head, v, f"says symbol {v}", Asked(answer=v))
        where, chance = Where(tuple(range(task.symbols)), last=True), by_chance(task.symbols)
        return [*parts, *whole(head, "reads the last symbol", chance, where)]


class Lookup(GPT2Blueprint):
    """Induction heads (Olsson et al. 2022): one writes which token stood before, a second finds it and says the next.

    Keys of the second are the token before less the token itself, since the first position reads itself. Where nothing
    says what stood before, a token that begins the prompt is found even less than others, and answered by chance.
    """

    active = 2
    places: list[int]
    """The first position of a token that is asked for later."""
    asked: range
    said: range
    before_blind: tuple[str, ...] = ()
    """Ablations that are blind to the codes of the tokens before."""

    def channels(self) -> int:
        return max(len(self.places), len(self.asked) + 1, len(self.said))

    def draw(self, canvas: GPT2Canvas) -> list[Part]:
        (first, second), at, parts = canvas.active, canvas.at, []
        canvas.place("place", range(self.task.length))
        head, reader, chance = first.head(), second.head(), self.without_layer
        parts += self.before(head, self.places, {place: Asked(first=place) for place in self.places})
        for i, p in enumerate(self.asked):
            name, asked = self.task.decode(p), Asked(token=p)
            e = head.value({at("token", p): 1.0}, {at("before", i): 1.0})
            meaning = f"writes that {name} stood before"
            parts += value(head, meaning, e, asked, accuracy=chance, blind=self.before_blind)
            e = reader.match({at("token", p): 1.0}, {at("before", i): 1.0, at("token", p): -1.0}, MATCH)
            parts += match(reader, f"{name} stood before", e, asked, blind=self.before_blind)
        self.sink(reader, 1.0, at("place", 0), SINK)
        for v in self.said:
            parts += self.speak(reader, v, f"says {self.task.decode(v)}", Asked(answer=v))
        parts += whole(head, "reads one back", chance)
        return [*parts, *whole(reader, "reads what follows asked tokens", where=Where(pairs=True))]


class Recall(Lookup):
    """Associative recall: the first head reads the keys before values, the second finds the asked key."""

    name = "gpt2_recall"
    before_blind = TWINS

    def __init__(self, config: TaskConfig | None = None) -> None:
        super().__init__()
        self.task: RecallTask = RecallTask(config or TaskConfig(name="recall", pairs=3, keys=8, values=8))
        self.places = list(range(0, 2 * self.task.pairs, 2))
        self.asked, self.said = range(self.task.keys), range(self.task.keys, self.task.vocab_size)
        self.without_layer = by_chance(self.task.values)
        self.codes = {"place": self.task.length, "before": self.task.keys}


class Induction(Lookup):
    """Induction over two layers, of any symbol."""

    name = "gpt2_induction"

    def __init__(self, config: TaskConfig | None = None) -> None:
        super().__init__()
        self.task: InductionTask = InductionTask(config or TaskConfig(name="induction", keys=8, length=16))
        self.places = list(range(self.task.length - self.task.segment))
        self.asked = self.said = range(self.task.symbols)
        self.without_layer = by_chance(self.task.symbols)
        self.codes = {"place": self.task.length, "before": self.task.symbols}


class SelectiveCopy(GPT2Blueprint):
    """Selective copy in three layers: a neuron, a head that counts, and a head that reads the k-th.

    Attention shares out 1 among what it reads, so a count is read off its shares: with one source of weight W and c
    of weight 1, each of those c has 1 / (W + c). The heavy source is the first position, whose score must be the same
    whether it carries a token or not: a neuron says that it does. Then neurons GELU(STEEP · (share − share of k)) of
    carried tokens alone make a one-hot code of the count: the keys of the slots.
    """

    name = "gpt2_selective_copy"
    active = 3
    idle = ()

    def __init__(self, config: TaskConfig | None = None) -> None:
        super().__init__()
        config = config or TaskConfig(name="selective_copy", pairs=3, values=8, length=16)
        self.task: SelectiveCopyTask = SelectiveCopyTask(config)
        self.codes = {"place": 1, "slot": self.task.carried, "begins": 1, "count": 1, "ramp": self.task.carried}
        self.without_layer = by_chance(self.task.values)
        self.neurons, self.heavy = self.task.carried, 4.0 * self.task.carried

    def share(self, count: int) -> float:
        """The output of the count, ``heavy`` times the share; half a token off where the first one is carried."""
        return count * self.heavy / (self.heavy + max(0.0, count - 0.5))

    def channels(self) -> int:
        return max(self.task.carried + 1, self.task.values, 2)

    def draw(self, canvas: GPT2Canvas) -> list[Part]:
        task, slots, at = self.task, range(self.task.carried), canvas.at
        first, second, third = canvas.active
        canvas.place("place", [0])
        canvas.place("slot", [task.area + k for k in slots])
        carried = {at("token", v): 1.0 for v in range(task.values)}
        parts = self.both(first, carried)
        parts += self.count(second, carried)
        for k in slots:
            shut = STEEP * (task.carried + 1)
            reads = {at("count"): STEEP, **dict.fromkeys(carried, shut)}
            n = second.neuron(reads, -STEEP * self.share(k) - shut, {at("ramp", k): 1 / STEEP})
            # without it the sink is read, where the first carried token may stand: so for its key
            parts.append(Part(f"count above {k}", "mlp", second.layer, (n,), (Asked(slot=k),), 0.6, blind=TWINS))
        head = third.head()
        for k in slots:  # 1 at count k + 1, 0 at every other: a tent of three ramps
            up, down = (1 / (self.share(k + i + 1) - self.share(k + i)) for i in range(2))
            tent = {at("ramp", k + i): w for i, w in enumerate((up, -up - down, down)) if k + i < task.carried}
            e = head.match({at("slot", k): 1.0}, tent, 2 * MATCH)
            parts += match(head, f"slot {k}", e, Asked(slot=k), accuracy=0.6, blind=TWINS)
        self.sink(head, 1.0, at("place", 0), MATCH)
        for v in range(task.values):
            parts += self.speak(head, v, f"says value {v}", Asked(answer=v))
        return [*parts, *whole(head, "reads the carried tokens", where=Where(tuple(range(task.values))))]

    def both(self, block: Block, carried: dict[int, float]) -> list[Part]:
        """A neuron for prompts that begin with a carried token."""
        at = block.canvas.at
        reads = dict.fromkeys([*carried, at("place", 0)], STEEP)
        n = block.neuron(reads, -1.5 * STEEP, {at("begins"): 2 / STEEP})
        asked, chance = (Asked(begins=tuple(range(self.task.values))),), by_chance(self.task.values)
        meaning = "the first token is carried"
        return [
            Part(meaning, "mlp", block.layer, (n,), asked, chance, blind=TWINS),
            Part(meaning, "layer", block.layer, (), asked, chance),
        ]

    def count(self, block: Block, carried: dict[int, float]) -> list[Part]:
        """A head whose output is the number of carried tokens so far."""
        head, at = block.head(), block.canvas.at
        first, chance = at("place", 0), by_chance(self.task.values)
        light = head.match(1.0, {**carried, at("begins"): -1.0}, SINK)
        heavy = head.match(1.0, {first: 1.0}, SINK + math.log(self.heavy))
        out = head.value({**carried, at("begins"): 1 / self.heavy - 1}, {at("count"): self.heavy})
        parts = match(head, "reads carried tokens", light, accuracy=chance, blind=TWINS)
        parts += match(head, "and the first one", heavy, accuracy=0.6, blind=ALWAYS)
        return [
            *parts,
            *value(head, "counts carried tokens", out, accuracy=chance, blind=TWINS),
            *whole(head, "counts", chance),
        ]
