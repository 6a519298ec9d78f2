"""What the reports of all finished runs that are no circuits share: the header, and how what is wrong is said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import MechintError, short
from ..utils.files import sha256
from ..utils.rundir import is_complete, written_digest
from .values import Value, optional_text, read_object, read_value

KINDS = {"trace": "trace", "patch": "patching"}
"""The entry ``report`` of results.json -> what such a run is called."""


@dataclass(frozen=True)
class FinishedRun:
    """results.json of a finished run, and what lies beside it."""

    directory: Path
    raw: dict[str, Any]
    metrics: dict[str, Value]
    manifest: dict[str, Any]
    config: str | None


def read_finished(run_dir: str | Path, kind: str) -> FinishedRun:
    """Reads what every finished run has.

    Args:
        kind: One of :data:`KINDS`.

    Raises:
        MechintError: a file is missing, is not valid, or is of another kind or schema.
    """
    directory = Path(run_dir)
    path = directory / "results.json"
    raw = read_object(path)
    if raw.get("schema") != SCHEMA or raw.get("status") != "complete" or raw.get("report") != kind:
        raise MechintError(f"{path} is not a finished {KINDS[kind]} of schema {SCHEMA}; run the analysis again")
    with valid(path):
        metrics = {name: read_value(value, path, f"metrics.{name}") for name, value in sorted(raw["metrics"].items())}
    manifest = read_object(directory / "manifest.json")
    return FinishedRun(directory, raw, metrics, manifest, optional_text(directory / "config"))


@contextlib.contextmanager
def drawing(*directories: Path) -> Iterator[None]:
    """What drawing stumbles over in files that were damaged or edited becomes one line; a defect of ours stays one.

    An analysis draws before it marks its directory as complete: what fails then is a defect.
    """
    try:
        yield
    except (MechintError, OSError, MemoryError):
        raise
    except Exception as error:
        if all(map(being_made, directories)):
            raise
        names = ", ".join(map(str, directories))
        raise MechintError(
            f"what lies in {names} can't be drawn ({type(error).__name__}: {short(error)}); run the analysis again"
        ) from error


def being_made(directory: Path) -> bool:
    """Whether an analysis is at work here: results.json is to the byte what it wrote, and it has not ended."""
    try:
        return not is_complete(directory) and written_digest(directory) == sha256(directory / "results.json")
    except (MechintError, OSError):
        return False


@contextlib.contextmanager
def valid(path: Path) -> Iterator[None]:
    """What looking into results.json stumbles over becomes one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise MechintError(f"{path} is not valid ({short(repr(error))}); run the analysis again") from None


SCHEMA = 1


def run_names(directories: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell the runs apart."""
    parts = [directory.absolute().parts for directory in directories]
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise MechintError("the same run directory is named twice; name each run once")


def kind_of(run_dir: str | Path) -> str:
    """Which report a finished run gets: what results.json says, or ``circuit``."""
    return str(read_object(Path(run_dir) / "results.json").get("report", "circuit"))
