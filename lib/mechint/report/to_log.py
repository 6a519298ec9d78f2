"""Numbers, tables and curves of a finished run for a log such as Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .finished import read_finished
from .values import Value


@dataclass(frozen=True)
class ToLog:
    """The record of one finished run.

    Attributes:
        summary: Numbers that are queried later, by key.
        tables: Title -> column names and rows.
        history: Points of curves, each with the name of its search or dictionary.
        files: Content of the artifact of the run's files: ``masks`` or ``effects``.
    """

    summary: Mapping[str, float]
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = field(default_factory=dict)
    history: Iterable[tuple[str, dict[str, Any]]] = ()
    files: str = "effects"


def metric_values(metrics: Mapping[str, Value]) -> dict[str, float]:
    """``mechint/{metric}`` of every metric, with the ends of its interval; counts have none."""
    values: dict[str, float] = {}
    for name, value in metrics.items():
        values[f"mechint/{name}"] = value.value
        if value.interval != "exact count" and not name.startswith("units_") and not value.alone:
            values |= {f"mechint/{name}_low": value.low, f"mechint/{name}_high": value.high}
    return values


def metrics_to_log(run_dir: str | Path) -> ToLog:
    """The metrics alone: what an analysis logs that names nothing else."""
    return ToLog(metric_values(read_finished(run_dir).metrics))


def records(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """A table of rows that all have the keys of the first; nothing where there are no rows."""
    return {title: (list(rows[0]), [list(row.values()) for row in rows])} if rows else {}
