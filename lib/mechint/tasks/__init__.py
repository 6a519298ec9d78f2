"""Tasks: prompts with answers and, where a task has them, counterfactual twins, in disjoint splits.

A new task is a class like those beside this file and a line in :data:`KINDS` and in ``config.TASKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..interventions.model import Model
from ..models.loading.tokenizer import BYTES, check_bytes, digest_of, named_tokenizer
from ..utils.errors import MechintError, did_you_mean
from ..utils.options import check
from .answers import Prompts, pooled
from .base import SPLITS, Task, mix
from .config import TASKS, TaskConfig
from .facts import Facts
from .files.own_task import own_task
from .files.prompt_file import FactFile
from .greater_than import GreaterThan
from .indirect_object import IndirectObject
from .induction import Induction
from .marked import Marked
from .recall import Recall
from .selective_copy import SelectiveCopy
from .stored import as_stored, check_data
from .text import Text
from .toys import Brackets, Counters, LongCopy

__all__ = [
    "SPLITS",
    "TASKS",
    "Prompts",
    "Task",
    "TaskConfig",
    "make_task",
    "mix",
    "pooled",
    "task_of",
    "tokenizer_of",
]


def from_file(config: TaskConfig, tokenizer: Any) -> Task:
    """The task of a file: a class of one's own in Python, or prompts."""
    return own_task(config, tokenizer) if config.file.endswith(".py") else FactFile(config, tokenizer)


READERS: dict[str, Callable[[TaskConfig, Any], Task]] = {
    "indirect_object": IndirectObject,
    "greater_than": GreaterThan,
    "text": Text,
    "file": from_file,
    "prompt": FactFile,
}
"""Tasks that take the model's tokenizer; those that can do without get None where there is none."""
KINDS: dict[str, Callable[[TaskConfig], Task]] = {
    "recall": Recall,
    "induction": Induction,
    "selective_copy": SelectiveCopy,
    "facts": Facts,
    "counters": Counters,
    "brackets": Brackets,
    "long_copy": LongCopy,
    "marked": Marked,
}


def make_task(config: TaskConfig, tokenizer: Any = None, vocab_size: int | None = None) -> Task:
    """The task that the options say.

    Args:
        config: The options; see :class:`TaskConfig`.
        tokenizer: The model's, for :data:`READERS`; one that the options name goes before it. Without either a token
            of ``text`` is a byte, which a model's vocabulary of 256 or the tokenizer ``bytes`` must say.
        vocab_size: The model's, which the task's tokens must fit; None when there is no model yet.

    Raises:
        MechintError: an option is out of range, the sizes leave nothing to hold out, the model has too few tokens, or
            nothing says how the model reads text.
    """
    check(config, where="task")
    if config.name not in TASKS:
        raise MechintError(f"no task {config.name!r}{did_you_mean(config.name, TASKS)}; take {', '.join(TASKS)}")
    reader = READERS.get(config.name)
    if reader is None:
        task = KINDS[config.name](config)
    else:
        tokenizer = tokenizer_of(config, tokenizer, vocab_size)
        if config.name == "text":
            stored = config.text.endswith(".bin")
            if tokenizer is None and not stored and config.tokenizer != BYTES:
                check_bytes(vocab_size)
            task = Text(config, tokenizer, vocab_size)
        else:
            task = reader(config, tokenizer)
        task.tokenizer = tokenizer
        if tokenizer is not None:
            task.fingerprint = f"{task.fingerprint} tokenizer {digest_of(tokenizer)}".strip()
    task.config = config
    if vocab_size is not None and task.vocab_size > vocab_size:
        raise MechintError(task.beyond(vocab_size))
    return task


def tokenizer_of(config: TaskConfig, tokenizer: Any = None, vocab_size: int | None = None) -> Any:
    """The tokenizer that the options name, or else the model's; None where tokens are bytes."""
    if not config.tokenizer:
        return tokenizer
    return None if config.tokenizer == BYTES else named_tokenizer(config.tokenizer, vocab_size)


def task_of(model: Model, config: TaskConfig) -> Task:
    """The task that the options ask of a model, in the light of what its checkpoint says it was trained on.

    Raises:
        MechintError: as for :func:`make_task`; the options contradict what the checkpoint says; or prompts are longer
            than the model reads.
    """
    metadata, where = getattr(model, "metadata", None) or {}, str(getattr(model, "source", "the checkpoint"))
    task = make_task(as_stored(config, metadata, where), model.tokenizer, model.config.vocab_size)
    check_data(task, metadata, where)
    try:
        model.check_length(task.length)
    except MechintError as error:
        raise MechintError(f"task {task.name}: {task.longest()}: {error}") from None
    return task
