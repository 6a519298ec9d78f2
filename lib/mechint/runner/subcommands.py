"""``python -m mechint NAME …``: one command for each analysis of the registry, and one line about each.

A command takes every flag that the flat form (``python -m mechint --flag …``) takes; its help shows its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..analyses.base import Analysis, analyses
from ..analyses.options import RunConfig
from ..tasks.config import TaskConfig
from ..training.options import ARCHITECTURES, TrainConfig
from ..utils.errors import MechintError, did_you_mean, shown
from ..utils.options import Parser, flag, flag_lines, options
from . import command_line, train_command

PROGRAM = "python -m mechint"
SHARED = ("checkpoint", "output_dir", "device")
"""Options of every analysis that the help of each shows."""
ASKED = ("name", "file")
"""Options of the task that the help of each analysis shows."""


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        title: Its function, on one line.
        run: Runs it on the arguments after its name.
        parser: Makes the parser of all its flags.
        sections: Makes (title, lines) of the flags that its own help shows.
        aliases: Other names of it.
    """

    title: str
    run: Callable[[Sequence[str]], None]
    parser: Callable[[], Parser]
    sections: Callable[[], list[tuple[str, list[str]]]]
    aliases: tuple[str, ...] = ()


def main(arguments: Sequence[str], others: Mapping[str, Command] | None = None) -> None:
    """Runs what the command line says: a sub-command, or the flat form of flags alone.

    Args:
        arguments: The arguments after ``python -m mechint``.
        others: Commands of rooms that this one does not import.

    Raises:
        MechintError: the first word names no command.
    """
    known = {**commands(), **(others or {})}
    first, *rest = arguments or ("--help",)
    if first in ("-h", "--help"):
        print(overview(known))
    elif first.startswith("-"):
        command_line.main(arguments=arguments)
    else:
        name, command = find(first, known)
        if {"-h", "--help"} & set(rest):
            print(help_of(name, command))
        else:
            command.run(rest)


def commands() -> dict[str, Command]:
    """Every sub-command by its name: those of the analyses, in the alphabet's order, and ``train``."""
    found = {name: of_analysis(analysis) for name, analysis in sorted(analyses().items())}
    found["train"] = Command(train_command.TITLE, train_command.main, train_command.parser, train_sections)
    return found


def of_analysis(analysis: Analysis[Any]) -> Command:
    models = f"models with {', '.join(analysis.needs)}" if analysis.needs else "any model"
    return Command(
        f"{analysis.title} ({models})",
        lambda arguments: command_line.main(arguments=arguments, only=analysis.name),
        command_line.parser,
        functools.partial(analysis_sections, analysis),
        analysis.aliases,
    )


def analysis_sections(analysis: Analysis[Any]) -> list[tuple[str, list[str]]]:
    """The flags that the help of an analysis shows: its own, and the most used ones of all."""
    left = 4 + max(len(flag(analysis.name, field.name)) for field, _, _ in options(analysis.config))
    shared = flag_lines(RunConfig, only=SHARED, left=left) + flag_lines(TaskConfig, "task", only=ASKED, left=left)
    return [("Options", flag_lines(analysis.config, analysis.name)), ("Options of every analysis", shared)]


def train_sections() -> list[tuple[str, list[str]]]:
    sizes = [f"--{family}-…" for family in ARCHITECTURES]
    return [
        ("Options", flag_lines(TrainConfig, "train")),
        ("The task", flag_lines(TaskConfig, "task", only=ASKED[:1])),
        ("The architecture", [f"  --family {'|'.join(ARCHITECTURES)}, and its sizes: {', '.join(sizes)}"]),
    ]


def find(word: str, known: Mapping[str, Command]) -> tuple[str, Command]:
    """The command that a word names, with its own name."""
    for name, command in known.items():
        if word == name or word in command.aliases:
            return name, command
    names = [each for name, command in known.items() for each in (name, *command.aliases)]
    raise MechintError(f"no command {shown(word)}{did_you_mean(word, names)}; {PROGRAM} --help lists all")


def overview(known: Mapping[str, Command]) -> str:
    """Returns the text of ``python -m mechint --help``."""
    names = {name: ", ".join((name, *command.aliases)) for name, command in known.items()}
    width = max(map(len, names.values()))
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [option …]",
            f"       {PROGRAM} --checkpoint MODEL --prompt TEXT --subject TEXT [--answer TEXT]",
            "",
            "Commands:",
            *(f"  {names[name]:<{width}}  {command.title}" for name, command in known.items()),
            "",
            "The second form traces one prompt, with noise on its subject.",
            f"{PROGRAM} COMMAND --help shows the options of a command, and --dry-run says what it would do.",
            f"{PROGRAM} --help-all shows every option; without a command they switch analyses on: --trace --no-ssm.",
        ]
    )


def help_of(name: str, command: Command) -> str:
    """Returns the text of ``python -m mechint NAME --help``."""
    lines = [f"usage: {PROGRAM} {name} [option …]", "", command.title]
    for title, flags in command.sections():
        lines += ["", f"{title}:", *flags]
    return "\n".join(
        [*lines, "", f"--dry-run says what would run. {PROGRAM} --help-all shows every option of the analyses."]
    )
