"""Strict loading and writing of configurations.

kconfiglib drops what it does not like with a warning at most; here every line of a defconfig or ``.config`` takes
effect exactly as written, or is a :class:`ConfigError` that names file, line, symbol and allowed values.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import kconfiglib

from . import mapping, plugins
from .defconfigs import ConfigError, did_you_mean, read_text

HEADER = "# Written by make; `make menuconfig` changes it, `make savedefconfig` shows what differs from the defaults.\n"
_ASSIGNED = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(.*)")
_UNSET = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set")
_QUOTED = re.compile(r'"((?:[^\\"]|\\.)*)"')
_RANGE = re.compile(r"^Range: (\S+) to (\S+?)(?: ([^.]+))?\.$", re.MULTILINE)


@dataclass(frozen=True)
class Assignment:
    """One line of a configuration: ``text`` is what stands after the equals sign, or 'n' for 'is not set'."""

    where: str
    name: str
    text: str
    unset: bool = False


PLUGINS = "plug-ins/*/Kconfig"
"""What Kconfig.mechint sources where the menus of plug-ins go; they lie anywhere."""


class Menu(kconfiglib.Kconfig):
    """The menus below ``root`` and those of plug-ins; any warning about them is an error, and nothing is printed.

    A plug-in whose menu can't be used is named on standard error and left out; the others work.
    """

    def __init__(self, root: Path) -> None:
        added = plugins.menus()
        try:
            self._read_menus(root, added)
        except ConfigError:
            if not added:
                raise
            self._read_menus(root, [])
            self._read_menus(root, [file for file in added if self._is_usable(root, file)])

    def _is_usable(self, root: Path, file: Path) -> bool:
        try:
            self._read_menus(root, [file])
        except ConfigError as error:
            print(f"note: the menu of a plug-in is left out: {error}; correct or uninstall it", file=sys.stderr)
            return False
        return True

    def _read_menus(self, root: Path, added: list[Path]) -> None:
        with _environment(srctree=str(root)), _finding(os.path.realpath(root) + os.sep, added):
            try:
                super().__init__("Kconfig", warn_to_stderr=False)
            except (kconfiglib.KconfigError, OSError) as error:
                raise ConfigError(" ".join(str(error).split())) from None
        if self.warnings:
            raise ConfigError(" ".join(self.warnings[0].split()))
        here = os.path.realpath(root)
        for item in (*self.unique_defined_syms, *self.unique_choices) if added else ():
            for node in item.nodes:
                theirs = Path(here, node.filename) in added
                if theirs and (len(item.nodes) > 1 or not str(item.name).startswith("KNLP_MECHINT_")):
                    raise ConfigError(
                        f"{node.filename}:{node.linenr}: the symbol {item.name} is another's, or does not begin with "
                        "KNLP_MECHINT_"
                    )


@contextlib.contextmanager
def _finding(prefix: str, added: list[Path]) -> Iterator[None]:
    """Has kconfiglib, which is pinned exactly, look for menus below a directory whose name may hold ``[`` or ``*``, and
    find those of plug-ins."""
    whole = kconfiglib.iglob

    def found(pattern: str) -> Iterable[str]:
        below = pattern.removeprefix(prefix)
        return map(str, added) if below == PLUGINS else whole(glob.escape(prefix) + below)

    kconfiglib.iglob = found
    try:
        yield
    finally:
        kconfiglib.iglob = whole


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def help_text(item: kconfiglib.Symbol | kconfiglib.Choice) -> str:
    """The help of a symbol or choice, '' without one."""
    return next((node.help for node in item.nodes if node.help), "")


def number_range(symbol: kconfiglib.Symbol) -> tuple[str, str, str] | None:
    """(low, high, unit) as the help's last line ``Range: LOW to HIGH UNIT.`` says; None without such a line."""
    match = _RANGE.search(help_text(symbol))
    return (match[1], match[2], match[3] or "") if match else None


def is_fraction(symbol: kconfiglib.Symbol) -> bool:
    """Returns True if a string symbol holds a number with a fraction: its help declares a range."""
    return symbol.orig_type == kconfiglib.STRING and number_range(symbol) is not None


def read(file: Path, name: str = "") -> list[Assignment]:
    """The assignments of a configuration file, in order; ``name`` is what messages call the file."""
    name = name or str(file)
    text = read_text(file, name)
    found: dict[str, Assignment] = {}
    for number, line in enumerate(text.split("\n"), 1):
        assignment = _parse(f"{name}:{number}", line.rstrip())
        if assignment is None:
            continue
        if assignment.name in found:
            raise ConfigError(
                f"{assignment.where}: CONFIG_{assignment.name} was set before, at {found[assignment.name].where}; "
                f"remove one of the two lines"
            )
        found[assignment.name] = assignment
    return list(found.values())


def _parse(where: str, line: str) -> Assignment | None:
    if match := _ASSIGNED.fullmatch(line):
        return Assignment(where, match[1], match[2])
    if match := _UNSET.fullmatch(line):
        return Assignment(where, match[1], "n", unset=True)
    if not line or line.startswith("#"):
        return None
    raise ConfigError(
        f"{where}: malformed line {line!r}; a line is CONFIG_NAME=value, '# CONFIG_NAME is not set' or a comment"
    )


def load(root: Path, file: Path, name: str = "") -> Menu:
    """The menus with every line of ``file`` in effect, or :class:`ConfigError`."""
    menu = Menu(root)
    apply(menu, read(file, name or _shown(root, file)))
    return menu


def _shown(root: Path, file: Path) -> str:
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)


def apply(menu: kconfiglib.Kconfig, assignments: list[Assignment]) -> None:
    """Sets every assignment, then checks that each is the value the menus now have."""
    assignments = [_of_choice(menu, assignment) for assignment in assignments]
    values = [(assignment, _value(menu, assignment)) for assignment in assignments]
    for assignment, value in values:
        menu.syms[assignment.name].set_value(value)
        if menu.warnings:
            raise ConfigError(f"{assignment.where}: {' '.join(menu.warnings[0].split())}")
    for assignment, value in values:
        if menu.syms[assignment.name].str_value != value:
            raise ConfigError(f"{assignment.where}: {_no_effect(menu.syms[assignment.name], assignment, value)}")


def _of_choice(menu: kconfiglib.Kconfig, assignment: Assignment) -> Assignment:
    """Translates a choice given as a text, as in CONFIG_…_SCHEDULE="cubic", to its member; others stay as they are."""
    choice, quoted = menu.named_choices.get(assignment.name), _QUOTED.fullmatch(assignment.text)
    if choice is None or quoted is None or assignment.name in menu.syms:
        return assignment
    values = [mapping.member_value(symbol) for symbol in choice.syms]
    if quoted[1].lower() not in values:
        raise ConfigError(
            f"{assignment.where}: CONFIG_{assignment.name}={assignment.text} is not allowed; it must be one of "
            f"{', '.join(values)}"
        )
    return Assignment(assignment.where, mapping.member(choice, quoted[1].lower()), "y")


def _value(menu: kconfiglib.Kconfig, assignment: Assignment) -> str:
    """The value an assignment asks for, checked against the symbol's type, range and form."""
    where, name, text = assignment.where, assignment.name, assignment.text
    symbol = menu.syms.get(name)
    if symbol is None or not symbol.nodes:
        raise ConfigError(f"{where}: {_undeclared(menu, name)}")
    says = f"{where}: CONFIG_{name}={text}"
    if symbol.orig_type == kconfiglib.BOOL:
        if text not in ("y", "n"):
            raise ConfigError(f"{says} is not allowed; it must be y or n")
        return text
    if assignment.unset:
        raise ConfigError(f"{where}: CONFIG_{name} cannot be 'not set'; it must be {allowed(symbol)}")
    if symbol.orig_type == kconfiglib.INT:
        if not re.fullmatch(r"-?[0-9]+", text) or not within(text, symbol):
            raise ConfigError(f"{says} is not allowed; it must be {allowed(symbol)}")
        return text
    match = _QUOTED.fullmatch(text)
    if match is None:
        raise ConfigError(f'{says} is not allowed; it must be {allowed(symbol)}, in double quotes: CONFIG_{name}="…"')
    value = str(kconfiglib.unescape(match[1]))
    if is_fraction(symbol) and not within(value, symbol):
        raise ConfigError(f"{says} is not allowed; it must be {allowed(symbol)}")
    return value


def _bounds(symbol: kconfiglib.Symbol) -> tuple[str, str]:
    declared = number_range(symbol) if symbol.orig_type == kconfiglib.STRING else None
    if declared:
        return declared[0], declared[1]
    # A range is in force only while its symbol is; before that, the first one says what will be.
    in_force = [bounds for bounds in symbol.ranges if kconfiglib.expr_value(bounds[2])] or symbol.ranges
    if in_force:
        return in_force[0][0].str_value, in_force[0][1].str_value
    return "-inf", "inf"


def within(text: str, symbol: kconfiglib.Symbol) -> bool:
    low, high = _bounds(symbol)
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and float(low) <= value <= float(high)


def allowed(symbol: kconfiglib.Symbol) -> str:
    """The allowed values in words."""
    if symbol.orig_type == kconfiglib.BOOL:
        return "y or n"
    if symbol.orig_type == kconfiglib.STRING and not is_fraction(symbol):
        return "a text"
    kind = "a whole number" if symbol.orig_type == kconfiglib.INT else "a number"
    low, high = _bounds(symbol)
    return kind if low == "-inf" else f"{kind} from {low} to {high}"


def members(choice: kconfiglib.Choice) -> str:
    """The members of a choice, for messages."""
    return ", ".join(f"CONFIG_{symbol.name}" for symbol in choice.syms)


def _undeclared(menu: kconfiglib.Kconfig, name: str) -> str:
    if name in menu.named_choices:
        return f"CONFIG_{name} is a choice; set one of its members to y: {members(menu.named_choices[name])}"
    hint = did_you_mean(name, [symbol.name for symbol in menu.unique_defined_syms])
    return f"CONFIG_{name} is declared in no menu{hint}; correct the line, or remove it and run `make olddefconfig`"


def _no_effect(symbol: kconfiglib.Symbol, assignment: Assignment, value: str) -> str:
    """Why a well-formed assignment is not what the menus now have, and what to do."""
    says = f"# CONFIG_{symbol.name} is not set" if assignment.unset else f"CONFIG_{symbol.name}={assignment.text}"
    unmet = _unmet(symbol)
    if unmet:
        return f"{says} has no effect, because it depends on {unmet}; change that, or remove the line"
    if symbol.choice is not None and value == "y":
        chosen = symbol.choice.selection.name
        return f"{says} has no effect, because CONFIG_{chosen} is y too and a choice has one; remove one of the lines"
    if symbol.choice is not None:
        return f"{says} has no effect, because a choice needs one member; set one to y: {members(symbol.choice)}"
    return f"{says} has no effect, because another symbol makes it {symbol.str_value}; remove the line"


def _unmet(symbol: kconfiglib.Symbol) -> str:
    """The terms of a symbol's dependencies that are not met, with what they are now: 'A (now n) and B (now n)'."""
    terms = kconfiglib.split_expr(symbol.direct_dep, kconfiglib.AND)
    unmet = [term for term in terms if kconfiglib.expr_value(term) == 0]
    return " and ".join(f"{kconfiglib.expr_str(term)} (now n)" for term in unmet)


def check_together(menu: kconfiglib.Kconfig, name: str) -> None:
    """Checks what no single symbol can say: a configuration that trains analyses what it trains, not something else."""
    value = {symbol.name: symbol.str_value for symbol in menu.unique_defined_syms}
    if value.get("KNLP_TRAIN") != "y" or value.get("KNLP_MECHINT_MODE_POSTTRAIN") != "y":
        return
    folder = value["KNLP_TRAIN_OUTPUT_DIR"]
    variants = value["KNLP_TRAIN_VARIANTS"].split(",")
    steps = [f"V{i}" for i in range(len(variants))] if variants != [""] else [value["KNLP_TRAIN_STEP_NAME"]]
    ends = [_suffix(variant, value["KNLP_FAMILY_OTHER"] == "y") for variant in variants]
    made = [
        os.path.join(folder, f"{kind}_model_step{step}{end}")
        for kind in ("final", "best")
        for step, end in zip(steps, ends, strict=True)
    ]
    every = any if len(set(ends)) == 1 else all  # of two layouts, a pattern may have been meant for both
    for symbol in (f"{place}_CHECKPOINT" for place in mapping.sources(menu)):
        pattern = value[symbol]
        found = _matches(folder, pattern) or any(
            every(_matches(path, pattern) for path in kind) for kind in (made[: len(steps)], made[len(steps) :])
        )
        if (pattern or symbol == "KNLP_MECHINT_CHECKPOINT") and not found:
            raise ConfigError(
                f"{name}: CONFIG_{symbol} is {pattern!r}, but training writes "
                f"{next(path for path in made if not _matches(path, pattern))}; set "
                f'CONFIG_{symbol}="{folder}/final_model_step*{min(ends)}", or turn off KNLP_TRAIN'
            )


def _suffix(variant: str, other: bool) -> str:
    """The end of a checkpoint's name: none where it is a directory, as of every family but Mamba and GPT-2."""
    family = re.search(r"\bfamily\s*=\s*(\w+)", variant)
    return "" if (family[1] == "other" if family else other) else ".pt"


def _matches(path: str, pattern: str) -> bool:
    """Returns True if a glob pattern finds ``path``, component by component; where both are taken from is no
    pattern."""
    here = glob.escape(os.getcwd())
    parts, wanted = (
        Path(os.path.normpath(os.path.join(base, text))).parts for base, text in ((os.getcwd(), path), (here, pattern))
    )
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def save(menu: kconfiglib.Kconfig, root: Path, file: Path) -> None:
    """Writes the full configuration to ``file``: whole, and only when it loads again without a complaint.

    The one that it replaces is kept beside it as ``.config.old``, unless they are the same.
    """
    before = read_text(file) if file.is_file() else None
    write(file, lambda temporary: _write_full(menu, root, file, temporary))
    if before is not None and before != read_text(file):
        write(file.with_name(f"{file.name}.old"), lambda temporary: _fill(temporary, before))


def _fill(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8", newline="")


def _write_full(menu: kconfiglib.Kconfig, root: Path, file: Path, temporary: str) -> None:
    kconfiglib.Kconfig.write_config(menu, temporary, header=HEADER, save_old=False)
    check_together(load(root, Path(temporary), _shown(root, file)), _shown(root, file))


def minimal(menu: kconfiglib.Kconfig) -> str:
    """The lines that differ from the defaults: a defconfig without its comment."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "defconfig")
        menu.write_min_config(str(file), header="")
        return file.read_text(encoding="utf-8")


def write(file: Path, fill: Callable[[str], None]) -> None:
    """Calls ``fill(temporary path)`` beside ``file`` and renames: whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp")
    try:
        os.close(handle)
        fill(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
