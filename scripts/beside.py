"""Runs one command beside another, which prints as usual: ``python -m scripts.beside mypy lib -- pytest tests``.

1. Start the first command, and keep what it says.
2. Run the second to its end.
3. Print what the first said, and its command, if it failed.

Both are run as modules of this Python. The status is that of the second command or, where that is 0, of the first.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    if "--" not in arguments[1:-1]:
        print("error: give two commands with -- between them", file=sys.stderr)
        return 2
    middle = arguments.index("--")
    quiet, loud = ([sys.executable, "-m", *part] for part in (arguments[:middle], arguments[middle + 1 :]))
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        first = subprocess.Popen(quiet, stdout=said, stderr=subprocess.STDOUT)
        second = subprocess.Popen(loud)
        interrupts: list[int] = []
        signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))  # both get it, and end as they do
        status, other = second.wait(), first.wait()
        if other and not interrupts:
            said.seek(0)
            print(said.read().rstrip(), f"{' '.join(arguments[:middle])} failed", sep="\n", file=sys.stderr, flush=True)
    return status or other


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
