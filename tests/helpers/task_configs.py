"""Options of every task."""

from __future__ import annotations

from mechint.tasks import TaskConfig

SYNTHETIC = ("recall", "induction", "selective_copy", "facts", "indirect_object", "greater_than")


CONFIGS = {name: TaskConfig(name=name, pairs=4, keys=16, values=16, length=32) for name in (*SYNTHETIC, "text")}
