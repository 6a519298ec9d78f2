"""Draws on Mamba-2's mixers: heads of the recurrence, whose groups share B and C.

All circuits of a layer are in one group of heads. In it idle states are written and never read, or read and never
written; heads of other groups have live memories that only write into unread directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...models.parts.mamba2 import Mamba2Mixer
from .canvas import ON, SCALE, SIGNAL, Canvas, Painter, painter_of

HOLD = math.exp(-16)
"""Rate of a head that keeps: of 64 steps of Δ = 1 it loses 7e-6."""
SHUT = math.log1p(math.exp(-18))
"""A step Δ at which nothing is written and nothing decays: softplus(−18) = 1.5e-8."""


class SSD(Painter):
    """A mixer: hands out the heads and the states of one group."""

    def __init__(self, canvas: Canvas, layer: int, mixer: Mamba2Mixer) -> None:
        super().__init__(canvas, layer)
        self.mixer = mixer
        each = mixer.heads // mixer.groups
        self.group = int(torch.randint(mixer.groups, (), generator=canvas.random))
        self.free = [self.group * each + h for h in self.order(each)]
        self.states = self.order(mixer.key_size)
        self.heads: list[SSDHead] = []
        self.steep = False
        """True if something opens the step of a head: what is written to an idle state may then be huge."""
        if mixer.norm is not None:
            mixer.norm.weight.fill_(SCALE)

    def head(self, step: float = 1.0, rate: float = HOLD, skip: float = 0.0) -> SSDHead:
        """One more head, with its Δ, −A and D."""
        self.heads.append(SSDHead(self, self.take(self.free, "head"), step, rate, skip))
        return self.heads[-1]

    def state(self, writes: Mapping[int, float], reads: Mapping[int, float], tap: int = 0) -> int:
        """Draws a state of the group; returns its number.

        Args:
            writes: Residual directions and weights of B, ``tap`` tokens back.
            reads: Residual directions and weights of C.
        """
        m, n = self.mixer, self.take(self.states, "state")
        own, shared = self.group * m.key_size + n, m.groups * m.key_size
        for channel, weights, back in ((m.inner + own, writes, tap), (m.inner + shared + own, reads, 0)):
            self.channel(channel, weights, back)
        return n

    def channel(self, channel: int, reads: Mapping[int, float], back: int) -> None:
        """Draws a channel of the convolution: of x, and behind it of B and C."""
        m = self.mixer
        m.in_proj.weight[m.inner + channel, list(reads)] = torch.tensor(list(reads.values()))
        m.conv1d.weight[channel, 0, -1 - back] = 1.0

    def trap(self, reads: Mapping[int, float], writes: Mapping[int, float]) -> None:
        head = next((head for head in self.heads if head.skip and head.free), None) or self.head(SHUT, skip=1.0)
        head.value(reads, {at: weight / ON for at, weight in writes.items()})

    def fill(self) -> None:
        canvas, m = self.canvas, self.mixer
        inner, P, shared = m.inner, m.value_size, m.groups * m.key_size
        drawn = torch.tensor([head.number * P + p for head in self.heads for p in head.drawn], dtype=torch.long)
        idle = torch.ones(inner, dtype=torch.bool)
        idle[drawn] = False
        count = int(idle.sum())
        rows = lambda some: m.in_proj.weight[some]
        self.random_channels(inner + idle.nonzero().flatten())
        m.in_proj.weight[:inner][idle] = canvas.rows(count)
        if len(drawn):  # half of them read what one of the circuit reads
            copy = torch.rand(count, generator=canvas.random) < 0.5
            pick = drawn[torch.randint(len(drawn), (int(copy.sum()),), generator=canvas.random)]
            there = idle.nonzero().flatten()[copy]
            m.in_proj.weight[inner + there] = canvas.jitter(len(there)) * rows(inner + pick)
            m.conv1d.weight[there] = m.conv1d.weight[pick]
            m.in_proj.weight[there] = canvas.jitter(len(there)) * rows(pick)
        for group in range(m.groups):
            states = self.states if group == self.group else range(m.key_size)
            for k, n in enumerate(states):
                own = group * m.key_size + n
                whole = group != self.group or not self.drawn
                if whole or (k % 2 == 0 and not self.steep):
                    self.random_channels(torch.tensor([2 * inner + own]), 1.5)
                if whole or k % 2 or self.steep:
                    self.random_channels(torch.tensor([2 * inner + shared + own]), 1.5)
        used = {head.number for head in self.heads}
        rest = torch.tensor([h for h in range(m.heads) if h not in used], dtype=torch.long)
        step = torch.empty(len(rest)).uniform_(math.log(1e-3), math.log(1e-1), generator=canvas.random).exp()
        m.dt_bias[rest] = step.expm1().log()  # the published start
        m.A_log[rest] = torch.empty(len(rest)).uniform_(1, 16, generator=canvas.random).log()
        m.D[rest] = 1.0
        m.in_proj.weight[-m.heads :][rest] = canvas.rows(len(rest), 0.3)
        m.out_proj.weight[:, idle] = canvas.outputs(count)

    def random_channels(self, rows: Tensor, length: float = SIGNAL) -> None:
        """Random inputs and taps for rows of the projection that go through the convolution."""
        m, count = self.mixer, len(rows)
        m.in_proj.weight[rows] = self.canvas.rows(count, length)
        taps = self.canvas.normal(count, 1, m.conv1d.weight.shape[2])
        m.conv1d.weight[rows - m.inner] = taps / taps.norm(dim=2, keepdim=True)


class SSDHead:
    """A head that is drawn on: hands out its value channels in random order."""

    def __init__(self, painter: SSD, number: int, step: float, rate: float, skip: float) -> None:
        self.painter, self.number, self.skip = painter, number, skip
        m = painter.mixer
        m.dt_bias[number], m.A_log[number], m.D[number] = math.log(math.expm1(step)), math.log(rate), skip
        self.free = painter.order(m.value_size)
        self.drawn: list[int] = []

    def value(self, reads: Mapping[int, float], writes: Mapping[int, float], tap: int = 0) -> int:
        """Draws a value channel and returns its number; its gate is ``ON``."""
        painter, m = self.painter, self.painter.mixer
        p = painter.take(self.free, "value channel")
        self.drawn.append(p)
        own = self.number * m.value_size + p
        painter.channel(own, reads, tap)
        m.in_proj.weight[own, painter.canvas.one] = SIGNAL
        painter.canvas.write(m.out_proj.weight, own, writes)
        return p

    def opens(self, reads: Mapping[int, float]) -> None:
        """Adds residual directions to Δ before its softplus."""
        m = self.painter.mixer
        row = m.in_proj.weight.shape[0] - m.heads + self.number
        m.in_proj.weight[row, list(reads)] = torch.tensor(list(reads.values()))
        self.painter.steep = True


@painter_of.register
def ssd_of(part: Mamba2Mixer, canvas: Canvas, layer: int) -> Painter:
    return SSD(canvas, layer, part)
