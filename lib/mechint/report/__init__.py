"""Results files to figures, Markdown, HTML and W&B. Reads run directories, never models."""

from __future__ import annotations

from .compare import write_comparison
from .compare_traces import write_trace_comparison
from .wandb_log import log_wandb
from .write import COMPARISONS, kind_of, write_report

__all__ = ["COMPARISONS", "kind_of", "log_wandb", "write_comparison", "write_report", "write_trace_comparison"]
