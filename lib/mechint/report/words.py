"""The forms of numbers in all pages: percentages, significant digits, intervals, p-values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import floor, inf, isnan, log10
from typing import Any

from ..utils.statistics import MANY_TIMES

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Long:
    """A cell of a table whose whole text HTML shows when it is opened; Markdown has the short one."""

    short: str
    whole: str


@dataclass(frozen=True)
class Linked:
    """A cell of a table that leads to another page, by a relative address."""

    text: str
    address: str


def percent(share: float, beside: Iterable[float | None] = ()) -> str:
    """0.9634 is ``96.3 %``; below 1 % two significant digits, and what is within rounding of nothing is ``0.0 %``.

    -32.96 is ``−33.0 times the whole``: so is every share of which itself, or a number that stands ``beside`` it, such
    as an edge of its interval, is beyond :data:`~mechint.utils.statistics.MANY_TIMES`.
    """
    if any(abs(each) > MANY_TIMES for each in (share, *beside) if each is not None):
        return f"{fixed(share, 1)} times the whole"
    size = abs(100 * share)
    if size < 1e-4:
        return "0.0 %"
    digits = f"{size:.1f}" if size >= 0.995 else f"{size:.{1 - floor(log10(size))}f}"
    return f"{MINUS if share < 0 else ''}{digits} %"


def percents(value: float, low: float, high: float) -> tuple[str, str]:
    """A share and its interval: ``96.3 %`` and ``[95.1, 97.2]``, or ``−33.0 times the whole`` and ``[−33.4, −32.6]``;
    NaN edges are no interval."""
    if isnan(low) or isnan(high):
        return percent(value), "(no interval)"
    shown, *edges = (percent(each, (value, low, high)) for each in (value, low, high))
    return shown, f"[{', '.join(edge.split(' ')[0] for edge in edges)}]"


def number(value: float, digits: int = 4) -> str:
    """Significant digits, with plain zeros and a real minus sign."""
    text = f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def decimals(low: float | None, high: float | None) -> int | None:
    """Decimals that an interval warrants, two significant digits of its width; None where it has no width."""
    if low is None or high is None or not 0 < high - low < inf:
        return None
    return max(0, 1 - floor(log10(high - low)))


def fixed(value: float, places: int | None) -> str:
    """A number with so many decimals, and :func:`number` where none are given; zero has no sign."""
    if places is None:
        return number(value)
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", MINUS)


def between(low: float | None, high: float | None) -> str:
    """The interval of a table's row, with the decimals that its width warrants; None where there is none."""
    if low is None or high is None:
        return "none"
    return " to ".join(fixed(edge, decimals(low, high)) for edge in (low, high))


def value_cells(value: float, low: float | None, high: float | None) -> tuple[str, str]:
    """A value and its interval in two cells of a table's row."""
    return fixed(value, decimals(low, high)), between(low, high)


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """``0.412 [0.380, 0.440]``, all with the decimals that the interval warrants; the number alone without one."""
    if low is None or high is None or not low <= high:
        return number(value)
    value_, low_, high_ = (fixed(x, decimals(low, high)) for x in (value, low, high))
    return f"{value_} [{low_}, {high_}]"


def chance(p: float | None) -> str:
    """A p-value; a dash where nothing was tested."""
    return "–" if p is None else f"{p:.2g}"


# Words of manifest keys whose values differ between runs of one request (one of them killed and resumed, perhaps):
# a report is the same bytes each time.
_PASSING = re.compile(
    r"(^|[._])(argv|date|resumed|time|times|timestamp|started|finished|created|seconds|elapsed|duration|wall|host|hostname|pid|memory|rss)($|[._])"
)


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of a JSON value in sorted order, without dates, durations and the like."""
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    elif not _PASSING.search(prefix) and not re.match(r"\d{4}-\d\d-\d\d[T ]", str(value)):
        yield prefix, ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


_BYTE = re.compile(r"""byte \d+|(['"])(?:\\(?:x[0-9a-f]{2}|.)|(?!\1)[^\\])\1""")


def legible(texts: dict[int, str]) -> dict[int, str]:
    """The characters alone where all tokens are quoted characters and bytes: side by side they make words again."""
    if not all(_BYTE.fullmatch(text) for text in texts.values()):
        return texts
    plain = {}
    for token, text in texts.items():
        character = "" if text.startswith("byte") else ast.literal_eval(text)
        shown = bool(character) and (character.isprintable() or character in "\n\t\r")
        plain[token] = character if shown else f"⟨{token}⟩"
    return plain


METRICS = {
    "kl": ("KL to the full model", "nats"),
    "logit_diff": ("logit difference", "logits"),
    "answer_logprob": ("log-probability of the answer", "nats"),
    "loss": ("loss", "nats"),
    "perplexity": ("perplexity", ""),
    "accuracy": ("accuracy", ""),
    "answer_prob": ("probability of the answer", ""),
}
"""Metric -> what it is called, and its unit."""


def metric_label(metric: str) -> str:
    """A metric as axes and tables name it: ``log-probability of the answer (nats)``."""
    name, unit = METRICS.get(metric, (metric.replace("_", " "), ""))
    return f"{name} ({unit})" if unit and unit not in name else name


def gap(texts: Iterable[str]) -> str:
    """The separator of the tokens of a text: a space where none of them brings spaces or single characters."""
    known = list(texts)
    spaced = any(text[:1] in "\u0120\u2581 " or text[-1:] == " " for text in known if text)
    return "" if spaced or all(len(text) == 1 or text.startswith("⟨") for text in known) else " "
