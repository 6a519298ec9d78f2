"""The options of causal tracing, and the tasks that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.options import option
from ..interchange import CORRUPTIONS, METRICS
from ..options import OwnTask, unfit


@dataclass(frozen=True)
class TraceConfig(OwnTask):
    """The sites that are restored, the runs, the corruption and the metric."""

    sites: str = option(
        "usual",
        "Kinds of site to trace, separated by commas (resid_post,state,dt …); 'usual' takes those of the family",
    )
    sever: str = option(
        "usual",
        "Kinds of site that stay corrupted above a restored residual, one map for each, separated by commas; 'usual' "
        "takes what the layers add to the residual, empty none",
    )
    window: int = option(
        1, "Layers restored together at sites other than the residual, around each layer", unit="layers", low=1, high=99
    )
    direction: str = option(
        "both",
        "Restore the clean value in the corrupted run (denoise: what suffices), the other way round (noise: what is "
        "needed), or both",
        choices=("denoise", "noise", "both"),
    )
    corruption: str = option(
        "twin",
        "Corruption of the subject's tokens: the counterfactual twin's tokens, noise on their embeddings, or the mean "
        "embedding",
        choices=CORRUPTIONS,
    )
    noise_scale: float = option(
        3.0, "Noise, in standard deviations of the embedding matrix", unit="deviations", low=0.01, high=1000.0
    )
    draws: int = option(10, "Noisy runs of each prompt, for the corruption 'noise'", unit="runs", low=1, high=1000)
    metric: str = option(
        "logit_diff",
        "Metric that is restored: the logit difference to the twin's answer, the answer's log-probability or its "
        "probability",
        choices=METRICS,
    )
    attribution: bool = option(True, "Also estimate every effect by gradients, and report how well that agrees")
    prompts: int = option(
        64, "Discovery prompts, for the mean embedding of the corruption 'mean'", unit="prompts", low=2, high=1_000_000
    )
    eval_prompts: int = option(64, "Prompts that are traced", unit="prompts", low=2, high=1_000_000)
    examples: int = option(8, "Prompts whose own maps are shown in the report", unit="prompts", low=1, high=200)
    bootstrap: int = option(1000, "Bootstrap and permutation draws", unit="draws", low=100, high=100_000)
    memory_mib: int = option(1024, "Memory of one sweep, beside the weights", unit="MiB", low=64, high=1_000_000)


def refuse(config: TraceConfig, task: TaskConfig) -> str | None:
    if task.name == "prompt" and (config.corruption == "twin" or config.metric == "logit_diff"):
        return "one prompt has no counterfactual twin; choose the corruption noise and the metric answer_logprob"
    return unfit(task, config.metric)
