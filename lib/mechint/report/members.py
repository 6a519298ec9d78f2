"""The warnings of compared runs' own reports: a comparison hides none of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .content import Section, Table, Text

Warned = list[tuple[str, list[str]]]
"""(what is warned of, names of the runs whose reports warn of it), in the order in which warnings come."""
NAMED = 6
"""Runs that a row of the table names."""
NUMBER = re.compile(r"[-\N{MINUS SIGN}]?\d[\d,]*(\.\d+)?(e[-+]\d+)?")
TITLE = "Warnings of the runs' own reports"
HEADER = ("warning", "runs")
UNWARNED = "No run's own report has a warning."


def gathered(names: Sequence[str], warnings: Iterable[Iterable[str]]) -> Warned:
    """Every warning once, with the runs that have it; warnings that differ only in their numbers are shown once, with
    the numbers of the first."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name, texts in zip(names, warnings, strict=True):
        for text in dict.fromkeys(texts):
            said, runs = found.setdefault(NUMBER.sub("#", text), ([], []))
            said.append(text)
            runs.append(name)
    several = lambda said: f"{said[0]} (numbers of the first)" if len(set(said)) > 1 else said[0]
    return [(several(said), list(dict.fromkeys(runs))) for said, runs in found.values()]


def of_whom(names: Sequence[str], among: int) -> str:
    """Runs in words: all of them, or the first few by name."""
    if len(names) == among > 1:
        return f"all {among}"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more + (f" ({len(names)} of {among})" if more else "")


def member_rows(warned: Warned, among: int) -> list[tuple[str, str]]:
    return [(text, of_whom(names, among)) for text, names in warned]


def member_section(warned: Warned, among: int) -> Section:
    """The table of warnings, or that there is none."""
    return Section(TITLE, [Table(HEADER, member_rows(warned, among)) if warned else Text(UNWARNED)])


def member_lines(warned: Warned, among: int) -> list[str]:
    """Lines for the terminal."""
    return [f"  warning         {of_whom(names, among)}: {text}" for text, names in warned]
