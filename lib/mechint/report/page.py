"""Pieces of a self-contained HTML page: one file, no network, light and dark. Any analysis can use them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from .page_style import CSS, PAGE, REACH
from .words import Linked, Long

# The policy makes "no network" a fact the browser enforces: nothing but what is inside the file can load.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; ``body`` is HTML."""
    content = "\n".join(body)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{CSS}</style>\n<script>{REACH}</script>\n</head>\n<body>\n{content}\n<script>{PAGE}</script>\n"
        "</body>\n</html>\n"
    )


def card(what: str, value: str, more: str = "") -> str:
    lines = f'<div class="what">{escape(what)}</div><div class="value">{escape(value)}</div>'
    return f'<div class="card">{lines}<div class="more">{escape(more)}</div></div>'


def cards(items: Iterable[str]) -> str:
    return f'<div class="cards">{"".join(items)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str | Long | Linked]], numeric: Sequence[int] = ()) -> str:
    """A table of plain text and links; the columns in ``numeric`` are set right."""

    def said(cell: str | Long | Linked) -> str:
        if isinstance(cell, Linked):
            return f'<a href="{escape(cell.address)}">{escape(cell.text)}</a>'
        if isinstance(cell, str) or cell.short == cell.whole:
            return escape(cell if isinstance(cell, str) else cell.whole)
        return folded(cell.short, f'<div class="units">{escape(cell.whole)}</div>')

    def row(cells: Sequence[str | Long | Linked], tag: str) -> str:
        marked = (f"<{tag}{' class=n' if i in numeric else ''}>{said(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table><thead>{row(header, "th")}</thead><tbody>\n{body}\n</tbody></table></div>'


def sorting(whole: str) -> str:
    """A table with a field to search it; without a script it is the plain table."""
    field = (
        '<p class="find" hidden><label>Search <input type="search"></label> <output aria-live="polite"></output></p>'
    )
    return f'<div class="sortable">{field}{whole}</div>'


CONTENTS = 4
"""Sections of a page that has contents."""


def contents(titles: Sequence[str]) -> str:
    """The titles of a page's sections as links to them; nothing for a page of few sections."""
    if len(titles) < CONTENTS:
        return ""
    items = "".join(f'<li><a href="#{place(k)}">{escape(title)}</a></li>' for k, title in enumerate(titles))
    return (
        '<div class="contents" role="navigation" aria-label="Contents"><details><summary>Contents</summary>'
        f"<ul>{items}</ul></details></div>"
    )


def place(number: int) -> str:
    """The address of a section within its page."""
    return f"section-{number + 1}"


def links(groups: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> str:
    """Links to other pages in groups with a name each; the page itself has no address."""

    def one(title: str, address: str) -> str:
        return (
            f'<a href="{escape(address)}">{escape(title)}</a>'
            if address
            else f'<b aria-current="page">{escape(title)}</b>'
        )

    lines = []
    for name, items in groups:
        said = " ".join(one(title, address) for title, address in items)
        lines.append(f"<span>{escape(name)}{': ' if name else ''}{said}</span>")
    return f'<nav aria-label="Other pages">{" ".join(lines)}</nav>\n' if lines else ""


PIXELS = 0.6
"""CSS pixels to a figure's pixel at most: text of all figures is alike, and none is blown up."""


def picture(path: Path, caption: str) -> str:
    """A PNG inside the page, no wider than its own width warrants."""
    png = path.read_bytes()
    width = round(PIXELS * int.from_bytes(png[16:20], "big"))  # of its header
    data = base64.b64encode(png).decode()
    image = f'<img style="max-width: {width}px" alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def bullets(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def checks(items: Iterable[tuple[bool, str]]) -> str:
    """A list whose entries carry a tick, or a warning."""
    rows = (f"<li{'' if good else ' class=bad'}>{escape(text)}</li>" for good, text in items)
    return f'<ul class="findings">{"".join(rows)}</ul>'


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
