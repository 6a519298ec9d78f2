"""Writes the blocks of a page as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from .content import Block, Bullets, Checks, Code, Content, Figure, Links, Section, Table, Text
from .words import Linked, Long

CHECK = {True: "- ✓ ", False: "- ✗ **warning:** "}
"""The beginning of a line of :class:`Checks`, by whether the check is good."""


def markdown(content: Content, drawn: Collection[str]) -> str:
    """The whole page; ``drawn`` are the names of the figures that lie beside it."""
    checkpoint, about = content.about
    parts = [
        f"# {content.title}{f': {checkpoint}' if checkpoint else ''}",
        content.lead,
        about,
        table(("", "", ""), content.cards) if content.cards else "",
        table(("", ""), content.facts) if content.facts else "",
    ]
    for section in content.sections:
        parts += of_section(section, drawn)
    return "\n\n".join(part for part in parts if part) + "\n"


def of_section(section: Section, drawn: Collection[str]) -> list[str]:
    """The heading and the paragraphs of a section; nothing where all its blocks are empty."""
    blocks = [text for block in section.blocks if (text := of_block(block, drawn))]
    return [f"{'#' * section.level} {section.title}", *blocks] if blocks else []


def of_block(block: Block, drawn: Collection[str]) -> str:
    match block:
        case Text(text):
            return text
        case Code(text):
            return f"```\n{text}\n```"
        case Table(header, rows):
            return table(header, rows) if rows else ""
        case Bullets(items):
            return "\n".join(f"- {text}" for text in items)
        case Checks(items):
            return "\n".join(f"{CHECK[good]}{text}" for good, text in items)
        case Links(items):
            return "\n".join(f"- [{title}]({address})" for title, address in items)
        case Figure(name, caption):
            return f"![{name}]({name})\n\n{caption}" if name in drawn else ""
        case _:
            return ""


def table(header: Sequence[str], rows: Iterable[Sequence[str | Long | Linked]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped."""
    plain = ([plain_cell(cell) for cell in row] for row in rows)
    lines = [list(header), ["---"] * len(header), *plain]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def plain_cell(cell: str | Long | Linked) -> str:
    if isinstance(cell, Linked):
        return f"[{cell.text}]({cell.address})"
    return cell.short if isinstance(cell, Long) else cell


def checked(text: str) -> tuple[int, int]:
    """(good ones, all) of the checks that a page written by :func:`markdown` has."""
    good, bad = (sum(line.startswith(CHECK[kind]) for line in text.splitlines()) for kind in (True, False))
    return good, good + bad
