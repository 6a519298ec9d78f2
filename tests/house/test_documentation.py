"""README and docs name targets, experiments, symbols, flags, files and imports that exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import main
from mechint.runner import command_line
from scripts import mamba_mechanistic_analysis, train
from scripts.kconfig.defconfigs import find_all
from scripts.kconfig.loading import Menu
from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*)(?=[a-z -]*:)", MAKEFILE, re.MULTILINE)) | set(
    " ".join(re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)).split()
)
PARSERS = {
    "-m": command_line.parser,
    "main.py": main.parser,
    "scripts/run_mechint_analysis.py": command_line.parser,
    "scripts/train.py": train.parser,
    "scripts/mamba_mechanistic_analysis.py": mamba_mechanistic_analysis.parser,
}
"""What reads the flags of each program that the pages name."""


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page and line, text) of every code block of a kind."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found.append((f"{page.name}:{text[: match.start()].count(chr(10)) + 2}", match[1]))
    return found


def commands() -> list[tuple[str, str]]:
    """(place, command) of every command of every shell block, without comments."""
    found = []
    for place, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|(?!\|)", line.partition(" #")[0]):
                if command.strip():
                    found.append((place, command.strip()))
    return found


COMMANDS = commands()


def test_there_are_commands_to_hold() -> None:
    assert len(COMMANDS) > 40 and len(blocks("python")) > 8


@pytest.mark.parametrize(("place", "command"), [c for c in COMMANDS if c[1].startswith("make")])
def test_targets_and_experiments_exist(place: str, command: str) -> None:
    known = find_all(ROOT)
    for word in shlex.split(command)[1:]:
        if word.startswith("defconfig-"):
            assert word.removeprefix("defconfig-") in known, place
        elif "=" in word:
            name = word.partition("=")[0]
            assert name in MAKEFILE or name == "SECTIONS", place
        elif not word.startswith("-"):
            assert word in TARGETS, place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_experiments_and_symbols_in_the_text_exist(page: Path) -> None:
    known, menu, text = find_all(ROOT), Menu(ROOT), page.read_text()
    for name in re.findall(r"defconfig-([a-z0-9][a-z0-9.-]*[a-z0-9])", text):
        assert name in known, f"{page.name}: {name}"
    declared = {*menu.syms, *menu.named_choices}
    for name in re.findall(r"`(?:CONFIG_)?(KNLP_[A-Z0-9_]*[A-Z0-9])(?:=[^`]*)?`", text):
        assert name in declared, f"{page.name}: {name}"
    for path in re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize(("place", "command"), [c for c in COMMANDS if c[1].startswith("python")])
def test_programs_and_their_flags_exist(place: str, command: str) -> None:
    words = shlex.split(command)
    program = words[1]
    if program == "-m":
        assert importlib.util.find_spec(words[2]) is not None, place
    else:
        assert (ROOT / program).is_file(), place
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    if flags:
        assert set(flags) <= {name for action in PARSERS[program]()._actions for name in action.option_strings}, place


@pytest.mark.parametrize(("place", "text"), blocks("python"))
def test_what_python_imports_is_there(place: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("mechint", "lib"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{place}: {node.module} has no {name.name}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mechint":
            assert hasattr(importlib.import_module("mechint"), node.attr), f"{place}: mechint has no {node.attr}"
