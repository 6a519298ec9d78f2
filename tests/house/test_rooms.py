"""The house: rooms on floors, imports downward alone, no room too full, and the paths of earlier releases."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest

from mechint.old_paths import MOVED
from tests.helpers.paths import ROOT

LIBRARY = ROOT / "lib"
FLOORS = (
    ("utils",),
    ("scan", "interventions", "report"),
    ("models",),
    ("attribution", "tasks"),
    ("analyses", "sae", "training"),
    ("ground_truth", "analyses.dictionaries", "analyses.sparsity", "analyses.tracing"),
    (
        "analyses.circuits",
        "analyses.comparison",
        "analyses.editing",
        "analyses.lens",
        "analyses.paths",
        "analyses.probes",
        "analyses.steering",
    ),
    ("analyses.patching",),
    ("analyses.neurons", "analyses.patchscope", "analyses.study"),
    ("runner", "scorecard"),
    ("mechint",),
)
"""Rooms from the ground up; of those on one floor none imports another. The last is the package's own face."""
MOST = 16
"""Modules of one folder."""


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the library, by its dotted name."""
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = list(path.relative_to(LIBRARY).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str, path: Path) -> str:
    """The room a module stands in: a folder of the package, or a folder of ``analyses``."""
    parts = module.split(".")[1:]
    if not parts or (path.parent.name == "mechint" and path.name != "__init__.py"):
        return "mechint"
    return ".".join(parts[:2]) if parts[0] == "analyses" and path.parent.name != "analyses" else parts[0]


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Modules of the package that a module imports, anywhere in it."""
    known = modules()
    path = known[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in known}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base.split(".")[0] == "mechint":
                found |= {full if (full := f"{base}.{name.name}") in known else base for name in node.names}
    return frozenset(found)


def edges() -> dict[tuple[str, str], list[str]]:
    """(room, imported room) -> the imports, as text."""
    known, found = modules(), defaultdict(list)
    for module, path in known.items():
        for other in imports(module):
            ends = room_of(module, path), room_of(other, known[other])
            if ends[0] != ends[1]:
                found[ends].append(f"{module} imports {other}")
    return found


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_imports_run_downward() -> None:
    """A room imports rooms of lower floors alone, so there is no circle among them."""
    wrong = [said for (room, other), lines in edges().items() if floor(other) >= floor(room) for said in lines]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other() -> None:
    """No circle of files either, not even for types: files can be put in an order in which each needs earlier ones."""
    known = modules()
    left = {module: imports(module) - {module} for module, path in known.items()}
    while ready := [module for module, needed in left.items() if not needed & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"in a circle, or above one: {', '.join(sorted(left))}"


def test_every_room_has_a_floor() -> None:
    known = modules()
    rooms = {room_of(module, path) for module, path in known.items()}
    assert rooms == {room for rooms in FLOORS for room in rooms}


def test_pages_read_no_models() -> None:
    """A module that draws a report reads results: nothing in it runs, loads or edits a model."""
    known, wrong = modules(), []
    for module, path in known.items():
        if path.stem in ("report", "figures", "feature_browser") or {"report", "pages"} & set(module.split(".")):
            for other in imports(module):
                if room_of(other, known[other]) in ("models", "interventions", "scan", "attribution", "tasks"):
                    wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_pages_have_one_composer() -> None:
    """Only :mod:`mechint.report.html` puts a page's pieces together, and a page is written from a ``Content``."""
    known, wrong = modules(), []
    for module, path in known.items():
        inside = room_of(module, path) == "report"
        if "mechint.report.page" in imports(module) and module != "mechint.report.html":
            wrong.append(f"{module} imports the pieces of a page")
        if not inside and re.search(r"<(html|style|script)\b", path.read_text(), re.IGNORECASE):
            wrong.append(f"{module} writes HTML that a block of report.content stands for")
    assert not wrong, "\n".join(wrong)


def test_no_room_is_too_full() -> None:
    for folder in {path.parent for path in modules().values()}:
        inside = sorted(path.stem for path in folder.glob("*.py") if path.name != "__init__.py")
        assert len(inside) <= MOST, f"{folder.relative_to(LIBRARY)} has {len(inside)} modules: {', '.join(inside)}"


def test_no_module_is_long_without_a_reason() -> None:
    """One idea, one file; past 500 lines its docstring says why it is one ("One file: …")."""
    for path in modules().values():
        text = path.read_text()
        if text.count("\n") > 500:
            assert "One file:" in (ast.get_docstring(ast.parse(text)) or ""), f"{path}: {text.count(chr(10))} lines"


@pytest.mark.parametrize("old", MOVED)
def test_old_paths_answer_with_a_warning(old: str) -> None:
    """The imports that the documentation of earlier releases showed still work."""
    with pytest.warns(DeprecationWarning, match=f"mechint.{old} is now mechint"):
        __import__("sys").modules.pop(f"mechint.{old}", None)
        module = importlib.import_module(f"mechint.{old}")
    for place in MOVED[old]:
        there = importlib.import_module(f"mechint.{place}")
        names = [name for name, value in vars(there).items() if getattr(value, "__module__", "") == there.__name__]
        assert all(hasattr(module, name) for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing
