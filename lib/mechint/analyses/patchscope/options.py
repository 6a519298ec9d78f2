"""The options of patchscopes, and the tasks that they refuse."""

from __future__ import annotations

from dataclasses import dataclass

from ...tasks.config import TaskConfig
from ...utils.options import named, option
from ..options import OwnTask

IDENTITY, DESCRIPTION, OTHER, OWN = "identity", "description", "other", "own"
TARGETS = (IDENTITY, DESCRIPTION, OTHER, OWN)


@dataclass(frozen=True)
class ScopeConfig(OwnTask):
    """The prompts that representations are taken from, the prompt they are put into, and the controls."""

    target: str = option(
        IDENTITY,
        "Prompt that the representation is put into: pairs of equal tokens (identity), descriptions of things "
        "(description), another prompt of the task that goes on as the source does (other), or one's own (own)",
        choices=TARGETS,
    )
    text: str = option("", "Text of one's own target prompt")
    placeholder: str = option(
        "",
        "Text in one's own target prompt in whose place the representation is put; its last occurrence counts, and "
        "empty takes the last token",
    )
    source: str = option(
        "answer",
        "Position of the source prompt that the representation is taken from: the one that predicts the answer, or the "
        "last token of what the prompt is about",
        choices=("answer", "subject"),
    )
    back: int = option(
        0, "Tokens before that position from which the representation is taken", unit="tokens", low=0, high=65536
    )
    sites: str = option(
        "usual",
        "Kinds of site (resid_post, out, state …), separated by commas; 'usual' takes resid_post, and state where a "
        "layer has one",
    )
    layers: str = option("all", "Layers that representations are taken from: all, or numbers separated by commas")
    into: str = option(
        "same",
        "Layers that they are put into: the same one, or for each of them all (all) or the numbers that are given, "
        "separated by commas",
    )
    scored: str = option(
        "model",
        "Token that is looked for in the target prompt: what the model says behind the source prompt (model), or the "
        "task's answer (answer)",
        choices=("model", "answer"),
    )
    generate: int = option(
        8, "Tokens that the model goes on with behind the target prompt; 0 generates none", unit="tokens", low=0,
        high=256,
    )  # fmt: skip
    others: int = option(
        4,
        "Other source prompts, with another token to look for, whose representation is put in its place",
        unit="prompts",
        low=0,
        high=100,
    )
    controls: int = option(
        1, "Models with the same weights, shuffled, that are read beside this one", unit="models", low=0, high=100
    )
    prompts: int = option(
        64, "Discovery prompts, whose tokens make the pairs where no tokenizer reads text", unit="prompts", low=2,
        high=1_000_000,
    )  # fmt: skip
    eval_prompts: int = option(64, "Source prompts", unit="prompts", low=1, high=10_000)
    top: int = option(5, "Likeliest tokens that are listed for each layer and position", unit="tokens", low=1, high=50)
    examples: int = option(
        4, "Source prompts that are shown layer by layer and token by token", unit="prompts", low=0, high=64
    )
    bootstrap: int = option(1000, "Bootstrap draws for the intervals", unit="draws", low=100, high=100_000)
    memory_mib: int = option(1024, "Memory of one sweep, beside the weights", unit="MiB", low=64, high=1_000_000)


def refuse(config: ScopeConfig, task: TaskConfig) -> str | None:
    """Says why this target does not fit the task; None where it does."""
    if config.target == OWN and not config.text:
        return f"no target prompt is given; set {named('patchscope', 'text')}, or take another target"
    if config.target != OWN and (config.text or config.placeholder):
        return f"a target prompt is given and not used; set {named('patchscope', 'target')} to own"
    if config.target == OTHER and task.name == "prompt":
        return "one prompt has no other prompt to be put into; take another target"
    if config.source == "subject" and task.name == "prompt" and not task.subject:
        return f"nothing says what the prompt is about; set {named('task', 'subject')}"
    if config.source == "subject" and task.name == "text":
        return "plain text is about nothing in particular; take the source answer"
    return None
