"""Pieces of a self-contained HTML page: one file, no network, light and dark. Any analysis can use them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from .words import Long

# The policy makes "no network" a fact the browser enforces: nothing but what is inside the file can load.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c636b; --paper: #ffffff; --card: #f5f6f7; --line: #dfe2e5;
  --blue: #0072b2; --orange: #b97700; --grey: #767676; --red: #c44e00; --purple: #b0548a; --green: #00805c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --soft: #a3a9b0; --paper: #17191c; --card: #212428;
  --line: #363b41; --blue: #56b4e9; --orange: #e69f00; --grey: #9a9fa5; --red: #ff8a3d; --purple: #dd9cc2;
  --green: #3cc79a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.55rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
.soft { color: var(--soft); } .lead { font-size: 1.05rem; max-width: 52rem; }
code, pre { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin: 1.3rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem .9rem; }
.card .what { color: var(--soft); font-size: .82rem; } .card .value { font-size: 1.5rem; font-weight: 650; }
.card .more { color: var(--soft); font-size: .82rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
td .units { overflow-wrap: anywhere; }
figure { margin: 1.2rem 0 2rem; }
figure img { width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 8px; }
figure img.narrow { max-width: 46rem; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .4rem; max-width: 52rem; }
ul.findings { list-style: none; padding: 0; } ul.findings li { padding: .2rem 0 .2rem 1.7rem; position: relative; }
ul.findings li::before { position: absolute; left: .2rem; font-weight: 700; content: "✓"; color: var(--green); }
ul.findings li.bad::before { content: "!"; color: var(--red); } ul.findings li.bad { font-weight: 600; }
details summary { cursor: pointer; color: var(--soft); }
@media print { body { max-width: none; } details { display: block; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; ``body`` is HTML."""
    content = "\n".join(body)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n{content}\n</body>\n</html>\n"
    )


def card(what: str, value: str, more: str = "") -> str:
    lines = f'<div class="what">{escape(what)}</div><div class="value">{escape(value)}</div>'
    return f'<div class="card">{lines}<div class="more">{escape(more)}</div></div>'


def cards(items: Iterable[str]) -> str:
    return f'<div class="cards">{"".join(items)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str | Long]], numeric: Sequence[int] = ()) -> str:
    """A table of plain text; the columns in ``numeric`` are set right."""

    def said(cell: str | Long) -> str:
        if isinstance(cell, str) or cell.short == cell.whole:
            return escape(cell if isinstance(cell, str) else cell.whole)
        return folded(cell.short, f'<div class="units">{escape(cell.whole)}</div>')

    def row(cells: Sequence[str | Long], tag: str) -> str:
        marked = (f"<{tag}{' class=n' if i in numeric else ''}>{said(cell)}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table><thead>{row(header, "th")}</thead><tbody>\n{body}\n</tbody></table></div>'


def picture(path: Path, caption: str, narrow: bool = False) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    kind = ' class="narrow"' if narrow else ""
    image = f'<img{kind} alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def bullets(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def checks(items: Iterable[tuple[bool, str]]) -> str:
    """A list whose entries carry a tick, or a warning."""
    rows = (f"<li{'' if good else ' class=bad'}>{escape(text)}</li>" for good, text in items)
    return f'<ul class="findings">{"".join(rows)}</ul>'


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
