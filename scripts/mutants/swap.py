"""Puts a mutant into modules that are imported already, so that a forked process need not import anything."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType


def swap(path: Path, text: str) -> bool:
    """Gives every function of a file the code that a changed text of it has; False where that can't be done.

    The text keeps its lines, so that a function is known by its name and its line. What functions remember is dropped.
    """
    new = {(code.co_name, code.co_firstlineno): code for code in codes(compile(text, str(path), "exec"))}
    for thing in gc.get_objects():
        if isinstance(thing, functools._lru_cache_wrapper):
            thing.cache_clear()
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == str(path):
            code = new.get((thing.__code__.co_name, thing.__code__.co_firstlineno))
            if code is None or code.co_freevars != thing.__code__.co_freevars:
                return False
            thing.__code__ = code
    return True


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code objects in another, at any depth."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield part
            yield from codes(part)
