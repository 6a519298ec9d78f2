"""Path patching: which part of the model gives which other part what the answer needs, directly.

1. Choose the senders and the receivers, and check further paths against the model.
2. Leave out the held-out prompts that the model answers wrong.
3. For each sender and each receiver that reads after it: give the receiver's input the sender's part of the twin's run
   and keep what all others gave; let what is behind the receiver respond, and measure what the metric loses
   (necessary). In the twin's run, give it the clean part, and measure what comes back (sufficient). The method and its
   sources are in :mod:`mechint.interventions.path_patching`.
4. Measure the same of all paths out of a sender at once, and of each further path.
5. Average over prompts. Intervals and adjusted p-values are over templates.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model
from ...tasks import Prompts
from ...utils import files, options
from ...utils.errors import MechintError, NotAnswered
from ...utils.progress import counted
from ...utils.statistics import UNADJUSTED
from ..base import Analysis, Later, StagedAnalyzer
from ..loader import PromptLoader
from ..metrics import remedy
from . import nodes
from .measure import of_directions, pairs
from .options import PathConfig, refuse
from .results import DIRECTIONS, Finished, lines, numbers


class PathAnalyzer(StagedAnalyzer[PathConfig]):
    """Measures the paths of a task that the model answers; see :class:`PathConfig`."""

    def __init__(self, model: Model, config: PathConfig, device: str | torch.device = "cpu", **others: Any) -> None:
        options.check(config, "paths")
        super().__init__(model, config, device, **others)
        self.senders = nodes.senders(model, config.senders, config.heads)
        self.receivers = nodes.receivers(model, config.receivers, config.heads)
        self.along = nodes.paths(model, config.along)
        if not pairs(model, self.senders, self.receivers):
            raise MechintError("paths: every receiver reads before any sender writes; name later receivers")
        self.directions = [name for name, way in DIRECTIONS.items() if config.direction in (way, "both")]
        self.effects: dict[str, Tensor] = {}

    def check(self, train_loader: PromptLoader, val_loader: PromptLoader) -> None:
        """Refuses prompts without twins."""
        if any(batch.twins is None for batch in val_loader):
            raise MechintError(
                f"paths: the prompts of {val_loader.task.name!r} have no counterfactual twins, whose values senders "
                f"are given; give them twins, or choose another task"
            )

    def run_analysis(self, train_loader: PromptLoader, val_loader: PromptLoader) -> dict[str, Any]:
        """Measures the prompts of ``val_loader``; returns the results."""
        task = val_loader.task
        self.check(train_loader, val_loader)
        found = [
            self.stages.get(f"batch {k}", functools.partial(self.measure, batch, task.whole))
            for k, batch in enumerate(counted(val_loader, len(val_loader)))
        ]
        done = Finished(
            found=found,
            senders=self.senders,
            receivers=self.receivers,
            along=self.along,
            directions=self.directions,
            places=nodes.places(self.model),
            axes=nodes.axes(self.model),
            templates=val_loader.templates(),
            draws=self.config.bootstrap,
            seed=self.seed,
        )
        if not done.right.any():
            raise NotAnswered(
                f"the model answers none of the {len(done.right)} prompts of {task.name!r} right, so there are no "
                f"paths to measure. {remedy(self.model, task)}"
            )
        sections, metrics, notes = numbers(done)
        self.effects = {f"{name}.{k}": value for k, part in enumerate(found) for name, value in part.items()}
        self.results = {
            "report": "path",
            "unit": "direct paths from a sender to a receiver",
            "metric": self.config.metric,
            "ablation": "the twin's values",
            "metrics": metrics,
            **sections,
            "notes": notes,
        }
        return self.results

    def save_results(self) -> list[Path]:
        """Writes ``effects.pt`` (every effect of every prompt) into the run directory."""
        return [files.write_torch(self.directory / "effects.pt", self.effects)]

    def measure(self, batch: Prompts, whole: bool) -> dict[str, Tensor]:
        """Effects of one batch, see :func:`.measure.of_directions`."""
        c, ways = self.config, {name: DIRECTIONS[name] for name in self.directions}
        return of_directions(
            self.model, batch, ways, c.senders, c.receivers, along=c.along, metric=c.metric, heads=c.heads,
            memory_mib=c.memory_mib, whole=whole,
        )  # fmt: skip


def work(config: PathConfig) -> str:
    ways = "two directions" if config.direction == "both" else "one direction"
    return (
        f"one sweep of senders x receivers, and a pass of each layer for every sender, in {ways}, on "
        f"{config.eval_prompts} prompts"
    )


def summary(results: dict[str, Any]) -> list[str]:
    """Lines for the terminal: the main numbers."""
    metrics = results["metrics"]
    used, failed = metrics["prompts_used"]["value"], metrics["prompts_failed"]["value"]
    return [
        f"  measured        {used} prompts ({failed} left out: not answered)",
        f"  intervals       {metrics['clean']['interval']}{UNADJUSTED}",
        *lines(results),
    ]


ANALYSIS = Analysis(
    name="path",
    title="Path patching",
    config=PathConfig,
    analyzer=PathAnalyzer,
    refuse=refuse,
    work=work,
    summary=summary,
    lone=True,
    learns=False,
    report=Later("analyses.paths.report:write_paths"),
    headline=Later("analyses.paths.report:headline"),
    to_log=Later("analyses.paths.report:to_log"),
    cell=Later("analyses.paths.figures:cell"),
)
