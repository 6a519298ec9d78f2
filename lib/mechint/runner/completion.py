"""Completion of ``mechint`` in a shell: commands, the flags of each, and the choices of a flag.

The script is whole in itself, since a call of the program for every key would take seconds. Print it again after an
update or a new plug-in.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ..analyses.base import analyses
from ..utils.errors import MechintError, did_you_mean, shown

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Words:
    """The words of one command.

    Attributes:
        names: The command and its aliases.
        title: For people.
        flags: Its flags, each with its choices and its sentence.
    """

    names: tuple[str, ...]
    title: str
    flags: Mapping[str, tuple[tuple[str, ...], str]]


def flags_of(parser: argparse.ArgumentParser, name: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """The long flags of a command, without those of other analyses."""
    others = [other for other in analyses() if other != name]
    found = {}
    for action in parser._actions:
        for flag in action.option_strings:
            word = flag.removeprefix("--").removeprefix("no-")
            foreign = name in analyses() and any(word == other or word.startswith(f"{other}-") for other in others)
            if flag.startswith("--") and not foreign and action.help is not argparse.SUPPRESS:
                choices = tuple(str(choice) for choice in action.choices or ())
                found[flag] = (choices, str(action.help or "").partition(" (")[0].replace("%%", "%"))
    return dict(sorted(found.items()))


def script(shell: str, commands: list[Words]) -> str:
    """The completion of a shell.

    Raises:
        MechintError: it is for no shell that is known.
    """
    if shell == "fish":
        return fish(commands)
    if shell not in SHELLS:
        raise MechintError(
            f"no completion for {shown(shell)}{did_you_mean(shell, SHELLS)}; there is one for {', '.join(SHELLS)}"
        )
    head = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return head + bash(commands)


def bash(commands: list[Words]) -> str:
    """A function that bash calls for the words of a command line; zsh takes it by its bashcompinit."""
    names = " ".join(name for command in commands for name in command.names)
    choices = {flag: " ".join(said) for command in commands for flag, (said, _) in command.flags.items() if said}
    lines = [
        "_mechint() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" flags=""',
        '  if [ "$before" = "=" ]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi',
        '  if [ "$word" = "=" ]; then before="${COMP_WORDS[COMP_CWORD-1]}"; word=""; fi',
        '  case "$before" in',
        *(f'    {flag}) COMPREPLY=($(compgen -W "{said}" -- "$word")); return;;' for flag, said in choices.items()),
        "  esac",
        '  if [ "$COMP_CWORD" = 1 ]; then',
        f'    COMPREPLY=($(compgen -W "{names} --help --help-all --version" -- "$word")); return',
        "  fi",
        '  case "${COMP_WORDS[1]}" in',
        *(f'    {"|".join(command.names)}) flags="{" ".join(command.flags)}";;' for command in commands),
        "  esac",
        '  case "$word" in',
        '    -*) COMPREPLY=($(compgen -W "$flags" -- "$word"));;',
        '    *) COMPREPLY=($(compgen -f -- "$word"));;',
        "  esac",
        "}",
        "complete -o filenames -F _mechint mechint",
    ]
    return "\n".join(lines) + "\n"


def fish(commands: list[Words]) -> str:
    """A line for each command, and for each flag of some."""
    lines, flags = [], dict[tuple[str, tuple[str, ...], str], list[str]]()
    for command in commands:
        for name in command.names:
            lines.append(f"complete -c mechint -n __fish_use_subcommand -f -a {name} -d {shlex.quote(command.title)}")
        for flag, (choices, sentence) in command.flags.items():
            flags.setdefault((flag, choices, sentence), []).extend(command.names)
    for (flag, choices, sentence), names in flags.items():
        seen = shlex.quote(f"__fish_seen_subcommand_from {' '.join(names)}")
        given = f" -x -a {shlex.quote(' '.join(choices))}" if choices else ""
        lines.append(f"complete -c mechint -n {seen} -l {flag[2:]}{given} -d {shlex.quote(sentence)}")
    return "\n".join(lines) + "\n"
