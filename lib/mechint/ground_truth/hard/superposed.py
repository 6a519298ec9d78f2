"""Compiled models whose answers are carried in superposition: more symbols than dimensions, over many channels.

Each symbol has a direction in a space of fewer dimensions than there are symbols, so that not all directions are
orthogonal (those found are close to the axes and their opposites), and a random rotation spreads that space over more
channels than it has dimensions: no channel is a symbol, each carries a share of every one. The logit of a symbol w
where v is said is the gain times the cosine of their directions. Zeroing one channel takes its share of the answer's
logit, which is declared, and changes no answer; zeroing all of them does. All have loud decoys, too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..blueprint import GAIN, TWINS
from ..gpt2 import models as gpt2
from ..gpt2.canvas import Head
from ..mamba.canvas import ON, SHUT, SIGNAL, Canvas, Size
from ..mamba.models import NO_STEP, Latch, channel, paths
from ..questions import Questions, Share
from ..together import units_of
from ..truth import Asked, Part, Where
from .loud_gpt2 import LoudGPT2
from .loud_mamba import LoudMamba, Original

DIMENSIONS = 4
"""Dimensions of the space that the symbols' directions span."""
CHANNELS = 10
"""Numbers that the space is rotated into: value channels of a GPT-2, pairs of channels of a Mamba."""

LEFT = 0.14
"""Without any one channel each symbol stays above all others by this share of the gain: no channel is needed alone."""


def directions(count: int, dimensions: int, channels: int, random: torch.Generator) -> Tensor:
    """Unit vectors that are as far apart as a descent gets them, rotated into more channels, [count, channels]."""
    found = torch.randn(count, dimensions, generator=random)
    found /= found.norm(dim=1, keepdim=True)
    for _ in range(300):
        cosines = found @ found.T - 2 * torch.eye(count)
        found = found - 0.05 * torch.softmax(10 * cosines, 1) @ found
        found /= found.norm(dim=1, keepdim=True)
    while True:
        rotation, _ = torch.linalg.qr(torch.randn(channels, dimensions, generator=random))
        rows = found @ rotation.T
        if least_without_one(rows) >= LEFT:
            return rows


def least_without_one(rows: Tensor) -> float:
    """The least that a symbol's own logit is above another's without any one channel, as a share of the gain."""
    each = rows[:, None] * rows[None]  # by symbol, other symbol, channel
    left = each.sum(-1, keepdim=True) - each
    above = torch.diagonal(left).T[:, None] - left  # of the symbol that is said, less any other's
    above += 2 * torch.eye(len(rows))[:, :, None]
    own = torch.diagonal(left).min()  # above tokens that are no symbol
    return float(torch.minimum(above.min(), own))


def largest_cosine(rows: Tensor) -> float:
    return float((rows @ rows.T - 2 * torch.eye(len(rows))).max())


class SuperposedLatch(LoudMamba, Latch):
    """Latch, whose symbols are kept and said in superposition.

    SiLU(x) - SiLU(-x) is x, so a pair of channels carries a number.
    """

    name, active = "superposed_latch", Latch.active + 1
    STEP = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.empty(0)
        """The symbols' directions, in the model that was drawn last."""
        self.carriers: dict[tuple[int, int], int] = {}
        """The channels of each number, with its sign and the other."""

    @property
    def answers(self) -> range:
        return range(self.task.symbols)

    def circuit_needs(self) -> Size:
        return Size(d_inner=2 * CHANNELS + 2, d_state=1, d_conv=2, dt_rank=1)

    def draw_circuit(self, canvas: Canvas) -> list[Part]:
        (mixer,), task = canvas.active, self.task
        self.rows = directions(task.symbols, DIMENSIONS, CHANNELS, canvas.random)
        self.margin = GAIN * (1 - largest_cosine(self.rows)) - 1.1
        token = [canvas.at("token", v) for v in range(task.symbols)]
        closed = math.log(math.expm1(SHUT))
        for i, sign in ((i, sign) for i in range(CHANNELS) for sign in (1, -1)):
            row = dict(zip(token, (sign * self.rows[:, i]).tolist(), strict=True))
            says = GAIN / (self.STEP * SIGNAL * ON)
            self.carriers[i, sign] = mixer.channel(
                {at: SIGNAL * w for at, w in row.items()}, {at: says * w for at, w in row.items()}, step=SHUT, rate=4.0
            )
        marker = self.reader(mixer, "token", task.marker, tap=1)
        query = self.reader(mixer, "token", task.query)
        n = mixer.state({marker: 1 / ON}, {query: 1 / ON})
        mixer.rank({marker: 1 / ON}, [*self.carriers.values()], math.log(math.expm1(self.STEP)) - closed)
        parts = paths(mixer, "x z dt B C")
        parts += channel(mixer, "opens B and the step after a marker", marker, tap=1, blind=TWINS + NO_STEP)
        parts += channel(mixer, "opens C at the query", query, blind=TWINS + NO_STEP)
        for (i, sign), e in self.carriers.items():
            meaning = f"{'+-'[sign < 0]}{i} of the symbols' directions"
            parts += channel(mixer, meaning, e, accuracy=1.0)
            parts.append(Part(meaning, "mode", mixer.layer, (e, n), accuracy=1.0))
        parts.append(Part("the last clears the first", "decay", mixer.layer, accuracy=0.9))
        where = Where((task.marker,), back=1, last=True)
        return [*parts, Part("after the last marker", "write", mixer.layer, where=where)]

    def original(self, canvas: Canvas, v: int) -> Original:
        reads, writes = {canvas.at("token", v): SIGNAL}, 1 / (self.STEP * ON**2)
        return Original(canvas.active[0], self.carriers[0, 1], reads, writes)

    def questions(self, parts: list[Part]) -> Questions:
        return graded(parts, "channel")

    def shares(self, parts: list[Part]) -> tuple[Share, ...]:
        [layer] = {part.layer for part in parts if part.kind == "channel"}
        silu = lambda x: x / (1 + math.exp(-x))
        return tuple(
            Share(
                f"{'+-'[sign < 0]}{i} of the symbols' directions", "channel", frozenset({(layer, (e,))}), v,
                GAIN * sign * row[i] * silu(sign * SIGNAL * row[i]) / SIGNAL,
            )
            for (i, sign), e in self.carriers.items()
            for v, row in enumerate(self.rows.tolist())
        )  # fmt: skip


def graded(parts: list[Part], kind: str) -> Questions:
    """Units of which some carry shares: none of these is needed alone, and which of them suffice is not declared."""
    needed = units_of([part for part in parts if part.accuracy < 1], kind)
    return Questions(kind, alone=needed, together=units_of(parts, kind), sufficient=())


class SuperposedGPT2(LoudGPT2):
    """A circuit of another blueprint, whose last head carries the answers in superposition."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.empty(0)
        """The answers' directions, in the model that was drawn last."""
        self.carriers: list[tuple[int, tuple[int, ...]]] = []
        """The layer and the unit of the value channel of each number."""

    def channels(self) -> int:
        return max(super().channels(), CHANNELS)  # type: ignore[safe-super]

    def speak(self, head: Head, token: int, meaning: str, *asked: Asked, accuracy: float = 0.0) -> list[Part]:
        """All value channels at once, for the first answer."""
        if token != self.answers[0]:
            return []
        canvas, parts = head.block.canvas, []
        self.rows = directions(len(self.answers), DIMENSIONS, CHANNELS, canvas.random)
        self.margin = gpt2.GAIN * (1 - largest_cosine(self.rows)) - 1.1
        self.carriers = []
        for i in range(CHANNELS):
            row = {canvas.at("token", v): float(w) for v, w in zip(self.answers, self.rows[:, i], strict=True)}
            e = head.value(row, {at: gpt2.GAIN * w for at, w in row.items()})
            parts += gpt2.value(head, f"{i} of the answers' directions", e, accuracy=1.0)
            self.carriers.append((head.block.layer, (1, head.number, e)))
        return parts

    def questions(self, parts: list[Part]) -> Questions:
        return graded(parts, "kv")

    def shares(self, parts: list[Part]) -> tuple[Share, ...]:
        return tuple(
            Share(f"{i} of the answers' directions", "kv", frozenset({unit}), v, gpt2.GAIN * row[i] ** 2)
            for i, unit in enumerate(self.carriers)
            for v, row in zip(self.answers, self.rows.tolist(), strict=True)
        )


class SuperposedGPT2Latch(SuperposedGPT2, gpt2.Latch):
    """Latch, whose symbols are said in superposition."""

    name = "gpt2_superposed_latch"

    @property
    def answers(self) -> range:
        return range(self.task.symbols)


class SuperposedGPT2Recall(SuperposedGPT2, gpt2.Recall):
    """Recall, whose values are said in superposition."""

    name = "gpt2_superposed_recall"

    @property
    def answers(self) -> range:
        return range(self.task.keys, self.task.vocab_size)
