"""Tasks: prompts with answers and, where a task has them, counterfactual twins, in disjoint splits.

A new task is a class like those beside this file and a line in :data:`KINDS` and in ``config.TASKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import MechintError, did_you_mean
from ..models.tokenizer import read_tokenizer
from ..options import check
from .base import SPLITS, Prompts, Task, accuracy, mix, pooled
from .config import TASKS, TaskConfig
from .fact_file import FactFile
from .facts import Facts
from .greater_than import GreaterThan
from .indirect_object import IndirectObject
from .induction import Induction
from .recall import Recall
from .selective_copy import SelectiveCopy
from .text import Text
from .toys import Brackets, Counters, LongCopy

__all__ = ["SPLITS", "TASKS", "Prompts", "Task", "TaskConfig", "accuracy", "make_task", "mix", "pooled"]

READERS: dict[str, Callable[[TaskConfig, Any], Task]] = {
    "indirect_object": IndirectObject,
    "greater_than": GreaterThan,
    "text": Text,
    "file": FactFile,
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
}


def make_task(config: TaskConfig, tokenizer: Any = None, vocab_size: int | None = None) -> Task:
    """The task that the options say.

    Args:
        config: The options; see :class:`TaskConfig`.
        tokenizer: The model's, for :data:`READERS`; without one a token of ``text`` is a byte.
        vocab_size: The model's, which the task's tokens must fit; None when there is no model yet.

    Raises:
        MechintError: an option is out of range, the sizes leave nothing to hold out, or the model has too few tokens.
    """
    check(config, where="task")
    if config.name not in TASKS:
        raise MechintError(f"no task {config.name!r}{did_you_mean(config.name, TASKS)}; take {', '.join(TASKS)}")
    if config.tokenizer:
        tokenizer = named_tokenizer(config.tokenizer)
    reader = READERS.get(config.name)
    task = reader(config, tokenizer) if reader else KINDS[config.name](config)
    task.config = config
    if vocab_size is not None and task.vocab_size > vocab_size:
        raise MechintError(
            f"task {task.name} has {task.vocab_size} different tokens but the model's vocabulary is {vocab_size}; "
            "choose the task and sizes that the model was trained on"
        )
    return task


def named_tokenizer(name: str) -> Any:
    """The tokenizer of the option ``tokenizer``: a tokenizer.json, or the directory that has it."""
    path = Path(name).expanduser()
    tokenizer = read_tokenizer(path if path.is_dir() else path.parent)
    if tokenizer is None or not (path.is_dir() or path.name == "tokenizer.json"):
        raise MechintError(f"tokenizer {name}: there is no tokenizer.json; name the file, or the directory that has it")
    return tokenizer
