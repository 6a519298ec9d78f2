"""An interrupt while a program of this package imports, which takes seconds: one line, and no traceback.

It is imported before all others and does nothing in a program that only uses the package.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from .errors import INTERRUPTED

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def is_ours() -> bool:
    """True if the running program is ``python -m mechint`` or a script of the repository."""
    if "-m" in sys.orig_argv[:-1]:
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == __package__.partition(".")[0]
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return script is not None and Path(script).resolve().parent == SCRIPTS


def end(*_: object) -> None:
    os.write(2, f"error: {INTERRUPTED}\n".encode())
    os._exit(130)


in_main_thread = threading.current_thread() is threading.main_thread()
if in_main_thread and is_ours() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, end)  # errors.exit_status takes it away
