"""``mechint NAME …`` or ``python -m mechint NAME …``: a command for each analysis of the registry, and a few others.

The command of an analysis takes every flag that the flat form (``mechint --flag …``) takes; its help shows its own.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analyses.base import Analysis, analyses
from ..analyses.options import RunConfig
from ..models.loading.load import supported_titles
from ..tasks.config import TaskConfig
from ..training.options import ARCHITECTURES, TrainConfig
from ..utils.errors import MechintError, did_you_mean, shown
from ..utils.options import Parser, flag, flag_lines, options
from . import command_line, completion, export_command, train_command
from .latents import command as latents
from .scaffold import command as scaffold
from .submit import command as submit
from .submit.jobs import SubmitConfig

OWN_FLAGS = ("train", "score", "export", "latents", "submit")
"""Commands whose flags are not those of the flat form, and that show all of them with --help-all."""
WHOLE = ("new", "models")
"""Commands whose help shows every flag."""
MOST_LINES = 40
"""Lines of the help of a command."""
SHARED = ("checkpoint", "output_dir", "device")
"""Options of every analysis that the help of each shows."""
ASKED = ("name", "file")
"""Options of the task that the help of each analysis shows."""


Sections = Callable[[bool], list[tuple[str, list[str]]]]


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        title: Its function, on one line.
        run: Runs it on the arguments after its name.
        parser: Makes the parser of all its flags.
        sections: Makes (title, lines) of the flags that its own help shows; of a line each, if it is given True.
        aliases: Other names of it.
    """

    title: str
    run: Callable[[Sequence[str]], None]
    parser: Callable[[], Parser]
    sections: Sections
    aliases: tuple[str, ...] = ()
    usage: str = "[option …]"


def program() -> str:
    """The command as it was called: ``mechint`` where it is installed, else ``python -m mechint``."""
    return "mechint" if Path(sys.argv[0]).stem == "mechint" else "python -m mechint"


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
    elif first.partition("=")[0] == "--completion":
        shell = first.partition("=")[2] or (rest[0] if rest else "")
        words = [
            completion.Words((name, *entry.aliases), entry.title, completion.flags_of(entry.parser(), name))
            for name, entry in known.items()
        ]
        print(completion.script(shell, words), end="")
    elif first.startswith("-"):
        command_line.main(arguments=arguments)
    else:
        name, command = find(first, known)
        if {"-h", "--help"} & set(rest):
            print(help_of(name, command))
        else:
            command.run(rest)


def commands() -> dict[str, Command]:
    """Every sub-command by its name: those of the analyses, in the alphabet's order, and those beside them."""
    found = {name: of_analysis(analysis) for name, analysis in sorted(analyses().items())}
    found["train"] = Command(train_command.TITLE, train_command.main, train_command.parser, train_sections)
    found["report"] = Command(
        "Draws and reports finished analyses again, and their comparisons and index.", report, command_line.parser,
        report_sections, usage="[DIRECTORY] [option …]",
    )  # fmt: skip
    found["export"] = Command(
        export_command.TITLE, export_command.main, export_command.parser,
        lambda short: [("Options", flag_lines(export_command.ExportConfig, short=short))],
        usage="[PATH] [option …]",
    )  # fmt: skip
    found["latents"] = Command(
        latents.TITLE,
        latents.main,
        latents.parser,
        latents.sections,
        usage=f"{'|'.join(latents.WORK)} [RUN] [option …]",
    )
    found["submit"] = Command(
        submit.TITLE, submit.main, submit.parser,
        lambda short: [("Options", flag_lines(SubmitConfig, "submit", short=short)),
                       ("The experiment", ["  --checkpoint PATTERN --trace --no-ssm …, as without a command"])],
    )  # fmt: skip
    found["new"] = Command(scaffold.TITLE, new, scaffold.parser, new_sections, usage="analysis NAME [--directory DIR]")
    found["models"] = Command(
        "Lists the families of models that can be loaded.", models, models_parser, lambda short: []
    )
    return found


DRAWN = ("run_dir", "output_dir", "figure_formats", "visualize_heatmaps", "visualize_curves", "visualize_faithfulness")
"""Options of the command ``report`` that its help shows."""


def report(arguments: Sequence[str]) -> None:
    """Draws again the finished analyses of a directory, or of ``--output-dir``."""
    named = list(arguments[:1]) if arguments and not arguments[0].startswith("-") else []
    placed = [f"--run-dir={directory}" for directory in named]
    command_line.main(arguments=["--mode=from_runs", *placed, *arguments[len(named) :]])


def report_sections(short: bool) -> list[tuple[str, list[str]]]:
    return [("Options", flag_lines(RunConfig, only=DRAWN, short=short))]


def new(arguments: Sequence[str]) -> None:
    """Writes a new analysis, whose name no command and no option has."""

    def taken() -> set[str]:
        names = {name.strip("-") for name in command_line.parser()._option_string_actions}
        commands_ = {word for name, command in commands().items() for word in (name, *command.aliases)}
        return names | {name.partition("-")[0] for name in names} | commands_

    scaffold.main(arguments, taken)


def new_sections(short: bool) -> list[tuple[str, list[str]]]:
    return [
        (
            "Options",
            [
                "  NAME             lower-case letters and digits; the command, the switch and the menu have it",
                "  --directory DIR  directory of the package (default: ./mechint-NAME)",
            ],
        )
    ]


def models_parser() -> Parser:
    return Parser(description="Lists the families of models that can be loaded.")


def models(arguments: Sequence[str]) -> None:
    """Prints a line for each value of ``model_type`` that is known."""
    models_parser().parse_all(arguments)
    titles = supported_titles()
    width = max(map(len, titles))
    print("model_type of config.json, and the family; docs/families.md has the parts of their layers:")
    print(*(f"  {name:<{width}}  {title}" for name, title in titles.items()), sep="\n")


def of_analysis(analysis: Analysis[Any]) -> Command:
    models = f"models with {', '.join(analysis.needs)}" if analysis.needs else "any model"
    return Command(
        f"{analysis.title} ({models})",
        lambda arguments: command_line.main(arguments=arguments, only=analysis.name),
        command_line.parser,
        functools.partial(analysis_sections, analysis),
        analysis.aliases,
    )


def analysis_sections(analysis: Analysis[Any], short: bool = False) -> list[tuple[str, list[str]]]:
    """The flags that the help of an analysis shows: its own, and the most used ones of all."""
    left = 4 + max(len(flag(analysis.name, field.name)) for field, _, _ in options(analysis.config))
    shared = flag_lines(RunConfig, only=SHARED, left=left, short=short)
    shared += flag_lines(TaskConfig, "task", only=ASKED, left=left, short=short)
    own = flag_lines(analysis.config, analysis.name, short=short)
    return [("Options", own), ("Options of every analysis", shared)]


def train_sections(short: bool = False) -> list[tuple[str, list[str]]]:
    sizes = [f"--{family}-…" for family in ARCHITECTURES]
    return [
        ("Options", flag_lines(TrainConfig, "train", short=short)),
        ("The task", flag_lines(TaskConfig, "task", only=ASKED[:1], short=short)),
        ("The architecture", [f"  --family {'|'.join(ARCHITECTURES)}, and its sizes: {', '.join(sizes)}"]),
    ]


def find(word: str, known: Mapping[str, Command]) -> tuple[str, Command]:
    """The command that a word names, with its own name."""
    for name, command in known.items():
        if word == name or word in command.aliases:
            return name, command
    names = [each for name, command in known.items() for each in (name, *command.aliases)]
    raise MechintError(f"no command {shown(word)}{did_you_mean(word, names)}; {program()} --help lists all")


def overview(known: Mapping[str, Command]) -> str:
    """Returns the text of ``mechint --help``."""
    called = program()
    names = {name: ", ".join((name, *command.aliases)) for name, command in known.items()}
    width = max(map(len, names.values()))
    return "\n".join(
        [
            f"usage: {called} COMMAND [option …]",
            f"       {called} --checkpoint MODEL --prompt TEXT --subject TEXT [--answer TEXT]",
            f"       {called} --version | --completion {'|'.join(completion.SHELLS)}",
            "",
            "Commands:",
            *(f"  {names[name]:<{width}}  {command.title}" for name, command in known.items()),
            "",
            "The second form traces one prompt, with noise on its subject.",
            f"{called} COMMAND --help shows the options of a command, and --dry-run says what it would do.",
            f"{called} --help-all shows every option; without a command they switch analyses on: --trace --no-ssm.",
        ]
    )


def help_of(name: str, command: Command) -> str:
    """Returns the text of ``mechint NAME --help``: at most :data:`MOST_LINES` lines, so that it fits a screen."""
    forms = ((False, False), (True, False), (True, True))
    fitting = (help_lines(name, command, *form) for form in forms)
    return "\n".join(next((lines for lines in fitting if len(lines) <= MOST_LINES), help_lines(name, command, True)))


def help_lines(name: str, command: Command, short: bool, names: bool = False) -> list[str]:
    """The lines of a command's help; ``short`` has a line for each flag, ``names`` one for all of the last section."""
    sections = command.sections(short)
    if names:
        title, flags = sections[-1]
        sections = [*sections[:-1], (title, ["  " + " ".join(line.split()[0] for line in flags)])]
    lines = [f"usage: {program()} {name} {command.usage}".rstrip(), "", command.title]
    for title, flags in sections:
        lines += ["", f"{title}:", *flags]
    if sections and name not in WHOLE:
        more = "--dry-run says what would run. " if "--dry-run" in command.parser().format_usage() else ""
        every = f"{program()} {name} --help-all" if name in OWN_FLAGS else f"{program()} --help-all"
        lines += ["", f"{more}{every} shows every option{', in full' if short else ''}."]
    return lines
