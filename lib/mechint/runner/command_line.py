"""The command line of the analyses: every option a flag, and one prompt at a time in a few words."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..analyses.base import analyses
from ..analyses.options import AnalysisOptions, RunConfig, asked, own
from ..models.loading.discover import find_checkpoints
from ..models.loading.load import load
from ..models.loading.tokenizer import Encoder, lacking
from ..tasks import tokenizer_of
from ..tasks.config import TaskConfig
from ..tasks.stored import as_stored
from ..utils.errors import MechintError, NotAnswered
from ..utils.options import Parser, add_flags, from_flags, integer, named
from ..utils.plugins import broken
from ..utils.version import __version__
from .experiment import run_experiment
from .preparation import check_read, on_this_machine
from .request import DefconfigText, Experiment

ONE_PROMPT: dict[str, Any] = {
    "task_name": "prompt",
    "run_trace": True,
    "trace_corruption": "noise",
    "trace_metric": "answer_logprob",
    "patch_metric": "answer_logprob",
    "patch_units": "",
}
"""Defaults beside ``--prompt``: one prompt has no twin."""


def parser() -> Parser:
    top = Parser(
        prog="python -m mechint",
        description="Runs the analyses that are switched on over every checkpoint that a pattern names.",
    )
    top.all_options = "--help-all"
    top.add_argument("--help-all", action="help", help="show every option and exit")
    top.add_argument("--version", action="version", version=f"mechint {__version__}")
    top.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    one = top.add_argument_group("one prompt", "traces a prompt with noise on its subject, unless other flags say else")
    one.add_argument("--prompt", metavar="TEXT", help="the prompt")
    one.add_argument("--subject", metavar="TEXT", help="what it is about, as it stands there; for tracing and patching")
    one.add_argument("--occurrence", metavar="N", type=integer, help="which of its several occurrences, from 1")
    one.add_argument("--answer", metavar="TEXT", help="what should follow; default: what the model says")
    add_flags(top, RunConfig)
    add_flags(top, TaskConfig, "task")
    for analysis in analyses().values():
        top.add_argument(
            f"--{analysis.name}",
            action=argparse.BooleanOptionalAction,
            default=analysis.default,
            dest=f"run_{analysis.name}",
            help=f"run the analysis: {analysis.title}",
        )
        add_flags(top, analysis.config, analysis.name, analysis.title)
    for name in set(broken("mechint.analyses")) - set(analyses()):
        top.add_argument(f"--{name}", f"--no-{name}", action=Broken, nargs=0, help=argparse.SUPPRESS)
    return top


class Broken(argparse.Action):
    """The switch of a plug-in that cannot be imported: off is taken, as make says it of every menu; on is an error."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        if not str(flag).startswith("--no-"):
            raise MechintError(
                f"{flag} is of a plug-in that cannot be imported, as the note above says; correct it, uninstall it, or "
                "switch the analysis off"
            )


def parse(arguments: Sequence[str] | None = None, only: str | None = None) -> argparse.Namespace:
    """The flags; ``--prompt`` alone means a trace of that prompt; other flags are kept.

    Args:
        arguments: Instead of the process's own.
        only: The analysis that runs unless the flags switch others on; None runs those that run by default.
    """
    top = parser()
    chosen = {} if only is None else {f"run_{name}": name == only for name in analyses()}
    top.set_defaults(**chosen)
    flags = top.parse_all(arguments)
    if flags.prompt is None:
        if any(getattr(flags, name) is not None for name in ("subject", "occurrence", "answer")):
            top.error("--subject, --occurrence and --answer are of one prompt; give --prompt too")
        return flags
    slug = re.sub(r"\W+", "-", flags.prompt.lower()).strip("-")[:60].strip("-")
    top.set_defaults(**ONE_PROMPT, output_dir=str(Path(RunConfig.output_dir) / (slug or "prompt")))
    top.set_defaults(**{f"run_{analysis.name}": False for analysis in analyses().values() if analysis.default})
    top.set_defaults(**{f"task_{name}": getattr(flags, name) or "" for name in ("prompt", "subject", "answer")})
    if flags.occurrence is not None:
        top.set_defaults(task_occurrence=flags.occurrence)
    top.set_defaults(**chosen)
    return top.parse_all(arguments)


def experiment_of(flags: argparse.Namespace, defconfig: DefconfigText | None = None) -> tuple[Experiment, bool]:
    """The experiment that the parsed flags say, and whether it is a dry run."""
    run, task = from_flags(flags, RunConfig), from_flags(flags, TaskConfig, "task")
    configs: dict[str, AnalysisOptions] = {
        name: from_flags(flags, analysis.config, name)
        for name, analysis in analyses().items()
        if getattr(flags, f"run_{name}")
    }
    return Experiment(run, task, configs, defconfig), bool(flags.dry_run)


def main(
    defconfig: DefconfigText | None = None, arguments: Sequence[str] | None = None, only: str | None = None
) -> None:
    """Runs what the command line says.

    Args:
        defconfig: Gives the text of the configuration that repeats a run, for callers that have such a thing.
        arguments: Instead of the process's own.
        only: As in :func:`parse`.
    """
    flags = parse(arguments, only)
    experiment, dry_run = experiment_of(flags, defconfig)
    run, task, configs = experiment.run, experiment.task, experiment.configs
    check_prompts_are_read(flags, task)
    unanswered: NotAnswered | None = None
    prompted = [
        name
        for name, config in configs.items()
        if asked(task, config).name == "prompt" and own(run, config).mode == "posttrain"
    ]
    if prompted and task.prompt and not task.answer:
        try:
            asked_of = own(run, configs[prompted[0]])
            experiment = dataclasses.replace(experiment, task=own_answer(asked_of, task, dry_run))
        except NotAnswered as error:  # the others need no answer
            others = {name: config for name, config in configs.items() if name not in prompted}
            if not others:
                raise
            unanswered = error
            titles = ", ".join(analyses()[name].title for name in prompted)
            print(f"note: {titles} will not be made, the others will: {error}", file=sys.stderr, flush=True)
            experiment = dataclasses.replace(experiment, configs=others, several=len(configs) > 1)
    run_experiment(experiment, dry_run)
    if unanswered is not None:
        raise unanswered


def check_prompts_are_read(flags: argparse.Namespace, task: TaskConfig) -> None:
    """Raises :class:`MechintError` for a file or a prompt that no analysis would ask; one that is switched off beside
    others keeps its own, so that ``--no-trace`` needs no other flag.
    """
    configs = [from_flags(flags, analysis.config, name) for name, analysis in analyses().items()]
    check_read(task, list(dict.fromkeys(asked(task, config).name for config in configs)))


def name_it() -> str:
    """Advice for a prompt whose answer must be named."""
    return f"name the answer in {named('task', 'answer')}"


@torch.no_grad()
def own_answer(run: RunConfig, task: TaskConfig, dry_run: bool = False) -> TaskConfig:
    """The task with the token that the model says next as its answer; it is printed, since all results are about this
    answer. A dry run downloads nothing, so a model that is not on this machine leaves the task as it is.

    Raises:
        MechintError: several checkpoints could say different things, or the model has no tokenizer.
        NotAnswered: what the model says next is not text after the prompt.
    """
    checkpoints = find_checkpoints(run.checkpoint)
    if len(checkpoints) > 1:
        raise MechintError(
            f"{run.checkpoint} matches {len(checkpoints)} checkpoints, which may answer differently; {name_it()}"
        )
    where = on_this_machine(checkpoints[0]) if dry_run else checkpoints[0]
    if where is None:
        return task
    model = load(where, dtype=run.dtype, device=run.place)
    said = as_stored(dataclasses.replace(task, name="prompt"), model.metadata, str(checkpoints[0]))
    tokenizer = tokenizer_of(said, model.tokenizer, model.config.vocab_size)
    if tokenizer is None:
        raise MechintError(f"{checkpoints[0]} has no tokenizer to read text with; {lacking()}")
    encoder = Encoder(tokenizer, said.bos)
    ids = encoder.prompt(task.prompt).ids
    if len(ids) == len(encoder.front):
        raise MechintError("the prompt has no tokens; write one")
    token = int(model(torch.tensor([ids], device=model.device))[0, -1].argmax())
    answer = encoder.continuation(task.prompt, token)
    if answer is None:
        raise NotAnswered(
            f"the model goes on with {encoder.decode(token)!r}, which the tokenizer does not give back after the "
            f"prompt; {name_it()}"
        )
    print(f"the model's own answer: {answer!r}", flush=True)
    return dataclasses.replace(task, answer=answer, space=task.space if answer.startswith(" ") else "no")
