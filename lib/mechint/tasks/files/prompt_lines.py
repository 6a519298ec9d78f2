"""Lines of a file of prompts, each checked before anything is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...utils import files
from ...utils.errors import MechintError, did_you_mean, short

LIMIT = 1 << 28
"""Bytes of the largest file of prompts that is read."""
HALVES = ("discovery", "evaluation")
HINT = (
    "a line is an object with prompt, subject, answer, and maybe twin_prompt, twin_answer, occurrence, space, group, "
    "split, labels, roles"
)
KEYS = (
    "prompt", "subject", "answer", "twin_prompt", "twin_answer", "occurrence", "space", "group", "split", "labels",
    "roles",
)  # fmt: skip
ROME = ("known_id", "attribute", "template", "prediction", "relation_id")
"""Further keys of ROME's known_1000.json, which has the answer as ``attribute``."""
Refusal = Callable[[str, str], MechintError]
"""Makes an error of a problem and what to do about it."""
Span = tuple[int, int]
"""The first place of a part of a prompt, and the place after its last: characters of text, or tokens."""


@dataclass(frozen=True)
class Line:
    """One entry of a file of prompts, as it was written: text, or ids of tokens."""

    where: str
    prompt: str | list[int]
    subject: str | Span
    """Empty where nothing says it."""
    answer: str | list[int]
    twin_prompt: str | list[int] | None = None
    twin_answer: str | list[int] | None = None
    occurrence: int | None = None
    """Number of the subject's occurrence that is meant, from 1."""
    space: bool | None = None
    """True if a space stands between prompt and answer."""
    group: str | None = None
    """The name of the prompts that are variations of one another; intervals are over groups."""
    split: str | None = None
    """The half that it belongs to."""
    labels: Mapping[str, str | int] = field(default_factory=lambda: MappingProxyType({}))
    """Values that probes may be asked about, by name."""
    roles: Mapping[str, str | Span] = field(default_factory=lambda: MappingProxyType({}))
    """Names of parts of the prompt, for effects by role."""

    @property
    def subject_text(self) -> object:
        """The subject's own text or tokens, whatever its place."""
        return self.subject if isinstance(self.subject, str) else self.prompt[slice(*self.subject)]


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


def check_line(where: str, entry: Any, refuse: Refusal, bare: bool = False) -> Line:
    """An entry with every value of the right kind; anything else is refused by name.

    Args:
        bare: True for a text whose subject is not said.
    """
    if not isinstance(entry, dict):
        raise refuse(f"{where} is not an object", HINT)
    rome = "attribute" in entry
    known = (*KEYS, *ROME) if rome else KEYS
    for key in entry:
        if key not in known:
            raise refuse(f"{where} has the unknown key {short(key, 60)!r}{did_you_mean(key[:60], known)}", HINT)
    if rome and "answer" in entry:
        raise refuse(f"{where} has an answer and an attribute", "keep one of them")
    said = {**entry, "answer": entry["attribute"]} if rome else dict(entry)
    twins = [key for key in ("twin_prompt", "twin_answer") if key in said]
    if isinstance(said.get("prompt"), list):
        if isinstance(said.get("answer"), int):
            said["answer"] = [said["answer"]]
        if isinstance(said.get("twin_answer"), int):
            said["twin_answer"] = [said["twin_answer"]]
        for key in ("prompt", "answer", *twins):
            check_ids(where, key, said.get(key), refuse)
        for key in ("occurrence", "space"):
            if key in said:
                raise refuse(f"{where} has the key {key!r} beside a prompt of token ids", f"leave out {key}")
    else:
        check_text(where, "prompt", said.get("prompt"), refuse)
        if not bare and not isinstance(said.get("subject"), list):
            check_text(where, "subject", said.get("subject"), refuse)
        check_text(where, "answer", said.get("answer"), refuse)
    if len(twins) == 1:
        other = "twin_answer" if twins == ["twin_prompt"] else "twin_prompt"
        raise refuse(f"{where} has a {twins[0]} and no {other}", HINT)
    for key in twins if isinstance(said["prompt"], str) else ():
        check_text(where, key, said[key], refuse)
    said["subject"] = "" if bare else place_of(where, "subject", said.get("subject"), said["prompt"], refuse)
    check_rest(where, said, refuse)
    roles = said.get("roles", {})
    said["roles"] = {name: place_of(where, f"role {name!r}", at, said["prompt"], refuse) for name, at in roles.items()}
    if "group" in said:
        said["group"] = str(said["group"])
    return Line(where, **{key: value for key, value in said.items() if key in KEYS})


def place_of(where: str, what: str, value: Any, prompt: str | list[int], refuse: Refusal) -> str | Span:
    """A subject or role: text as it stands in the prompt, or its [start, end) in characters or tokens."""
    if isinstance(value, str) and value and isinstance(prompt, str):
        return value
    whole = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    unit = "characters" if isinstance(prompt, str) else "tokens"
    if not whole:
        text = "text of the prompt, or " if isinstance(prompt, str) else ""
        raise refuse(f"{where}: the {what} is {short(value, 60)!r}", f"give {text}[start, end] in {unit}")
    start, end = value
    if not 0 <= start < end <= len(prompt):
        raise refuse(
            f"{where}: the {what} is [{start}, {end}], and the prompt has {len(prompt)} {unit}",
            f"give a start from 0 and an end after it, of at most {len(prompt)}",
        )
    return start, end


def check_rest(where: str, said: Mapping[str, Any], refuse: Refusal) -> None:
    """Refuses values of the wrong kind of the keys that are not text of the prompt."""
    occurrence, space = said.get("occurrence"), said.get("space")
    if "occurrence" in said and (isinstance(occurrence, bool) or not isinstance(occurrence, int) or occurrence < 1):
        raise refuse(f"{where}: occurrence is {short(occurrence, 60)}", "give a whole number from 1")
    if "occurrence" in said and not isinstance(said["subject"], str):
        raise refuse(f"{where} has an occurrence beside a subject of [start, end]", "keep one of them")
    if "space" in said and not isinstance(space, bool):
        raise refuse(f"{where}: space is {short(space, 60)!r}", "give true or false")
    group, split = said.get("group"), said.get("split")
    if "group" in said and (type(group) not in (str, int) or group == ""):
        raise refuse(f"{where}: group is {short(group, 60)!r}", "give a name or a whole number")
    if "split" in said and split not in HALVES:
        raise refuse(f"{where}: split is {short(split, 60)!r}", f"give {' or '.join(HALVES)}")
    for key in ("labels", "roles"):
        if key in said and not isinstance(said[key], dict):
            raise refuse(f"{where}: {key} is {short(said[key], 60)!r}", "give an object of names and values")
    for key in ("group", "labels", "roles"):
        if any(0xD800 <= ord(character) < 0xE000 for character in json.dumps(said.get(key), ensure_ascii=False)):
            raise refuse(f"{where}: {key} has half a character (a lone surrogate)", "write it again")
    for name, value in said.get("labels", {}).items():
        if type(value) not in (str, int):
            raise refuse(
                f"{where}: the label {short(name, 60)!r} is {short(value, 60)!r}", "give text or a whole number"
            )


def check_ids(where: str, key: str, value: Any, refuse: Refusal) -> None:
    """Refuses what is no list of token ids."""
    if (
        not isinstance(value, list)
        or not value
        or not all(type(token) is int and 0 <= token < 2**31 for token in value)
    ):
        raise refuse(
            f"{where}: the prompt is token ids, and the {key} is {short(value, 60)!r}", "give a list of token ids"
        )


def check_text(where: str, key: str, value: Any, refuse: Refusal) -> None:
    """Refuses what is not text, or text that no tokenizer can read."""
    if isinstance(value, list | int):
        raise refuse(f"{where}: the prompt is text, and the {key} is {short(value, 60)!r}", f"write the {key} as text")
    if not isinstance(value, str) or not value:
        before = " a twin_prompt and" if key == "twin_answer" else ""
        raise refuse(f"{where} has{before} no {key}", HINT)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise refuse(
            f"{where}: the {key} has half a character (a lone surrogate) at place {error.start}", "write it again"
        ) from None
