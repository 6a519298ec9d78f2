"""Progress of long work: a bar with an estimate on a terminal, a plain line now and then when piped.

A line says how far its own work is. Within a :class:`Command`, which knows the parts that are still to come, it also
says how long the whole command is going to take: from what was measured of the part that runs, and of earlier parts of
the same kind for those that wait. Nothing is guessed: where some of it is not known, the line says ``at least``.

Searches and trainings also call :func:`point` as they go, with points of their curves for a listener that
:func:`listening` names, such as a run at Weights & Biases. Without a listener a point goes nowhere.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A part of a command: an analysis of a checkpoint, say.

    Attributes:
        kind: Parts of one kind take as long as each other, in relation to their size.
        size: Its size in any unit that parts of the kind share, such as bytes of weights.
    """

    kind: str
    size: float = 1.0


@dataclass
class Running:
    """The part under way: when it began, and how long it takes as far as that was measured."""

    part: Part
    start: float
    expected: float | None = None
    """Seconds of all its work, which it has worked out from a timed batch."""
    lap: tuple[int, int, float, float] | None = None
    """The loop that is all its work: rounds done and in all, when it began, and when the last round ended."""


class Command:
    """The parts of a command, in groups that processes take one by one: the analyses of each checkpoint.

    Args:
        groups: The parts of every group, in the order in which they are made.
        hands: Processes that share out the groups.
    """

    def __init__(self, groups: Sequence[Sequence[Part]], hands: int = 1) -> None:
        self.groups, self.hands = [list(group) for group in groups], max(1, hands)
        self.own: list[Part] = []
        """Parts of this process's group that wait."""
        self.taken: Callable[[], int] = lambda: 0
        """Counts the groups that some process has taken."""
        self.running: Running | None = None
        self.seconds: dict[str, list[float]] = {}
        """Seconds of finished parts by kind, for a size of one."""

    def enter(self, group: int, taken: Callable[[], int] | None = None) -> None:
        """This process has taken a group; ``taken`` counts those that any process has, if there are others."""
        self.own = list(self.groups[group]) if self.groups else []
        self.taken = taken or (lambda: group + 1)

    @contextlib.contextmanager
    def part(self, kind: str) -> Iterator[None]:
        """The part of this kind of this process's group is under way."""
        mine = next((part for part in self.own if part.kind == kind), Part(kind, 0.0))  # it was thought to be finished
        self.own = [part for part in self.own if part is not mine]
        before, self.running = self.running, Running(mine, time.monotonic())
        try:
            yield
        finally:
            self.running = before

    def measured(self) -> None:
        """The part under way has made all of its work, none of which an earlier command had done."""
        if self.running is not None and self.running.part.size:
            found = (time.monotonic() - self.running.start) / self.running.part.size
            self.seconds.setdefault(self.running.part.kind, []).append(found)

    def expect(self, seconds: float, unless: str = "") -> None:
        """The part under way takes about so long from now on, unless it is of a kind that has other work as well."""
        if self.running is not None and self.running.part.kind != unless:
            self.running.expected = time.monotonic() - self.running.start + seconds

    def of(self, part: Part) -> float | None:
        """Seconds that a part takes, by the finished ones of its kind; None where there is none."""
        known = self.seconds.get(part.kind)
        return sum(known) / len(known) * part.size if known else None

    def left(self, now: float, line: float) -> tuple[float, bool]:
        """Seconds that are left of the command, and True if that is all of it; otherwise it is at least so long.

        Args:
            line: Seconds that are left of the work of one line of progress.
        """
        own, sure = self.left_of_part(now, line)
        waiting = [self.of(part) for part in self.own]
        others = [self.of(part) for group in self.groups[self.taken() :] for part in group]
        known = own + sum(s for s in waiting if s is not None) + sum(s for s in others if s is not None) / self.hands
        return known, sure and None not in waiting and None not in others

    def left_of_part(self, now: float, line: float) -> tuple[float, bool]:
        part = self.running
        if part is None:
            return line, False
        before = self.of(part.part)
        rest = None
        if part.expected is not None:
            rest = part.start + part.expected - now
        elif part.lap is not None and part.lap[0] > 0:
            done, total, began, ended = part.lap
            rest = (ended - began) / done * (total - done) - (now - ended)
        elif before is not None:
            rest = part.start + before - now
        return (line, False) if rest is None or rest < line else (rest, True)


_command: Command | None = None
hidden: Callable[[], bool] = lambda: False
"""True while this process draws nothing, because another one draws on the same terminal."""


@contextlib.contextmanager
def command(groups: Sequence[Sequence[Part]], hands: int = 1) -> Iterator[Command]:
    """The command that lines of progress speak of; arguments as of :class:`Command`."""
    global _command
    before, _command = _command, Command(groups, hands)
    try:
        yield _command
    finally:
        _command = before


def current() -> Command:
    """The command under way; one without parts where there is none, such as in a notebook."""
    return _command or Command([])


def counted(rounds: Sequence[T] | Iterable[T], total: int) -> Iterator[T]:
    """Goes through a loop that is all the work of the part under way, so that its rounds are timed."""
    running = current().running
    start = time.monotonic()
    for done, one in enumerate(rounds):
        if running is not None:
            running.lap = (done, total, start, time.monotonic())
        yield one


def in_time(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
        self.note = ""
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
        if hidden():
            return
        if now - self.start >= self.quiet and (now - self.last >= pause or self.done == self.total):
            self.last, self.shown = now, True
            self._draw(now)

    def _draw(self, now: float) -> None:
        elapsed = now - self.start
        rate = (self.done - self.first) / elapsed if elapsed else 0.0
        left = (self.total - self.done) / rate if rate else None
        share = self.done / self.total
        eta = "" if left is None else f"{int(left) // 60}:{int(left) % 60:02d} left"
        text = " ".join(part for part in (f"{self.title} {self.done}/{self.total}", eta, self.note) if part)
        text += self._whole(now, left or 0.0)
        if self.terminal:
            filled = int(24 * share)
            sys.stderr.write(f"\r\x1b[2K[{'#' * filled}{'.' * (24 - filled)}] {text}"[:200])
        else:
            sys.stderr.write(f"{share:4.0%} {text}\n")
        sys.stderr.flush()

    def _whole(self, now: float, line: float) -> str:
        """Says what is left of the whole command; nothing where there is none, or nothing is known of what is left."""
        if _command is None:
            return ""
        seconds, sure = _command.left(now, line)
        if seconds < 1:
            return ""
        return f"; {'about' if sure else 'at least'} {in_time(seconds)} of this command left"


# ---- points of curves ----------------------------------------------------------------------------------------------

Listener = Callable[[str, Mapping[str, float]], None]
"""``listener(curve, values)``: the name of a curve (a search, a dictionary), and one point of it."""
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def point(curve: str, values: Mapping[str, float]) -> None:
    """Gives one point of a curve to the listener, if there is one."""
    if (now := _listener.get()) is not None:
        now(curve, values)


def listener() -> Listener | None:
    """Returns the listener of this block, if there is one."""
    return _listener.get()


@contextlib.contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Calls ``listener`` with every point that is made inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
