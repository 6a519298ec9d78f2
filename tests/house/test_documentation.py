"""README and docs name targets, experiments, symbols, flags, files and imports that exist, and their Python runs."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from mechint.__main__ import SCORE
from mechint.runner import command_line, subcommands
from mechint.utils import plugins
from scripts import mamba_mechanistic_analysis, train
from scripts.kconfig.defconfigs import find_all
from scripts.kconfig.loading import Menu
from tests.helpers.experiments import checkpoint
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
"""The parser of each program that the pages name."""
ELSEWHERE = {
    *("delta_extraction.py", "causal_analysis.py", "attention_neurons.py", "comparison_wrapper.py"),
    *("comparison_plots.py", "utils.py", "analyzer.py", "options.py", "report.py"),
    *(f"lib/mechint/analyses/margin/{name}.py" for name in ("__init__", "options", "analyzer", "report")),
}
"""Files that the pages name and that are not here by these names: documented ones, and those of a new analysis."""
ADDED = "margin"
"""The analysis that extending.md adds, which is a command like the others then."""
ENTRY_POINTS = set(plugins.GROUPS)
"""Groups of entry points, which are named like modules."""


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page and line, text) of every code block of a kind."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found.append((f"{page.name}:{text[: match.start()].count(chr(10)) + 2}", match[1]))
    return found


def spans() -> list[tuple[str, str]]:
    """(page, text) of the code within the sentences and tables of every page."""
    return [
        (page.name, text)
        for page in PAGES
        for text in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S))
    ]


def commands() -> list[tuple[str, str]]:
    """(place, command) of every command of every shell block and of the text, without comments."""
    found = []
    said = [
        (place, text)
        for place, text in spans()
        if re.match(r"(make|python) \S", text) and not {"…", "NAME"} & {*re.findall(r"…|NAME", text)}
    ]
    for place, text in [*blocks("sh"), *said]:
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
    parser = PARSERS.get(program)
    if program == "-m" and len(words) > 3 and not words[3].startswith("-") and words[2] == "mechint":
        command_of = {**subcommands.commands(), "score": SCORE, ADDED: subcommands.commands()["trace"]}
        assert words[3] in command_of, place
        parser = command_of[words[3]].parser
    if flags:
        assert parser is not None, place
        known = {name for action in parser()._actions for name in action.option_strings}
        if words[1:3] == ["-m", "mechint"]:
            known |= {"--completion"}  # of no command: test_completion.py runs it
        assert set(flags) <= known, place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_files_in_the_text_exist(page: Path) -> None:
    roots = [ROOT, *(ROOT / folder for folder in ("tests", "lib/mechint", "lib/mechint/analyses"))]
    said = [text for name, text in spans() if name == page.name]
    for text in said:
        if re.fullmatch(r"[\w./-]+\.py", text) and text not in ELSEWHERE:
            assert any((root / text).is_file() for root in roots), f"{page.name}: {text}"
        if (match := re.match(r"mechint(?:\.[A-Za-z_]\w*)+", text)) and match[0] not in ENTRY_POINTS:
            named(match[0])


def named(path: str) -> object:
    """Returns the module that a dotted path names, or the thing in one.

    Raises:
        AttributeError: there is none.
    """
    found: object = importlib.import_module("mechint")
    names = path.split(".")[1:]
    for i, name in enumerate(names):
        with contextlib.suppress(ImportError):
            importlib.import_module(".".join(["mechint", *names[: i + 1]]))
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/edits.md"])
def test_the_python_of_a_page_runs_from_its_top(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "output" / "final_model_stepV0.pt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for place, text in blocks("python"):
        if place.startswith(Path(page).name + ":"):
            exec(compile(text, place, "exec"), names)
    model, run = names["model"], names["run"]
    assert run["layers.0.state"].shape == (1, 5, 14, 5) and run["layers.0.state"][0, 3].abs().max() == 0
    assert not torch.equal(run.logits, model(names["tokens"]))
    assert "layers.1.dt" in capsys.readouterr().out or page != "README.md"


@pytest.mark.parametrize(("place", "text"), blocks("python"))
def test_what_python_imports_is_there(place: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("mechint", "lib"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{place}: {node.module} has no {name.name}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mechint":
            assert hasattr(importlib.import_module("mechint"), node.attr), f"{place}: mechint has no {node.attr}"
