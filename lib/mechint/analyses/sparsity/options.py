"""The options of the analysis of sparsity, and the tasks that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.options import option

OF_CHANNELS, OF_OTHERS = 0.01, 1e-5
"""Fixed thresholds as they were documented: of a model with selective scans, and of every other."""


@dataclass(frozen=True)
class SparsityConfig:
    """The layers and sites that are measured, and the thresholds."""

    layers: str = option("all", "Layers to look at, separated by commas, or all")
    sites: str = option(
        "usual",
        "Kinds of site, separated by commas; 'usual' takes the residual stream, what layers add to it, and what their "
        "output projections read",
    )
    epsilon: float = option(0.1, "Share of a unit's RMS below which an activation counts as none", low=1e-6, high=1.0)
    target: float = option(0.5, "Share of activations that the optimal threshold is to leave out", low=0.01, high=0.99)
    prompts: int = option(
        64, "Discovery prompts, for RMS and the optimal threshold", unit="prompts", low=2, high=1_000_000
    )
    eval_prompts: int = option(64, "Prompts that are measured", unit="prompts", low=2, high=1_000_000)
    controls: int = option(
        3, "Models with the same weights, shuffled, that are measured beside this one", unit="models", low=0, high=100
    )
    bootstrap: int = option(1000, "Bootstrap draws", unit="draws", low=100, high=100_000)


def refuse(config: SparsityConfig, task: TaskConfig) -> str | None:
    return None
