"""menuconfig in a terminal that goes away."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

from .kconfig_tree import Tree


def test_menuconfig_ends_with_its_terminal(tmp_path: Path) -> None:
    """Even where the shell before it ignores hang-ups; else it would go on asking for keys with a whole core."""
    tree = Tree(tmp_path / "tree")
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.kconfig", "menuconfig"],
        cwd=tree.root,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    try:
        seen = b""
        while b"Top" not in seen:
            assert select.select([ours], [], [], 60)[0], seen
            seen += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(30) == -signal.SIGHUP
    finally:
        process.kill()
