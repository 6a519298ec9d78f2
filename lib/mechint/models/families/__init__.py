"""The families whose layers are made of parts, one file each: configuration, names on disk, which parts in which layer.

A file is found by its place, and declares ``FAMILY``. Adding a family takes one file.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from ..family import StackFamily


@functools.cache
def declared() -> dict[str, StackFamily]:
    """Every declared family by each of its values of ``model_type``."""
    found: dict[str, StackFamily] = {}
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        for family in getattr(importlib.import_module(module.name), "FAMILIES", ()):
            for name in (family.name, *family.also):
                assert name not in found, f"two families are called {name}"
                found[name] = family
    return found
