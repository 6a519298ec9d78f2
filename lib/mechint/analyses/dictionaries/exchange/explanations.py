"""Reads files of JSON lines: explanations of latents, and the held-out contexts that they are judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....utils import files
from ....utils.errors import MechintError, short, shown

LIMIT = 1 << 30
"""Bytes of the largest file that is read."""
HINT = 'write {"latent": 12, "explanation": "…"}, with "dictionary" where there are several'


@dataclass(frozen=True)
class Asked:
    """A latent with its explanation and the contexts that a judge is shown.

    Attributes:
        contexts: (text, whether the latent is active there).
    """

    dictionary: str
    latent: int
    explanation: str
    contexts: tuple[tuple[str, bool], ...]


def lines(path: str | Path, what: str, remedy: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) of each line that is not empty."""
    data = files.read_regular(Path(path).expanduser(), LIMIT, what, remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MechintError(f"{what} {short(path)}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    for k, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{what} {short(path)} line {k}"
            found = files.parse_json(line, place, remedy)
            if not isinstance(found, dict):
                raise MechintError(f"{place} is not a JSON object; {remedy}")
            yield place, found


def read_held_out(path: str | Path) -> dict[tuple[str, int], tuple[tuple[str, bool], ...]]:
    """The contexts of each latent, as :mod:`.contexts` wrote them.

    Raises:
        MechintError: the file cannot be read, or a line is damaged.
    """
    remedy = "name the held_out.jsonl that the contexts were written with"
    found = {}
    for place, entry in lines(path, "held-out contexts", remedy):
        try:
            contexts = tuple((str(one["text"]), bool(one["active"])) for one in entry["contexts"])
            key = str(entry["dictionary"]), int(entry["latent"])
        except (KeyError, TypeError, ValueError):
            raise MechintError(f"{place} holds no contexts of a latent; {remedy}") from None
        if len({active for _, active in contexts}) < 2:
            raise MechintError(f"{place} needs contexts with and without an activation; {remedy}")
        found[key] = contexts
    if not found:
        raise MechintError(f"held-out contexts {short(path)} is empty; {remedy}")
    return found


def read_explanations(path: str | Path, held_out: dict[tuple[str, int], tuple[tuple[str, bool], ...]]) -> list[Asked]:
    """The explained latents with their held-out contexts, in the order of the file.

    Raises:
        MechintError: a line without a latent or an explanation, a latent that has no held-out contexts or comes twice,
            or no line.
    """
    dictionaries = list(dict.fromkeys(name for name, _ in held_out))
    found: dict[tuple[str, int], Asked] = {}
    for place, entry in lines(path, "explanations", HINT):
        latent, text = entry.get("latent"), entry.get("explanation")
        if type(latent) is not int:
            raise MechintError(f"{place} names no latent by a whole number; {HINT}")
        if not isinstance(text, str) or not text.strip():
            raise MechintError(f"{place} has no explanation; {HINT}")
        name = entry.get("dictionary", dictionaries[0] if len(dictionaries) == 1 else None)
        if not isinstance(name, str):
            raise MechintError(f"{place} names no dictionary, and there are {', '.join(dictionaries)}; {HINT}")
        key = name, latent
        if key not in held_out:
            raise MechintError(
                f"{place}: latent {latent} of {shown(name)} has no held-out contexts; explain the latents of "
                f"contexts.jsonl"
            )
        if key in found:
            raise MechintError(f"{place}: latent {latent} of {shown(name)} is explained a second time; leave one line")
        found[key] = Asked(name, latent, " ".join(text.split()), held_out[key])
    if not found:
        raise MechintError(f"explanations {short(path)} is empty; {HINT}")
    return list(found.values())
