"""The pages of circuits, whatever their units are."""

from typing import Any

from ....report.finished import CIRCUIT
from ...base import Later

PAGES: dict[str, Any] = {
    "report": Later("analyses.circuits.report:write_circuit"),
    "headline": Later("analyses.circuits.report:headline_of"),
    "compare": Later("analyses.circuits.pages.compare:write_comparison"),
    "to_log": Later("analyses.circuits.report:to_log"),
    "cell": Later("analyses.circuits.results:cell"),
    "report_kind": CIRCUIT,
}
"""Fields of the :class:`~mechint.analyses.base.Analysis` of every kind of circuit."""
