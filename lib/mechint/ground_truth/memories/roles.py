"""Compiled delta rules whose value channels are in two circuits, told apart by the role of a token.

One model says the last letter at one query and the last digit at another. Some of its channels hold a letter and a
digit, some a letter alone, some a digit alone. It is asked in each role, and the truth is that of the role: a channel
that holds a digit alone is idle where letters are asked for.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...models.families.recurrent.qwen3_5 import Qwen35Config
from ...tasks.answers import Prompts
from ...tasks.base import MIN_TEMPLATES, Task, draw_in_split, other
from ..blueprint import GAIN
from ..truth import Asked, Part, Where
from .attention import Neurons
from .canvas import COPIES, LOUD, LOUDNESS, ON, SIGNAL, Canvas, StackSize
from .delta import FULL, Delta, DeltaHead
from .delta_rules import qwen
from .models import StackBlueprint, echoes, memory, painter, set_traps

ROLES = ("letter", "digit")


class LastOfRole(Task):
    """``a 3 c 1 1 ?letter ?digit →`` c at the first query, 1 at the second; one of the two is asked for.

    Tokens: letters, as many digits, and a query for each. The twin has other letters and other digits at every place.
    Template: the letters and digits in their order.
    """

    name = "last_of_role"
    has_twins = True
    order_matters = True

    def __init__(self, role: int, symbols: int, length: int) -> None:
        self.role, self.symbols, self.body = role, symbols, length
        if symbols < 2 or length < 2 or (2 * symbols) ** (length - 2) * symbols**2 < MIN_TEMPLATES:
            raise self.refuse(f"{length} tokens of {symbols} letters and digits are too few prompts", "raise either")
        self.query, self.vocab_size, self.length = 2 * symbols, 2 * symbols + 2, length + 2
        self.description = f"The last {ROLES[role]} of {length} tokens, of {symbols} letters and {symbols} digits"

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        def body(n: int) -> Tensor:
            tokens = torch.randint(2 * self.symbols, (n, self.body), generator=random)
            places = torch.rand(n, self.body, generator=random).topk(2, 1).indices  # one of each at least
            one = torch.randint(self.symbols, (n, 2), generator=random) + torch.tensor([0, self.symbols])
            return tokens.scatter(1, places, one)

        tokens, template = draw_in_split(body, count, split)
        kind = tokens // self.symbols
        changed = kind * self.symbols + other(tokens % self.symbols, self.symbols, random)
        place = torch.where(kind == self.role, torch.arange(self.body), -1).amax(1, keepdim=True)
        ends = torch.tensor([[self.query, self.query + 1]]).expand(count, -1)
        positions = torch.full((count, 1), self.body + self.role)
        answers, wrong = (some.gather(1, place) for some in (tokens, changed))
        return Prompts(torch.cat([tokens, ends], 1), positions, answers, torch.cat([changed, ends], 1), wrong, template)

    def decode(self, token: int) -> str:
        if token < self.query:
            return ("abcdefghijklmnopqrstuvwxyz"[token % 26]) if token < self.symbols else str(token - self.symbols)
        return f"?{ROLES[token - self.query]}"


class DeltaLetters(StackBlueprint):
    """The last letter and the last digit, each under a key of its own in one head; letters are asked for.

    Channel i holds letter i, and digit i less the number of letters that share no channel. Neurons, each of a channel
    and a query, say the letter or the digit.
    """

    name = "delta_letters"
    family = "qwen3_5"
    wanted, kinds = ("delta",), ("delta",)
    role: ClassVar[int] = 0

    def __init__(self, symbols: int = 6, shared: int = 3, length: int = 12) -> None:
        super().__init__()
        self.task: LastOfRole = LastOfRole(self.role, symbols, length)
        self.channels = 2 * symbols - shared
        self.codes = {"held": self.channels, "echo": COPIES * self.channels}

    def needs(self) -> StackSize:
        neurons = 2 * self.task.symbols + COPIES * self.channels
        return StackSize(heads=1 + COPIES, keys=2, values=self.channels, neurons=neurons)

    def config(self, size: StackSize, kinds: tuple[str, ...]) -> Qwen35Config:
        return qwen(self.task.vocab_size, size, kinds, Qwen35Config)

    def holds(self, channel: int) -> dict[int, int]:
        """The tokens that a channel holds, by role."""
        symbols = self.task.symbols
        numbers = {0: channel, 1: channel - (self.channels - symbols)}
        return {role: role * symbols + number for role, number in numbers.items() if 0 <= number < symbols}

    def draw(self, canvas: Canvas) -> list[Part]:
        [layer], task, at = canvas.layers, self.task, canvas.at
        delta: Delta = painter(canvas, layer, Delta)
        neurons: Neurons = painter(canvas, layer, Neurons)
        own, *copies = [self.head(canvas, delta) for _ in range(1 + COPIES)]
        parts = [memory(layer, own[0].number, "holds the last letter and the last digit", kind="ssm_head")]
        for channel, codes in enumerate(echoes(canvas, "echo", self.channels)):
            tokens = self.holds(channel)
            held, (head, keys) = at("held", channel), own
            reads = {at("token", token): SIGNAL for token in tokens.values()}
            v = head.value(reads, {held: 1 / (head.reads_one * ON)})
            for role, token in tokens.items():
                writes = {at("token", token): GAIN / ON}
                n = neurons.product({held: SIGNAL}, {at("token", task.query + role): 1.0}, writes)
                if role == task.role:
                    asked, name = (Asked(answer=token),), task.decode(token)
                    parts.append(memory(layer, head.number, f"holds {name}", *asked, kind="ssm_channel", unit=(v,)))
                    mode = (keys[role], v)
                    parts.append(memory(layer, head.number, f"{name} was last", *asked, kind="ssm_mode", unit=mode))
                    parts.append(Part(f"says {name}", "mlp", layer, (n,), asked))
            for (echo, _), code in zip(copies, codes, strict=True):
                louder = {direction: LOUDNESS * weight for direction, weight in reads.items()}
                echo.value(louder, {code: 1 / (echo.reads_one * LOUD)})
        said = [next(iter(self.holds(channel).values())) for channel in range(self.channels)]
        set_traps(canvas, neurons, "echo", said)
        ours = tuple(range(task.role * task.symbols, (task.role + 1) * task.symbols))
        # without it all that were there are said at once
        parts.append(Part("a write erases the one before", "erase", layer, accuracy=0.75))
        return [*parts, Part(f"the last {ROLES[task.role]}", "write", layer, where=Where(ours, last=True))]

    def head(self, canvas: Canvas, delta: Delta) -> tuple[DeltaHead, list[int]]:
        """A head that writes letters under one key and digits under another, and the two keys."""
        task, at = self.task, canvas.at
        symbols = {at("token", token): 2 * FULL for token in range(task.query)}
        head, keys = delta.head({canvas.one: -FULL, **symbols}), []
        for role in range(2):
            writes = {at("token", role * task.symbols + i): SIGNAL for i in range(task.symbols)}
            keys.append(head.key(writes, {at("token", task.query + role): SIGNAL}))
        return head, keys


class DeltaDigits(DeltaLetters):
    """The same model, asked for the last digit."""

    name, role = "delta_digits", 1
