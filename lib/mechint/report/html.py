"""Writes the blocks of a page as one HTML file that opens from disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from .content import Block, Bullets, Checks, Code, Content, Figure, Links, Section, Table, Text, Widget
from .page import bullets, card, cards, checks, contents, folded, links, page, picture, place, sorting, table


def html(content: Content, drawn: Mapping[str, Path]) -> str:
    """The whole page; ``drawn`` has the figures that were drawn, by name."""
    checkpoint, about = content.about
    body = [f"<h1>{escape(content.title)}</h1>"]
    if checkpoint:
        body.append(f'<p class="soft"><code>{escape(checkpoint)}</code> · {escape(about)}</p>')
    if content.lead:
        body.append(f'<p class="lead">{escape(content.lead)}</p>')
    if content.cards:
        body.append(cards(card(*entry) for entry in content.cards))
    if content.facts:
        body.append(folded("What was measured", table(("", ""), content.facts)))
    sections = [(section.title, section.level, of_section(section, drawn)) for section in content.sections]
    titles: list[str] = []
    below: list[str] = []
    for title, level, lines in sections:
        if lines and level == 2:
            lines = [lines[0].replace("<h2>", f'<h2 id="{place(len(titles))}">', 1), *lines[1:]]
            titles.append(title)
        below += lines
    body += [line for line in (contents(titles),) if line] + below
    return page(f"{content.title}: {checkpoint}" if checkpoint else content.title, body)


def of_section(section: Section, drawn: Mapping[str, Path]) -> list[str]:
    """The heading and the blocks of a section; nothing where all its blocks are empty.

    A section with only a folded table needs no heading: the text of the fold is the heading.
    """
    blocks = [text for block in section.blocks if (text := of_block(block, drawn))]
    first = section.blocks[0] if len(section.blocks) == 1 else None
    says_itself = section.level > 2 and isinstance(first, Table) and first.folded
    heading = [] if says_itself else [f"<h{section.level}>{escape(section.title)}</h{section.level}>"]
    return [*heading, *blocks] if blocks else []


def of_block(block: Block, drawn: Mapping[str, Path]) -> str:
    match block:
        case Text(text, soft, code):
            said = escape(text)
            if code:
                said = re.sub(r"`([^`]+)`", r"<code>\1</code>", said)
            return f'<p class="soft">{said}</p>' if soft else f"<p>{said}</p>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Table(header, rows, numeric, fold, sortable):
            shown = sorting(table(header, rows, numeric)) if sortable else table(header, rows, numeric)
            return "" if not rows else folded(fold, shown) if fold else shown
        case Bullets(items, fold):
            return "" if not items else folded(fold, bullets(items)) if fold else bullets(items)
        case Checks(items):
            return checks(items) if items else ""
        case Links(items):
            links = (f'<li><a href="{escape(address)}">{escape(title)}</a></li>' for title, address in items)
            return f"<ul>{''.join(links)}</ul>" if items else ""
        case Figure(name, caption):
            if name not in drawn:
                return ""
            if block.widget:
                return f"<figure>{of_widget(block.widget)}<figcaption>{escape(caption)}</figcaption></figure>"
            return picture(drawn[name], caption)
        case Widget():
            return of_widget(block)


def of_widget(widget: Widget) -> str:
    """Its style, HTML and script; no text among the data can end the script."""
    parts = [f"<style>{widget.style}</style>"] if widget.style else []
    parts.append(widget.html)
    if widget.script:
        data = json.dumps(widget.data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        parts.append(f"<script>{widget.script.replace('@DATA@', data)}</script>")
    return "".join(parts)


PLACE = re.compile(r"<body>\n(?:<nav .*?</nav>\n)?", re.DOTALL)
"""The head of a page, with the links to other pages that it may have."""


def with_links(text: str, groups: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    """A finished page with links to other pages at its head, instead of those that it has.

    Args:
        text: The whole page.
        groups: (name, [(title, relative address)]); a link without an address is the page itself.
    """
    return PLACE.sub(lambda _: f"<body>\n{links(groups)}", text, count=1)
