"""Prompts of a file, or one prompt from the command line: text or token ids with a subject and an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.loading.tokenizer import Encoded, Encoder, lacking
from ...utils.errors import short
from ...utils.options import named
from ..answers import Prompts
from ..base import ROLES, Task, generator, mix
from ..config import TaskConfig
from .prompt_lines import HALVES, HINT, Line, Span, check_line, read_lines
from .word_boundaries import places, space_between

__all__ = ["EVERY", "HINT", "Fact", "FactFile", "halves"]

EVERY = "every"
"""The split that is all prompts, for what learns nothing from them."""


@dataclass(frozen=True)
class Fact:
    """One line: token ids, where the subject is, the answer's tokens, and the twin's first where there is a twin."""

    where: str
    tokens: list[int]
    subject: Span | None
    """Tokens of the subject; None where nothing says it."""
    answer: list[int]
    twin: list[int] | None
    wrong: int | None
    cluster: int
    several: bool
    """True if the answer is several tokens, asked for or not."""
    split: str | None
    """The half that its line names."""
    labels: Mapping[str, str | int]
    roles: Mapping[str, Span]
    """Tokens of each named part, the first and the one after the last."""

    @property
    def read(self) -> list[int]:
        """The tokens that the model reads: the prompt, and all of the answer asked for but its last token."""
        return self.tokens + self.answer[:-1]


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

    Half of the prompts are for discovery, half for evaluation; lines with one subject, or of one ``group``, stay in one
    half. Prompts that all have one subject are dealt out one by one, and each is then its own template. Where every
    line has a ``split``, that is its half. The split ``every`` is all of them.

    A subject may also be ``[start, end]`` in characters of the prompt. ``labels`` (an object of names and values) are
    what probes are asked about; ``roles`` (names and text or ``[start, end]``) name parts of the prompt for effects by
    role. ``prompt``, ``answer`` and twins may all be lists of token ids; places are then in tokens.
    """

    has_twins = False
    aligned = False

    def __init__(self, config: TaskConfig, tokenizer: Any) -> None:
        self.name, self.whole, self.space = config.name, config.answers == "whole", config.space
        lines = [self.prompt_of(config)] if config.name == "prompt" else self.read(config.file)
        self.by_ids = ids = isinstance(lines[0].prompt, list)
        if other := next((line for line in lines if isinstance(line.prompt, list) != ids), None):
            raise self.refuse(
                f"{other.where} has a prompt of {'text' if ids else 'token ids'}, and {lines[0].where} one of "
                f"{'token ids' if ids else 'text'}",
                "write all of them in one way",
            )
        if tokenizer is None and not ids:
            raise self.refuse("the model has no tokenizer to read text with", lacking())
        self.tokenizer, self.encoder = tokenizer, None if tokenizer is None else Encoder(tokenizer, config.bos)
        self.front = () if ids or self.encoder is None else self.encoder.front
        facts = [self.parse(line) for line in lines]
        self.check_names(facts)
        self.check_same(facts)
        grouped = any(line.group is not None for line in lines)
        self.halves, self.one_subject = self.halves_of(facts, grouped)
        self.facts = facts if not self.one_subject else [replace(f, cluster=mix("prompt", *f.tokens)) for f in facts]
        self.by_tokens = {tuple(fact.read): fact for fact in self.facts}
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
            + (
                self.encoder.said
                if self.encoder is not None and not ids
                else "; the prompts are token ids"
                if ids
                else ""
            )
        )

    def beyond(self, vocabulary: int) -> str:
        """Names the first line with a token id that a model of so many tokens does not have."""
        for fact in self.facts if self.by_ids else ():
            for token in (
                *fact.tokens,
                *fact.answer,
                *(fact.twin or ()),
                *([] if fact.wrong is None else [fact.wrong]),
            ):
                if token >= vocabulary:
                    return (
                        f"task {self.name}: {fact.where}: the token id {token} is not one of the model's {vocabulary}; "
                        "prompts and answers are ids of the model's own tokens"
                    )
        return super().beyond(vocabulary)

    def longest(self) -> str:
        """Names the line with the longest prompt, and its answer so far where all of it is read."""
        return max(self.facts, key=lambda fact: len(fact.read)).where

    def prompt_of(self, config: TaskConfig) -> Line:
        """The line that the options prompt, subject and answer are."""
        said = {name: getattr(config, name) for name in ("prompt", "subject", "answer")}
        if missing := [name for name in ("prompt", "answer") if not said[name]]:
            raise self.refuse(
                f"prompt and answer must both be given, and {missing[0]} is empty", f"set {named('task', missing[0])}"
            )
        if config.occurrence and not config.subject:
            raise self.refuse(
                f"{named('task', 'occurrence')} is {config.occurrence}, and there is no subject",
                f"set {named('task', 'subject')}",
            )
        self.fingerprint = ""
        entry = {**said, **({"occurrence": config.occurrence} if config.occurrence else {})}
        return check_line("the prompt", entry, self.refuse, bare=not config.subject)

    def read(self, file: str) -> list[Line]:
        if not file:
            raise self.refuse("no file is named", f"set {named('task', 'file')} to a file of JSON lines")
        data, lines = read_lines(Path(file).expanduser(), self.refuse)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        return lines

    def halves_of(self, facts: list[Fact], grouped: bool) -> tuple[list[str], bool]:
        """The half of each fact, as the lines say or by :func:`halves`, and whether single facts were dealt out."""
        said = [fact.split for fact in facts]
        if any(said):
            if None in said:
                raise self.refuse(
                    f"{facts[said.index(None)].where} has no split, and other lines have one", "give all lines a split"
                )
            first: dict[int, Fact] = {}
            for fact in facts:
                one = first.setdefault(fact.cluster, fact)
                if one.split != fact.split:
                    raise self.refuse(
                        f"{one.where} and {fact.where} are of one group and of different splits",
                        "keep a group in one split, or name other groups",
                    )
            if missing := [half for half in HALVES if half not in said and len(facts) > 1]:
                raise self.refuse(
                    f"no line has the split {missing[0]}",
                    "give some of the lines that split, or leave split out: an analysis that learns nothing then uses "
                    "all of them",
                )
            return [half for half in said if half is not None], False
        if grouped and len({fact.cluster for fact in facts}) == 1 and len(facts) > 1:
            raise self.refuse(
                "all prompts are of one group, which cannot be divided into halves", "name several groups, or none"
            )
        return halves(facts)

    def check_names(self, facts: list[Fact]) -> None:
        """Refuses a label that only some lines have: a probe would be asked about the others, too."""
        names = {name: fact for fact in facts for name in fact.labels}
        for fact in facts:
            if lacking_one := sorted(set(names) - set(fact.labels)):
                name = lacking_one[0]
                raise self.refuse(
                    f"{fact.where} has no label {short(name, 60)!r}, and {names[name].where} has one",
                    "give all lines the same labels",
                )

    def check_same(self, facts: list[Fact]) -> None:
        """Refuses two lines with the same tokens and other labels or roles: a prompt has one value of each."""
        first: dict[tuple[int, ...], Fact] = {}
        for fact in facts:
            one = first.setdefault(tuple(fact.read), fact)
            for what, mine, theirs in (("labels", fact.labels, one.labels), ("roles", fact.roles, one.roles)):
                if dict(mine) != dict(theirs):
                    raise self.refuse(
                        f"{one.where} and {fact.where} have the same prompt and other {what}",
                        "give them the same, or delete one of the lines",
                    )

    def parse(self, line: Line) -> Fact:
        """The tokens of a line.

        Raises:
            MechintError: the subject is not there, or several times, or the tokenizer joins prompt and answer.
        """
        cluster = mix(line.subject_text) if line.group is None else mix("group", line.group)
        subject: Span | None
        if isinstance(line.prompt, list):
            assert not isinstance(line.subject, str) and isinstance(line.answer, list)  # lines are checked
            ids, subject, answer = line.prompt, line.subject, line.answer
            if subject == (0, len(ids)):
                raise self.refuse(f"{line.where}: the whole prompt is its subject", "ask something about it")
            roles = {name: at for name, at in line.roles.items() if not isinstance(at, str)}
        else:
            prompt = self.encoded(line.where, "prompt", line.prompt)
            ids, subject = prompt.ids, self.subject_of(line, prompt) if line.subject else None
            roles = {name: self.part_of(line, prompt, name, at) for name, at in line.roles.items()}
            answer = self.answer_of(line, line.prompt, str(line.answer), "answer")
        self.check_roles(line, roles)
        twin, wrong = None, None
        if line.twin_prompt is not None and line.twin_answer is not None:
            if isinstance(line.twin_prompt, list):
                twin = line.twin_prompt
            else:
                twin = self.encoded(line.where, "twin_prompt", line.twin_prompt).ids
            if len(twin) != len(ids):
                raise self.refuse(
                    f"{line.where}: the prompt has {len(ids)} tokens and its twin {len(twin)}",
                    "a counterfactual twin must have as many",
                )
            if twin == ids:
                raise self.refuse(f"{line.where}: the twin has the tokens of its prompt", "choose another twin")
            if isinstance(line.twin_answer, list):
                wrong = line.twin_answer[0]
            else:
                wrong = self.answer_of(line, str(line.twin_prompt), line.twin_answer, "twin_answer")[0]
            if wrong == answer[0]:
                raise self.refuse(
                    f"{line.where}: prompt and twin have answers of the same first token", "choose another twin"
                )
        asked = answer if self.whole else answer[:1]
        return Fact(
            line.where, ids, subject, asked, twin, wrong, cluster, len(answer) > 1, line.split, line.labels, roles
        )

    def encoded(self, where: str, key: str, text: str) -> Encoded:
        assert self.encoder is not None  # text without a tokenizer is refused
        found = self.encoder.prompt(text)
        if len(found.ids) == len(self.front):
            raise self.refuse(f"{where}: the {key} {short(repr(text), 60)} has no tokens", "write some text")
        return found

    def subject_of(self, line: Line, prompt: Encoded) -> tuple[int, int]:
        """The first token of the subject, and the one after its last."""
        at = self.tokens_of(line, prompt, self.characters_of(line, prompt), line.subject)
        if at[0] == len(self.front) and at[1] == len(prompt.ids):
            raise self.refuse(f"{line.where}: the whole prompt is its subject", "ask something about it")
        return at

    def characters_of(self, line: Line, prompt: Encoded) -> Span:
        """The first character of the subject, and the one after its last."""
        if not isinstance(line.subject, str):
            return line.subject
        found, inside = places(line.subject, str(line.prompt))
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
        return start, start + len(line.subject)

    def tokens_of(self, line: Line, prompt: Encoded, characters: Span, name: object, what: str = "subject") -> Span:
        """The first token of some characters of the prompt, and the one after their last."""
        start, end = characters
        at = [k for k, (low, high) in enumerate(prompt.offsets) if low < end and high > start and high > low]
        if not at:
            raise self.refuse(
                f"{line.where}: the tokenizer has no tokens for the {what} {short(repr(name), 80)}",
                f"take a {what} that it can read",
            )
        return at[0], at[-1] + 1

    def part_of(self, line: Line, prompt: Encoded, role: str, at: str | Span) -> Span:
        """The tokens of a named part of the prompt."""
        what = f"role {short(repr(role), 60)}"
        if isinstance(at, str):
            found, _ = places(at, str(line.prompt))
            if len(found) != 1:
                raise self.refuse(
                    f"{line.where}: the {what} is {short(repr(at), 60)}, which is {len(found)} times in the prompt",
                    "name a word or phrase that is there once, or give [start, end] in characters",
                )
            return self.tokens_of(line, prompt, (found[0], found[0] + len(at)), at, what)
        return self.tokens_of(line, prompt, at, list(at), what)

    def check_roles(self, line: Line, roles: Mapping[str, Span]) -> None:
        """Refuses two roles of one token, and a role with the name of one that every task has."""
        for name, (start, end) in roles.items():
            if name in ROLES:
                raise self.refuse(
                    f"{line.where}: the role {name!r} has the name of one that every prompt has",
                    f"choose another name than {', '.join(ROLES)}",
                )
            for other, (low, high) in roles.items():
                if other != name and start < high and low < end:
                    raise self.refuse(
                        f"{line.where}: the roles {short(repr(name), 60)} and {short(repr(other), 60)} have a token in "
                        "common",
                        "give each token one role",
                    )

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
        assert self.encoder is not None  # text without a tokenizer is refused
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
        tokens = torch.tensor([fact.read for fact in facts])
        answers = torch.tensor([fact.answer for fact in facts])  # [n, Q]
        twins, wrong = None, None
        if self.has_twins:
            twins = torch.tensor([(fact.twin or []) + fact.answer[:-1] for fact in facts])
            if not self.whole:  # after the first token the twins' answers are not comparable
                wrong = torch.tensor([fact.wrong for fact in facts]).unsqueeze(1)
        positions = torch.arange(tokens.shape[1] - answers.shape[1], tokens.shape[1]).expand(len(facts), -1)
        template = torch.tensor([fact.cluster for fact in facts])
        about = [fact.subject for fact in facts if fact.subject is not None]
        subject = torch.tensor(about) if len(about) == len(facts) else None
        return Prompts(tokens, positions, answers, twins, wrong, template, subject, whole=self.whole)

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        groups = self.groups(count, split, 0)
        if len(groups) > 1:
            raise self.refuse("its prompts differ in length", "take them by groups()")
        return groups[0]

    def labels(self, prompts: Prompts) -> dict[str, Tensor]:
        """The answer, and the labels of the lines: values are numbered in their order, numbers before text."""
        found = super().labels(prompts)
        rows = [self.by_tokens[tuple(row)] for row in prompts.tokens.tolist()]
        for name in self.facts[0].labels:
            order = {value: k for k, value in enumerate(self.label_values(name))}
            found[name] = torch.tensor([order[fact.labels[name]] for fact in rows], device=prompts.tokens.device)
        return found

    def label_values(self, name: str) -> list[str | int]:
        """The values of a label of the lines, in the order that numbers them."""
        return sorted({fact.labels[name] for fact in self.facts}, key=lambda value: (isinstance(value, str), value))

    def label_name(self, label: str, value: int) -> str:
        own = label in self.facts[0].labels
        return str(self.label_values(label)[value]) if own else super().label_name(label, value)

    def roles(self, prompts: Prompts) -> tuple[tuple[str, ...], Tensor]:
        """The usual roles, and those that the lines name, which go before them."""
        names, role = super().roles(prompts)
        own = tuple(dict.fromkeys(name for fact in self.facts for name in fact.roles))
        for row, tokens in enumerate(prompts.tokens.tolist()):
            for name, (start, end) in self.by_tokens[tuple(tokens)].roles.items():
                role[row, start:end] = len(names) + own.index(name)
        return (*names, *own), role

    def decode(self, token: int) -> str:
        return str(token) if self.encoder is None else self.encoder.decode(token)


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
