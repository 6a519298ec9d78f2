"""The families whose layers are made of parts, one file each: configuration, names on disk, which parts in which layer.

A file is found by its place, and declares ``FAMILIES``. Adding a family takes one file; an installed package adds one
through an entry point of the group ``mechint.families``, which names a list of families.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from ...utils.errors import MechintError
from ...utils.plugins import plugins
from ..family import StackFamily


@functools.cache
def declared() -> dict[str, StackFamily]:
    """Every declared family by each of its values of ``model_type``.

    Raises:
        MechintError: two families have one name, or a plug-in is no list of families.
    """
    own = (importlib.import_module(module.name) for module in pkgutil.walk_packages(__path__, f"{__name__}."))
    lists = [(module.__name__, getattr(module, "FAMILIES", ())) for module in own]
    lists += [(f"the plug-in {name!r}", families) for name, families in plugins("mechint.families").items()]
    found: dict[str, StackFamily] = {}
    for where, families in lists:
        if not isinstance(families, (list, tuple)) or not all(isinstance(one, StackFamily) for one in families):
            raise MechintError(f"{where} names no list of families (StackFamily); correct it or uninstall it")
        for family in families:
            for name in (family.name, *family.also):
                if name in found:
                    raise MechintError(f"{where} declares a second family called {name!r}; give it a name of its own")
                found[name] = family
    return found
