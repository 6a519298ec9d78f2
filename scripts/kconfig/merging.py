"""Changes to a loaded configuration: what SET= says, fragments merged into it, and what differs between two of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import kconfiglib

from . import mapping
from .defconfigs import ConfigError, find
from .loading import Assignment, Menu, apply, load, read

_SET = re.compile(r"(?:CONFIG_)?([A-Za-z0-9_]+)=(.*)", re.DOTALL)


def words(variable: str, text: str) -> list[str]:
    """The words of a variable of make's command line, as a shell would read them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{variable}={text} is not a list of words ({error}); close its quotes") from None


def settings(menu: kconfiglib.Kconfig, text: str) -> list[Assignment]:
    """The assignments that ``SET="NAME=value …"`` makes; texts need no quotes of their own."""
    found = []
    for word in words("SET", text):
        match = _SET.fullmatch(word)
        if match is None:
            raise ConfigError(f'SET={text}: {word!r} is not NAME=value, as in SET="KNLP_MECHINT_SEED=1"')
        name, value = match[1], match[2]
        symbol = menu.syms.get(name)
        is_text = symbol is not None and symbol.orig_type == kconfiglib.STRING
        if (is_text or name in menu.named_choices) and not re.fullmatch('".*"', value, re.DOTALL):
            value = f'"{kconfiglib.escape(value)}"'
        found.append(Assignment("SET=", name, value))
    return found


def fragment(root: Path, work: Path, name: str) -> tuple[str, Path]:
    """(name for messages, file) of a fragment: a file below the working directory, or a named experiment."""
    return (name, work / name) if (work / name).is_file() else (name, find(root, name))


def merge(menu: Menu, pieces: Iterable[tuple[str, Path]]) -> list[str]:
    """Sets every line of the pieces, each over those before it; returns a line for each value that changed by it.

    Raises:
        ConfigError: a line of a piece does not take effect.
    """
    said = []
    for name, file in pieces:
        before = values(menu)
        apply(menu, read(file, name))
        said += [f"{name}: {line}" for line in differences(before, values(menu))]
    return said


def values(menu: kconfiglib.Kconfig) -> dict[str, str]:
    """The value of every symbol that a configuration would hold: of those that are visible or have a value anyway."""
    return {symbol.name: mapping.shown(symbol.str_value) for symbol in menu.unique_defined_syms if symbol.config_string}


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Lines for symbols whose values differ, in the order of the second; – stands where one has none."""
    names = [*after, *(name for name in before if name not in after)]
    absent = "–"
    return [
        f"{name} {before.get(name, absent) or '(empty)'} -> {after.get(name, absent) or '(empty)'}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def compared(root: Path, one: tuple[str, Path], other: tuple[str, Path]) -> list[str]:
    """What differs between two configurations, each given by its name for messages and its file."""
    first, second = (values(load(root, file, name)) for name, file in (one, other))
    return differences(first, second)
