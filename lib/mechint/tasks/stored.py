"""Reads a trained checkpoint's own task, text and tokenizer, and makes them the defaults of an analysis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..interventions.model import Model
from ..interventions.taps import Tap
from ..utils.errors import MechintError, NotAnswered, short
from ..utils.options import named
from .answers import Prompts
from .base import Task
from .config import TaskConfig

USED = {
    "recall": ("pairs", "keys", "values"),
    "induction": ("keys", "length"),
    "selective_copy": ("pairs", "values", "length"),
    "facts": ("facts", "values", "seed"),
    "indirect_object": ("tokenizer", "bos"),
    "greater_than": ("tokenizer", "bos"),
    "counters": ("values", "length"),
    "brackets": ("keys", "pairs", "length"),
    "long_copy": ("values", "length"),
    "marked": ("values", "length"),
    "text": ("text", "tokenizer", "bos", "length"),
}
"""The options that each task that can be trained on depends on."""
SIZES = ("pairs", "length")
"""Options that may differ from training: the tokens mean the same."""
REAL = ("text", "file", "prompt", "indirect_object", "greater_than")
"""Tasks in the tokens of a tokenizer: a model of text may be asked any of them."""
ABOVE, TIMES, LOOKED_AT = 1.0, 2.0, 16
"""A loss above :data:`TIMES` the stored loss plus :data:`ABOVE` nats shows another text; it is measured on
:data:`LOOKED_AT` prompts."""


def ask_anyway() -> str:
    """Says how to use the options' task whatever the checkpoint says."""
    return f"or switch off {named('task', 'stored')} to ask what the options say"


def as_stored(config: TaskConfig, metadata: Mapping[str, Any], where: str = "the checkpoint") -> TaskConfig:
    """The task with what a checkpoint was trained on, where the options are at their defaults.

    Args:
        config: The options.
        metadata: Values stored beside the weights; see :func:`mechint.load`.
        where: The checkpoint, for messages.

    Raises:
        MechintError: an option contradicts what the checkpoint says; the message names both.
    """
    said = metadata.get("task")
    if not config.stored or not isinstance(said, dict) or str(said.get("name")) not in USED:
        return config
    name = said["name"]
    other = config.name in REAL and name in REAL and config.name not in (name, TaskConfig.name)
    if not other and config.name not in (name, TaskConfig.name):
        raise MechintError(
            f"{where} was trained on the task {name}, and {config.name} is asked; leave "
            f"{named('task', 'name')} at its default, {ask_anyway()}"
        )
    changes: dict[str, Any] = {} if other else {"name": name}
    for option in ("tokenizer", "bos") if other else USED[name]:
        default, mine = getattr(TaskConfig, option), getattr(config, option)
        # checkpoints older than the option bos had no token in front of a text
        theirs = said.get(option, not said.get("tokenizer") if option == "bos" else default)
        if type(theirs) is not type(default):
            raise MechintError(f"{where} stores {option} = {short(theirs, 60)}, which is none; {ask_anyway()}")
        if mine == default:
            changes[option] = theirs
        elif mine != theirs and option not in SIZES:
            raise MechintError(
                f"{where} was trained with {option} = {short(repr(theirs), 100)}, and {short(repr(mine), 100)} is "
                f"asked; leave {named('task', option)} at its default, {ask_anyway()}"
            )
    return dataclasses.replace(config, **changes)


def differences(before: TaskConfig, after: TaskConfig) -> str:
    """Says in words which options :func:`as_stored` took from the checkpoint; empty if none."""
    pairs = (
        (field.name, getattr(before, field.name), getattr(after, field.name)) for field in dataclasses.fields(after)
    )
    return ", ".join(f"{name} {short(now, 60)!s}" for name, was, now in pairs if was != now)


def check_data(task: Task, metadata: Mapping[str, Any], where: str) -> None:
    """Refuses a text that has changed since the checkpoint was trained on it, or been tokenised otherwise.

    Raises:
        MechintError: the checkpoint stores another hash of its data.
    """
    said, config = metadata.get("task"), task.config
    if config is None or not config.stored or not isinstance(said, dict) or said.get("name") != task.name:
        return
    same = task.name == "text" and said.get("text") == config.text and isinstance(metadata.get("data"), str)
    if same and metadata["data"] not in (task.fingerprint, task.fingerprint.partition(" ")[0]):
        raise MechintError(
            f"{where} was trained on {short(config.text, 100)} when that or its tokenizer had another content; restore "
            f"them, {ask_anyway()}"
        )


@torch.no_grad()
def check_loss(model: Model, task: Task, batches: Iterable[Prompts]) -> None:
    """Refuses a text on which a checkpoint's loss is far above the one that it stores.

    Raises:
        NotAnswered: the loss is more than :data:`TIMES` the stored one and :data:`ABOVE` nats.
    """
    metadata = getattr(model, "metadata", None) or {}
    known = metadata.get("held_out_loss", metadata.get("best_val_loss"))
    if task.name != "text" or (task.config is not None and not task.config.stored):
        return
    if isinstance(known, bool) or not isinstance(known, (int, float)) or not math.isfinite(known):
        return
    some = next(iter(batches))[:LOOKED_AT]
    logits, _ = model.trace(some.tokens, Tap(), logits_at=some.positions)
    loss = float(F.cross_entropy(logits.float().flatten(0, 1), some.answers.flatten()))
    if loss > TIMES * known + ABOVE:
        raise NotAnswered(
            f"{getattr(model, 'source', 'the model')}: the loss on this text is {loss:.2f} nats a token, and the "
            f"checkpoint stores {known:.2f}; name the text and the tokenizer that it was trained with in "
            f"{named('task', 'text')} and {named('task', 'tokenizer')}, {ask_anyway()}"
        )
