"""Points of curves for a listener while an analysis or a training is under way.

Searches and trainings call :func:`point` as they go; :func:`listening` names the listener, such as a run at Weights &
Biases. Without a listener a point goes nowhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar

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
