"""The two sides of a contrast: prompts with and without a property, of the task or of two files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...interventions.model import Model
from ...interventions.run import check_tokens, run
from ...models.loading.tokenizer import Encoder, lacking
from ...tasks import Prompts, Task
from ...utils import files
from ...utils.errors import MechintError, did_you_mean, short, shown
from ...utils.options import named
from ..loader import PromptLoader
from .options import SteerConfig

LARGEST = 1 << 26
"""Bytes of the largest file of contrast prompts that is read."""
Rows = list[tuple[Tensor, Tensor]]
"""Batches of prompts: tokens [n, position], and where each is read, [n]."""


@dataclass(frozen=True)
class Property:
    """The prompts of one half, by whether they have the property; their metric is high where the model shows it.

    Attributes:
        lacking: Prompts without it, which are steered towards it.
        having: Prompts with it, from which the direction is removed.
        paired: True if the two are pairs, in order.
        said: The property in words.
    """

    lacking: list[Prompts]
    having: list[Prompts]
    paired: bool
    said: str

    def rows(self) -> tuple[Rows, Rows]:
        """Both sides as batches to read, those with the property first."""
        first, second = ([(p.tokens, p.positions[:, 0]) for p in side] for side in (self.having, self.lacking))
        return first, second


def property_of(config: SteerConfig, learnt: PromptLoader, asked: PromptLoader) -> Property:
    """The property by which the prompts of ``asked`` are judged.

    Args:
        learnt: Discovery prompts, which say which answers go with a label.

    Raises:
        MechintError: no such label or value, no prompts on one side, or answers that do not show the property.
    """
    if config.towards:
        return by_label(config.towards, learnt, asked)
    every = [batch.last() for batch in asked]
    if config.positive or config.directions:
        return Property(every, every, False, "the answers of the task")
    if any(batch.twins is None for batch in every):
        raise MechintError(
            f"steering: prompts of {asked.task.name!r} have no counterfactual twins for a contrast; name a label in "
            f"{named('steer', 'towards')}, files in {named('steer', 'positive')} and {named('steer', 'negative')}, or "
            f"take another task"
        )
    lacking = [dataclasses.replace(batch, tokens=batch.twins, twins=None) for batch in every if batch.twins is not None]
    return Property(lacking, every, True, "prompts against their counterfactual twins")


def by_label(towards: str, learnt: PromptLoader, asked: PromptLoader) -> Property:
    """The prompts with a value of a label, and all others."""
    name, _, text = (part.strip() for part in towards.partition("="))
    task = learnt.task
    value = value_of(task, learnt, name, text)
    sides: tuple[list[Prompts], list[Prompts]] = ([], [])
    ids: tuple[set[int], set[int]] = (set(), set())
    for batch in learnt:
        there = task.labels(batch)[name] == value
        good = batch.last().good()[:, -1]
        for side in (False, True):
            ids[side].update(good[there == side].flatten().tolist())
    without, having = (sorted(ids[side] - ids[not side] - {-1}) for side in (False, True))
    if not having or not without:
        raise MechintError(
            f"steering: prompts with and without {towards} have the same answers, so no answer shows the property; "
            f"choose another label, such as answer={task.decode(int(next(iter(learnt)).answers[0, -1]))}"
        )
    for batch in asked:
        there = task.labels(batch)[name] == value
        last = batch.last()
        n, device = len(last), last.tokens.device
        column = lambda tokens, n=n, device=device: torch.tensor(tokens, device=device).expand(n, 1, -1)
        judged = dataclasses.replace(
            last, twins=None, wrong=None, answers=column(having)[:, :, 0], accepted=column(having),
            rejected=column(without),
        )  # fmt: skip
        for side in (False, True):
            if bool((there == side).any()):
                sides[side].append(judged[there == side])
    for side, what in ((True, "with"), (False, "without")):
        if not sides[side]:
            raise MechintError(
                f"steering: there is no {asked.split} prompt {what} {towards}; ask for more prompts, or choose another "
                f"value"
            )
    return Property(sides[False], sides[True], False, f"{name} = {task.label_name(name, value)}")


def value_of(task: Task, loader: PromptLoader, name: str, text: str) -> int:
    """The value of a label that a text says: its name, or its number."""
    found: set[int] = set()
    for batch in loader:
        labels = task.labels(batch)
        if name not in labels:
            raise MechintError(
                f"steering: prompts of {task.name!r} have no label {shown(name)}{did_you_mean(name, labels)}; they "
                f"have {', '.join(labels)}"
            )
        found.update(labels[name].tolist())
    for value in sorted(found):
        if text in (task.label_name(name, value), str(value)):
            return value
    names = [task.label_name(name, value) for value in sorted(found)]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    raise MechintError(
        f"steering: no discovery prompt has {shown(name)} = {shown(text)}{did_you_mean(text, names)}; there are "
        f"{', '.join(names[:12])}{more}"
    )


def read_prompts(path: str, model: Model, where: str) -> list[Tensor]:
    """The token ids of the prompts of a file, [position] each: lines of text, or JSON lines with a ``prompt``.

    Raises:
        MechintError: no such file, no prompts, a line that is none, text without a tokenizer, or ids that the model
            has not.
    """
    remedy = "name a file with a prompt on each line"
    data = files.read_regular(Path(path).expanduser(), LARGEST, where, remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MechintError(f"{where} {short(path)}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    lines = [(k, line.strip("\r")) for k, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise MechintError(f"{where} {short(path)} is empty; {remedy}")
    as_json = lines[0][1].lstrip().startswith("{")
    found = []
    for k, line in lines:
        place = f"{where} {short(path)} line {k}"
        said: Any = prompt_in(line, place) if as_json else line
        if isinstance(said, str):
            if model.tokenizer is None:
                raise MechintError(f"{place} is text, and {model.source} has no tokenizer; {lacking()}")
            said = Encoder(model.tokenizer).prompt(said).ids
        tokens = torch.tensor([said], dtype=torch.long, device=model.device)
        check_tokens(model, tokens)
        model.check_length(tokens.shape[1])
        found.append(tokens[0])
    return found


def prompt_in(line: str, place: str) -> str | list[int]:
    """The ``prompt`` of a JSON object: text, or a list of token ids; other keys are not read."""
    hint = 'write {"prompt": "…"}, or a list of token ids instead of the text'
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise MechintError(f"{place} is not a JSON object as the first line is; {hint}") from None
    said = entry.get("prompt") if isinstance(entry, dict) else None
    ids = isinstance(said, list) and bool(said) and all(type(token) is int and 0 <= token < 2**31 for token in said)
    if not ids and not (isinstance(said, str) and said):
        raise MechintError(f"{place} has no prompt; {hint}")
    return said  # type: ignore[return-value]


def rows_of(prompts: Sequence[Tensor]) -> Rows:
    """Prompts of any lengths as batches, each read at its end; the order of the prompts is kept."""
    return [(tokens[None], torch.tensor([len(tokens) - 1], device=tokens.device)) for tokens in prompts]


@torch.no_grad()
def values_at(model: Model, rows: Rows, site: str) -> Tensor:
    """A site where each prompt is read, [prompt, unit …]."""
    found = []
    for tokens, at in rows:
        values = run(model, tokens, [site], logits_at=tokens[:, :0])[site]
        found.append(values[torch.arange(len(tokens), device=at.device), at])
    return torch.cat(found)
