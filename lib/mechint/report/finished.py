"""Finished runs: the one reader of results.json, manifest.json and config, and one line for whatever is wrong in them.

This module reads what every analysis writes; an analysis parses what it alone writes beside its own pages. It also says
when a directory is finished: its results are of the request, all files are there, and none was edited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils import files
from ..utils.errors import MechintError, short
from ..utils.options import named
from .values import Value, optional_text, read_object, read_value

SCHEMA = 1
CIRCUIT = "circuit"
"""The kind of a run whose results.json has no entry ``report``."""


@dataclass(frozen=True)
class Drawn:
    """The figures of a report: heat maps, curves, and the curve of faithfulness."""

    heatmaps: bool = True
    curves: bool = True
    faithfulness: bool = True


ALL_FIGURES = Drawn()


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as every analysis leaves it.

    Attributes:
        raw: results.json.
        metrics: Its ``metrics``, checked, by name in alphabetical order.
        manifest: manifest.json.
        config: The configuration that repeats the run, where there is one.
    """

    directory: Path
    raw: dict[str, Any]
    metrics: dict[str, Value]
    manifest: dict[str, Any]
    config: str | None = None


def read_finished(run_dir: str | Path, kind: str | None = None) -> FinishedRun:
    """Reads what every finished run has.

    Args:
        kind: Refuse runs of another kind, as :func:`kind_of` names it; None takes all.

    Raises:
        MechintError: a file is missing or not valid, the run is not finished, or is of another kind or schema.
    """
    directory = Path(run_dir)
    path = directory / "results.json"
    raw = read_object(path)
    if raw.get("schema") != SCHEMA:
        raise MechintError(
            f"{path} has schema {raw.get('schema')!r} and this version reads schema {SCHEMA}; run the analysis again"
        )
    if raw.get("status") != "complete":
        raise MechintError(f"{path} says status {raw.get('status')!r}, not 'complete'; let the analysis finish first")
    if kind is not None and (found := raw.get("report", CIRCUIT)) != kind:
        raise MechintError(f"{path} holds results of the kind {found!r}, not {kind!r}; name another run")
    if not isinstance(raw.get("metrics"), dict):
        raise MechintError(f"{path} has no 'metrics' of type dict; run the analysis again")
    metrics = {name: read_value(value, path, f"metrics.{name}") for name, value in sorted(raw["metrics"].items())}
    return FinishedRun(
        directory, raw, metrics, read_object(directory / "manifest.json"), optional_text(directory / "config")
    )


@contextlib.contextmanager
def drawing(*directories: Path) -> Iterator[None]:
    """Turns what drawing damaged or edited files raises into one line; a defect of the code stays one.

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
    """True while an analysis works here: results.json is to the byte what it wrote, and it has not ended."""
    try:
        return not is_complete(directory) and written_digest(directory) == files.sha256(directory / "results.json")
    except (MechintError, OSError):
        return False


@contextlib.contextmanager
def valid(path: Path) -> Iterator[None]:
    """Turns what looking into a damaged results.json raises into one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise MechintError(f"{path} is not valid ({short(repr(error))}); run the analysis again") from None


def run_names(directories: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell the runs apart."""
    parts = [directory.absolute().parts for directory in directories]
    longest = max(map(len, parts))
    for depth in range(1, longest + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise MechintError("the same run directory is named twice; name each run once")


def without_common_path(names: Sequence[str]) -> list[str]:
    """Names without the directories that all of them begin with."""
    parts = [name.split("/") for name in names]
    common = next((k for k, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), 0)
    return ["/".join(part[common:]) for part in parts]


def kind_of(run_dir: str | Path) -> str:
    """The kind of a finished run: the entry ``report`` of its results.json, or ``circuit`` where there is none."""
    return str(read_object(Path(run_dir) / "results.json").get("report", CIRCUIT))


def repeat() -> str:
    """Says how to run an analysis again instead of the finished one."""
    return f"run the analysis again with {named('', 'rerun')}"


def finished(directory: Path, key: dict[str, Any], rerun: bool, instead: str = "") -> bool:
    """True if ``directory`` holds the finished results of this very request; ``instead`` is the error's advice.

    Raises:
        MechintError: it holds the finished results of another one, which would be lost.
    """
    path = directory / "results.json"
    if rerun or not path.exists():
        return False
    old = read_mapping(path).get("key", {})
    if not isinstance(old, dict):
        raise MechintError(f"{path} is not valid: its key is not an object; {repeat()}")
    if old == key:
        return not (directory / ".stages").exists()
    if (directory / ".stages").exists():
        return False  # a run that stopped before its report: no finished results are lost
    flat_old, flat_new = _flat(old), _flat(key)
    changed = [
        f"{name} is {flat_new.get(name)!r} and was {flat_old.get(name)!r}"
        for name in sorted({*flat_old, *flat_new})
        if flat_old.get(name) != flat_new.get(name)
    ]
    differs = f" ({'; '.join(changed[:3])})" if old else ""  # results of early releases hold no key
    usual = f"choose another {named('', 'output_dir')}, or set {named('', 'rerun')} to replace them"
    raise MechintError(f"{directory} holds the finished results of another request{differs}; {instead or usual}")


COMPLETE = ".complete"


def is_complete(directory: Path) -> bool:
    """True if the last file that an analysis writes, after its report, is there: :data:`COMPLETE`."""
    return (directory / COMPLETE).is_file()


def edited(directory: Path) -> str:
    """Says that results.json was changed after the analysis wrote it; empty if it was not, or no digest is kept.

    The manifest keeps the digest of the bytes that the analysis wrote.
    """
    results = directory / "results.json"
    if not results.is_file() or (written := written_digest(directory)) is None or written == files.sha256(results):
        return ""
    return f"{results} was changed after the analysis wrote it: its numbers are not those that were measured"


def written_digest(directory: Path) -> str | None:
    """The digest of results.json as the analysis wrote it, which the manifest keeps; None where nothing says it."""
    path = directory / "manifest.json"
    found = read_mapping(path).get("results_sha256") if path.is_file() else None
    return found if isinstance(found, str) else None


def read_mapping(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        MechintError: it is not JSON, or another value.
    """
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise MechintError(f"{path} is not valid: an object is wanted; {repeat()}")
    return value


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        flat |= _flat(entry, f"{prefix}{name}.") if isinstance(entry, dict) else {f"{prefix}{name}": entry}
    return flat
