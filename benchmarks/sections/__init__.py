"""One file for each section of the table; ``questions()`` of each yields what is measured."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from ..pairs import Question

SECTIONS = (
    "scan", "model", "families", "gpt2", "cache", "sweep", "units", "trace", "attention", "mask", "kept",
    "temporal", "curves", "sae", "threads", "gpu",
)  # fmt: skip


def questions(section: str) -> Iterator[Question]:
    """Imports the peers of that section alone.

    Raises:
        Skipped: it cannot be measured on this machine.
    """
    yield from importlib.import_module(f"{__name__}.{section}").questions()
