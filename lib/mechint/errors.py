"""The one exception a user is meant to read, and the one place where it becomes an exit status."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable


class MechintError(Exception):
    """Bad input or an impossible request.

    The message is one line: what was wrong, where, and what to do. Anything else that escapes a runner is a
    defect of ours and keeps its traceback.
    """


class NotAnswered(MechintError):
    """The model does not answer what it is asked: nothing is wrong with the request, so others of it are still met."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean a, b?)' for the closest known names, or '' when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def _say(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)


def exit_status(main: Callable[[], int | None]) -> int:
    """Runs a script's ``main``; expected failures become one line on stderr and a non-zero status."""
    try:
        return main() or 0
    except MechintError as error:
        _say(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on from the last saved step")
        return 130
    except OSError as error:  # a full disk, a read-only directory: the path and the system's own words are the message
        where = f" ({error.filename})" if error.filename else ""
        _say(f"{error.strerror or error}{where}; free the space or choose another output directory")
        return 2
