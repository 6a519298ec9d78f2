"""Plug-ins: analyses and families of models that installed packages add through entry points."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from typing import Any

from .errors import short

GROUPS = ("mechint.analyses", "mechint.families")
"""Groups of entry points that are looked up."""


def plugins(group: str) -> dict[str, Any]:
    """The objects that installed packages declare in a group, by the entry point's name.

    One that cannot be imported is named on standard error, once, and left out; the others work.
    """
    return loaded(group)[0]


def broken(group: str) -> list[str]:
    """The names of a group's entry points that cannot be imported."""
    return loaded(group)[1]


@functools.cache
def loaded(group: str) -> tuple[dict[str, Any], list[str]]:
    """The objects of a group by name, and the names of those that cannot be imported, which are printed once."""
    found: dict[str, Any] = {}
    lost = []
    for entry in sorted(importlib.metadata.entry_points(group=group), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()
        except (Exception, SystemExit) as error:  # nothing in another package's module may stop this program
            lost.append(entry.name)
            print(
                f"note: the plug-in {entry.name!r} ({entry.value}) of the group {group} cannot be imported and is left "
                f"out: {type(error).__name__}: {short(str(error), 200)}",
                file=sys.stderr,
            )
    return found, lost
