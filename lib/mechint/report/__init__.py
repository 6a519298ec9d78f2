"""Results files to figures, Markdown, HTML and W&B. Reads run directories, never models."""

from __future__ import annotations

from ..analyses.circuits.pages.compare import write_comparison
from ..analyses.tracing.compare import write_trace_comparison
from ..runner.drawing import COMPARISONS, kind_of, write_report
from ..runner.wandb import log_wandb

__all__ = ["COMPARISONS", "kind_of", "log_wandb", "write_comparison", "write_report", "write_trace_comparison"]
