"""A compiled hybrid of delta rules and attention, whose retrieval needs both."""

from __future__ import annotations

from ...models.families.recurrent.qwen3_5 import Qwen35Config
from ...models.families.recurrent.qwen3_next import Qwen3NextConfig
from ..blueprint import GAIN
from ..truth import Asked, Part, Where
from .attention import Neurons, Reader
from .canvas import COPIES, LOUD, LOUDNESS, ON, SAYS, SIGNAL, Canvas, StackSize
from .delta import Delta, DeltaHead
from .delta_rules import qwen
from .models import StackBlueprint, echoes, memory, painter, set_traps
from .prompts import Sections

MATCH = 40.0
"""Score of a match; others have 0, e^-40 of it."""


class HybridSections(StackBlueprint):
    """The symbol in the section of a tag: a delta rule carries the tag, and an attention head looks it up.

    A tag overwrites the one before it in the recurrence, and the end of the last section clears it, so every position
    has the tag of its section. In a later layer a query attends to the positions that have its tag, all alike, and
    their symbol is the answer. Neither layer alone knows which symbol is in which section.
    """

    name = "hybrid_sections"
    family = "qwen3_next"
    wanted, kinds, idle = ("delta", "attention"), ("delta", "attention"), ("mlp",)

    def __init__(self, symbols: int = 8, tags: int = 4, sections: int = 3, room: int = 3, queries: int = 2) -> None:
        super().__init__()
        self.task: Sections = Sections(symbols, tags, sections, room, queries)
        self.codes = {"tag": tags, "tag echo": COPIES * tags, "echo": COPIES * symbols}

    def needs(self) -> StackSize:
        task = self.task
        width = max(task.symbols, -(-4 * task.tags // 3))
        width += -width % 8  # a quarter of it is turned, in pairs
        return StackSize(
            heads=1 + COPIES, keys=1, values=task.tags, readers=1 + COPIES, width=width,
            neurons=COPIES * max(task.symbols, task.tags),
        )  # fmt: skip

    def config(self, size: StackSize, kinds: tuple[str, ...]) -> Qwen35Config:
        return qwen(self.task.vocab_size, size, kinds, Qwen3NextConfig)

    def draw(self, canvas: Canvas) -> list[Part]:
        first, second = canvas.layers
        return [*self.carry(canvas, first), *self.look_up(canvas, second)]

    def carry(self, canvas: Canvas, layer: int) -> list[Part]:
        """The delta rule that holds the tag of the section."""
        task, at = self.task, canvas.at
        delta: Delta = painter(canvas, layer, Delta)
        tags = [at("token", task.tag + t) for t in range(task.tags)]
        opens = dict.fromkeys([*tags, at("token", task.end)], SIGNAL)

        def head() -> tuple[DeltaHead, int]:
            drawn = delta.head()
            return drawn, drawn.key(opens, {canvas.one: SIGNAL})

        (own, key), copies, parts = head(), [head()[0] for _ in range(COPIES)], []
        for t, codes in enumerate(echoes(canvas, "tag echo", task.tags)):
            v = own.value({tags[t]: SIGNAL}, {at("tag", t): 1 / (own.reads_one * ON)})
            asked, meaning = Asked(token=task.query + t), f"the tag of the section is {t}"
            parts.append(memory(layer, own.number, meaning, asked, kind="ssm_channel", unit=(v,)))
            parts.append(memory(layer, own.number, meaning, asked, kind="ssm_mode", unit=(key, v)))
            for copy, code in zip(copies, codes, strict=True):
                copy.value({tags[t]: LOUDNESS * SIGNAL}, {code: 1 / (copy.reads_one * LOUD)})
        parts.append(memory(layer, own.number, "carries the tag of the section", kind="ssm_head"))
        # a symbol that is written there is said with the gain
        set_traps(canvas, painter(canvas, layer, Neurons), "tag echo", [*range(task.tags)], SAYS / GAIN)
        # a section then has the tags of all before it, and only the last one's symbol has a tag of its own
        parts.append(Part("a tag overwrites the one before", "erase", layer, accuracy=0.75))
        return [*parts, Part("the tags", "write", layer, where=Where(tuple(range(task.tag, task.query))))]

    def look_up(self, canvas: Canvas, layer: int) -> list[Part]:
        """The attention head that finds the tag that is asked for, and says its symbol."""
        task, at = self.task, canvas.at
        reader: Reader = painter(canvas, layer, Reader)
        heads, parts = [reader.head() for _ in range(1 + COPIES)], []
        own, *copies = heads
        for t in range(task.tags):
            asks, asked = {at("token", task.query + t): 1.0}, (Asked(token=task.query + t),)
            for head in heads:
                e = head.match(asks, {at("tag", t): 1.0}, MATCH)
                if head is own:
                    parts.append(Part(f"tag {t} here", "kv", layer, (0, own.number, e), asked))
                    parts.append(Part(f"asks for tag {t}", "q", layer, (own.number, e), asked))
        for s, codes in enumerate(echoes(canvas, "echo", task.symbols)):
            symbol, every = at("token", s), 1.0 + task.room  # of a section's positions one has the symbol
            e = own.value({symbol: 1.0}, {symbol: GAIN * every})
            parts.append(Part(f"says symbol {s}", "kv", layer, (1, own.number, e), (Asked(answer=s),)))
            for copy, code in zip(copies, codes, strict=True):
                copy.value({symbol: LOUDNESS}, {code: every / LOUDNESS})
        parts.append(Part("reads what has the tag", "head", layer, (own.number,)))
        set_traps(canvas, painter(canvas, layer, Neurons), "echo", [*range(task.symbols)])
        where = Where(tuple(range(task.symbols)))
        return [*parts, Part("the symbols", "source", layer, (own.number,), where=where)]
