"""The options of path patching, and the tasks that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.options import option
from ..interchange import METRICS
from ..options import OwnTask, unfit


@dataclass(frozen=True)
class PathConfig(OwnTask):
    """The senders, the receivers, further paths, and the metric."""

    senders: str = option(
        "usual",
        "Kinds of site (head_out, mlp_out, out …) or single sites (layers.0.head_out[2]) that give something, "
        "separated by commas; 'usual' takes the embeddings and what every head, mixer and feed-forward part adds",
    )
    receivers: str = option(
        "usual",
        "Kinds of site (q, k, v, x, z, B, C, dt, mlp_out …) or single sites that are given something, separated by "
        "commas; 'usual' takes the inputs of every head and mixer, feed-forward parts and the logits",
    )
    heads: bool = option(True, "Each head is a sender and a receiver of its own; else all heads of a layer are one")
    along: str = option(
        "",
        "Further paths, separated by commas, each of sites with > between them: embed > layers.0.attn_out > "
        "layers.1.q[0] > logits; empty for none",
    )
    direction: str = option(
        "both",
        "Give the receiver the twin's part in the clean run (noise: what is needed), the clean part in the twin's run "
        "(denoise: what suffices), or both",
        choices=("denoise", "noise", "both"),
    )
    metric: str = option(
        "logit_diff",
        "Metric that is lost or restored: the logit difference to the twin's answer, the answer's log-probability or "
        "its probability",
        choices=METRICS,
    )
    prompts: int = option(64, "Discovery prompts; nothing is learned from them", unit="prompts", low=2, high=1_000_000)
    eval_prompts: int = option(64, "Prompts that are patched", unit="prompts", low=2, high=1_000_000)
    bootstrap: int = option(1000, "Bootstrap and permutation draws", unit="draws", low=100, high=100_000)
    memory_mib: int = option(1024, "Memory of one sweep, beside the weights", unit="MiB", low=64, high=1_000_000)


def refuse(config: PathConfig, task: TaskConfig) -> str | None:
    if task.name == "prompt":
        return "one prompt has no counterfactual twin, whose values senders are given; choose a task with twins"
    return unfit(task, config.metric)
