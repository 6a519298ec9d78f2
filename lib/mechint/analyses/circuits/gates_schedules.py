"""The temperature of gates over a search, written as ``linear:1.0:0.1``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...utils.errors import MechintError, did_you_mean, shown
from ...utils.options import finite

KINDS = ("linear", "exponential", "cosine", "constant")
LOW, HIGH = 0.001, 100.0


@dataclass(frozen=True)
class Temperature:
    """What the gates' logits are divided by: below 1, gates are closer to open or shut and their gradient steeper.

    The number of open gates stays the budget at any temperature, and the circuit is the exact top of the logits, which
    no temperature reorders.
    """

    kind: str = "constant"
    start: float = 1.0
    end: float = 1.0

    @staticmethod
    def parse(text: str) -> Temperature:
        """``linear:1.0:0.1``, ``exponential:…``, ``cosine:…`` (from, to) or ``constant:1.0``.

        Raises:
            MechintError: the text is nothing of that.
        """
        kind, *values = (part.strip() for part in text.split(":"))
        how = f"write FROM:TO behind one of {', '.join(KINDS[:3])}, as in linear:1.0:0.1, or constant:1.0"
        if kind not in KINDS:
            raise MechintError(
                f"the temperature schedule {shown(text)} does not parse{did_you_mean(kind, KINDS)}; {how}"
            )
        numbers = [number for number in map(finite, values) if number is not None]
        if len(numbers) < len(values):
            raise MechintError(f"the temperature schedule {shown(text)} does not parse; {how}")
        if len(numbers) != (1 if kind == "constant" else 2):
            raise MechintError(f"the temperature schedule {shown(text)} has {len(numbers)} temperatures; {how}")
        if not all(LOW <= number <= HIGH for number in numbers):
            raise MechintError(f"the temperature schedule {shown(text)}: a temperature is from {LOW} to {HIGH:g}")
        return Temperature(kind, numbers[0], numbers[-1])

    def at(self, step: int, steps: int) -> float:
        """The temperature of a step, 0 … steps - 1, whose progress is step / steps.

        Linearly from 1.0 to 0.1, step 450 of 500 has 0.19.
        """
        progress = min(1.0, step / max(1, steps))
        if self.kind == "exponential":
            return float(self.start * (self.end / self.start) ** progress)
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress
