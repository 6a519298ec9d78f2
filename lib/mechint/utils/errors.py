"""The one exception a user is meant to read, and the one place where it becomes an exit status."""

from __future__ import annotations

import difflib
import errno
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path


class MechintError(Exception):
    """Bad input or an impossible request.

    The message is one line: what was wrong, where, and what to do; of an overlong one its two ends are kept. Anything
    else that escapes a runner is a defect of ours and keeps its traceback.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        super().__init__(text if len(text) <= LONG_WORD and text.isprintable() else one_line(text))


class NotAnswered(MechintError):
    """The model does not do the task: nothing is wrong with the request, so its other parts are still done."""


class SaidElsewhere(MechintError):
    """A failure of work that several processes share, in those that leave it to the first one to say it."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """' (did you mean a, b?)' for the closest known names, or '' when nothing is close."""
    close = difflib.get_close_matches(str(name)[:LONG_WORD], list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def an(name: str) -> str:
    """A name behind 'a' or 'an', as it is said: an OLMo, an LFM2, a GPT-2."""
    letters = re.match(r"[A-Za-z]*", name)
    word = letters[0].upper() if letters else ""
    spelt = not set(word) & set("AEIOUY")  # such as LFM: its first letter is said by its name
    return f"{'an' if word[:1] and word[0] in ('FHLMNRSX' if spelt else 'AEIO') else 'a'} {name}"


def check_type(value: object, kinds: type | tuple[type, ...], where: str, wanted: str) -> None:
    """Refuses an argument of another type than a function works with; a truth value is not taken for a number.

    Args:
        where: The function and the argument, for the message.
        wanted: The right argument in words, for the message.

    Raises:
        MechintError: it is of another type.
    """
    of_numbers = isinstance(value, bool) and isinstance(0, kinds)
    if not isinstance(value, kinds) or of_numbers:
        raise MechintError(f"{where} is {shown(value)}, of the type {type(value).__name__}; give {wanted}")


def short(value: object, most: int = 200) -> str:
    """A value in a message: text as it stands, anything else as Python writes it; of an overlong one its two ends."""
    text = printable(str(value)) if isinstance(value, (str, Path, Exception)) else written(value)
    return text if len(text) <= most else f"{text[: most // 2]}…({len(text) - most} more)…{text[-most // 2 :]}"


def printable(text: str) -> str:
    """A text with escapes instead of characters that no line can show."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def shown(value: object, most: int = 80) -> str:
    """A value as Python writes it, text in quotes, for what a file says; of an overlong one its two ends."""
    return short(written(value), most)


def written(value: object) -> str:
    """``repr`` of a value, or what it is where Python refuses to write it: too many digits, too deep."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        digits = f" of {value.bit_length()} bits" if isinstance(value, int) else ""
        return f"<{type(value).__name__}{digits}, too large to write>"


LONG_WORD, LONG_LINE = 300, 1600


def one_line(message: object) -> str:
    """A message as one line that can be read: of a word or a line that is overlong, its two ends."""
    words = re.sub(
        rf"\S{{{LONG_WORD + 1},}}", lambda word: short(word.group(), LONG_WORD), " ".join(str(message).split())
    )
    line = short(words, LONG_LINE)
    return printable(line)


def say_error(message: object) -> None:
    """Prints one line on stderr, after what was printed before it."""
    sys.stdout.flush()
    print(f"error: {one_line(message)}", file=sys.stderr, flush=True)


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_WRITING = {errno.EROFS, errno.EACCES, errno.EPERM}


def what_to_do(error: OSError) -> str:
    """The advice that fits the system's own words."""
    if error.errno in NO_ROOM:
        return "free space, or choose another output directory"
    if error.errno in NO_WRITING:
        return "change its permissions, or choose another path"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return "correct the path; if the run made that file itself, leave its directory alone and run again"
    return "run the same command again to resume from the last saved step"


def say_failure(error: Exception, what: str = "") -> None:
    """Prints why one piece of work failed; of what is not expected, where as well."""
    before = f"{what}: " if what and what not in str(error) else ""
    if isinstance(error, MechintError):
        say_error(f"{before}{error}")
    elif isinstance(error, OSError):  # a full disk or a read-only directory: the path and the system's message
        where = f" ({error.filename})" if error.filename else ""
        say_error(f"{before}{error.strerror or error}{where}; {what_to_do(error)}")
    else:
        traceback.print_exception(error)
        say_error(f"{before}{type(error).__name__}: {error}; this is a defect of the program")


INTERRUPTED = "interrupted; run the same command again to resume from the last saved step"


def exit_status(main: Callable[[], int | None]) -> int:
    """Runs a script's ``main``; expected failures become one line on stderr and a non-zero status."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main() or 0
    except SaidElsewhere:
        return 0
    except (MechintError, OSError) as error:
        say_failure(error)
        return 2
    except KeyboardInterrupt:
        say_error(INTERRUPTED)
        return 130
