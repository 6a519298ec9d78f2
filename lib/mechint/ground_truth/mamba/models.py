"""The compiled Mambas: for each, its least size, how it is drawn, and what is true of it."""

from __future__ import annotations

import math
from abc import abstractmethod

from ...interventions.unit_kinds import PATHS
from ...tasks.config import TaskConfig
from ...tasks.induction import Induction as InductionTask
from ...tasks.recall import Recall as RecallTask
from ...tasks.selective_copy import SelectiveCopy as SelectiveCopyTask
from ..blueprint import ALWAYS, GAIN, TWINS, Blueprint, by_chance
from ..prompts import Latch as LatchTask
from ..prompts import MostRecent as MostRecentTask
from ..prompts import Shift as ShiftTask
from ..truth import Asked, Part, Where
from .canvas import ON, SHUT, SIGNAL, Canvas, Mixer, Size


class MambaBlueprint(Blueprint):
    """A circuit that can be drawn on a Mamba."""

    @abstractmethod
    def needs(self) -> Size:
        """The least size but for d_model and n_layer, which follow from the codes and ``active``."""

    def least(self) -> Size:
        """The smallest model that holds the circuit, with one residual direction left for idle channels to write."""
        needs, directions = self.needs(), 2 + self.task.vocab_size + sum(self.codes.values())
        return Size(directions, needs.d_inner, needs.d_state, self.active, needs.d_conv, needs.dt_rank)

    def canvas(self, size: Size, seed: int) -> Canvas:
        return Canvas(size, self.task.vocab_size, self.codes, self.active, seed)

    # ---- what several circuits draw ----

    def reader(self, mixer: Mixer, group: str, index: int, **options: float | int) -> int:
        """A channel whose u is ``ON`` where the residual stream says so, and 0 elsewhere; only Δ, B or C read it."""
        return mixer.channel({mixer.canvas.at(group, index): SIGNAL}, **options)  # type: ignore[arg-type]

    def speaker(self, mixer: Mixer, token: int, says: float, **options: float | int) -> int:
        """A channel that reads a token and says it: ``says`` for each 1 of y / ON."""
        at = mixer.canvas.at("token", token)
        return mixer.channel({at: SIGNAL}, {at: says / ON**2}, **options)  # type: ignore[arg-type]


NO_STEP = ("step_zero", "step_mean")  # no state of the channel is read
CONSTANT = ("step_mean",)  # its step is the same at every token


def paths(mixer: Mixer, names: str) -> list[Part]:
    return [Part("the path", "path", mixer.layer, (PATHS.index(name),)) for name in names.split()]


def channel(
    mixer: Mixer,
    meaning: str,
    e: int,
    *asked: Asked,
    tap: int = 0,
    accuracy: float = 0.0,
    blind: tuple[str, ...] = (),
    way: str = "",
) -> list[Part]:
    """A channel and the one tap of its convolution that reads."""
    asked = asked or (Asked(),)
    return [
        Part(meaning, "channel", mixer.layer, (e,), asked, accuracy, blind=blind, way=way),
        Part(meaning, "tap", mixer.layer, (e, tap), asked, accuracy, way=way),
    ]


class Shift(MambaBlueprint):
    """The token ``by`` positions back, through one tap of the convolution and D; no state."""

    name = "shift"

    def __init__(self, symbols: int = 8, length: int = 16, by: int = 2) -> None:
        super().__init__()
        self.task: ShiftTask = ShiftTask(symbols, length, by)

    def needs(self) -> Size:
        return Size(d_inner=self.task.symbols, d_state=1, d_conv=self.task.by + 1, dt_rank=1)

    def draw(self, canvas: Canvas) -> list[Part]:
        (mixer,), by = canvas.active, self.task.by
        parts = paths(mixer, "x z")
        for v in range(self.task.symbols):
            e = self.speaker(mixer, v, GAIN, tap=by, skip=1.0)
            parts += channel(mixer, f"says symbol {v}", e, Asked(answer=v), tap=by, blind=NO_STEP)
        return parts


class Latch(MambaBlueprint):
    """The symbol after the last marker: Δ and B open at it, write the symbol and clear the state; C opens at the end.

    Δ is 1.5e-8 elsewhere, so the state neither decays nor is written to.
    """

    name = "latch"

    def __init__(self, symbols: int = 8, length: int = 20) -> None:
        super().__init__()
        self.task: LatchTask = LatchTask(symbols, length)

    def needs(self) -> Size:
        return Size(d_inner=self.task.symbols + 2, d_state=1, d_conv=2, dt_rank=1)

    def draw(self, canvas: Canvas) -> list[Part]:
        (mixer,), task = canvas.active, self.task
        step, rate, closed = 4.0, 4.0, math.log(math.expm1(SHUT))  # open: decays by exp(-16)
        speakers = [self.speaker(mixer, v, GAIN / step, step=SHUT, rate=rate) for v in range(task.symbols)]
        marker = self.reader(mixer, "token", task.marker, tap=1)
        query = self.reader(mixer, "token", task.query)
        n = mixer.state({marker: 1 / ON}, {query: 1 / ON})
        mixer.rank({marker: 1 / ON}, speakers, math.log(math.expm1(step)) - closed)
        parts = paths(mixer, "x z dt B C")
        parts += channel(mixer, "opens B and the step after a marker", marker, tap=1, blind=TWINS + NO_STEP)
        parts += channel(mixer, "opens C at the query", query, blind=TWINS + NO_STEP)
        for v, e in enumerate(speakers):
            parts += channel(mixer, f"keeps and says symbol {v}", e, Asked(answer=v))
            parts.append(Part(f"holds symbol {v}", "mode", mixer.layer, (e, n), (Asked(answer=v),)))
        # a tie, which noise breaks either way
        parts.append(Part("the last clears the first", "decay", mixer.layer, accuracy=0.9))
        where = Where((task.marker,), back=1, last=True)
        return [*parts, Part("after the last marker", "write", mixer.layer, where=where)]


class MostRecent(MambaBlueprint):
    """The last symbol among noise: each symbol seen makes the states decay by exp(-2), noise does not (Δ).

    A symbol's state is a decaying count of it; the last one's is at least 1, all others' are at most 0.157.
    """

    name = "most_recent"
    margin = GAIN * (1 - 1 / math.expm1(2)) - 1.1

    def __init__(self, symbols: int = 8, length: int = 20) -> None:
        super().__init__()
        self.task: MostRecentTask = MostRecentTask(symbols, length)

    def needs(self) -> Size:
        return Size(d_inner=self.task.symbols + 1, d_state=1, d_conv=1, dt_rank=1)

    def draw(self, canvas: Canvas) -> list[Part]:
        (mixer,), task = canvas.active, self.task
        closed, opened = (math.log(math.expm1(step)) for step in (SHUT, 1.0))
        speakers = [self.speaker(mixer, v, GAIN, step=SHUT, rate=2.0) for v in range(task.symbols)]
        query = self.reader(mixer, "token", task.query)
        seen = dict.fromkeys(speakers, 1 / ON)
        n = mixer.state(seen, {query: 1 / ON})
        mixer.rank(seen, speakers, opened - closed)
        parts = paths(mixer, "x z dt B C")
        parts += channel(mixer, "opens C at the query", query, blind=TWINS + NO_STEP)
        for v, e in enumerate(speakers):
            parts += channel(mixer, f"counts and says symbol {v}", e, Asked(answer=v))
            parts.append(Part(f"decaying count of symbol {v}", "mode", mixer.layer, (e, n), (Asked(answer=v),)))
        # without the decay the symbol seen most often wins, without the last symbol the one before it
        parts.append(Part("counts decay", "decay", mixer.layer, accuracy=0.8))
        where, chance = Where(tuple(range(task.symbols)), last=True), by_chance(task.symbols)
        return [*parts, Part("the last symbol", "write", mixer.layer, accuracy=chance, where=where, enough=False)]


class Recall(MambaBlueprint):
    """Associative recall in one layer: the states are a table of values (channels) by keys (states).

    At a value, B is the key before it (a tap back) and the value's channel writes; at a key, C is that key.
    """

    name = "recall"

    def __init__(self, config: TaskConfig | None = None) -> None:
        super().__init__()
        self.task: RecallTask = RecallTask(config or TaskConfig(name="recall", pairs=3, keys=8, values=8))

    def needs(self) -> Size:
        keys, values = self.task.keys, self.task.values
        return Size(d_inner=2 * keys + values, d_state=keys, d_conv=2, dt_rank=1)

    def draw(self, canvas: Canvas) -> list[Part]:
        (mixer,), keys, parts, states = canvas.active, self.task.keys, [], []
        parts = paths(canvas.active[0], "x z dt B C")
        for k in range(keys):
            before = self.reader(mixer, "token", k, tap=1)
            here = self.reader(mixer, "token", k)
            states.append(mixer.state({before: 1 / ON}, {here: 1 / ON}))
            parts += channel(mixer, f"B: key {k} stood before", before, Asked(token=k), tap=1, blind=TWINS + NO_STEP)
            parts += channel(mixer, f"C: key {k} is asked", here, Asked(token=k), blind=TWINS + NO_STEP)
        for v in range(keys, keys + self.task.values):
            e = self.speaker(mixer, v, GAIN, skip=1.0)
            parts += channel(mixer, f"writes and says value {v - keys}", e, Asked(answer=v), blind=CONSTANT)
            for k, n in enumerate(states):
                asked = (Asked(token=k, answer=v),)
                parts.append(Part(f"key {k} has value {v - keys}", "mode", mixer.layer, (e, n), asked))
        return [*parts, Part("the values of asked keys", "write", mixer.layer, where=Where(pairs=True))]


class Induction(MambaBlueprint):
    """Induction in two layers: the first writes which token stood before, the second keeps a table of what follows it.

    In the second, B is the token before, as the first wrote it, each symbol's channel writes, and C is the token here.
    """

    name = "induction"
    active = 2

    def __init__(self, config: TaskConfig | None = None) -> None:
        super().__init__()
        self.task: InductionTask = InductionTask(config or TaskConfig(name="induction", keys=8, length=16))
        self.codes = {"before": self.task.symbols}

    def needs(self) -> Size:
        return Size(d_inner=2 * self.task.symbols, d_state=self.task.symbols, d_conv=2, dt_rank=1)

    def draw(self, canvas: Canvas) -> list[Part]:
        (first, second), symbols = canvas.active, range(self.task.symbols)
        parts = [*paths(first, "x z"), *paths(second, "x z dt B C")]
        speakers = [self.speaker(second, v, GAIN) for v in symbols]
        states = []
        for p in symbols:
            reads, writes = {canvas.at("token", p): SIGNAL}, {canvas.at("before", p): ON**-2}
            e = first.channel(reads, writes, tap=1, skip=1.0)
            parts += channel(first, f"writes that symbol {p} stood before", e, Asked(token=p), tap=1, blind=NO_STEP)
            before = self.reader(second, "before", p)
            parts += channel(second, f"B: symbol {p} stood before", before, Asked(token=p), blind=NO_STEP)
            states.append(second.state({before: 1 / ON}, {speakers[p]: 1 / ON}))
        for v, e in enumerate(speakers):
            asked = Asked(answer=v), Asked(token=v)
            parts += channel(second, f"writes and says symbol {v}, and C: it is asked", e, *asked, blind=CONSTANT)
            for p, n in enumerate(states):
                if p != v:  # no symbol of a segment follows itself
                    follows = (Asked(token=p, answer=v),)
                    parts.append(Part(f"{v} follows {p}", "mode", second.layer, (e, n), follows))
        return [*parts, Part("what follows asked tokens", "write", second.layer, where=Where(pairs=True))]


class SelectiveCopy(MambaBlueprint):
    """Selective copy in two layers: the first counts, the second has a table of values (channels) by slots (states).

    The first counts carried tokens and markers. In the second, channels SiLU(STEEP·(count − k)), as good as
    STEEP·max(0, count − k), make a one-hot code of the count: B of the slot to write, C of the slot to read.
    """

    name = "selective_copy"
    active = 2
    margin = GAIN - 1.5
    STEEP = 10.0

    def __init__(self, config: TaskConfig | None = None) -> None:
        super().__init__()
        config = config or TaskConfig(name="selective_copy", pairs=3, values=8, length=16)
        self.task: SelectiveCopyTask = SelectiveCopyTask(config)
        self.codes = {"count": 2}

    def needs(self) -> Size:
        carried = self.task.carried
        return Size(d_inner=self.task.values + 2 * carried, d_state=carried, d_conv=1, dt_rank=1)

    def draw(self, canvas: Canvas) -> list[Part]:
        (first, second), task, slots = canvas.active, self.task, range(self.task.carried)
        parts = [*paths(first, "x z dt B C"), *paths(second, "x z dt B C")]
        values = range(task.values)
        counters = []
        for i, tokens in enumerate((values, [task.marker])):
            reads, writes = {canvas.at("token", v): SIGNAL for v in tokens}, {canvas.at("count", i): ON**-2}
            counters.append(first.channel(reads, writes))
            what, blind = (("carried tokens", TWINS), ("markers", ALWAYS))[i]
            parts += channel(first, f"counts {what}", counters[i], blind=blind + CONSTANT)
        n = first.state(*(dict.fromkeys(counters, 1 / ON) for _ in range(2)))
        parts += [Part("the count", "mode", first.layer, (e, n)) for e in counters]
        steps = []
        for i in range(2):
            reads = {canvas.at("count", i): self.STEEP}
            steps.append([second.channel(reads, bias=-self.STEEP * k) for k in slots])
            for k, e in enumerate(steps[i]):
                chance = by_chance(task.values)  # that the slot read or written instead has the same value
                meaning, without = f"{'BC'[i]}: count above {k}", (TWINS, ALWAYS)[i] + NO_STEP
                parts += channel(second, meaning, e, Asked(slot=k), accuracy=chance, blind=without)
        speakers = [self.speaker(second, v, GAIN) for v in values]
        states = []
        for slot in slots:  # 1 at count slot + 1, 0 at every other whole number: a tent of three ramps
            tents = [
                {ramp: w / self.STEEP for ramp, w in zip(ramps[slot:], (1.0, -2.0, 1.0), strict=False)}
                for ramps in steps
            ]
            states.append(second.state(*tents))
        for v, e in enumerate(speakers):
            parts += channel(second, f"writes and says value {v}", e, Asked(answer=v), blind=CONSTANT)
            for slot, n in enumerate(states):
                asked = (Asked(slot=slot, answer=v),)
                parts.append(Part(f"slot {slot} has value {v}", "mode", second.layer, (e, n), asked))
        return [*parts, Part("the carried tokens", "write", second.layer, where=Where(tuple(values)))]
