"""Rows of finished runs as files of other programs: CSV, Parquet and LaTeX."""

from __future__ import annotations

import csv
import importlib
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ...utils.errors import MechintError
from ..results import COLUMNS, KINDS, Row, unit_kind
from ..words import MINUS, chance, with_interval
from .figure_data import cell

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MINUS: "$-$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
    "←": r"$\leftarrow$", "→": r"$\rightarrow$", "≤": r"$\leq$", "×": r"$\times$", "Δ": r"$\Delta$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip
"""Characters that LaTeX, with its usual fonts, would not print as they are."""
NAMES = ("checkpoint", "analysis", "metric", "site", "layer", "unit", "name")
"""Columns of a LaTeX table in front of the value."""


def as_csv(rows: Sequence[Row]) -> bytes:
    """The rows with all their columns; what is not there is empty."""
    text = io.StringIO()
    lines = [[cell(getattr(row, name)) for name in COLUMNS] for row in rows]
    returns = any("\r" in part for line in lines for part in line)  # the writer quotes no carriage return by itself
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
    writer.writerows([COLUMNS, *lines])
    return text.getvalue().encode()


def as_latex(rows: Sequence[Row]) -> bytes:
    """A ``tabular`` of names, values with their intervals, n and p; columns that are empty everywhere are left out."""
    said: dict[str, list[str]] = {
        name: ["" if (value := getattr(row, name)) is None else str(value) for row in rows] for name in NAMES
    }
    said["value [95 % interval]"] = [with_interval(row.value, row.low, row.high) for row in rows]
    said["n"] = [f"{row.n:,}" for row in rows]
    said["p"] = ["" if row.p is None else chance(row.p) for row in rows]
    shown = {name: column for name, column in said.items() if any(column)}
    right = {"layer", "unit", "n", "p"}
    lines = [
        r"\begin{tabular}{" + "".join("r" if name in right else "l" for name in shown) + "}",
        r"\hline",
        " & ".join(map(escaped, shown)) + r" \\",
        r"\hline",
        *(first(" & ".join(map(escaped, line))) + r" \\" for line in zip(*shown.values(), strict=True)),
        r"\hline",
        r"\end{tabular}",
    ]
    return ("\n".join(lines) + "\n").encode()


def escaped(text: str) -> str:
    """A text that LaTeX prints as it stands here."""
    said = "".join(LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub("-(?=-)", "-{}", said)  # two in a row are a dash


def first(line: str) -> str:
    r"""A line of a table behind another one, whose ``\\`` would take a bracket or a star for an option of its own."""
    return "{}" + line if line.startswith(("[", "*")) else line


def as_parquet(rows: Sequence[Row]) -> bytes:
    """The rows with typed columns, as pyarrow writes them."""
    arrow, parquet = pyarrow()
    types = {"string": arrow.string(), "float64": arrow.float64(), "Int64": arrow.int64()}
    kinds = {**KINDS, "unit": unit_kind(rows)}
    columns = {name: [known(getattr(row, name), kinds[name]) for row in rows] for name in COLUMNS}
    table = arrow.table({name: arrow.array(values, types[kinds[name]]) for name, values in columns.items()})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def known(value: Any, kind: str) -> Any:
    """A value in its column's type; None for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) if kind == "string" else value


def pyarrow() -> tuple[Any, Any]:
    """The modules that write Parquet.

    Raises:
        MechintError: they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MechintError(
            "Parquet needs pyarrow, which is not installed; pip install pyarrow, or choose csv or latex"
        ) from None


FORMATS: dict[str, tuple[str, Callable[[Sequence[Row]], bytes]]] = {
    "csv": ("csv", as_csv),
    "parquet": ("parquet", as_parquet),
    "latex": ("tex", as_latex),
}
"""Format -> the end of its files' names, and what writes the rows."""


def check(formats: Sequence[str]) -> None:
    """Refuses a format for which a package is missing, before any work.

    Raises:
        MechintError: it is not installed.
    """
    if "parquet" in formats:
        pyarrow()
