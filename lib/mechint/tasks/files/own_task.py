"""A task of the user's own: one class in a Python file, found by its path."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils import files
from ...utils.errors import MechintError, short, shown
from ..answers import Prompts
from ..base import Task
from ..config import TaskConfig
from .prompt_lines import HALVES

LIMIT = 1 << 24
"""Bytes of the largest Python file that is read."""
TRIED, COMPARED = 4, 256
"""Prompts of each split that are drawn to check them, and to compare the splits."""
ALWAYS = ("tokens", "positions", "answers", "template")
"""Tensors that all prompts have."""
SHAPES: dict[str, tuple[str | int, ...]] = {
    "answers": ("n", "Q"), "positions": ("n", "Q"), "twins": ("n", "L"), "wrong": ("n", "Q"), "template": ("n",),
    "subject": ("n", 2), "accepted": ("n", "Q", "A"), "rejected": ("n", "Q", "A"),
}  # fmt: skip
"""Shapes of the others: n prompts of L tokens, Q answers each (the answers say how many), A ids for each answer."""
WHAT = {"name": str, "description": str, "vocab_size": int, "length": int, "has_twins": bool}
"""Attributes of every task, and their types."""


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
        with _told(path, f"its {split} prompts"):
            prompts = task.sample(TRIED, split, 0)
        check_prompts(prompts, task, short(str(path)))
    with _told(path, "its prompts"):
        check_splits(task, short(str(path)))
    return task


def load(path: Path) -> type[Task]:
    """The one task that a Python file declares."""
    name = f"mechint_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _told(path, "the file"):
        spec.loader.exec_module(module)
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
    with _told(path, f"{kind.__name__}(config, tokenizer)"):
        task = kind(config, tokenizer)  # type: ignore[call-arg]  # a task's own arguments
    for name, wanted in WHAT.items():
        if not hasattr(task, name):
            raise MechintError(
                f"{short(str(path))}: {kind.__name__} has no {name!r}; set it in the class or its __init__"
            )
        if type(value := getattr(task, name)) is not wanted:
            raise MechintError(
                f"{short(str(path))}: {kind.__name__}.{name} is {shown(value)}; it must be of type {wanted.__name__}"
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
    values = {
        field.name: getattr(prompts, field.name) for field in dataclasses.fields(prompts) if field.name != "whole"
    }
    for name, value in values.items():
        if not isinstance(value, Tensor) and (value is not None or name in ALWAYS):
            raise refuse(f"{name} is a {type(value).__name__}, and a torch.Tensor is needed")
    n, length = prompts.tokens.shape if prompts.tokens.dim() == 2 else (0, 0)
    if not n or length != task.length or prompts.tokens.dtype != torch.long:
        found = f"{prompts.tokens.dtype} of {list(prompts.tokens.shape)}"
        raise refuse(f"tokens are {found}, and int64 of [prompts, length {task.length}] is needed")
    answers = prompts.answers
    known = {"n": n, "L": length} | ({"Q": answers.shape[1]} if answers.dim() == 2 and answers.numel() else {})
    for name, sizes in SHAPES.items():
        if (value := values[name]) is None:
            continue
        wanted = [known.get(size, size) if isinstance(size, str) else size for size in sizes]
        fits = [want in (have, *(("Q", "A") if have else ())) for have, want in zip(value.shape, wanted, strict=False)]
        if value.dtype != torch.long or value.dim() != len(sizes) or not all(fits):
            needed = f"int64 of [{', '.join(map(str, wanted))}]"
            raise refuse(f"{name} is {value.dtype} of {list(value.shape)}, and {needed} is needed")
    for name in ("tokens", "answers", "twins", "wrong", "accepted", "rejected"):
        value, least = values[name], -1 if name in ("accepted", "rejected") else 0  # -1 fills up
        if value is not None and not least <= int(value.min()) <= int(value.max()) < task.vocab_size:
            raise refuse(
                f"{name} has ids from {int(value.min())} to {int(value.max())}, and vocab_size is {task.vocab_size}"
            )
    if not 0 <= int(prompts.positions.min()) <= int(prompts.positions.max()) < length:
        raise refuse(f"positions go from {int(prompts.positions.min())} to {int(prompts.positions.max())}")
    if task.has_twins and (prompts.twins is None or prompts.wrong is None):
        raise refuse("has_twins is True, and there are no twins with their answers (wrong)")
    if (prompts.twins is None) != (prompts.wrong is None):
        raise refuse("twins and their answers (wrong) go together, and one of them is None")
    if prompts.wrong is not None and bool((prompts.wrong == prompts.answers).any()):
        raise refuse("a twin has the answer of its prompt")
    if prompts.twins is not None and bool((prompts.twins == prompts.tokens).all(1).any()):
        raise refuse("a twin has the tokens of its prompt")
    if prompts.accepted is not None and not bool((prompts.accepted == prompts.answers[..., None]).any(-1).all()):
        raise refuse("accepted holds all ids that are right, and an answer is not among them")
    if prompts.subject is not None:
        start, end = prompts.subject.unbind(1)
        if bool(((start < 0) | (end <= start) | (end > length)).any()):
            raise refuse(f"a subject is [start, end] with 0 <= start < end <= {length}, and one is not")
    if prompts.whole != task.whole:
        raise refuse(f"whole is {prompts.whole} in the prompts and {task.whole} in the task")


def check_splits(task: Task, where: str) -> None:
    """Refuses a task whose halves share templates, or whose prompts differ each time they are drawn.

    Raises:
        MechintError: as above; held-out numbers would not be held out, or a run could not be repeated.
    """
    drawn = {split: task.sample(COMPARED, split, 0) for split in HALVES}
    for split, prompts in drawn.items():
        again = task.sample(COMPARED, split, 0)
        if prompts.tokens.shape != again.tokens.shape or bool((prompts.tokens != again.tokens).any()):
            raise MechintError(
                f"{where}: the task {task.name!r} draws other prompts each time; draw them with the generator that "
                "draw() is given as random"
            )
    first, second = (set(prompts.template.tolist()) for prompts in drawn.values())
    if shared := first & second:
        raise MechintError(
            f"{where}: the task {task.name!r} draws {len(shared)} of {len(second)} templates of the evaluation split "
            "in the discovery split, too, so nothing would be held out; draw with mechint.tasks.base.draw_in_split"
        )


@contextlib.contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """Tells what fails in the user's code, sys.exit() too, as one line; what is told already stays as it is."""
    try:
        yield
    except MechintError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(path, error, what) from error


def _failed(path: Path, error: BaseException, what: str) -> MechintError:
    """An error of the user's code on one line: its place in the file, its type and its words."""
    steps = [step for step in traceback.extract_tb(error.__traceback__) if step.filename == str(path)]
    line = getattr(error, "lineno", None) or (steps[-1].lineno if steps else None)
    at = f" line {line}" if line else ""
    return MechintError(
        f"{short(str(path))}{at}: {what} failed with {type(error).__name__}: {short(error)}; correct it"
    )
