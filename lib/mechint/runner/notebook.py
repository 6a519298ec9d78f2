"""Analyses from a notebook: one call for a loaded model, which gives the finished results.

1. Read the options and the task, and refuse what does not go together.
2. Make the analysis as the command line does, into a directory.
3. Read the finished run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from torch.nn import Module

from ..analyses.base import analyses, check_model
from ..analyses.options import RunConfig, asked
from ..interventions.model import Model, having
from ..models.loading.load import load
from ..report.results import RunResults
from ..tasks import TaskConfig, task_of
from ..utils import files
from ..utils.errors import MechintError, check_type, did_you_mean, shown
from ..utils.options import check, options
from ..utils.rundir import check_writable, weights_digest
from .one_analysis import analyse_one
from .preparation import Prepared, check_one, check_read
from .request import Experiment
from .results import one

Asked = TaskConfig | Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | Path
"""A task: its options, prompts as lines of a file have them, the name of a task, or the path of a file."""


def analyse(
    model: Model | str | Path,
    name: str,
    task: Asked = "recall",
    *,
    output_dir: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 64,
    **options: Any,
) -> RunResults:
    """Makes one analysis of one model, and reads its results.

    >>> found = mechint.analyse(model, "trace", "facts.jsonl", metric="logit_diff")
    >>> found.headline, found.metrics["total_effect"], found.frame()

    Args:
        model: From :func:`mechint.load`, or a checkpoint, directory or hub id.
        name: The analysis, as ``python -m mechint --help`` lists it: ``trace``, ``patch``, ``ssm``, ``kv``, ``sae`` …
        task: The name of a task (``"recall"``), its options (``{"name": "recall", "pairs": 6}``), a file of prompts or
            a Python file (:class:`~mechint.tasks.TaskConfig`, docs/tasks.md), or a list of prompts, each as a line of
            such a file: ``[{"prompt": …, "subject": …, "answer": …}, …]``.
        output_dir: Directory of the results, where a finished run of the same request is read and not repeated; a
            temporary one by default.
        seed: Seed of prompts, searches and bootstraps.
        batch_size: Prompts in one forward.
        options: The analysis's own, by the names of ``python -m mechint NAME --help``.

    Returns:
        The finished run; ``directory`` holds its report.html.

    Raises:
        MechintError: there is no such analysis, task or option, or they do not go together.
    """
    if name not in analyses():
        raise MechintError(f"no analysis {name!r}{did_you_mean(name, analyses())}; take {', '.join(analyses())}")
    analysis = analyses()[name]
    known = [field.name for field in dataclasses.fields(analysis.config) if field.init]
    for option in options:
        if option not in known:
            raise MechintError(
                f"{name} has no option {option!r}{did_you_mean(option, known)}; it has {', '.join(known)}"
            )
    config = analysis.config(**options)
    check(config, name)
    check_type(model, (str, Path, Module), "the model", "one of mechint.load, a checkpoint, or a hub id")
    check_type(output_dir, (str, Path, NoneType), "output_dir", "a directory")
    found = load(model) if isinstance(model, (str, Path)) else model
    folder = Path(tempfile.mkdtemp(prefix=f"mechint_{name}_")) if output_dir is None else Path(output_dir).expanduser()
    check_writable(folder, "output_dir", dry=True)
    asks = task_config(task, folder)
    check(asks, "task")
    check_read(asks, [asked(asks, config).name])
    if reason := analysis.refuse(config, asks):
        raise MechintError(f"{analysis.title}: {reason}")
    check_model([analysis], found, found.source)
    dtype = dtype_of(found)
    placed = ",".join(dict.fromkeys(map(str, (found.device, *found.placement)))) if found.placement else ""
    run = RunConfig(checkpoint=found.source, output_dir=str(folder), device=found.device.type, devices=placed,
                    dtype=dtype, batch_size=batch_size, seed=seed)  # fmt: skip
    check(run, "run")
    experiment = Experiment(run, asks, {name: config})
    prepared = Prepared(found, {name: task_of(found, experiment.asked(name))}, weights_digest(found))
    check_one(experiment, name, prepared, folder)
    with contextlib.redirect_stdout(io.StringIO()):  # the results say what the command line prints
        analyse_one(experiment, name, found.source, folder, prepared, by_all=False)
    return one(folder)


def dtype_of(model: Model) -> str:
    """The precision of a model's weights, as the option says it.

    Raises:
        MechintError: analyses are not made in it.
    """
    dtype = str(next(iter(model.parameters())).dtype).removeprefix("torch.")
    known = next(opt.choices for field, _, opt in options(RunConfig) if field.name == "dtype")
    if dtype not in known:
        raise MechintError(
            f"the model's weights are {dtype}, and analyses take {', '.join(known)}; load it so: "
            f'mechint.load(…, dtype="{known[0]}")'
        )
    return dtype


def circuit(model: Model | str | Path, task: Asked = "recall", **options: Any) -> RunResults:
    """Finds the circuit of a task: channels of a recurrence, keys and values of attention, or heads of both.

    As :func:`analyse` with the analysis ``ssm``, ``kv`` or, for a hybrid, ``hybrid``; ``options`` are that analysis's.
    """
    found = load(model) if isinstance(model, (str, Path)) else model
    recurrent, attending = bool(having(found, "readout")), bool(having(found, "k", "v"))
    return analyse(found, "hybrid" if recurrent and attending else "ssm" if recurrent else "kv", task, **options)


def trace(model: Model | str | Path, task: Asked = "recall", **options: Any) -> RunResults:
    """Traces where an answer is carried, as :func:`analyse` with the analysis ``trace``."""
    return analyse(model, "trace", task, **options)


def patch(model: Model | str | Path, task: Asked = "recall", **options: Any) -> RunResults:
    """Patches the flow between tokens and single units, as :func:`analyse` with the analysis ``patch``."""
    return analyse(model, "patch", task, **options)


def task_config(task: Asked, folder: Path) -> TaskConfig:
    """The options of a task; prompts that are given as a list are written into ``folder``."""
    if isinstance(task, TaskConfig):
        return task
    if isinstance(task, Path) or (isinstance(task, str) and task.endswith((".jsonl", ".json", ".py"))):
        return TaskConfig(name="file", file=str(task))
    if isinstance(task, str):
        return TaskConfig(name=task)
    if isinstance(task, Mapping):
        known = [field.name for field in dataclasses.fields(TaskConfig)]
        for option in task:
            if option not in known:
                raise MechintError(
                    f"a task has no option {option!r}{did_you_mean(str(option), known)}; it has {', '.join(known)}"
                )
        return TaskConfig(**task)
    lines = list(task) if isinstance(task, Iterable) else [task]
    if not lines:
        raise MechintError("the task is an empty list of prompts; give at least one: [{'prompt': …, 'answer': …}, …]")
    for number, line in enumerate(lines, 1):
        if not isinstance(line, Mapping):
            raise MechintError(
                f"prompt {number} of the task is {shown(line)}; give the name of a task, a file, its options, or a "
                "list of prompts as docs/tasks.md has them: [{'prompt': …, 'subject': …, 'answer': …}, …]"
            )
    try:
        text = "".join(json.dumps(dict(line), default=plain) + "\n" for line in lines)
    except (TypeError, ValueError) as error:
        raise MechintError(f"the prompts cannot be written as JSON: {error}; give text, numbers and lists") from None
    folder.mkdir(parents=True, exist_ok=True)
    path = files.write_text(folder / "prompts.jsonl", text)
    return TaskConfig(name="file", file=str(path))


def plain(value: Any) -> Any:
    """A tensor or an array as Python's lists and numbers, for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{shown(value)} is neither text nor a number")
