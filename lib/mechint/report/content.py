"""The content of a page, in blocks: :mod:`.markdown` and :mod:`.html` write all of them, :mod:`.compose` both files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import figure_style as style
from .finished import Drawn, FinishedRun
from .words import Linked, Long, flat, number, with_interval


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        soft: It explains what stands below it, in a softer colour.
        code: Words between backticks are code.
    """

    text: str
    soft: bool = False
    code: bool = False


@dataclass(frozen=True)
class Code:
    """Lines that are written as they are."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of plain text.

    Attributes:
        numeric: Columns that are set right.
        folded: Text that HTML shows until the table is opened; '' shows the table.
        sortable: HTML sorts it by a click on a column's name, and hides the rows without the words that are typed.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Long | Linked]]
    numeric: Sequence[int] = ()
    folded: str = ""
    sortable: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list; ``folded`` as of :class:`Table`."""

    items: Sequence[str]
    folded: str = ""


@dataclass(frozen=True)
class Checks:
    """A list whose entries carry a tick, or a warning."""

    items: Sequence[tuple[bool, str]]


@dataclass(frozen=True)
class Links:
    """Other pages beside this one: (title, relative address)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Widget:
    """HTML that has no counterpart in Markdown.

    Attributes:
        style, script: Style and script that it needs beside the page's own style sheet.
        data: Stands where the script says ``@DATA@``, as JSON.
    """

    html: str
    style: str = ""
    script: str = ""
    data: Any = None


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: Name of its file.
        make: Draws it to a path, which it returns.
        kind: Kind of figure: ``heatmaps``, ``curves`` or ``faithfulness``; '' is always drawn.
        widget: HTML shows it in the figure's place, where it can be read point by point.
    """

    name: str
    caption: str
    make: Callable[[Path], Path]
    kind: str = ""
    widget: Widget | None = None

    def wanted(self, drawn: Drawn) -> bool:
        return not self.kind or bool(getattr(drawn, self.kind))


Block = Text | Code | Table | Bullets | Checks | Links | Widget | Figure


@dataclass(frozen=True)
class Section:
    """A heading and its blocks; a section whose blocks are all empty is left out."""

    title: str
    blocks: Sequence[Block]
    level: int = 2


@dataclass(frozen=True)
class Content:
    """The content of a page.

    Attributes:
        title: The heading.
        about: (checkpoint, what it is), below the heading.
        lead: The result in one sentence.
        cards: (what, value, more) of the first numbers.
        facts: (name, text) of what was measured, and how.
    """

    title: str
    sections: Sequence[Section]
    about: tuple[str, str] = ("", "")
    lead: str = ""
    cards: Sequence[tuple[str, str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()

    @property
    def figures(self) -> list[Figure]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def of_run(
    run: FinishedRun,
    sections: Sequence[Section],
    caveats: Sequence[str],
    *,
    title: str = "",
    lead: str = "",
    cards: Sequence[tuple[str, str, str]] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> Content:
    """The page of one finished run, which ends with its caveats and how to repeat it."""
    every = [*sections, Section("Caveats", [Bullets(caveats)]), *how_to_repeat(run)]
    about = (str(run.raw["checkpoint"]), subject(run.raw))
    return Content(title or str(run.raw["title"]), every, about, lead, cards, facts)


def study(
    run: FinishedRun,
    cards: Sequence[tuple[str, str, str]],
    findings: Sequence[tuple[bool, str]],
    sections: Sequence[Section],
    figures: Sequence[Figure],
    caveats: Sequence[str] = (),
    lead: str = "",
) -> Content:
    """The page of a run that has cards, findings, figures and tables, in this order; the lead stands before them."""
    first = [Section("Evidence", [Checks(findings)]), Section("Figures", figures)]
    facts = [(name, str(run.raw[name])) for name in ("metric", "ablation") if name in run.raw]
    return of_run(run, [*first, *sections], [*run.raw["notes"], *caveats], lead=lead, cards=cards, facts=facts)


def table_section(
    title: str,
    text: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str | Long]],
    numeric: Sequence[int] = (),
    folded: bool = False,
) -> Section:
    """A section of one table with a sentence above it; one without rows says so."""
    shown = Table(header, rows, numeric, f"{len(rows)} rows" if folded else "")
    return Section(title, [*([Text(text, soft=True)] if text else []), shown if rows else Text("None.")])


def figure(name: str, caption: str, size: tuple[float, float], draw: Any, *arguments: Any) -> Figure:
    """A figure whose ``draw`` takes the arguments after matplotlib's figure; of size in inches.

    It is a heat map where its name says ``map``, else a curve.
    """

    def drawn(target: Any) -> None:
        draw(target, *arguments)

    make = partial(style.save_figure, size=size, draw=drawn)
    return Figure(name, caption, make, "heatmaps" if "map" in name else "curves")


def subject(raw: Mapping[str, Any]) -> str:
    """The model and its task in a line."""
    model, task = raw["model"], raw["task"]
    size = f"{number(model['parameters'])} parameters" if "parameters" in model else ""
    shape = f"{model['n_layer']} layers of width {model.get('d_model', '?')}" if "n_layer" in model else ""
    said = ", ".join(part for part in (str(model.get("family", "")), size, shape) if part)
    return f"{said} · {task.get('description') or task.get('name', '')}"


def how_to_repeat(run: FinishedRun) -> list[Section]:
    """Sections on running the analysis and drawing it again; its options, versions, seeds and data."""
    again: list[Block] = []
    if run.config is not None:
        again = [
            Text(
                "Copy `config` (beside this file) to `.config` at the top of the repository, then run"
                " `make olddefconfig && make mechint`. On a CPU the results are the same to the byte.",
                code=True,
            ),
            Code(run.config.strip()),
        ]
    again.append(
        Text(
            "To draw this report again without running the analysis: `make mechint MODELS=<this directory>`, or"
            ' `from mechint.report import write_report; write_report("<this directory>")`.',
            code=True,
        )
    )
    options = Table(("option", "value"), list(flat(run.raw["config"])), folded="Options of the analysis")
    data = Table(
        ("entry", "value"),
        list(flat(run.manifest)),
        folded="Versions, seeds and data (manifest.json, without times)",
    )
    return [
        Section("How to repeat", again),
        Section("Options", [options], level=3),
        Section("Versions and data", [data], level=3),
    ]


def between(entry: dict[str, Any]) -> str:
    """``0.412 [0.380, 0.440]`` of a reported number."""
    return with_interval(entry["value"], entry["low"], entry["high"])
