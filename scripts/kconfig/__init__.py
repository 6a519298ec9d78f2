"""The glue between the Kconfig menus and the command-line runners; it needs kconfiglib and nothing of the library."""

import os
import signal
import sys

INTERRUPTED = "interrupted"


def _end(*_: object) -> None:
    os.write(2, f"error: {INTERRUPTED}\n".encode())
    os._exit(130)


if any(word.startswith(__name__) for word in sys.orig_argv) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _end)  # until main is reached: a traceback through imports says nothing
