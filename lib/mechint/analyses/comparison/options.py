"""The options of a profile for comparisons, and the tasks that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.errors import MechintError, shown
from ...utils.options import listed, named, option, whole_number


@dataclass(frozen=True)
class CompareConfig:
    """The contents of a profile, its prompts and its controls."""

    lengths: str = option("32,128,512,2048", "Prompt lengths whose memory is counted, separated by commas")
    measure: bool = option(True, "Measure seconds and peak memory, too, at those lengths that the model can have")
    active: float = option(
        0.01, "Share of its tensor's RMS below which a parameter counts as inactive", low=0.0, high=1.0
    )
    epsilon: float = option(0.1, "Share of a unit's RMS below which an activation counts as none", low=1e-6, high=1.0)
    prompts: int = option(64, "Discovery prompts, for means and thresholds", unit="prompts", low=2, high=1_000_000)
    eval_prompts: int = option(64, "Prompts that are measured", unit="prompts", low=2, high=1_000_000)
    bootstrap: int = option(1000, "Bootstrap draws", unit="draws", low=100, high=100_000)
    controls: int = option(
        1, "Models with the same weights, shuffled, that are measured beside this one", unit="models", low=0, high=100
    )


def lengths(said: str) -> list[int]:
    """The lengths of an option, ascending.

    Raises:
        MechintError: there is none, or one is not a whole number from 1 to 1,000,000.
    """
    found = []
    for part in listed(said, named("compare", "lengths")):
        length = whole_number(part)
        if length is None or not 1 <= length <= 1_000_000:
            raise MechintError(
                f"compare: lengths are {shown(said)}, and {shown(part)} is none; give numbers from 1 to 1000000"
            )
        found.append(length)
    if not found:
        raise MechintError("compare: no length is named; give some such as 32,128,512")
    return sorted(set(found))


def refuse(config: CompareConfig, task: TaskConfig) -> str | None:
    lengths(config.lengths)
    return None
