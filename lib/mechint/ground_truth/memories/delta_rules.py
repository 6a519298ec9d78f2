"""Compiled gated delta rules: recall where a later value overwrites, and parity by writes that turn a state over."""

from __future__ import annotations

from ...models.families.recurrent.olmo_hybrid import OlmoHybridConfig
from ...models.families.recurrent.qwen3_5 import Qwen35Config
from ...models.parts.rotation import Rotation
from ..truth import Asked, Part, Where
from .attention import Neurons
from .canvas import COPIES, EPS, LOUD, LOUDNESS, ON, SAYS, SIGNAL, SLOPE, Canvas, StackSize
from .delta import FULL, Delta, DeltaHead
from .models import StackBlueprint, echoes, memory, painter, says, set_traps
from .prompts import Rewritten, Switches


def qwen(tokens: int, size: StackSize, kinds: tuple[str, ...], family: type[Qwen35Config]) -> Qwen35Config:
    """The configuration of a Qwen3.5 or a Qwen3-Next without experts."""
    width = size.width or 8
    return family(
        vocab_size=tokens, d_model=size.d_model, n_layer=size.n_layer, kinds=kinds, n_head=size.readers or 1,
        n_kv_head=size.readers or 1, d_head=width, attention_bias=False, rotation=Rotation(size=width // 4),
        d_mlp=size.neurons, activation="silu", key_heads=size.heads, value_heads=size.heads, key_size=size.keys,
        value_size=size.values, d_conv=4, norm_eps=EPS,
    )  # fmt: skip


class DeltaRecall(StackBlueprint):
    """Recall where the later value of a key counts, in two heads that share the values among them.

    At a value, the write's key is the key before it, a tap back, and its strength is 1: it first erases what the head
    holds for that key, in a head that holds other values, too. Elsewhere the strength is 0. At a key, the query is that
    key.
    """

    name = "delta_recall"
    family = "qwen3_5"
    wanted, kinds, idle = ("delta",), ("delta",), ("mlp",)
    share = 4
    """Values that one head holds, at most."""

    def __init__(self, keys: int = 8, values: int = 8, pairs: int = 3, again: int = 2, queries: int = 3) -> None:
        super().__init__()
        self.task: Rewritten = Rewritten(keys, values, pairs, again, queries)
        self.codes = {"echo": COPIES * values}
        self.count = -(-values // self.share)

    def needs(self) -> StackSize:
        heads, neurons = (1 + COPIES) * self.count, COPIES * self.task.values
        return StackSize(heads=heads, keys=self.task.keys, values=self.share, neurons=neurons)

    def config(self, size: StackSize, kinds: tuple[str, ...]) -> Qwen35Config:
        return qwen(self.task.vocab_size, size, kinds, Qwen35Config)

    def draw(self, canvas: Canvas) -> list[Part]:
        [layer], task, parts = canvas.layers, self.task, []
        delta: Delta = painter(canvas, layer, Delta)
        strength = {canvas.one: -FULL, **{canvas.at("token", v): 2 * FULL for v in range(task.keys, task.vocab_size)}}
        heads = [delta.head(strength) for _ in range((1 + COPIES) * self.count)]
        keys: dict[tuple[int, int], int] = {}
        for head in heads:
            for k in range(task.keys):
                reads = {canvas.at("token", k): SIGNAL}
                keys[head.number, k] = head.key(reads, reads, tap=1)
        codes = echoes(canvas, "echo", task.values)
        for i in range(task.values):
            at, answer, number = canvas.at("token", task.keys + i), task.keys + i, i // self.share
            head, asked = heads[number], Asked(answer=answer)
            v = head.value({at: SIGNAL}, says(canvas, {answer: 1.0}, head.reads_one * ON))
            parts.append(memory(layer, head.number, f"holds and says value {i}", asked, kind="ssm_channel", unit=(v,)))
            parts += [
                memory(layer, head.number, f"key {k} has value {i}", Asked(token=k, answer=answer), kind="ssm_mode",
                       unit=(keys[head.number, k], v))
                for k in range(task.keys)
            ]  # fmt: skip
            for copy in range(COPIES):
                echo = heads[(1 + copy) * self.count + number]
                echo.value({at: LOUDNESS * SIGNAL}, {codes[i][copy]: 1 / (echo.reads_one * LOUD)})
        for number, head in enumerate(heads[: self.count]):
            said = range(task.keys + number * self.share, task.keys + min(task.values, (number + 1) * self.share))
            each = [Asked(answer=v) for v in said]
            parts.append(memory(layer, head.number, "holds and says its values", *each, kind="ssm_head"))
        set_traps(canvas, painter(canvas, layer, Neurons), "echo", [*range(task.keys, task.vocab_size)])
        if task.again:  # a tie of the old value and the new one, which noise breaks either way
            again = (Asked(rewritten=True),)
            parts.append(Part("a write erases the older value", "erase", layer, asked=again, accuracy=0.75))
        return [*parts, Part("the last values of asked keys", "write", layer, where=Where(pairs=True))]


class DeltaParity(StackBlueprint):
    """Says whether each of several switches is on: a flip is a write without value whose strength is 2.

    Such a write turns the state over along its key (an eigenvalue of −1), and the start writes 1 along all keys. One
    channel holds what began off, one what began on. The norm behind the read-out leaves its sign.
    """

    name = "delta_parity"
    family = "olmo_hybrid"
    wanted, kinds, idle = ("delta",), ("delta",), ("mlp",)
    share = 2
    """Switches that one head holds."""
    LOUDNESS = 1.5
    """Size of what an echo reads; behind the norm all have one size, and the louder have the smaller gradient."""

    def __init__(self, switches: int = 6, flips: int = 12) -> None:
        super().__init__()
        self.task: Switches = Switches(switches, flips)
        self.count = -(-switches // self.share)
        self.codes = {"echo": COPIES * 2 * self.count}

    def needs(self) -> StackSize:
        neurons = 3 * self.codes["echo"]
        return StackSize(heads=(1 + COPIES) * self.count, keys=self.share, values=2, neurons=neurons)

    def config(self, size: StackSize, kinds: tuple[str, ...]) -> OlmoHybridConfig:
        return OlmoHybridConfig(
            vocab_size=self.task.vocab_size, d_model=size.d_model, n_layer=size.n_layer, kinds=kinds, n_head=1,
            n_kv_head=1, d_head=8, attention_bias=False, rotation=None, d_mlp=size.neurons, key_heads=size.heads,
            value_heads=size.heads, key_size=size.keys, value_size=size.values, d_conv=4, doubled=True, norm_eps=EPS,
        )  # fmt: skip

    def draw(self, canvas: Canvas) -> list[Part]:
        [layer], task, at = canvas.layers, self.task, canvas.at
        delta: Delta = painter(canvas, layer, Delta)
        parts = []
        for number in range(self.count):
            own = range(number * self.share, min(task.switches, (number + 1) * self.share))
            head, keys = self.bank(canvas, delta, own)
            size = ON * delta.part.value_size**0.5  # of what the norm and the gate leave
            for start in range(2):
                signs = {task.state + start: 1.0, task.state + 1 - start: -1.0}
                v = head.value({at("token", task.start + start): SIGNAL}, says(canvas, signs, size))
                began = [Asked(token=s, begins=(task.start + start,)) for s in own]
                meaning = f"what began {'on' if start else 'off'}"
                parts.append(memory(layer, head.number, meaning, *began, kind="ssm_channel", unit=(v,)))
                parts += [
                    memory(layer, head.number, f"{meaning}: switch {s}", asked, kind="ssm_mode", unit=(k, v))
                    for s, k, asked in zip(own, keys, began, strict=True)
                ]
            asked = [Asked(token=s) for s in own]
            parts.append(memory(layer, head.number, "holds its switches", *asked, kind="ssm_head"))
            for copy in range(COPIES):
                self.echo(canvas, delta, own, number, copy, size)
        neurons: Neurons = painter(canvas, layer, Neurons)
        set_traps(canvas, neurons, "echo", [task.state, task.state + 1] * self.count)
        self.silent_traps(canvas, neurons)
        starts = Where((task.start, task.start + 1))
        parts.append(Part("the start", "write", layer, where=starts))
        # without it every switch stays as it began, and is often right
        return [*parts, Part("a flip turns the state over", "erase", layer, accuracy=0.75)]

    def bank(self, canvas: Canvas, delta: Delta, own: range) -> tuple[DeltaHead, list[int]]:
        """A head for some switches and the key of each; its strength is 1 at a start and 2 at a flip."""
        task, at = self.task, canvas.at
        head = delta.head({at("token", s): FULL for s in range(task.switches)})
        starts = {at("token", task.start + start): SIGNAL for start in range(2)}
        return head, [head.key({at("token", s): SIGNAL, **starts}, {at("token", s): SIGNAL}) for s in own]

    def silent_traps(self, canvas: Canvas, neurons: Neurons) -> None:
        """Traps that are steep where a head reads nothing: there the norm behind it is steepest, and the echo is 0.

        SiLU(K · echo) − 2 SiLU(K · (echo − 1/2)) is 0 where the echo is 0, 1 or −1, to 2e-4, with slope K/2 at 0.
        """
        for k, codes in enumerate(echoes(canvas, "echo", 2 * self.count)):
            token = canvas.at("token", self.task.state + k % 2)
            for code in codes:
                neurons.trap({code: SLOPE}, {token: SAYS})
                neurons.trap({code: SLOPE, canvas.one: -SLOPE / 2}, {token: -2 * SAYS})

    def echo(self, canvas: Canvas, delta: Delta, own: range, number: int, copy: int, size: float) -> None:
        """A louder copy of a head, which writes "off" and "on" into directions of its own."""
        head, _ = self.bank(canvas, delta, own)
        codes = echoes(canvas, "echo", 2 * self.count)
        for start in range(2):
            reads = {canvas.at("token", self.task.start + start): self.LOUDNESS * SIGNAL}
            same, other = (codes[2 * number + state][copy] for state in (start, 1 - start))
            head.value(reads, {same: 1 / size, other: -1 / size})
