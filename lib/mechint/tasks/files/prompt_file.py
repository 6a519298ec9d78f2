"""Prompts of a file, or one prompt from the command line: real text with a subject and an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...models.loading.tokenizer import Encoded, Encoder, lacking
from ...utils import files
from ...utils.errors import MechintError, did_you_mean, short
from ...utils.options import named
from ..base import Prompts, Task, generator, mix
from ..config import TaskConfig
from .word_boundaries import places, space_between

__all__ = ["EVERY", "HINT", "Fact", "FactFile", "halves"]

EVERY = "every"
"""The split that is all prompts, for what learns nothing from them."""
HALVES = ("discovery", "evaluation")
LIMIT = 1 << 28
"""Bytes of the largest file of prompts that is read."""
HINT = "a line is an object with prompt, subject, answer, and maybe twin_prompt, twin_answer, occurrence, space"
KEYS = ("prompt", "subject", "answer", "twin_prompt", "twin_answer", "occurrence", "space")
ROME = ("known_id", "attribute", "template", "prediction", "relation_id")
"""Further keys of ROME's known_1000.json, which has the answer as ``attribute``."""
Refusal = Callable[[str, str], MechintError]
"""Makes an error of a problem and what to do about it."""


@dataclass(frozen=True)
class Fact:
    """One line: token ids, where the subject is, the answer's tokens, and the twin's first where there is a twin."""

    where: str
    tokens: list[int]
    subject: tuple[int, int]
    answer: list[int]
    twin: list[int] | None
    wrong: int | None
    cluster: int
    several: bool
    """True if the answer is several tokens, asked for or not."""


class FactFile(Task):
    """JSON Lines with ``prompt``, ``subject``, ``answer`` and, for a counterfactual, ``twin_prompt``, ``twin_answer``.

    ``{"prompt": "The Eiffel Tower is in the city of", "subject": "Eiffel Tower", "answer": "Paris", "twin_prompt":
    "The Taj Mahal is in the city of", "twin_answer": "Agra"}``. A subject is a whole word or phrase; where it is there
    several times, ``occurrence`` says which one is meant, from 1. A file in the layout of ROME's known_1000.json (an
    array of objects with ``prompt``, ``subject``, ``attribute``) is read as it is.

    Prompt and answer are read together, and the answer is the tokens after the prompt's; whether a space stands
    between them is the option ``space``, or a line's own ``space`` (true or false). Prompts may differ in length,
    twins of one prompt may not. For an answer of several tokens the task asks for the first token, or (``answers``
    whole) for all: the prompt then goes on with all of the answer but its last token, and so does the twin.

    Half of the prompts are for discovery, half for evaluation; lines with one subject stay in one half. Prompts that
    all have one subject are dealt out one by one, and each is then its own template. The split ``every`` is all of
    them.
    """

    has_twins = False
    aligned = False

    def __init__(self, config: TaskConfig, tokenizer: Any) -> None:
        self.name, self.whole, self.space = config.name, config.answers == "whole", config.space
        if tokenizer is None:
            raise self.refuse("the model has no tokenizer to read text with", lacking())
        self.tokenizer, self.encoder = tokenizer, Encoder(tokenizer, config.bos)
        self.front = self.encoder.front
        lines = [self.prompt_of(config)] if config.name == "prompt" else self.read(config.file)
        facts = [self.parse(line) for line in lines]
        self.halves, self.one_subject = halves(facts)
        self.facts = facts if not self.one_subject else [replace(f, cluster=mix("prompt", *f.tokens)) for f in facts]
        self.has_twins = all(fact.twin is not None for fact in self.facts)
        self.length = max(len(fact.tokens) + len(fact.answer) - 1 for fact in self.facts)
        self.vocab_size = 1 + max(max(*fact.tokens, *fact.answer, *(fact.twin or [0])) for fact in self.facts)
        several = sum(fact.several for fact in self.facts)
        what = f"{len(lines)} prompts of {Path(config.file).name}" if config.name == "file" else repr(config.prompt)
        asked = "all are asked for, each read on from the ones before" if self.whole else "the first is asked for"
        self.description = (
            f"Text: {what}"
            + (f"; of {several} answers that are several tokens {asked}" if several else "")
            + ("; all have one subject, so they are counted and halved one by one" if self.one_subject else "")
            + self.encoder.said
        )

    def prompt_of(self, config: TaskConfig) -> Line:
        """The line that the options prompt, subject and answer are."""
        said = {name: getattr(config, name) for name in ("prompt", "subject", "answer")}
        if missing := [name for name, text in said.items() if not text]:
            raise self.refuse(
                f"prompt, subject and answer must all be given, and {missing[0]} is empty",
                f"set {named('task', missing[0])}",
            )
        self.fingerprint = ""
        entry = {**said, **({"occurrence": config.occurrence} if config.occurrence else {})}
        return check_line("the prompt", entry, self.refuse)

    def read(self, file: str) -> list[Line]:
        if not file:
            raise self.refuse("no file is named", f"set {named('task', 'file')} to a file of JSON lines")
        data, lines = read_lines(Path(file).expanduser(), self.refuse)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        return lines

    def parse(self, line: Line) -> Fact:
        """The tokens of a line.

        Raises:
            MechintError: the subject is not there, or several times, or the tokenizer joins prompt and answer.
        """
        prompt = self.encoded(line.where, "prompt", line.prompt)
        subject = self.subject_of(line, prompt)
        answer = self.answer_of(line, line.prompt, line.answer, "answer")
        twin, wrong = None, None
        if line.twin_prompt is not None and line.twin_answer is not None:
            twin = self.encoded(line.where, "twin_prompt", line.twin_prompt).ids
            if len(twin) != len(prompt.ids):
                raise self.refuse(
                    f"{line.where}: the prompt has {len(prompt.ids)} tokens and its twin {len(twin)}",
                    "a counterfactual twin must have as many",
                )
            wrong = self.answer_of(line, line.twin_prompt, line.twin_answer, "twin_answer")[0]
            if wrong == answer[0]:
                raise self.refuse(
                    f"{line.where}: prompt and twin have answers of the same first token", "choose another twin"
                )
        asked = answer if self.whole else answer[:1]
        return Fact(line.where, prompt.ids, subject, asked, twin, wrong, mix(line.subject), len(answer) > 1)

    def encoded(self, where: str, key: str, text: str) -> Encoded:
        found = self.encoder.prompt(text)
        if len(found.ids) == len(self.encoder.front):
            raise self.refuse(f"{where}: the {key} {short(repr(text), 60)} has no tokens", "write some text")
        return found

    def subject_of(self, line: Line, prompt: Encoded) -> tuple[int, int]:
        """The first token of the subject, and the one after its last."""
        found, inside = places(line.subject, line.prompt)
        name = short(repr(line.subject), 80)
        if not found:
            how = "in the prompt inside other words alone, not as a whole word" if inside else "not in the prompt"
            tokens = short([self.tokenizer.id_to_token(token) for token in prompt.ids], 400)
            raise self.refuse(
                f"{line.where}: the subject {name} is {how}, whose tokens are {tokens}",
                "write the subject as it stands there",
            )
        if line.occurrence is None and len(found) > 1:
            raise self.refuse(
                f"{line.where}: the subject {name} is {len(found)} times in the prompt",
                f"say which one is meant: {self.choice}, from 1 to {len(found)}",
            )
        if line.occurrence is not None and line.occurrence > len(found):
            raise self.refuse(
                f"{line.where}: occurrence is {line.occurrence}, and the subject {name} is {len(found)} times in the "
                "prompt",
                f"take 1 to {len(found)}",
            )
        start = found[(line.occurrence or 1) - 1]
        end = start + len(line.subject)
        at = [k for k, (low, high) in enumerate(prompt.offsets) if low < end and high > start and high > low]
        if not at:
            raise self.refuse(
                f"{line.where}: the tokenizer has no tokens for the subject {name}", "take a subject that it can read"
            )
        if at[0] == len(self.encoder.front) and at[-1] == len(prompt.ids) - 1:
            raise self.refuse(f"{line.where}: the whole prompt is its subject", "ask something about it")
        return at[0], at[-1] + 1

    @property
    def choice(self) -> str:
        """Says how to name the occurrence of a subject that is meant."""
        if self.name == "file":
            return '"occurrence" in that line'
        return named("task", "occurrence")

    def answer_of(self, line: Line, prompt: str, answer: str, key: str) -> list[int]:
        """The tokens of an answer after a prompt."""
        space = {True: "yes", False: "no", None: self.space}[line.space]
        gap = {"yes": " ", "no": "", "auto": space_between(prompt, answer)}[space]
        if gap and (prompt[-1].isspace() or answer[0].isspace()):
            gap = ""
        found = self.encoder.behind(prompt, gap + answer)
        if found:
            return found
        both = short(repr(prompt[-30:] + gap + answer), 120)
        if found is None:
            raise self.refuse(
                f"{line.where}: the tokenizer joins the end of the prompt with its {key} in {both}, so no token begins "
                f"the {key}",
                "leave a space at the prompt's end to the answer, or end the prompt at another place",
            )
        raise self.refuse(f"{line.where}: the {key} in {both} has no tokens", "write one that the tokenizer can read")

    def groups(self, count: int, split: str, seed: int) -> list[Prompts]:
        """``count`` lines of a half (all when there are fewer), shortest first; one prompt serves as both halves."""
        if split == "train":
            raise self.refuse("a file of prompts is for analyses", "train on facts, recall or text")
        if split == EVERY or len(self.facts) == 1:
            half = self.facts
        else:
            half = [fact for fact, name in zip(self.facts, self.halves, strict=True) if name == split]
        order = torch.randperm(len(half), generator=generator(self.fingerprint, split, seed))[:count]
        by_length: dict[tuple[int, int], list[Fact]] = {}
        for k in sorted(order.tolist()):
            by_length.setdefault((len(half[k].tokens), len(half[k].answer)), []).append(half[k])
        return [self.prompts(facts) for _, facts in sorted(by_length.items())]

    def prompts(self, facts: list[Fact]) -> Prompts:
        """Facts whose prompts have one length, and whose answers have."""
        tokens = torch.tensor([fact.tokens + fact.answer[:-1] for fact in facts])
        answers = torch.tensor([fact.answer for fact in facts])  # [n, Q]
        twins, wrong = None, None
        if self.has_twins:
            twins = torch.tensor([(fact.twin or []) + fact.answer[:-1] for fact in facts])
            if not self.whole:  # after the first token the twins' answers are not comparable
                wrong = torch.tensor([fact.wrong for fact in facts]).unsqueeze(1)
        positions = torch.arange(tokens.shape[1] - answers.shape[1], tokens.shape[1]).expand(len(facts), -1)
        template = torch.tensor([fact.cluster for fact in facts])
        subject = torch.tensor([fact.subject for fact in facts])
        return Prompts(tokens, positions, answers, twins, wrong, template, subject, whole=self.whole)

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        groups = self.groups(count, split, 0)
        if len(groups) > 1:
            raise self.refuse("its prompts differ in length", "take them by groups()")
        return groups[0]

    def decode(self, token: int) -> str:
        return self.encoder.decode(token)


def halves(facts: Sequence[Fact]) -> tuple[list[str], bool]:
    """The half of each fact, by count: groups of one subject, the largest first, go where there are fewer prompts.

    The halves do not depend on the order of the lines. The half with more groups is for evaluation, whose
    intervals are over groups.

    Returns:
        The half of each fact, and whether there is but one subject, so that single facts were dealt out.
    """
    whole: dict[int, list[int]] = {}
    for k, fact in enumerate(facts):
        whole.setdefault(fact.cluster, []).append(k)
    one = len(whole) == 1 and len(facts) > 1
    dealt = [[k] for k in range(len(facts))] if one else list(whole.values())
    key = lambda group: (-len(group), mix(facts[group[0]].cluster, *sorted(facts[k].tokens for k in group)))
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for group in sorted(dealt, key=key):
        fewer = min((0, 1), key=lambda side: sum(map(len, sides[side])))
        sides[fewer].append(group)
    evaluation = max(sides, key=len)
    chosen = {k for group in evaluation for k in group}
    return [HALVES[k in chosen] for k in range(len(facts))], one


@dataclass(frozen=True)
class Line:
    """One entry of a file of prompts, as it was written."""

    where: str
    prompt: str
    subject: str
    answer: str
    twin_prompt: str | None = None
    twin_answer: str | None = None
    occurrence: int | None = None
    """Number of the subject's occurrence that is meant, from 1."""
    space: bool | None = None
    """True if a space stands between prompt and answer."""


def read_lines(path: Path, refuse: Refusal) -> tuple[bytes, list[Line]]:
    """The bytes of a file and its entries. Only a line feed ends a line; a byte order mark is passed over.

    Raises:
        MechintError: the file can't be read, or an entry is not what :data:`HINT` says; it names the line.
    """
    name = short(str(path))
    try:
        data = files.read_regular(path, LIMIT, "file of prompts", "name a file of JSON lines")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"{name}: byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    if text.lstrip(" \t\r\n").startswith("["):
        whole = parsed(text, name, refuse)
        found = [check_line(f"{name} entry {k}", entry, refuse) for k, entry in enumerate(whole)]
    else:
        lines = [(f"{name} line {number}", line) for number, line in enumerate(text.split("\n"), 1)]
        found = [
            check_line(where, parsed(line, where, refuse), refuse) for where, line in lines if line.strip(" \t\r\n")
        ]
    if not found:
        raise refuse(f"{name} is empty", HINT)
    return data, found


def parsed(text: str, where: str, refuse: Refusal) -> Any:
    """The JSON value of a text.

    Raises:
        MechintError: it is none, it is nested too deep, or a key is there twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise refuse(f"{where}: the key {short(twice[0], 60)!r} is there twice", "keep one of them")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        place = f" line {error.lineno}" if "\n" in text.strip() else ""
        raise refuse(f"{where}{place}: {error.msg} (column {error.colno})", f"mend it; {HINT}") from None
    except RecursionError:
        raise refuse(f"{where}: it is nested too deep", HINT) from None
    except ValueError as error:  # numbers of thousands of digits
        raise refuse(f"{where}: {short(error)}", HINT) from None


def check_line(where: str, entry: Any, refuse: Refusal) -> Line:
    """An entry with every value of the right kind; anything else is refused by name."""
    if not isinstance(entry, dict):
        raise refuse(f"{where} is not an object", HINT)
    rome = "attribute" in entry
    known = (*KEYS, *ROME) if rome else KEYS
    for key in entry:
        if key not in known:
            raise refuse(f"{where} has the unknown key {short(key, 60)!r}{did_you_mean(key[:60], known)}", HINT)
    if rome and "answer" in entry:
        raise refuse(f"{where} has an answer and an attribute", "keep one of them")
    said = {**entry, "answer": entry["attribute"]} if rome else entry
    for key in ("prompt", "subject", "answer"):
        check_text(where, key, said.get(key), refuse)
    twins = [key for key in ("twin_prompt", "twin_answer") if key in said]
    if len(twins) == 1:
        other = "twin_answer" if twins == ["twin_prompt"] else "twin_prompt"
        raise refuse(f"{where} has a {twins[0]} and no {other}", HINT)
    for key in twins:
        check_text(where, key, said[key], refuse)
    occurrence, space = said.get("occurrence"), said.get("space")
    if "occurrence" in said and (isinstance(occurrence, bool) or not isinstance(occurrence, int) or occurrence < 1):
        raise refuse(f"{where}: occurrence is {short(occurrence, 60)}", "give a whole number from 1")
    if "space" in said and not isinstance(space, bool):
        raise refuse(f"{where}: space is {short(space, 60)!r}", "give true or false")
    texts = {key: said.get(key) for key in ("prompt", "subject", "answer", "twin_prompt", "twin_answer")}
    return Line(where, **texts, occurrence=occurrence, space=space)  # type: ignore[arg-type]


def check_text(where: str, key: str, value: Any, refuse: Refusal) -> None:
    """Refuses what is not text, or text that no tokenizer can read."""
    if not isinstance(value, str) or not value:
        before = " a twin_prompt and" if key == "twin_answer" else ""
        raise refuse(f"{where} has{before} no {key}", HINT)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise refuse(
            f"{where}: the {key} has half a character (a lone surrogate) at place {error.start}", "write it again"
        ) from None
