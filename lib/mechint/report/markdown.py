"""circuit_analysis_report.md: the result, the evidence, how to read it, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .words import flat


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped."""
    lines = [list(header), ["---"] * len(header), *(list(row) for row in rows)]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def evidence(found: Iterable[tuple[bool, str]]) -> str:
    """A list whose entries carry a tick, or a warning."""
    return "\n".join(f"- {'✓' if good else '✗ **warning:**'} {text}" for good, text in found)


def ending(results: Any, caveats: Iterable[str]) -> list[str]:
    """The paragraphs that every report ends with: caveats, how to repeat it, versions and data."""
    return [
        "## Caveats",
        "\n".join(f"- {text}" for text in caveats),
        "## How to repeat",
        *repeat(results),
        "### Versions and data",
        table(("entry", "value"), [(f"`{key}`", value) for key, value in flat(results.manifest)]),
    ]


def repeat(results: Any) -> list[str]:
    """Paragraphs that say how to run the analysis again and how to draw it again."""
    parts = []
    if results.config is not None:
        parts += [
            "Copy `config` (beside this file) to `.config` at the top of the repository, then run"
            " `make olddefconfig && make mechint`. On a CPU the results are the same to the byte.",
            "```\n" + results.config.strip("\n") + "\n```",
        ]
    parts += [
        "To draw this report again without running the analysis: `make mechint MODELS=<this directory>`, or"
        ' `from mechint.report import write_report; write_report("<this directory>")`.',
        "### Options",
        table(("option", "value"), [(f"`{key}`", value) for key, value in flat(results.raw["config"])]),
    ]
    return parts
