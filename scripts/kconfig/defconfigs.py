"""Named experiments: where they are and what they are called. Needs the standard library only.

``python -m scripts.kconfig.defconfigs`` lists them, and with a NAME that is none of them says which is meant; it is
how a misspelt ``make defconfig-NAME`` fails before anything is installed.
"""

from __future__ import annotations

import difflib
import os
import stat
import sys
from pathlib import Path

from . import plugins

DEFAULT = "mamba-tiny-recall-mechint"
OFF = ("", "0", "n", "no", "off", "false")
"""What a variable of make says when it asks for nothing."""

LONG_WORD, LONG_LINE = 300, 1600
LIMIT = 1 << 24
"""Bytes of the largest configuration that is read."""


class ConfigError(Exception):
    """A configuration that cannot be used. The message is one line: where, what is wrong, what to do."""

    def __init__(self, message: object) -> None:
        words = (cut(word, LONG_WORD) for word in str(message).split())
        line = cut(" ".join(words), LONG_LINE)
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


def cut(text: str, most: int) -> str:
    """A text, or of an overlong one its two ends."""
    return text if len(text) <= most else f"{text[: most // 2]}…({len(text) - most} more)…{text[-most // 2 :]}"


def read_text(file: Path, name: str = "") -> str:
    """The text of a regular file; a pipe or a device, which may never end, is a :class:`ConfigError` at once."""
    name = name or str(file)
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        with open(handle, "rb") as opened:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{name} is not a regular file; write it with `make menuconfig` or `make defconfig`")
            data = opened.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise ConfigError(f"{name} has more than {LIMIT} bytes, which no configuration has")
        return data.decode()
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not a text file; write it with `make menuconfig` or `make defconfig`") from None


def did_you_mean(name: str, known: list[str]) -> str:
    """' (did you mean a, b?)' for the closest known names, or '' when nothing is close."""
    close = difflib.get_close_matches(name[:LONG_WORD], known, n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def find_all(root: Path) -> dict[str, Path]:
    """Name -> file of every defconfig in ``defconfigs/``, ``*/defconfigs/`` and those of plug-ins, sorted by name."""
    files = [*root.glob("defconfigs/*"), *root.glob("*/defconfigs/*")]
    files += [file for folder in plugins.folders() for file in folder.glob("defconfigs/*")]
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda path: (path.name, path)):
        if not file.is_file() or file.name.startswith(".") or file.name.endswith("~"):
            continue
        if file.name in found and not found[file.name].samefile(file):
            raise ConfigError(f"{found[file.name]} and {file} have the same name; rename one of them")
        found[file.name] = file
    return found


def find(root: Path, name: str) -> Path:
    """The file of the defconfig ``name``; an unknown name is a :class:`ConfigError` with the nearest ones."""
    known = find_all(root)
    if name not in known:
        hint = did_you_mean(name, list(known))
        raise ConfigError(f"no defconfig is called {name!r}{hint}; `make list-defconfigs` lists them")
    return known[name]


def describe(file: Path) -> str:
    """The first comment line of a defconfig: what it is."""
    first = read_text(file).split("\n", 1)[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def listing(root: Path) -> str:
    """One line for each defconfig: its name and what it is, the default marked."""
    known = find_all(root)
    width = max(map(len, known), default=0)
    lines = []
    for name, file in known.items():
        mark = " [default]" if name == DEFAULT else ""
        lines.append(f"{name:<{width}}  {describe(file)}{mark}")
    return "\n".join(lines)


def main() -> int:
    root = Path(__file__).resolve().parents[2]
    try:
        if len(sys.argv) > 1:
            find(root, sys.argv[1])
        else:
            print(listing(root))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
