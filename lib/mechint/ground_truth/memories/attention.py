"""Draws on attention and on gated neurons: channels of heads, and traps.

Key and query channels are drawn in dimensions that are not turned by the position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ...models.parts.attention import Attention
from ...models.parts.feed_forward import GatedMLP
from .canvas import SCALE, SIGNAL, Canvas, Painter, painter_of, set_weights

OPEN = 1 / (1 + math.exp(-SIGNAL))
"""The output gate of a drawn head."""


class Reader(Painter):
    """Attention whose heads have keys and values of their own: hands out its heads."""

    def __init__(self, canvas: Canvas, layer: int, part: Attention) -> None:
        super().__init__(canvas, layer)
        self.part = part
        self.free = self.order(part.n_head)
        self.heads: list[ReaderHead] = []
        for norm in (part.q_norm, part.k_norm) if part.normed else ():
            set_weights(norm, slice(None), SCALE)

    def head(self) -> ReaderHead:
        """One more head."""
        self.heads.append(ReaderHead(self, self.take(self.free, "attention head")))
        return self.heads[-1]

    def fill(self) -> None:
        canvas, part, d = self.canvas, self.part, self.part.d_head
        for head in self.heads:
            for k, e in enumerate(head.keys):  # keys that no query asks for, queries that nothing answers
                row = head.query(e) if k % 2 else head.row(e)
                (part.q_proj if k % 2 else part.k_proj).weight[row] = canvas.rows(1, 1.0)[0]
            for e in head.turned:  # these come in pairs
                part.k_proj.weight[head.row(e)] = canvas.rows(1, 1.0)[0]
            for e in head.free:
                part.v_proj.weight[head.row(e)] = canvas.rows(1, 1.0)[0]
                part.q_proj.weight[head.query(e) + d] = canvas.rows(1)[0]
                part.o_proj.weight[:, head.row(e)] = canvas.outputs(1)[:, 0]
        for h in self.free:
            own, queries = h * d + torch.arange(d), (2 * h) * d + torch.arange(2 * d)
            part.q_proj.weight[queries] = canvas.rows(2 * d, 1.0)
            part.k_proj.weight[own] = canvas.rows(d, 1.0)
            part.v_proj.weight[own] = canvas.rows(d, 1.0)
            if self.heads and torch.rand((), generator=canvas.random) < 0.5:
                pick = self.heads[int(torch.randint(len(self.heads), (), generator=canvas.random))].number
                theirs = pick * d + torch.arange(d)
                part.q_proj.weight[queries] = canvas.jitter(1) * part.q_proj.weight[2 * pick * d + torch.arange(2 * d)]
                part.k_proj.weight[own] = canvas.jitter(1) * part.k_proj.weight[theirs]
                part.v_proj.weight[own] = canvas.jitter(1) * part.v_proj.weight[theirs]
            part.o_proj.weight[:, own] = canvas.outputs(d)


class ReaderHead:
    """An attention head that is drawn on: hands out its key and value channels in random order."""

    def __init__(self, painter: Reader, number: int) -> None:
        self.painter, self.number = painter, number
        part = painter.part
        turned = 0 if part.rotation is None else part.rotation.size or part.d_head
        self.turned = list(range(turned))
        """Dimensions of queries and keys that the position turns."""
        self.keys = [turned + e for e in painter.order(part.d_head - turned)]
        self.free = painter.order(part.d_head)

    def row(self, e: int) -> int:
        """The row of a key or value channel."""
        return self.number * self.painter.part.d_head + e

    def query(self, e: int) -> int:
        """The row of a query channel; a head's gates stand behind its queries."""
        return 2 * self.number * self.painter.part.d_head + e

    def match(self, asks: Mapping[int, float], has: Mapping[int, float], score: float) -> int:
        """Draws a key channel, which adds ``score`` times what is asked times what a source has to every score."""
        part = self.painter.part
        e = self.painter.take(self.keys, "key channel")
        each = math.sqrt(score * math.sqrt(part.d_head))
        for weight, row, reads in ((part.q_proj.weight, self.query(e), asks), (part.k_proj.weight, self.row(e), has)):
            weight[row, list(reads)] = each * torch.tensor(list(reads.values()))
        return e

    def value(self, reads: Mapping[int, float], writes: Mapping[int, float]) -> int:
        """Draws a value channel; its output gate is :data:`OPEN`."""
        part, canvas = self.painter.part, self.painter.canvas
        e = self.painter.take(self.free, "value channel")
        part.v_proj.weight[self.row(e), list(reads)] = torch.tensor(list(reads.values()))
        part.q_proj.weight[self.query(e) + part.d_head, canvas.one] = SIGNAL
        canvas.write(part.o_proj.weight, self.row(e), {at: weight / OPEN for at, weight in writes.items()})
        return e


class Neurons(Painter):
    """A gated feed-forward part: hands out its neurons."""

    def __init__(self, canvas: Canvas, layer: int, part: GatedMLP) -> None:
        super().__init__(canvas, layer)
        self.part = part
        self.free = self.order(part.down_proj.in_features)

    def trap(self, reads: Mapping[int, float], writes: Mapping[int, float]) -> None:
        self.product(reads, {self.canvas.one: 1.0}, writes)

    def product(self, gate: Mapping[int, float], up: Mapping[int, float], writes: Mapping[int, float]) -> int:
        """Draws a neuron, SiLU(gate) · up, and returns its number."""
        n, part = self.take(self.free, "neuron"), self.part
        for weight, reads in ((part.gate_proj.weight, gate), (part.up_proj.weight, up)):
            weight[n, list(reads)] = torch.tensor(list(reads.values()))
        self.canvas.write(part.down_proj.weight, n, writes)
        return n

    def fill(self) -> None:
        canvas, part, count = self.canvas, self.part, len(self.free)
        part.gate_proj.weight[self.free] = canvas.rows(count)
        part.up_proj.weight[self.free] = canvas.rows(count, 1.0)
        part.down_proj.weight[:, self.free] = canvas.outputs(count)


@painter_of.register
def reader_of(part: Attention, canvas: Canvas, layer: int) -> Painter:
    return Reader(canvas, layer, part)


@painter_of.register
def neurons_of(part: GatedMLP, canvas: Canvas, layer: int) -> Painter:
    return Neurons(canvas, layer, part)
