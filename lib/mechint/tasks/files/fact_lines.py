"""Files of prompts: JSON lines, or one array, checked entry by entry before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils import files
from ...utils.errors import MechintError, did_you_mean, short

LIMIT = 1 << 28
"""Bytes of the largest file of prompts that is read."""
HINT = "a line is an object with prompt, subject, answer, and maybe twin_prompt, twin_answer, occurrence, space"
KEYS = ("prompt", "subject", "answer", "twin_prompt", "twin_answer", "occurrence", "space")
ROME = ("known_id", "attribute", "template", "prediction", "relation_id")
"""Further keys of ROME's known_1000.json, which has the answer as ``attribute``."""

Refusal = Callable[[str, str], MechintError]
"""Makes an error of a problem and what to do about it."""


@dataclass(frozen=True)
class Line:
    """One entry of a file of prompts, as it was written."""

    where: str
    prompt: str
    subject: str
    answer: str
    twin_prompt: str | None = None
    twin_answer: str | None = None
    occurrence: int | None = None
    """Number of the subject's occurrence that is meant, from 1."""
    space: bool | None = None
    """True if a space stands between prompt and answer."""


def read_lines(path: Path, refuse: Refusal) -> tuple[bytes, list[Line]]:
    """The bytes of a file and its entries. Only a line feed ends a line; a byte order mark is passed over.

    Raises:
        MechintError: the file can't be read, or an entry is not what :data:`HINT` says; it names the line.
    """
    name = short(str(path))
    try:
        data = files.read_regular(path, LIMIT, "file of prompts", "name a file of JSON lines")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"{name}: byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    if text.lstrip(" \t\r\n").startswith("["):
        whole = parsed(text, name, refuse)
        found = [check_line(f"{name} entry {k}", entry, refuse) for k, entry in enumerate(whole)]
    else:
        lines = [(f"{name} line {number}", line) for number, line in enumerate(text.split("\n"), 1)]
        found = [
            check_line(where, parsed(line, where, refuse), refuse) for where, line in lines if line.strip(" \t\r\n")
        ]
    if not found:
        raise refuse(f"{name} is empty", HINT)
    return data, found


def parsed(text: str, where: str, refuse: Refusal) -> Any:
    """The JSON value of a text.

    Raises:
        MechintError: it is none, it is nested too deep, or a key is there twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise refuse(f"{where}: the key {short(twice[0], 60)!r} is there twice", "keep one of them")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        place = f" line {error.lineno}" if "\n" in text.strip() else ""
        raise refuse(f"{where}{place}: {error.msg} (column {error.colno})", f"mend it; {HINT}") from None
    except RecursionError:
        raise refuse(f"{where}: it is nested too deep", HINT) from None
    except ValueError as error:  # numbers of thousands of digits
        raise refuse(f"{where}: {short(error)}", HINT) from None


def check_line(where: str, entry: Any, refuse: Refusal) -> Line:
    """An entry with every value of the right kind; anything else is refused by name."""
    if not isinstance(entry, dict):
        raise refuse(f"{where} is not an object", HINT)
    rome = "attribute" in entry
    known = (*KEYS, *ROME) if rome else KEYS
    for key in entry:
        if key not in known:
            raise refuse(f"{where} has the unknown key {short(key, 60)!r}{did_you_mean(key[:60], known)}", HINT)
    if rome and "answer" in entry:
        raise refuse(f"{where} has an answer and an attribute", "keep one of them")
    said = {**entry, "answer": entry["attribute"]} if rome else entry
    for key in ("prompt", "subject", "answer"):
        check_text(where, key, said.get(key), refuse)
    twins = [key for key in ("twin_prompt", "twin_answer") if key in said]
    if len(twins) == 1:
        other = "twin_answer" if twins == ["twin_prompt"] else "twin_prompt"
        raise refuse(f"{where} has a {twins[0]} and no {other}", HINT)
    for key in twins:
        check_text(where, key, said[key], refuse)
    occurrence, space = said.get("occurrence"), said.get("space")
    if "occurrence" in said and (isinstance(occurrence, bool) or not isinstance(occurrence, int) or occurrence < 1):
        raise refuse(f"{where}: occurrence is {short(occurrence, 60)}", "give a whole number from 1")
    if "space" in said and not isinstance(space, bool):
        raise refuse(f"{where}: space is {short(space, 60)!r}", "give true or false")
    texts = {key: said.get(key) for key in ("prompt", "subject", "answer", "twin_prompt", "twin_answer")}
    return Line(where, **texts, occurrence=occurrence, space=space)  # type: ignore[arg-type]


def check_text(where: str, key: str, value: Any, refuse: Refusal) -> None:
    """Refuses what is no text, or text that no tokenizer can read."""
    if not isinstance(value, str) or not value:
        before = " a twin_prompt and" if key == "twin_answer" else ""
        raise refuse(f"{where} has{before} no {key}", HINT)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise refuse(
            f"{where}: the {key} has half a character (a lone surrogate) at place {error.start}", "write it again"
        ) from None
