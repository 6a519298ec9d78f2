"""The number of inputs with which a hypothesis property is tried."""

from __future__ import annotations

from hypothesis import settings


def examples(whole: int) -> int:
    """``whole``, and a quarter of it (3 at least) where the quick profile of tests/conftest.py is chosen."""
    return max(3, whole * settings.default.max_examples // 100)
