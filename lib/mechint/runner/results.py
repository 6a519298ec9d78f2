"""mechint.results: finished runs of any analysis, with every number as a row of one table."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from ..analyses.base import analysis_of
from ..report.finished import drawing, read_finished
from ..report.results import ManyResults, RunResults
from ..utils.errors import MechintError, check_type
from ..utils.files import each_once
from .index import DEPTH

RESULTS = "results.json"


def results(path: str | Path) -> RunResults | ManyResults:
    """Reads a finished run, or several.

    Args:
        path: Directory of a run, or its results.json; a glob of them, or a directory with runs below it, for several.

    Returns:
        Of a run ``metrics``, ``raw``, ``manifest`` and ``headline``; ``rows()`` and ``frame()`` give every number as a
        row with the fields of :class:`mechint.report.results.Row`. Several runs are a list of these, which has
        ``rows()`` and ``frame()`` too.

    Raises:
        MechintError: a file is missing, is not valid, or is not that of a finished run.
    """
    check_type(path, (str, os.PathLike), "what results are read of", "a directory, a results.json, or a glob of them")
    place = Path(path).expanduser()
    if place.name == RESULTS and place.is_file():
        return one(place.parent)
    if (place / RESULTS).is_file():
        return one(place)
    found = directories(place)
    return ManyResults([one(directory) for directory in found]) if found else one(place)


def one(directory: Path) -> RunResults:
    """The finished run of a directory, as :func:`results` gives it."""
    run, analysis = read_finished(directory), analysis_of(directory)
    with drawing(directory):
        return RunResults(run, analysis.headline(directory), analysis.cell)


def directories(place: Path) -> list[Path]:
    """Directories of the runs that a path names: itself, those below it, or those of a glob, each once.

    Raises:
        MechintError: a glob matches no run.
    """
    magic = glob.has_magic(str(place)) and not os.path.lexists(place)
    tops = [Path(name) for name in glob.glob(str(place), recursive=True)] if magic else [place]
    tops = [top.parent if top.name == RESULTS else top for top in tops]
    found = {path.parent for top in tops for depth in range(DEPTH) for path in top.glob("*/" * depth + RESULTS)}
    if magic and not found:
        raise MechintError(f"{place} matches no finished analysis; name one, or a directory with some below it")
    return each_once(found)
