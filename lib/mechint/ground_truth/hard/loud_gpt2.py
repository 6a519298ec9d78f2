"""Compiled GPT-2s with loud decoys: value channels of an idle head that are larger and have a gradient.

Free heads copy the queries, keys and values of the head that says the answers, and are *echoes* of it: each of their
value channels holds larger numbers and writes 1 into a direction of its own where its answer is right. A *trap*, a
neuron of the same layer, reads that direction as GELU(K · (echo - 1)), which is zero where the echo is 0 and where it
is 1, with slope K/2 at 1. So the answer's logit has a gradient with respect to the echo, and neither matters.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from ..gpt2.canvas import Block, GPT2Canvas, GPT2Size, Head
from ..gpt2.models import GPT2Blueprint, Induction, Latch, Recall, Shift
from ..truth import Part

COPIES = 2
"""Echoes of the head that says the answers."""
LOUDNESS = 3.0
"""Size of an echo's values relative to those of the circuit's head."""
SLOPE = 16.0
"""K of a trap."""
SAYS = 6.0
"""Logit that a trap would write for each 1 of its GELU: the gradient at an echo is SAYS · SLOPE / 2 for each 1 of its
code, six times that of what the circuit's channel says; twice for each 1 of its values, which are larger."""


class LoudGPT2(GPT2Blueprint):
    """A circuit of another blueprint, echoes of the head that says its answers, and traps behind them.

    Attributes:
        heads: Heads that the circuit has in a layer, at most.
    """

    heads: ClassVar[int] = 1

    tolerance = 0.1  # LayerNorm's rounding, which a trap's slope multiplies

    def __init__(self) -> None:
        super().__init__()
        self.codes = {**self.codes, "echo": COPIES * len(self.answers)}
        self.neurons += COPIES * len(self.answers)

    @property
    @abstractmethod
    def answers(self) -> range:
        """Tokens that the circuit says."""

    def least_beside(self, size: GPT2Size | None) -> GPT2Size:
        least = super().least_beside(size)
        return GPT2Size(max(self.heads + COPIES, least.n_head), least.d_head, least.n_layer, least.d_mlp, least.n_ctx)

    def draw(self, canvas: GPT2Canvas) -> list[Part]:
        parts = self.draw_circuit(canvas)
        block = canvas.active[-1]
        said = [canvas.at("token", v) for v in self.answers]
        for copy in range(COPIES):
            codes = [canvas.at("echo", COPIES * k + copy) for k in range(len(said))]
            echo(block, block.heads[0], dict(zip(said, codes, strict=True)))
            for token, code in zip(said, codes, strict=True):
                block.neuron({code: SLOPE}, -SLOPE, {token: SAYS})
        return parts

    def draw_circuit(self, canvas: GPT2Canvas) -> list[Part]:
        """Draws the circuit alone; the first head of its last layer says the answers."""
        drawn: list[Part] = super().draw(canvas)  # type: ignore[safe-super]
        return drawn


def echo(block: Block, head: Head, codes: dict[int, int]) -> None:
    """Copies a head into a free one, whose values are larger and are written into other directions.

    ``codes``: for each direction that the head's values write into, the direction that the echo writes into.
    """
    copy, canvas = block.head(), block.canvas
    d = canvas.size.d_head
    weight, bias = (tensor.view(3, -1, d, *tensor.shape[1:]) for tensor in block.weights.attn.c_attn.parameters())
    weight[:2, copy.number], bias[:2, copy.number] = weight[:2, head.number], bias[:2, head.number]
    copy.keys, copy.drawn_keys = head.keys.copy(), head.drawn_keys.copy()
    for said, code in codes.items():
        copy.value({said: LOUDNESS}, {code: 1 / LOUDNESS})


class LoudGPT2Shift(LoudGPT2, Shift):
    """Shift, with echoes and traps."""

    name = "gpt2_loud_shift"

    @property
    def answers(self) -> range:
        return range(self.task.symbols)


class LoudGPT2Latch(LoudGPT2, Latch):
    """Latch, with echoes and traps."""

    name = "gpt2_loud_latch"

    @property
    def answers(self) -> range:
        return range(self.task.symbols)


class LoudGPT2Induction(LoudGPT2, Induction):
    """Induction, with echoes and traps."""

    name = "gpt2_loud_induction"

    @property
    def answers(self) -> range:
        return range(self.task.symbols)


class LoudGPT2Recall(LoudGPT2, Recall):
    """Recall, with echoes and traps."""

    name = "gpt2_loud_recall"

    @property
    def answers(self) -> range:
        return range(self.task.keys, self.task.vocab_size)
