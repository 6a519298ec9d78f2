"""The command ``new analysis NAME``: writes a package with a working analysis, which is then changed file by file.

1. Refuse a name that is no name of an analysis, or that options or commands have already.
2. Fill the templates beside this file with the name.
3. Write them into a new directory, whole or not at all.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ...analyses.base import analyses
from ...utils import files
from ...utils.errors import MechintError, shown
from ...utils.options import Parser
from ...utils.rundir import check_writable

TITLE = "Writes a package with a working analysis of your own: options, menu, experiment and test."
TEMPLATES = Path(__file__).with_name("template")
KINDS = ("analysis",)
"""The things that can be written."""
LONGEST = 30
"""Characters of a name."""


def places(name: str) -> dict[str, str]:
    """The files of a package, each with its template."""
    package = f"mechint_{name}"
    return {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/options.py": "options.py",
        f"{package}/analyzer.py": "analyzer.py",
        f"{package}/Kconfig": "Kconfig",
        f"{package}/defconfigs/mamba-tiny-{name}": "defconfig",
        f"test_{name}.py": "test.py",
    }


def parser() -> Parser:
    top = Parser(description=TITLE)
    top.add_argument("kind", choices=KINDS, help="what is written")
    top.add_argument("name", help="its name: lower-case letters and digits; it becomes the command, --NAME and a menu")
    top.add_argument("--directory", default="", help="directory of the package (default: ./mechint-NAME)")
    top.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    return top


def main(arguments: Sequence[str], taken: Callable[[], set[str]]) -> None:
    """Writes what the arguments name.

    Args:
        taken: Gives the names of commands and options that are there already.
    """
    flags = parser().parse_all(arguments)
    check_name(flags.name, taken())
    directory = Path(flags.directory or f"mechint-{flags.name}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise MechintError(f"{directory} is there already; name a new one with --directory, or remove it")
    if flags.dry_run:
        check_writable(directory, "--directory", dry=True)
        print(f"would write into {directory}:", *places(flags.name), sep="\n  ")
        return
    for path in write(flags.name, directory):
        print(path)
    print(
        f"Next: pip install --no-build-isolation -e {directory}; then `mechint {flags.name} --help`, "
        f"`make defconfig-mamba-tiny-{flags.name}`, and change {directory}/mechint_{flags.name}/analyzer.py."
    )


def check_name(name: str, taken: set[str]) -> None:
    """Refuses a name that could not be a module, a flag and a symbol of Kconfig at once, or that something has.

    Raises:
        MechintError: it is such a name.
    """
    if not re.fullmatch(rf"[a-z][a-z0-9]{{1,{LONGEST - 1}}}", name) or keyword.iskeyword(name):
        raise MechintError(
            f"{shown(name)} is no name of an analysis; take 2 to {LONGEST} lower-case letters and digits, a letter "
            "first"
        )
    if name in taken or name in analyses():
        raise MechintError(f"an analysis, a command or an option is called {name!r} already; take another name")


def write(name: str, directory: Path) -> list[Path]:
    """Writes the package of a new analysis into a directory that is not there or empty, and returns its files."""
    words = {"@name@": name, "@Name@": name.capitalize(), "@NAME@": name.upper()}
    wanted = {**places(name), f"mechint_{name}/__init__.py": ""}
    with files.nothing_left(directory):
        check_writable(directory, "--directory")
        with files.whole_directory(directory, None, "new package") as temporary:
            for place, template in wanted.items():
                text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8") if template else DOCSTRING
                for word, said in words.items():
                    text = text.replace(word, said)
                files.write_text(temporary / place, text)
    return sorted(directory / place for place in wanted)


DOCSTRING = '"""The analysis @name@, a plug-in of mechint."""\n'
