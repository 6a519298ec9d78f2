"""Menus and experiments of plug-ins: files beside the modules that their entry points name. Nothing is imported.

An installed package that adds an analysis through an entry point of the group ``mechint.analyses`` may have a
``Kconfig`` and a directory ``defconfigs`` beside the module that the entry point names. This module needs the
standard library only.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

GROUP = "mechint.analyses"


def folders() -> list[Path]:
    """The directories of the modules that plug-ins name, each once, in the order of their names.

    A package that is not where its entry point says is left out; the analyses' own command names it when it runs.
    """
    found = []
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        module = entry.value.partition(":")[0].strip()
        first, *inner = module.split(".")[:-1] or [module]
        try:
            spec = importlib.util.find_spec(first)
        except (ImportError, ValueError):  # a module that was put there by hand, without its specification
            continue
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            folder = Path(place, *inner).resolve()
            if folder.is_dir() and folder not in found:
                found.append(folder)
    return found


def menus() -> list[Path]:
    """The Kconfig files of plug-ins."""
    return [file for folder in folders() if (file := folder / "Kconfig").is_file()]
