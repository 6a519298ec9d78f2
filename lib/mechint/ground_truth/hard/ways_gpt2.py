"""Compiled GPT-2s in which what is needed alone, what is needed together and what suffices are not the same units.

Both have loud decoys, too (:mod:`.loud_gpt2`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..blueprint import ALWAYS, by_chance
from ..gpt2.canvas import STEEP, Block, GPT2Canvas
from ..gpt2.models import GAIN, MATCH, match, value, whole
from ..prompts import Shift as ShiftTask
from ..questions import Questions, Share
from ..together import by_ways, units_of
from ..truth import Asked, Part
from .loud_gpt2 import LoudGPT2

NARROWEST = 0.4
"""The smaller of two heads' shares of the answer's logit is at least this: a head that loses a key says anything."""


class TwoHeads(LoudGPT2):
    """The token two positions back, by two heads that each suffice, in shares that the seed sets."""

    name = "gpt2_two_heads"
    heads = 2
    without_layer = by_chance(8)

    def __init__(self, symbols: int = 8, length: int = 16) -> None:
        self.task: ShiftTask = ShiftTask(symbols, length, 2)
        self.share = 0.5
        """Share of the answer's logit that the first head gives, in the model that was drawn last."""
        super().__init__()
        self.codes |= {"place": length}

    @property
    def answers(self) -> range:
        return range(self.task.symbols)

    def channels(self) -> int:
        return max(self.task.symbols, self.task.length - self.task.by)

    def draw_circuit(self, canvas: GPT2Canvas) -> list[Part]:
        canvas.place("place", range(self.task.length))
        self.share = NARROWEST + (1 - 2 * NARROWEST) * float(torch.rand((), generator=canvas.random))
        [block], parts = canvas.active, []
        for way, share in (("first", self.share), ("second", 1 - self.share)):
            parts += copier(block, self.task, {"token": share * GAIN}, way)
        return parts

    def questions(self, parts: list[Part]) -> Questions:
        return by_ways(parts, "kv")

    def shares(self, parts: list[Part]) -> tuple[Share, ...]:
        values = lambda way: [part for part in parts if part.way == way and part.kind == "kv" and part.unit[0] == 1]
        return tuple(
            Share(f"the values of the {way} head", "kv", units_of(values(way), "kv"), None, GAIN * share)
            for way, share in (("first", self.share), ("second", 1 - self.share))
        )


class Backup(LoudGPT2):
    """The token two positions back, and a second head and neurons that say it only where the first head does not."""

    name = "gpt2_backup"
    heads = 2
    idle = ()
    without_layer = by_chance(8)
    INHIBITION = 1.4

    def __init__(self, symbols: int = 8, length: int = 16) -> None:
        self.task: ShiftTask = ShiftTask(symbols, length, 2)
        super().__init__()
        self.codes |= {"place": length, "said": symbols, "spare": symbols}
        self.neurons += symbols

    @property
    def answers(self) -> range:
        return range(self.task.symbols)

    def channels(self) -> int:
        return max(self.task.symbols, self.task.length - self.task.by)

    def draw_circuit(self, canvas: GPT2Canvas) -> list[Part]:
        canvas.place("place", range(self.task.length))
        [block], at = canvas.active, canvas.at
        parts = copier(block, self.task, {"token": GAIN, "said": 1.0}, "first")
        parts += copier(block, self.task, {"spare": 1.0}, "backup")
        for v in self.answers:
            reads = {at("spare", v): STEEP, at("said", v): -self.INHIBITION * STEEP}
            n = block.neuron(reads, 0.0, {at("token", v): GAIN / STEEP})
            meaning, asked = f"says symbol {v} unless it is said", (Asked(answer=v),)
            parts.append(Part(meaning, "mlp", block.layer, (n,), asked, accuracy=1.0, way="backup"))
        return parts

    def questions(self, parts: list[Part]) -> Questions:
        return by_ways(parts, "kv")


def copier(block: Block, task: ShiftTask, writes: dict[str, float], way: str) -> list[Part]:
    """A head that reads ``task.by`` positions back and writes the symbol there into groups of directions."""
    head, at, parts = block.head(), block.canvas.at, []
    for j in range(task.length - task.by):
        e = head.match({at("place", j + task.by): 1.0}, {at("place", j): 1.0}, MATCH)
        parts += match(head, f"position {j + task.by} reads {j}", e, Asked(slot=j), accuracy=1.0, blind=ALWAYS)
    for v in range(task.symbols):
        e = head.value({at("token", v): 1.0}, {at(group, v): size for group, size in writes.items()})
        parts += value(head, f"holds symbol {v}", e, Asked(answer=v), accuracy=1.0)
    parts += whole(head, f"reads {task.by} back", accuracy=1.0)
    return [replace(part, way=way) for part in parts]
