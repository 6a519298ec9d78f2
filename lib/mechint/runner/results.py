"""mechint.results: a finished run of any analysis, with every number as a row of one table."""

from __future__ import annotations

from pathlib import Path

from ..analyses.base import analysis_of
from ..report.finished import drawing, read_finished
from ..report.results import RunResults


def results(path: str | Path) -> RunResults:
    """Reads a finished run.

    Args:
        path: Its directory, or its results.json.

    Returns:
        ``metrics``, ``raw``, ``manifest`` and ``headline``; ``rows()`` and ``frame()`` give every number as a row with
        the fields of :class:`mechint.report.results.Row`.

    Raises:
        MechintError: a file is missing, is not valid, or is not that of a finished run.
    """
    place = Path(path)
    directory = place.parent if place.name == "results.json" else place
    run, analysis = read_finished(directory), analysis_of(directory)
    with drawing(directory):
        return RunResults(run, analysis.headline(directory), analysis.cell)
