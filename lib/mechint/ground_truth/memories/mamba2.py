"""Compiled Mamba-2s: associative recall in the heads of a group, and a latch whose head forgets at a marker."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from ...models.families.recurrent.mamba2 import Mamba2Config
from ...utils.errors import MechintError
from ..prompts import Latch as LatchTask
from ..truth import Asked, Part, Where
from .canvas import COPIES, EPS, LOUD, LOUDNESS, ON, SIGNAL, Canvas, StackSize
from .models import StackBlueprint, echoes, memory, painter, says, set_traps
from .prompts import Rewritten
from .ssd import SSD, SSDHead

GROUPS, EXPAND = 2, 2
HEAD = 8
"""Value channels of a head."""


class Mamba2Blueprint(StackBlueprint):
    """A circuit in one layer of a Mamba-2, whose traps are in a later layer.

    Attributes:
        share: Answers that one head of the circuit says, at most.
    """

    family = "mamba2"
    wanted, kinds = ("ssd", "ssd"), ("ssd",)
    share = 4

    @property
    @abstractmethod
    def answers(self) -> range:
        """Tokens that the circuit says."""

    @property
    def count(self) -> int:
        """Heads of the circuit."""
        return -(-len(self.answers) // self.share)

    def needs(self) -> StackSize:
        return StackSize(heads=GROUPS * (1 + COPIES) * self.count, keys=self.states, values=HEAD, expand=EXPAND)

    @property
    def states(self) -> int:
        return 1

    def least(self) -> StackSize:
        least = super().least()
        width = max(least.d_model, HEAD * least.heads // EXPAND)
        width += -width % (GROUPS * HEAD // EXPAND)
        return replace(least, d_model=width, heads=EXPAND * width // HEAD)

    def config(self, size: StackSize, kinds: tuple[str, ...]) -> Mamba2Config:
        if size.heads * size.values != EXPAND * size.d_model or size.heads % GROUPS:
            raise MechintError(
                f"compiled {self.name}: {size.heads} heads of {size.values} channels beside a stream of "
                f"{size.d_model}; take {EXPAND} times as many channels as that, in {GROUPS} groups of heads"
            )
        return Mamba2Config(
            vocab_size=self.task.vocab_size, d_model=size.d_model, n_layer=size.n_layer, n_head=size.heads,
            d_head=size.values, d_state=size.keys, n_groups=GROUPS, d_conv=4, conv_bias=True, proj_bias=False,
            norm_eps=EPS,
        )  # fmt: skip

    def speak(self, canvas: Canvas, layer: SSD, heads: list[SSDHead], copies: list[SSDHead], by: float) -> list[Part]:
        """Value channels that hold and say the answers, and their echoes; ``by``: what a 1 is read as, of u = 1."""
        parts, codes = [], echoes(canvas, "echo", len(self.answers))
        for k, v in enumerate(self.answers):
            head, at = heads[k // self.share], canvas.at("token", v)
            p = head.value({at: SIGNAL}, says(canvas, {v: 1.0}, by * ON))
            parts.append(memory(layer.layer, head.number, f"holds and says {self.task.decode(v)}", Asked(answer=v),
                                kind="ssm_channel", unit=(p,)))  # fmt: skip
            for copy in range(COPIES):
                echo = copies[copy * self.count + k // self.share]
                echo.value({at: LOUDNESS * SIGNAL}, {codes[k][copy]: 1 / (by * LOUD)})
        for number, head in enumerate(heads):
            own = self.answers[number * self.share : (number + 1) * self.share]
            asked = [Asked(answer=v) for v in own]
            parts.append(memory(layer.layer, head.number, "holds and says its values", *asked, kind="ssm_head"))
        return parts


def said(parts: list[Part]) -> list[tuple[int, int, int]]:
    """Head, value channel and answer of each channel that says one."""
    found = []
    for part in parts:
        if part.kind == "ssm_channel" and part.asked[0].answer is not None:
            head, channel = part.unit
            found.append((head, channel, part.asked[0].answer))
    return found


class Mamba2Recall(Mamba2Blueprint):
    """Associative recall: the heads' states are tables of values (channels) by keys (states).

    At a value, B is the key before it, a tap back, and the value's channel writes; at a key, C is that key. All heads
    of the group share B and C, so an echo is a head of the same group.
    """

    name = "mamba2_recall"

    def __init__(self, keys: int = 8, values: int = 8, pairs: int = 4, queries: int = 3) -> None:
        super().__init__()
        self.task: Rewritten = Rewritten(keys, values, pairs, 0, queries)
        self.codes = {"echo": COPIES * values}

    @property
    def answers(self) -> range:
        return range(self.task.keys, self.task.vocab_size)

    @property
    def states(self) -> int:
        return self.task.keys

    def draw(self, canvas: Canvas) -> list[Part]:
        first, last = canvas.layers
        layer: SSD = painter(canvas, first, SSD)
        heads = [layer.head() for _ in range(self.count)]
        copies = [layer.head() for _ in range(COPIES * self.count)]
        parts = self.speak(canvas, layer, heads, copies, ON**3)
        channels = said(parts)
        for k in range(self.task.keys):
            reads = {canvas.at("token", k): SIGNAL}
            n = layer.state(reads, reads, tap=1)
            for h, p, v in channels:
                asked, meaning = Asked(token=k, answer=v), f"key {k} has {self.task.decode(v)}"
                parts.append(memory(first, h, meaning, asked, kind="ssm_mode", unit=(n, p)))
        set_traps(canvas, painter(canvas, last, SSD), "echo", [*self.answers])
        canvas.layers = [first]
        return [*parts, Part("the values of asked keys", "write", first, where=Where(pairs=True))]


class Mamba2Latch(Mamba2Blueprint):
    """The symbol after the last of two markers, in one head whose step opens at a marker and clears its state.

    B is a marker, a tap back, so only what follows one is written; C is the query.
    """

    name = "mamba2_latch"
    share = HEAD
    RATE, STEP = 2.0**-17, 2.0**21
    """−A, and Δ at a marker: the state decays by exp(−16) there and by 1e-5 at other tokens."""

    def __init__(self, symbols: int = 8, length: int = 20) -> None:
        super().__init__()
        self.task: LatchTask = LatchTask(symbols, length)
        self.codes = {"echo": COPIES * symbols}

    @property
    def answers(self) -> range:
        return range(self.task.symbols)

    def draw(self, canvas: Canvas) -> list[Part]:
        (first, last), task = canvas.layers, self.task
        layer: SSD = painter(canvas, first, SSD)
        heads = [layer.head(rate=self.RATE) for _ in range((1 + COPIES) * self.count)]
        marker, query = ({canvas.at("token", token): SIGNAL} for token in (task.marker, task.query))
        for head in heads:
            head.opens({canvas.at("token", task.marker): self.STEP})
        parts = self.speak(canvas, layer, heads[: self.count], heads[self.count :], ON**3)
        n = layer.state(marker, query, tap=1)
        for h, p, v in said(parts):
            asked, meaning = Asked(answer=v), f"holds {task.decode(v)}"
            parts.append(memory(first, h, meaning, asked, kind="ssm_mode", unit=(n, p)))
        set_traps(canvas, painter(canvas, last, SSD), "echo", [*self.answers])
        canvas.layers = [first]
        # a tie of both marked symbols, but where they are the same
        parts.append(Part("a marker clears what the one before left", "decay", first, accuracy=0.75))
        return [*parts, Part("after the last marker", "write", first, where=Where((task.marker,), back=1, last=True))]
