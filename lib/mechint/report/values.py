"""Reads files of a run directory, and numbers with their intervals; errors are one line."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import MechintError
from ..utils.files import JSON_LIMIT, read_json, read_regular


@dataclass(frozen=True)
class Value:
    """A measured number with its interval, what that is an interval of, and the number of things it was measured on.

    ``low`` and ``high`` are NaN where there is no interval, and ``interval`` says why.
    """

    value: float
    low: float
    high: float
    n: int
    interval: str = "95 % interval"

    @property
    def alone(self) -> bool:
        """True if there is no interval."""
        return math.isnan(self.low)


def read_text(path: Path) -> str:
    if not os.path.lexists(path):
        raise MechintError(f"{path} is missing; name the directory of a finished analysis")
    try:
        return read_regular(path, JSON_LIMIT, "file", "name the directory of a finished analysis").decode()
    except UnicodeDecodeError:
        raise MechintError(f"{path} is not text; run the analysis again") from None


def read_object(path: Path) -> dict[str, Any]:
    read_text(path)  # missing or not text: say so in our own words
    value = read_json(path)
    if not isinstance(value, dict):
        raise MechintError(f"{path} is not a JSON object; run the analysis again")
    return value


def optional_text(path: Path) -> str | None:
    return read_text(path) if path.exists() else None


def read_value(raw: Any, path: Path, where: str) -> Value:
    try:
        value = Value(
            float(raw["value"]),
            math.nan if raw["low"] is None else float(raw["low"]),
            math.nan if raw["high"] is None else float(raw["high"]),
            int(raw["n"]),
            str(raw.get("interval", "95 % interval")),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise MechintError(f"{path}: {where} must have value, low, high and n; run the analysis again") from None
    if not math.isfinite(value.value) or math.isinf(value.low) or math.isinf(value.high):
        raise MechintError(f"{path}: {where} is not finite; run the analysis again")
    return value
