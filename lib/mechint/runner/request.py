"""An experiment as it is asked for: shared options, the task, and the options of each analysis that is switched on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..analyses.base import Analysis, analyses
from ..analyses.options import AnalysisOptions, RunConfig, asked
from ..tasks.config import TaskConfig

DefconfigText = Callable[[RunConfig, TaskConfig, dict[str, AnalysisOptions]], str]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment: the shared options, the task, and the options of each analysis that is switched on.

    Attributes:
        defconfig: The text of the minimal configuration that repeats the experiment on one checkpoint and analysis,
            or None when the caller has no such thing (a notebook).
    """

    run: RunConfig
    task: TaskConfig
    configs: dict[str, AnalysisOptions]
    defconfig: DefconfigText | None = None
    several: bool = False
    """True if it is a part of an experiment with further analyses."""

    def chosen(self) -> list[Analysis[Any]]:
        return [analyses()[name] for name in self.configs]

    def asked(self, name: str) -> TaskConfig:
        """The task of one analysis."""
        return asked(self.task, self.configs[name])
