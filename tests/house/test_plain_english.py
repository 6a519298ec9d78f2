"""Sentences are sentences: they say what a thing computes, does or holds, and do not begin as a riddle would."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import ROOT

LIBRARY = ROOT / "lib" / "mechint"
FILES = sorted(LIBRARY.rglob("*.py"))
PROSE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.rglob("Kconfig*"))]
RIDDLE = re.compile(r"(Of|What|Which|Whether|How|Where|That|Who)\b")
OPENING = re.compile(r"(?:Of|What|Which|Whether|How|Who)\b(?![^.]*\?)")
ARGUMENT = re.compile(r"\s*[\w`*]+(?:, [\w`*]+)*: +(?=[A-Z])")
CONSTRUCTIONS = {
    r"\bin place of\b": "instead of",
    r"\bnobody\b": "name what does not read, ask or answer",
    r"\bsays? nothing of\b": "does not show",
    r"\bowes? (it |them )?to\b": "depends on",
    r"\bis no (?:whole |finite |real )?number\b": "is not a number",
    r"\bgoes on where (?:it|a killed run) was\b": "resumes",
    r"\band its like\b": "name the others",
    r"\bReading is not use\b|\bis no use\b": "say what was not shown",
    r"\bcan tell of\b": "say what predicts what",
}
"""Constructions that have to be solved like riddles, and plain words for each."""


@functools.cache
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


def openings(text: str) -> Iterator[str]:
    """The sentences of a docstring: of its paragraphs, and of what it says about each argument."""
    paragraphs: list[str] = []
    for line in text.splitlines():
        begins = ARGUMENT.match(line) or re.match(r"\s*(?:\d\.|[*-]) ", line)
        if begins or not line.strip() or not paragraphs:
            paragraphs.append(line[begins.end() :] if begins else line)
        else:
            paragraphs[-1] += f" {line.strip()}"
    for paragraph in paragraphs:
        yield from re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph.strip())


def comments(path: Path) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def messages(path: Path) -> list[tuple[int, str]]:
    """(line, text) of the error lines of a file; what an f-string puts in is left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
            parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            found.append((node.lineno, " … ".join(part for part in parts if isinstance(part, str))))
    return found


def constructions(where: str, text: str) -> list[str]:
    flat = " ".join(text.split())
    return [
        f"{where}: {found.group()!r}: {plain}"
        for pattern, plain in CONSTRUCTIONS.items()
        if (found := re.search(pattern, flat))
    ]


def test_first_sentences_are_sentences() -> None:
    found = [riddle for path in FILES for riddle in riddles(path)]
    assert not found, "\n".join(found)


def test_later_sentences_are_sentences() -> None:
    """Neither a sentence of a docstring's body nor what it says of an argument begins as a riddle."""
    found = []
    for path in FILES:
        inside = documented(path)
        found += [
            f"{path}:{line}: {sentence[:90]}"
            for line, text in inside
            for sentence in openings(text)
            if OPENING.match(sentence)
        ]
        for line, text in [*inside, *comments(path), *messages(path)]:
            found += constructions(f"{path}:{line}", text)
    assert not found, "\n".join(found)


def test_pages_and_menus_are_plain() -> None:
    found = [construction for path in PROSE for construction in constructions(str(path), path.read_text())]
    assert not found, "\n".join(found)


def test_a_riddle_is_found(tmp_path: Path) -> None:
    """The test sees every kind of docstring."""
    path = tmp_path / "riddle.py"
    path.write_text(
        '"""What this is."""\nA = 1\n"""Which it is."""\nclass B:\n    """Of it."""\n    c: int\n    """Whether."""\n'
        'def d() -> None:\n    """Whatever comes is fine."""\n'
    )
    assert len(riddles(path)) == 4


def test_a_riddle_inside_a_docstring_is_found() -> None:
    text = "Draws prompts. Of equals the first.\n\nArgs:\n    seed: Of the draw.\n    count: Prompts. Which of them?\n"
    assert [found for found in openings(text) if OPENING.match(found)] == ["Of equals the first.", "Of the draw."]
    assert constructions("here", "It says\n    nothing of what the model needs") == [
        "here: 'says nothing of': does not show"
    ]
