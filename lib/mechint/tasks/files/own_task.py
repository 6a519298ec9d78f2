"""A task of the user's own: one class in a Python file, found by its path."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils import files
from ...utils.errors import MechintError, short
from ..answers import Prompts
from ..base import Task
from ..config import TaskConfig
from .prompt_lines import HALVES

LIMIT = 1 << 24
"""Bytes of the largest Python file that is read."""
TRIED = 4
"""Prompts of each split that are drawn to check them."""


def own_task(config: TaskConfig, tokenizer: Any) -> Task:
    """The task that a Python file declares: its one subclass of :class:`~mechint.tasks.Task`.

    The class is made with the options and the model's tokenizer (None where there is none), and prompts for discovery
    and evaluation are drawn from it to check them. The file's contents are part of what its results depend on.

    Args:
        config: The options; ``file`` is the path.
        tokenizer: A ``tokenizers.Tokenizer``, or None.

    Raises:
        MechintError: the file cannot be read or run, declares no task or several, or its prompts are not what a task's
            are; the message names the line.
    """
    path = Path(config.file).expanduser()
    data = files.read_regular(path, LIMIT, "task", "name a Python file with a class of mechint.tasks.Task")
    task = made(path, load(path), config, tokenizer)
    task.fingerprint = f"{hashlib.sha256(data).hexdigest()} {task.fingerprint}".strip()
    for split in HALVES:
        try:
            prompts = task.sample(TRIED, split, 0)
        except MechintError:
            raise
        except Exception as error:
            raise _failed(path, error, f"its {split} prompts") from error
        check_prompts(prompts, task, short(str(path)))
    return task


def load(path: Path) -> type[Task]:
    """The one task that a Python file declares."""
    name = f"mechint_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except MechintError:
        raise
    except Exception as error:
        raise _failed(path, error, "the file") from error
    found = [
        value for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Task) and value.__module__ == name
    ]  # fmt: skip
    if len(found) != 1:
        what = ", ".join(one.__name__ for one in found) or "none"
        raise MechintError(
            f"{short(str(path))} declares {len(found)} subclasses of mechint.tasks.Task ({what}); declare one"
        )
    return found[0]


def made(path: Path, kind: type[Task], config: TaskConfig, tokenizer: Any) -> Task:
    """The task, with what every task says about itself."""
    try:
        task = kind(config, tokenizer)  # type: ignore[call-arg]  # a task's own arguments
    except MechintError:
        raise
    except Exception as error:
        raise _failed(path, error, f"{kind.__name__}(config, tokenizer)") from error
    lacking = [name for name in ("name", "vocab_size", "length", "has_twins", "description") if not hasattr(task, name)]
    if lacking:
        raise MechintError(
            f"{short(str(path))}: {kind.__name__} has no {lacking[0]!r}; set it in the class or its __init__"
        )
    return task


def check_prompts(prompts: Prompts, task: Task, where: str) -> None:
    """Refuses prompts whose tensors do not fit each other or the task.

    Raises:
        MechintError: a shape, a type or an id is wrong; the message says which.
    """

    def refuse(what: str) -> MechintError:
        return MechintError(f"{where}: prompts of the task {task.name!r}: {what}; correct its draw()")

    if not isinstance(prompts, Prompts):
        raise refuse(f"draw() gives a {type(prompts).__name__}, and not mechint.tasks.Prompts")
    n, length = prompts.tokens.shape if prompts.tokens.dim() == 2 else (0, 0)
    if not n or length != task.length or prompts.tokens.dtype != torch.long:
        found = f"{prompts.tokens.dtype} of {list(prompts.tokens.shape)}"
        raise refuse(f"tokens are {found}, and int64 of [prompts, length {task.length}] is needed")
    answers = list(prompts.positions.shape)
    shapes: dict[str, tuple[Tensor | None, list[int]]] = {
        "positions": (prompts.positions, [n, *answers[1:2]]), "answers": (prompts.answers, answers),
        "twins": (prompts.twins, [n, length]), "wrong": (prompts.wrong, answers), "template": (prompts.template, [n]),
        "subject": (prompts.subject, [n, 2]),
    }  # fmt: skip
    for name, (value, wanted) in shapes.items():
        if value is not None and (list(value.shape) != wanted or value.dtype != torch.long):
            raise refuse(f"{name} is {value.dtype} of {list(value.shape)}, and int64 of {wanted} is needed")
    for name, ids in (("tokens", prompts.tokens), ("answers", prompts.answers), ("twins", prompts.twins)):
        if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < task.vocab_size:
            raise refuse(
                f"{name} has ids from {int(ids.min())} to {int(ids.max())}, and vocab_size is {task.vocab_size}"
            )
    if not 0 <= int(prompts.positions.min()) <= int(prompts.positions.max()) < length:
        raise refuse(f"positions go from {int(prompts.positions.min())} to {int(prompts.positions.max())}")
    if task.has_twins and (prompts.twins is None or prompts.wrong is None):
        raise refuse("has_twins is True, and there are no twins with their answers (wrong)")
    if prompts.wrong is not None and bool((prompts.wrong == prompts.answers).any()):
        raise refuse("a twin has the answer of its prompt")


def _failed(path: Path, error: Exception, what: str) -> MechintError:
    """An error of the user's code on one line: its place in the file, its type and its words."""
    steps = [step for step in traceback.extract_tb(error.__traceback__) if step.filename == str(path)]
    line = getattr(error, "lineno", None) or (steps[-1].lineno if steps else None)
    at = f" line {line}" if line else ""
    return MechintError(
        f"{short(str(path))}{at}: {what} failed with {type(error).__name__}: {short(error)}; correct it"
    )
