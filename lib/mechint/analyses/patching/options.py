"""The options of activation patching, and the tasks that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.options import option
from ..interchange import METRICS
from ..options import OwnTask, unfit

VALUES = ("twin", "mean")
"""Sources of the values that units are given."""


@dataclass(frozen=True)
class PatchConfig(OwnTask):
    """The flows that are cut, the units that are exchanged, and the metric."""

    flow: str = option(
        "usual",
        "Where the reading of one token by another is cut, separated by commas (out, state, conv of a Mamba; scores, "
        "pattern of a transformer); 'usual' takes those of the family, empty none",
    )
    decay: str = option(
        "frozen",
        "Decays when a whole Mamba mixer is cut: those of the layer without the tokens that are cut off (frozen: "
        "nothing of these tokens is left), or decays that still respond to these tokens (kept)",
        choices=("kept", "frozen"),
    )
    window: int = option(1, "Layers cut together, around each layer", unit="layers", low=1, high=99)
    units: str = option(
        "usual",
        "Kinds of site whose units are patched one by one, separated by commas (gated, state, head_out, mlp_post …); "
        "'usual' takes those of the family, empty none",
    )
    values: str = option(
        "twin",
        "Values that a unit is set to: its values in the counterfactual twin, or its mean over the discovery prompts' "
        "tokens "
        "of the same role",
        choices=VALUES,
    )
    max_units: int = option(
        512,
        "Units of one kind that are measured exactly; if there are more, those that gradients on discovery prompts "
        "rank first",
        unit="units",
        low=1,
        high=1_000_000,
    )
    paths: int = option(
        0,
        "Strongest units of each kind between which direct paths are measured afterwards, with the embeddings and the "
        "logits at their ends; 0 measures none",
        unit="units",
        low=0,
        high=1000,
    )
    metric: str = option(
        "logit_diff",
        "Metric that is lost or restored: the logit difference to the twin's answer, the answer's log-probability or "
        "its "
        "probability",
        choices=METRICS,
    )
    prompts: int = option(
        64,
        "Discovery prompts, on which units are screened and means are taken",
        unit="prompts",
        low=2,
        high=1_000_000,
    )
    eval_prompts: int = option(64, "Prompts that are patched", unit="prompts", low=2, high=1_000_000)
    bootstrap: int = option(1000, "Bootstrap and permutation draws", unit="draws", low=100, high=100_000)
    memory_mib: int = option(1024, "Memory of one sweep, beside the weights", unit="MiB", low=64, high=1_000_000)


def refuse(config: PatchConfig, task: TaskConfig) -> str | None:
    if task.name == "prompt" and config.metric == "logit_diff":
        return "one prompt has no counterfactual twin; choose the metric answer_logprob"
    if task.name == "prompt" and config.units.strip():
        return (
            "one prompt has neither a counterfactual twin nor other prompts to take units' values from; leave the "
            "kinds of units empty"
        )
    if config.paths and config.values != "twin":
        return "direct paths give receivers the twin's part of a sender; take the twin's values, or no paths"
    if config.paths and not config.units.strip():
        return "direct paths are measured between the strongest units; name kinds of units, or take no paths"
    return unfit(task, config.metric)
