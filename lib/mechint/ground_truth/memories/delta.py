"""Draws on gated delta rules: heads with keys, queries, values and a write strength of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...models.parts.delta import GatedDelta
from .canvas import EPS, ON, SCALE, SIGNAL, Canvas, Painter, painter_of

FULL = 40.0
"""b at which the write strength is 1 (or 2, where it is doubled), to the bit in float32."""


class Delta(Painter):
    """A delta rule: hands out its heads.

    A norm that divides by its root mean square (where the configuration leaves its ε as it is) mixes the channels of a
    head, so that none of a drawn head can be idle but one that is zero.
    """

    def __init__(self, canvas: Canvas, layer: int, part: GatedDelta) -> None:
        super().__init__(canvas, layer)
        self.part = part
        self.free = self.order(part.heads)
        self.heads: list[DeltaHead] = []
        self.divides = part.norm.eps < EPS
        part.norm.weight.fill_(1.0 if self.divides else SCALE)

    def head(self, strength: Mapping[int, float] | None = None) -> DeltaHead:
        """One more head, which does not decay.

        Args:
            strength: Residual directions and weights of the write strength before its sigmoid; None for a full one.
        """
        self.heads.append(DeltaHead(self, self.take(self.free, "head"), strength or {self.canvas.one: FULL}))
        return self.heads[-1]

    def channel(self, channel: int, reads: Mapping[int, float], back: int) -> None:
        """Draws a channel of the convolution: of queries, keys or values."""
        self.part.in_proj_qkv.weight[channel, list(reads)] = torch.tensor(list(reads.values()))
        self.part.conv1d.weight[channel, 0, -1 - back] = 1.0

    def fill(self) -> None:
        canvas, d = self.canvas, self.part
        K, V, keys = d.key_size, d.value_size, d.key_heads * d.key_size
        used = {head.number: head for head in self.heads}
        for h in range(d.heads):
            rows = torch.arange(V)
            if (head := used.get(h)) is not None:
                rows = torch.tensor([] if self.divides else head.free, dtype=torch.long)
            else:
                self.idle_head(h, torch.arange(h * K, (h + 1) * K), keys)
            values = 2 * keys + h * V + rows
            copied = [2 * keys + other.number * V + v for other in self.heads for v in other.drawn]
            self.random_channels(values)
            for row in values.tolist() if copied else ():
                if torch.rand((), generator=canvas.random) < 0.5:
                    pick = copied[int(torch.randint(len(copied), (), generator=canvas.random))]
                    d.in_proj_qkv.weight[row] = canvas.jitter(1) * d.in_proj_qkv.weight[pick]
                    d.conv1d.weight[row] = d.conv1d.weight[pick]
            gates = canvas.rows(len(rows))
            gates[::2] = 0.0
            gates[::2, canvas.one] = SIGNAL * canvas.jitter(len(gates[::2]))[:, 0]
            d.in_proj_z.weight[h * V + rows] = gates
            d.out_proj.weight[:, h * V + rows] = canvas.outputs(len(rows))

    def idle_head(self, h: int, own: Tensor, keys: int) -> None:
        """Keys, queries, strength and decay of an idle head; of half of them keys and queries of a drawn one."""
        canvas, d = self.canvas, self.part
        self.random_channels(torch.cat([own, keys + own]))
        if self.heads and torch.rand((), generator=canvas.random) < 0.5:
            pick = self.heads[int(torch.randint(len(self.heads), (), generator=canvas.random))]
            theirs = pick.number * d.key_size + torch.arange(d.key_size)
            for offset in (0, keys):
                d.in_proj_qkv.weight[offset + own] = canvas.jitter(1) * d.in_proj_qkv.weight[offset + theirs]
                d.conv1d.weight[offset + own] = d.conv1d.weight[offset + theirs]
        d.in_proj_b.weight[h] = canvas.rows(1, 1.0)[0]
        d.in_proj_a.weight[h] = canvas.rows(1, 0.3)[0]
        step = math.exp(float(torch.empty(()).uniform_(math.log(1e-3), math.log(1e-1), generator=canvas.random)))
        d.dt_bias[h] = math.log(math.expm1(step))  # the published start
        d.A_log.view(-1)[h] = float(torch.empty(()).uniform_(1, 16, generator=canvas.random).log())

    def random_channels(self, rows: Tensor) -> None:
        """Random inputs and taps for rows of the projection."""
        d, count = self.part, len(rows)
        d.in_proj_qkv.weight[rows] = self.canvas.rows(count)
        taps = self.canvas.normal(count, 1, d.conv1d.weight.shape[2])
        d.conv1d.weight[rows] = taps / taps.norm(dim=2, keepdim=True)


class DeltaHead:
    """A head that is drawn on: hands out its keys and value channels in random order."""

    def __init__(self, painter: Delta, number: int, strength: Mapping[int, float]) -> None:
        self.painter, self.number = painter, number
        d = painter.part
        d.dt_bias[number] = -18.0
        d.in_proj_b.weight[number, list(strength)] = torch.tensor(list(strength.values()))
        self.keys, self.free = painter.order(d.key_size), painter.order(d.value_size)
        self.drawn: list[int] = []

    def key(self, writes: Mapping[int, float], reads: Mapping[int, float], tap: int = 0) -> int:
        """Draws a key dimension, which is written ``tap`` tokens behind some residual directions; returns its number.

        A key or query of several dimensions that are on has length 1, as all have.
        """
        painter, d = self.painter, self.painter.part
        k = painter.take(self.keys, "key dimension")
        own = self.number * d.key_size + k
        painter.channel(own, reads, 0)
        painter.channel(d.key_heads * d.key_size + own, writes, tap)
        return k

    def value(self, reads: Mapping[int, float], writes: Mapping[int, float], tap: int = 0) -> int:
        """Draws a value channel and returns its number; its gate is ``ON``."""
        painter, d = self.painter, self.painter.part
        v = painter.take(self.free, "value channel")
        self.drawn.append(v)
        own = self.number * d.value_size + v
        painter.channel(2 * d.key_heads * d.key_size + own, reads, tap)
        d.in_proj_z.weight[own, painter.canvas.one] = SIGNAL
        painter.canvas.write(d.out_proj.weight, own, writes)
        return v

    @property
    def reads_one(self) -> float:
        """The number that is read, behind the gate, of a 1 that was written, with key and query of one dimension."""
        return self.painter.part.key_size**-0.5 * ON


@painter_of.register
def delta_of(part: GatedDelta, canvas: Canvas, layer: int) -> Painter:
    return Delta(canvas, layer, part)
