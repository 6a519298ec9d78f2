"""Makes the notebooks of ``examples/`` from the Python files beside them, and keeps what their cells print and draw.

``python -m scripts.notebooks [NAME …]`` runs the cells of each ``examples/NAME.py`` in one process and writes
``examples/NAME.ipynb``. A cell begins with ``# %%``, one of text with ``# %% [markdown]``. Needs no notebook software.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
Mime = dict[str, str]
PLACE = re.compile(re.escape(tempfile.gettempdir()) + r"/[\w.-]+")
"""A temporary directory of this machine, which a notebook calls ``run``."""
MARK = re.compile(r"^# %%( \[markdown\])?[^\n]*\n", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A cell of code or of text."""

    text: str
    markdown: bool = False


def cells_of(source: str) -> list[Cell]:
    """The cells of a Python file.

    Raises:
        ValueError: it does not begin with one, or a line of text is no comment.
    """
    marks = list(MARK.finditer(source))
    if not marks or source[: marks[0].start()].strip():
        raise ValueError("the file does not begin with a cell: # %%")
    found = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        text = source[mark.end() : after.start() if after else len(source)].strip("\n")
        if mark[1]:
            lines = text.split("\n")
            if wrong := [line for line in lines if not line.startswith("#")]:
                raise ValueError(f"a line of text does not begin with #: {wrong[0]!r}")
            text = "\n".join(line[1:].removeprefix(" ") for line in lines)
        found.append(Cell(text, bool(mark[1])))
    return found


def run_cell(text: str, names: dict[str, Any], where: str) -> tuple[str, Mime]:
    """Runs a cell of code; what it prints, and its last expression as a notebook shows it."""
    tree = ast.parse(text, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(tree, where, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    return said.getvalue(), {} if value is None else shown(value)


def shown(value: Any) -> Mime:
    """A value as a notebook shows it: as text, as HTML where it has some, as a picture where it is a plot."""
    found = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        found["text/html"] = str(value._repr_html_())
    found = {kind: PLACE.sub("run", text) for kind, text in found.items()}
    figure = getattr(value, "figure", value)
    if hasattr(figure, "savefig"):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=90, metadata={"Software": None})
        found["image/png"] = base64.b64encode(picture.getvalue()).decode()
    return found


def notebook(cells: list[Cell], where: str) -> dict[str, Any]:
    """The notebook of some cells, which are run in order."""
    names: dict[str, Any] = {"__name__": "__main__"}
    made: list[dict[str, Any]] = []
    count = 0
    for number, cell in enumerate(cells):
        common: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": lines(cell.text)}
        if cell.markdown:
            made.append({"cell_type": "markdown", **common})
            continue
        count += 1
        printed, value = run_cell(cell.text, names, f"{where}, cell {number}")
        outputs: list[dict[str, Any]] = []
        if printed:
            outputs.append({"output_type": "stream", "name": "stdout", "text": lines(printed)})
        if value:
            data = {kind: text if kind == "image/png" else lines(text) for kind, text in value.items()}
            outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data})
        made.append({"cell_type": "code", "execution_count": count, "outputs": outputs, **common})
    return {
        "cells": made,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(chosen: list[str]) -> None:
    known = {path.stem: path for path in sorted(EXAMPLES.glob("*.py"))}
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"error: no example is called {unknown[0]!r}; there are {', '.join(known)}")
    for name in chosen or known:
        made = notebook(cells_of(known[name].read_text(encoding="utf-8")), known[name].name)
        text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        (EXAMPLES / f"{name}.ipynb").write_text(text, encoding="utf-8")
        print(f"examples/{name}.ipynb", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
