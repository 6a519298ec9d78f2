"""Writes a page: its figures, its Markdown and its HTML, in one directory."""

from __future__ import annotations

from pathlib import Path

from ..utils.files import write_text
from ..utils.progress import Progress
from .content import Content
from .finished import ALL_FIGURES, Drawn
from .html import html
from .markdown import markdown


def write_page(
    directory: Path, content: Content, text_name: str, drawn: Drawn = ALL_FIGURES, page_name: str = "report.html"
) -> list[Path]:
    """Draws the figures that are wanted and writes both texts.

    Args:
        text_name, page_name: Names of the Markdown and the HTML file.

    Returns:
        The paths written: figures (PNG; beside each lie its data and its vector formats), Markdown, HTML.
    """
    wanted = {figure.name: figure for figure in content.figures if figure.wanted(drawn)}
    figures: dict[str, Path] = {}
    with Progress("report", 2 + len(wanted)) as progress:
        for name, figure in wanted.items():
            figures[name] = figure.make(directory / name)
            progress.step(name)
        text = write_text(directory / text_name, markdown(content, figures))
        progress.step(text_name)
        page = write_text(directory / page_name, html(content, figures))
        progress.step(page_name)
    return [*figures.values(), text, page]
