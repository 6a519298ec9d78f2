"""Options: a dataclass field with a sentence of help, a unit and a range, and its command-line flag.

A configuration is a frozen dataclass whose fields are made by :func:`option`. The same field is a flag of the
runners (``steps`` of the group ``ssm`` is ``--ssm-steps``) and a symbol of a Kconfig menu
(``KNLP_MECHINT_SSM_STEPS``); ``tests/menus/test_options_and_menus.py`` holds the three together.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from .errors import MechintError, did_you_mean, shown


class Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T", bound=Dataclass)
"""The class of some options."""


@dataclass(frozen=True)
class Option:
    """The facts about a field that a menu and a command line need beside its name, type and default."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    path: bool = False


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    path: bool = False,
) -> Any:
    """A dataclass field that carries its help, unit, inclusive range and choices.

    Args:
        path: True if it may be a path, so that ``~`` at its beginning is the home directory: a menu has no shell.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, unit, low, high, choices, path)})


def options(config_class: type) -> Iterator[tuple[dataclasses.Field[Any], type, Option]]:
    """(field, its plain type, its option) of every field of a configuration class."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            raise TypeError(f"{config_class.__name__}.{field.name}: an option has one plain type")
        yield field, hint, field.metadata["option"]


def flag(group: str, field: str) -> str:
    """``flag('ssm', 'target_sparsity')`` is ``--ssm-target-sparsity``; the empty group adds no prefix."""
    return "--" + "-".join(part for part in (group, field.replace("_", "-")) if part)


CALLED_BY = "MECHINT_CALLED_BY"
"""The environment variable by which make tells a command who called it."""
_way = "python"
_own: dict[str, str] = {}


def entered(**own: str) -> None:
    """Says that options come from a command line, make's or one of flags; until then they come from Python.

    Args:
        own: Flags that this command has instead of a field's usual one: ``checkpoint="--model"``.
    """
    global _way
    _way = "make" if os.environ.get(CALLED_BY) == "make" else "flags"
    _own.update(own)


def named(group: str, field: str) -> str:
    """An option as the reader of a message knows it: a variable or symbol of make, a flag, or a field in Python."""
    if _way == "python":
        return field
    if field in _own:
        return _own[field]
    if _way == "flags":
        return flag(group, field)
    if not group and field in MAKE:
        return MAKE[field]
    own = "" if group in MENUS_OF_THEIR_OWN else "MECHINT_"
    return "_".join(part for part in (f"KNLP_{own}{group.upper()}".rstrip("_"), field.upper()) if part)


def drawn_again(directory: str | Path) -> str:
    """Says how to draw the report of a finished analysis again, in the words of make, flags or Python."""
    by = {"make": f"MODELS={directory}", "flags": f"--mode=from_runs --run-dir={directory}"}
    return by.get(_way, f"mechint.report.write_report({str(directory)!r})")


MAKE = {"checkpoint": "MODELS=", "baseline": "BASELINE="}
"""Shared options that have a variable on make's command line."""
MENUS_OF_THEIR_OWN = ("task", "train", "mamba", "gpt2", "other")
"""Groups of options whose symbols stand beside those of the analyses, not among them."""


def whole_number(text: str) -> int | None:
    """The number ≥ 0 that a text of the digits 0 to 9 says, spaces around it aside; None for anything else.

    Other characters that Python takes for digits (², ٣), signs and underscores are none here, nor are more digits
    than any count has.
    """
    return int(text) if re.fullmatch(r"\s*[0-9]{1,18}\s*", text) else None


def integer(text: str) -> int:
    """The whole number of a flag: digits 0 to 9, with a sign or without."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number")
    return int(text)


def real(text: str) -> float:
    """The finite number of a flag, in ASCII."""
    value = finite(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a finite number")
    return value


def finite(text: str) -> float | None:
    """The finite number that a text says in ASCII, without underscores; None for anything else."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


READ: dict[type, Callable[[str], Any]] = {int: integer, float: real, str: str}
"""Makes the value of a flag of its text, by the type of the option."""


def value_of(kind: type, text: str) -> Any:
    """The value that a text says for an option of a type, where a list or a table names options: y or n for bool.

    Raises:
        ValueError: it says none.
    """
    if kind is bool:
        if text not in ("y", "n"):
            raise ValueError(text)
        return text == "y"
    try:
        return READ[kind](text)
    except argparse.ArgumentTypeError:
        raise ValueError(text) from None


def is_text(value: str) -> bool:
    """True if a text can be written into a file and handed to another program: no half characters, no NUL."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def allowed(kind: type, opt: Option) -> str:
    """The allowed values in words, for help texts and errors."""
    if opt.choices:
        return "one of " + ", ".join(opt.choices)
    if kind is bool:
        return "y or n"
    name = {int: "a whole number", float: "a number", str: "a text"}[kind]
    bounds = []
    if opt.low is not None:
        bounds.append(f"at least {opt.low:g}")
    if opt.high is not None:
        bounds.append(f"at most {opt.high:g}")
    return " ".join([name, " and ".join(bounds)]).strip()


def check(config: Dataclass, where: str = "") -> None:
    """Raises :class:`MechintError` for the first field whose value is outside its range or choices."""
    for field, kind, opt in options(type(config)):
        value = getattr(config, field.name)
        bad = (
            (kind is bool and not isinstance(value, bool))
            or (kind is int and (not isinstance(value, int) or isinstance(value, bool)))
            or (kind is float and (not isinstance(value, (int, float)) or isinstance(value, bool)))
            or (kind is float and not math.isfinite(value))
            or (kind is str and not (isinstance(value, str) and is_text(value)))
            or (bool(opt.choices) and value not in opt.choices)
            or (opt.low is not None and not value >= opt.low)
            or (opt.high is not None and not value <= opt.high)
        )
        if bad:
            hint = did_you_mean(value, opt.choices) if isinstance(value, str) else ""
            prefix = f"{where}: " if where else ""
            raise MechintError(f"{prefix}{field.name} is {shown(value, 200)}; it must be {allowed(kind, opt)}{hint}")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others: :func:`mechint.utils.errors.exit_status` prints it."""

    all_options = "--help"
    """The flag that lists every option."""

    def error(self, message: str) -> NoReturn:
        raise MechintError(f"{message}; {self.all_options} says what each option takes")

    def parse_all(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The flags of the command line, or of ``arguments``; a word that is none of them is refused by name."""
        flags, rest = self.parse_known_args(arguments)
        if not rest:
            return flags
        word = rest[0].split("=")[0]
        if word.startswith("-"):
            known = [name.strip("-") for name in self._option_string_actions]
            raise MechintError(f"no option {word}{did_you_mean(word.strip('-'), known)}; {self.all_options} lists all")
        raise MechintError(
            f"{shown(rest[0])} follows no option; separate names by commas, without spaces; "
            f"{self.all_options} lists all"
        )


def add_flags(parser: argparse.ArgumentParser, config_class: type, group: str = "", title: str = "") -> None:
    """One flag for each field of ``config_class``; a boolean gets ``--x`` and ``--no-x``."""
    target = parser.add_argument_group(title or group or "general")
    for field, kind, opt in options(config_class):
        text = f"{opt.help} ({allowed(kind, opt)}{', in ' + opt.unit if opt.unit else ''}; default: {field.default})"
        text = text.replace("%", "%%")
        name, dest = flag(group, field.name), _dest(group, field.name)
        if kind is bool:
            target.add_argument(
                name, dest=dest, action=argparse.BooleanOptionalAction, default=field.default, help=text
            )
        else:
            metavar = opt.unit.upper().replace(" ", "_") or field.name.upper()
            target.add_argument(
                name,
                dest=dest,
                type=READ[kind],
                default=field.default,
                choices=opt.choices or None,
                metavar=None if opt.choices else metavar,
                help=text,
            )


def flag_lines(
    config_class: type, group: str = "", only: Collection[str] = (), left: int = 0, short: bool = False
) -> list[str]:
    """The flags of a configuration class for a short help: name, sentence, choices and default.

    Args:
        config_class: Its options.
        group: Group of its flags.
        only: The fields to show; empty for all.
        left: Least number of characters before the sentences.
        short: A line for each, which cuts what is too long.
    """
    shown_ones = [entry for entry in options(config_class) if not only or entry[0].name in only]
    names = [flag(group, field.name) for field, _, _ in shown_ones]
    left = max([left, *(len(name) + 4 for name in names)])
    lines = []
    for name, (field, kind, opt) in zip(names, shown_ones, strict=True):
        default = ("y" if field.default else "n") if kind is bool else field.default
        said = set(re.findall(r"[\w-]+", opt.help))
        notes = [" | ".join(opt.choices)] if not set(opt.choices) <= said else []
        notes += [f"default: {default}"] if default != "" else []
        if short:
            lines.append(one_flag(f"  {name}".ljust(left), opt.help, notes))
            continue
        text = opt.help + (f" ({'; '.join(notes)})" if notes else "")
        first, later = f"  {name}".ljust(left), " " * left
        lines += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
    return lines


WIDTH = 118
"""Characters of a line of help."""


def one_flag(first: str, sentence: str, notes: Sequence[str]) -> str:
    """A flag on one line: its sentence as far as there is room, and of the notes the last ones that leave it room."""
    kept = list(notes)
    while kept and len("; ".join(kept)) > (WIDTH - len(first)) // 2:
        kept.pop(0)
    end = f" ({'; '.join(kept)})" if kept else ""
    return first + textwrap.shorten(sentence, WIDTH - len(first) - len(end), placeholder=" …") + end


def _dest(group: str, field: str) -> str:
    return f"{group}_{field}" if group else field


def from_flags(namespace: argparse.Namespace, config_class: type[T], group: str = "") -> T:
    """The checked configuration that the parsed flags say."""
    values = {}
    for field, _, each in options(config_class):
        value = getattr(namespace, _dest(group, field.name))
        values[field.name] = os.path.expanduser(value) if each.path else value
    config = config_class(**values)
    check(config, where=f"--{group}-…" if group else "command line")
    return config


def listed(text: str, what: str = "a list") -> list[str]:
    """The words of a list, separated by commas or by white space: ``0,1`` and ``0 1`` are the same; empty for ''.

    White space around ``=`` and ``+`` separates nothing: ``kv = tied`` is one word, ``kv=tied``.
    Every option that holds a list is read by this function.

    Args:
        what: The option's name in the error.

    Raises:
        MechintError: a comma has no word on one side.
    """
    parts = re.sub(r"\s*([=+])\s*", r"\1", text).split(",") if text.strip() else []
    if not all(part.strip() for part in parts):
        raise MechintError(f"{what} is {shown(text)}, where a word is missing beside a comma; leave the comma out")
    return [word for part in parts for word in part.split()]
