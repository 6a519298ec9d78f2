"""First sentences are sentences: they say what a thing computes, does or holds, and do not begin as a riddle would."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

LIBRARY = ROOT / "lib" / "mechint"
RIDDLE = re.compile(r"(Of|What|Which|Whether|How|Where|That|Who)\b")


def documented(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every docstring of a file: of modules, classes and functions, and below fields and constants."""
    strings = [
        statement.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        for statement in node.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    ]
    return [(string.lineno, string.value.strip()) for string in strings if isinstance(string.value, str)]


def riddles(path: Path) -> list[str]:
    return [f"{path}:{line}: {text.splitlines()[0]}" for line, text in documented(path) if RIDDLE.match(text)]


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_first_sentences_are_sentences(path: Path) -> None:
    assert not (found := riddles(path)), "\n".join(found)


def test_a_riddle_is_found(tmp_path: Path) -> None:
    """The test sees every kind of docstring."""
    path = tmp_path / "riddle.py"
    path.write_text(
        '"""What this is."""\nA = 1\n"""Which it is."""\nclass B:\n    """Of it."""\n    c: int\n    """Whether."""\n'
        'def d() -> None:\n    """Whatever comes is fine."""\n'
    )
    assert len(riddles(path)) == 4
