"""No analysis asks for a family by name: it asks a model's layers for their sites, parts or declarations."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

ROOMS = ROOT / "lib/mechint"
BUILDERS = ("models", "ground_truth", "training", "runner")
"""Rooms that make or load models, which know what they build."""

READERS = {"analyses/circuits/stored.py"}
"""Files that compare a model's family with that of a result: a circuit belongs to the family that it was found in."""


def asked(source: str) -> Iterator[int]:
    """The lines of a module where a family's name is compared, or looked up in a table."""

    def named(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and node.attr == "family"

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(map(named, (node.left, *node.comparators))):
            yield node.lineno
        if isinstance(node, ast.Subscript) and any(map(named, ast.walk(node.slice))):
            yield node.lineno
        looked_up = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"
        if looked_up and any(map(named, node.args)):
            yield node.lineno
        if isinstance(node, ast.Match) and named(node.subject):
            yield node.lineno


def test_no_analysis_asks_for_a_family_by_name() -> None:
    found = [
        f"{path.relative_to(ROOMS)}:{line}"
        for path in sorted(ROOMS.rglob("*.py"))
        if path.relative_to(ROOMS).parts[0] not in BUILDERS and path.relative_to(ROOMS).as_posix() not in READERS
        for line in asked(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"ask model.sites, model.parts_of(layer) or what parts declare, in place of {', '.join(found)}"


@pytest.mark.parametrize(
    "line",
    ["x = model.config.family == 'mamba'", "x = 'gpt2' != c.family", "x = c.family in ('gpt2', 'llama')",
     "x = TABLE[model.config.family]", "x = TABLE.get(c.family, 0)", "x = TABLE[c.family, kind]",
     "match c.family:\n    case 'mamba': pass"],
)  # fmt: skip
def test_each_way_of_asking_is_seen(line: str) -> None:
    assert list(asked(line)) == [1]


def test_words_for_people_may_say_a_family() -> None:
    assert not list(
        asked("raise ValueError(f'a {model.config.family} has no site; take {x}')\nabout = {'f': c.family}")
    )


def test_the_library_is_where_the_test_looks() -> None:
    assert (Path(ROOMS) / "analyses/base.py").exists()
