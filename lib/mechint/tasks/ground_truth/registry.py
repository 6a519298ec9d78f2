"""Every model whose circuit is known, by name: a class without arguments whose ``compile(seed=…)`` gives one."""

from __future__ import annotations

from .blueprints import Blueprint, Induction, Latch, MostRecent, Recall, SelectiveCopy, Shift
from .counting import Count, ModularSum

BLUEPRINTS: dict[str, type[Blueprint]] = {
    kind.name: kind for kind in (Shift, Latch, MostRecent, Count, ModularSum, SelectiveCopy, Induction, Recall)
}
