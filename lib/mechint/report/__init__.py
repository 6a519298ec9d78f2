"""Figures, Markdown, HTML and W&B of finished runs. Reads run directories, never models.

The frame of every page is here; the pages stand beside their analyses.
"""

from __future__ import annotations

import importlib
from typing import Any

_ELSEWHERE = {
    "COMPARISONS": "runner.drawing",
    "kind_of": "report.finished",
    "log_wandb": "runner.wandb",
    "write_comparison": "analyses.circuits.pages.compare",
    "write_report": "runner.drawing",
    "write_trace_comparison": "analyses.tracing.compare",
}
"""Names that are documented here and stand above this room."""


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f"mechint.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
