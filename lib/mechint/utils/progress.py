"""Progress of long work: a bar with an estimate on a terminal, a plain line now and then when piped."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts steps of one piece of work and shows them on stderr.

    Nothing is shown for work that ends within ``quiet`` seconds. On a terminal the line is redrawn; elsewhere a
    line is printed every ``every`` seconds, so that a log stays readable.
    """

    def __init__(self, title: str, total: int, quiet: float = 2.0, every: float = 10.0) -> None:
        self.title, self.total, self.done = title, max(total, 1), 0
        self.quiet, self.every = quiet, every
        self.start = self.last = time.monotonic()
        self.first = 0
        self.terminal = sys.stderr.isatty()
        self.shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.shown and self.terminal:
            self._draw(time.monotonic())
            sys.stderr.write("\n")

    def skip_to(self, done: int) -> None:
        """Work that an earlier, killed run had finished; it does not count for the estimate."""
        self.done = self.first = done

    def step(self, note: str = "", count: int = 1) -> None:
        """One more step is done; ``note`` stands at the end of the line (a loss, say)."""
        self.done += count
        self.note = note
        now = time.monotonic()
        pause = 0.2 if self.terminal else self.every
        if now - self.start >= self.quiet and (now - self.last >= pause or self.done == self.total):
            self.last, self.shown = now, True
            self._draw(now)

    def _draw(self, now: float) -> None:
        elapsed = now - self.start
        rate = (self.done - self.first) / elapsed if elapsed else 0.0
        left = (self.total - self.done) / rate if rate else float("inf")
        share = self.done / self.total
        eta = f"{int(left) // 60}:{int(left) % 60:02d} left" if left != float("inf") else ""
        text = f"{self.title} {self.done}/{self.total} {eta} {getattr(self, 'note', '')}".rstrip()
        if self.terminal:
            filled = int(24 * share)
            sys.stderr.write(f"\r\x1b[2K[{'#' * filled}{'.' * (24 - filled)}] {text}"[:200])
        else:
            sys.stderr.write(f"{share:4.0%} {text}\n")
        sys.stderr.flush()
