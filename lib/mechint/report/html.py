"""report.html: the whole analysis in one file that opens from disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from .page import bullets, folded, table
from .words import flat, number


def heading(raw: Mapping[str, Any]) -> Iterator[str]:
    """The title of a report, and what it is about."""
    model, task = raw["model"], raw["task"]
    size = f"{number(model['parameters'])} parameters" if "parameters" in model else ""
    shape = f"{model.get('n_layer', '?')} layers of width {model.get('d_model', '?')}"
    said = ", ".join(part for part in (str(model.get("family", "")), size, shape) if part)
    about = f"{said} · {task.get('description') or task.get('name', '')}"
    yield f"<h1>{escape(raw['title'])}</h1>"
    yield f'<p class="soft"><code>{escape(raw["checkpoint"])}</code> · {escape(about)}</p>'


def ending(results: Any, caveats: Iterable[str]) -> Iterator[str]:
    """What every report ends with: caveats, and how to repeat it."""
    yield "<h2>Caveats</h2>"
    yield bullets(caveats)
    yield "<h2>How to repeat</h2>"
    yield from repeat(results)


def repeat(results: Any) -> Iterator[str]:
    if results.config is not None:
        yield (
            "<p>Copy <code>config</code>, which lies beside this file, to <code>.config</code> at the top of the"
            " repository, then run <code>make olddefconfig &amp;&amp; make mechint</code>. On a CPU the results are the"
            " same to the byte.</p>"
        )
        yield f"<pre>{escape(results.config.strip())}</pre>"
    yield folded("Options of the analysis", table(("option", "value"), flat(results.raw["config"])))
    yield folded(
        "Versions, seeds and data (manifest.json, without times)", table(("entry", "value"), flat(results.manifest))
    )
