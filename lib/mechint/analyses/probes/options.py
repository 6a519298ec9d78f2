"""The options of probes, and the tasks that they refuse."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.options import option
from ..options import OwnTask
from .fitting import METHODS


@dataclass(frozen=True)
class ProbeConfig(OwnTask):
    """The labels, the sites, the kind of probe, and its controls."""

    labels: str = option(
        "usual",
        "Labels that are read, separated by commas: of the task, or the names in 'labels' of the lines of a file; "
        "'usual' takes all that have two classes or more",
    )
    sites: str = option(
        "usual",
        "Kinds of site (resid_post, out, state …), separated by commas; 'usual' takes resid_post, and state where a "
        "layer has one",
    )
    layers: str = option("all", "Layers: all, or numbers separated by commas")
    method: str = option(
        "logistic",
        "Probe: logistic regression, or a linear map with few units (lasso) or with few and shared ones (elasticnet)",
        choices=METHODS,
    )
    labelings: int = option(
        5, "Control labelings, which give each token a label at random", unit="labelings", low=2, high=1000
    )
    shuffles: int = option(9, "Probes of shuffled labels", unit="probes", low=2, high=10_000)
    controls: int = option(
        1, "Models with the same weights, shuffled, that are probed beside this one", unit="models", low=0, high=100
    )
    prompts: int = option(256, "Discovery prompts, which probes are fitted on", unit="prompts", low=2, high=1_000_000)
    eval_prompts: int = option(
        128, "Held-out prompts, which probes are tested on", unit="prompts", low=2, high=1_000_000
    )
    bootstrap: int = option(1000, "Bootstrap and permutation draws", unit="draws", low=100, high=100_000)


def refuse(config: ProbeConfig, task: TaskConfig) -> str | None:
    if task.name == "prompt":
        return "a probe cannot be fitted to one prompt; choose a task, or a file of prompts"
    return None
