"""The options of the lenses, and the tasks that they refuse."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.options import option
from ..options import OwnTask, unfit

TARGETS = ("usual", "logit", "logit_diff")


@dataclass(frozen=True)
class LensConfig(OwnTask):
    """The prompts, the quantity whose contributions are taken, and the tuned lens."""

    prompts: int = option(
        256, "Discovery prompts, on whose tokens a tuned lens is trained", unit="prompts", low=2, high=1_000_000
    )
    eval_prompts: int = option(64, "Prompts that are read", unit="prompts", low=1, high=1_000_000)
    target: str = option(
        "usual",
        "Quantity that contributions add up to: the logit of the answer (logit), or its difference from the logit of "
        "the wrong answer (logit_diff); 'usual' takes the difference where prompts have a wrong answer",
        choices=TARGETS,
    )
    steps: int = option(0, "Training steps of a tuned lens; 0 trains none", unit="steps", low=0, high=1_000_000)
    lr: float = option(
        3e-3, "Learning rate of Adam for the tuned lens, which falls to zero in a straight line", low=1e-7, high=1.0
    )
    batch: int = option(512, "Tokens of one training step of the tuned lens", unit="tokens", low=1, high=1_000_000)
    tuned: str = option(
        "", "Directory of a tuned lens to read with (config.json and params.pt); empty for none", path=True
    )
    top: int = option(5, "Likeliest tokens that are listed for each layer and position", unit="tokens", low=1, high=50)
    examples: int = option(
        4, "Prompts that are shown layer by layer and token by token", unit="prompts", low=0, high=64
    )
    controls: int = option(
        3, "Models with the same weights, shuffled, that are read beside this one", unit="models", low=0, high=100
    )
    bootstrap: int = option(1000, "Bootstrap draws for the intervals", unit="draws", low=100, high=100_000)


def refuse(config: LensConfig, task: TaskConfig) -> str | None:
    if config.steps and config.tuned:
        return "a tuned lens is either trained (steps) or read from a directory (tuned); leave one of them out"
    if config.steps and task.name == "prompt":
        return "a tuned lens can't be trained on one prompt; train one on a task or on text, and name its directory"
    if config.target == "logit_diff" and task.name == "prompt":
        return "one prompt has no wrong answer for a logit difference; take logit"
    return unfit(task, "logit_diff") if config.target == "logit_diff" else None
