"""The page of a finished study, whatever it measured: cards, findings, tables, figures, caveats, how to repeat it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from ..utils.errors import MechintError
from ..utils.files import write_text
from ..utils.progress import Progress
from . import style
from .finished import SCHEMA
from .html import repeat as repeat_html
from .markdown import repeat as repeat_markdown
from .markdown import table as markdown_table
from .page import bullets, card, cards, checks, folded, page, picture, table
from .values import optional_text, read_object, read_value
from .words import flat, number


@dataclass(frozen=True)
class Study:
    """results.json of a study, and what lies beside it."""

    directory: Path
    raw: dict[str, Any]
    manifest: dict[str, Any]
    config: str | None


@dataclass(frozen=True)
class Section:
    """A table with a heading and a sentence; ``numeric`` columns are set right; long ones are folded in HTML."""

    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure to draw: file name, caption, size in inches, and what draws it."""

    name: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Any], None]
    narrow: bool = False


@dataclass(frozen=True)
class Content:
    """What a report says; plain text."""

    cards: Sequence[tuple[str, str, str]]
    findings: Sequence[tuple[bool, str]]
    sections: Sequence[Section]
    figures: Sequence[Figure]
    caveats: Sequence[str] = field(default_factory=list)


def load_study(run_dir: str | Path, report: str) -> Study:
    """Reads a finished study of one kind.

    Raises:
        MechintError: a file is missing, is not valid, or has another schema or kind.
    """
    directory = Path(run_dir)
    path = directory / "results.json"
    raw = read_object(path)
    if raw.get("schema") != SCHEMA or raw.get("status") != "complete" or raw.get("report") != report:
        raise MechintError(f"{path} is no finished {report} study of schema {SCHEMA}; run the analysis again")
    if not isinstance(raw.get("metrics"), dict):
        raise MechintError(f"{path} has no metrics; run the analysis again")
    for name, value in raw["metrics"].items():
        read_value(value, path, f"metrics.{name}")
    return Study(directory, raw, read_object(directory / "manifest.json"), optional_text(directory / "config"))


def write_study(
    study: Study, content: Content, text_name: str, heatmaps: bool = True, curves: bool = True
) -> list[Path]:
    """Writes the figures, the Markdown report and report.html of a study into its directory."""
    plan = list(content.figures) if heatmaps and curves else [f for f in content.figures if wanted(f, heatmaps, curves)]
    figures: list[tuple[Figure, Path]] = []
    with Progress("report", 2 + len(plan)) as progress:
        for figure in plan:
            figures.append((figure, style.save_figure(study.directory / figure.name, figure.size, figure.draw)))
            progress.step(figure.name)
        text = write_text(study.directory / text_name, markdown(study, content, figures))
        progress.step(text.name)
        report = write_text(study.directory / "report.html", html(study, content, figures))
        progress.step(report.name)
    return [*(path for _, path in figures), text, report]


def wanted(figure: Figure, heatmaps: bool, curves: bool) -> bool:
    return heatmaps if "map" in figure.name else curves


def markdown(study: Study, content: Content, figures: list[tuple[Figure, Path]]) -> str:
    raw = study.raw
    parts = [
        f"# {raw['title']}: {raw['checkpoint']}",
        f"{subject(raw)}. Metric: {raw['metric']}. Ablation: {raw['ablation']}.",
        markdown_table(("", "", ""), content.cards),
        "## Evidence",
        "\n".join(f"- {'✓' if good else '✗ **warning:**'} {text}" for good, text in content.findings),
    ]
    for section in content.sections:
        parts += [f"## {section.title}", section.text, markdown_table(section.header, section.rows)]
    parts += [
        "## Figures",
        "\n\n".join(f"![{path.name}]({path.name})\n\n{figure.caption}" for figure, path in figures)
        or "None were drawn.",
        "## Caveats",
        "\n".join(f"- {text}" for text in (*raw["notes"], *content.caveats)),
        "## How to repeat",
        *repeat_markdown(study),
        "### Versions and data",
        markdown_table(("entry", "value"), [(f"`{key}`", value) for key, value in flat(study.manifest)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def html(study: Study, content: Content, figures: list[tuple[Figure, Path]]) -> str:
    raw = study.raw
    body = [
        f"<h1>{escape(raw['title'])}</h1>",
        f'<p class="soft"><code>{escape(raw["checkpoint"])}</code> · {escape(subject(raw))}</p>',
        cards([card(*entry) for entry in content.cards]),
        "<h2>Evidence</h2>",
        checks(content.findings),
        "<h2>Figures</h2>" if figures else "",
        *(picture(path, figure.caption, figure.narrow) for figure, path in figures),
    ]
    for section in content.sections:
        body += [f"<h2>{escape(section.title)}</h2>", f'<p class="soft">{escape(section.text)}</p>']
        shown = table(section.header, section.rows, section.numeric)
        body.append(folded(f"{len(section.rows)} rows", shown) if section.folded else shown)
    body += ["<h2>Caveats</h2>", bullets((*raw["notes"], *content.caveats)), "<h2>How to repeat</h2>"]
    return page(f"{raw['title']}: {raw['checkpoint']}", [*body, *repeat_html(study)])


def subject(raw: dict[str, Any]) -> str:
    model = raw["model"]
    said = raw["task"].get("description", "")
    return f"{model['family']}, {number(model['parameters'])} parameters, {model['n_layer']} layers · {said}"


def between(entry: dict[str, Any], digits: int = 3) -> str:
    """``0.412 [0.38, 0.44]`` of a reported number."""
    value, low, high = (number(entry[key], digits) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def figure(
    name: str, caption: str, size: tuple[float, float], draw: Any, *arguments: Any, narrow: bool = False
) -> Figure:
    """A figure whose ``draw`` takes the arguments behind matplotlib's figure."""

    def drawn(target: Any) -> None:
        draw(target, *arguments)

    return Figure(name, caption, size, partial(drawn), narrow)
