"""The interactive commands, on kconfiglib's own screens, with our strict loading and saving below them."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kconfiglib

from .defconfigs import DEFAULT, ConfigError, find
from .loading import Menu, allowed, apply, is_fraction, load, read, save, within


class _Screen(Menu):
    """Menus for kconfiglib's menuconfig: what it loads and saves goes through the strict functions.

    Its dialogs show an OSError and let the user go on, so a :class:`ConfigError` is raised as one there.
    """

    def __init__(self, root: Path, file: Path) -> None:
        self.root, self.file = root, file
        super().__init__(root)

    def load_config(self, filename: str | None = None, replace: bool = True, verbose: object = None) -> str:
        file = Path(filename) if filename else self.file
        if filename is None and not file.exists():
            file = find(self.root, DEFAULT)
        _as_os_error(lambda: apply(self, read(file)), file)
        self.missing_syms: list[tuple[str, str]] = []
        return f"Loaded {file}"

    def write_config(self, filename: str | None = None, *args: object, **kwargs: object) -> str:
        file = Path(filename) if filename else self.file
        _as_os_error(lambda: save(self, self.root, file.absolute()), file)
        return f"Configuration saved to {file}"


def _as_os_error(action: Callable[[], None], file: Path) -> None:
    try:
        action()
    except ConfigError as error:
        raise OSError(errno.EINVAL, textwrap.fill(str(error), 72), str(file)) from error


def menuconfig(root: Path, file: Path) -> None:
    """Opens the menus on ``file``, or on the default experiment when there is no file yet."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("menuconfig needs a terminal; without one use `make defconfig-NAME`, or edit .config")
    try:
        import curses

        import menuconfig as screens
    except ImportError as error:
        raise ConfigError(f"menuconfig needs Python's curses module ({error}); edit .config by hand") from None
    if file.exists():
        load(root, file)
    else:
        print(f"no .config yet: starting from {DEFAULT}")
    os.environ["KCONFIG_CONFIG"] = os.path.relpath(file)
    _check_fractions(screens)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a shell that ignores it hands that on
    threading.Thread(target=_end_with_terminal, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        screens.menuconfig(_Screen(root, file))
    except curses.error as error:
        terminal = os.environ.get("TERM", "")
        raise ConfigError(f"menuconfig cannot use this terminal (TERM={terminal!r}: {error}); edit .config") from None


def _end_with_terminal(terminal: int) -> None:
    """Ends this process when its terminal is gone: the screen would ask it for keys for ever, with a whole core.

    Not every terminal that goes away sends a hang-up to those that read from it.
    """
    gone = select.poll()
    gone.register(terminal, 0)  # hang-ups and errors, which are always told
    gone.poll()
    os.kill(os.getpid(), signal.SIGHUP)


def _check_fractions(screens: Any) -> None:
    """Makes the menus' own check of what is typed know our numbers with a fraction (kconfiglib is pinned exactly)."""
    whole = screens._check_valid

    def check(symbol: Any, text: str) -> bool:
        if is_fraction(symbol) and not within(text, symbol):
            screens._error(f"{text!r} is not allowed; it must be {allowed(symbol)}")
            return False
        return bool(whole(symbol, text))

    screens._check_valid = check


def new_symbols(menu: kconfiglib.Kconfig) -> list[str]:
    """The visible symbols that the configuration did not set, as lines of a ``.config``."""
    lines = []
    for symbol in menu.unique_defined_syms:
        if symbol.user_value is None and symbol.visibility and symbol.config_string:
            lines.append(symbol.config_string.rstrip("\n"))
    return lines


def oldconfig(menu: kconfiglib.Kconfig) -> None:
    """Asks for every visible symbol that has no value yet, until none is left."""
    if not new_symbols(menu):
        return
    import oldconfig as questions

    questions.conf_changed = True
    while questions.conf_changed:
        questions.conf_changed = False
        for node in menu.node_iter():
            try:
                questions.oldconfig(node)
                while isinstance(node.item, kconfiglib.Symbol) and _out_of_range(node.item):
                    print(f"{node.item.user_value!r} is not allowed; it must be {allowed(node.item)}", file=sys.stderr)
                    node.item.unset_value()  # else another value would be saved than the one that was answered
                    questions.oldconfig(node)
            except EOFError:
                print()
                raise ConfigError(
                    "oldconfig has questions and no answers; `make olddefconfig` takes the defaults"
                ) from None


def _out_of_range(symbol: kconfiglib.Symbol) -> bool:
    """Returns True if a user gave a number a value that it can't have; kconfiglib would take the nearest."""
    given = symbol.user_value
    number = symbol.orig_type == kconfiglib.INT or is_fraction(symbol)
    return number and isinstance(given, str) and bool(symbol.visibility) and not within(given, symbol)


def set_all(menu: kconfiglib.Kconfig, value: int) -> None:
    """Every yes-or-no symbol to ``value`` (2 yes, 0 no) where it can be; choices keep their default."""
    for symbol in menu.unique_defined_syms:
        if symbol.orig_type == kconfiglib.BOOL and symbol.choice is None:
            symbol.set_value(value)
