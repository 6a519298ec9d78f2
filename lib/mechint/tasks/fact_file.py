"""Prompts of a file, or one prompt from the command line: real text with a subject and an answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .base import Prompts, Task, generator, mix
from .config import TaskConfig

HINT = "a line is an object with prompt, subject, answer, and maybe twin_prompt, twin_answer"


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


class FactFile(Task):
    """JSON Lines with ``prompt``, ``subject``, ``answer`` and, for a counterfactual, ``twin_prompt``, ``twin_answer``.

    ``{"prompt": "The Eiffel Tower is in the city of", "subject": "Eiffel Tower", "answer": "Paris", "twin_prompt":
    "The Taj Mahal is in the city of", "twin_answer": "Agra"}``. A file in the layout of ROME's known_1000.json (an
    array of objects with ``prompt``, ``subject``, ``attribute``) is read as it is. Prompts may differ in length, twins
    of one prompt may not. Of an answer of several tokens the first is asked for, or (``answers`` whole) all: the prompt
    then goes on with all of the answer but its last token, and so does the twin. Lines with one subject stay in one
    half, discovery or evaluation.
    """

    has_twins = False
    aligned = False

    def __init__(self, config: TaskConfig, tokenizer: Any) -> None:
        self.name, self.whole = config.name, config.answers == "whole"
        if tokenizer is None:
            raise self.refuse("the model has no tokenizer to read text with", "put its tokenizer.json beside it")
        self.tokenizer = tokenizer
        if config.name == "prompt":
            if not (config.prompt and config.subject and config.answer):
                raise self.refuse("prompt, subject and answer must all be given", "set KNLP_TASK_PROMPT and its like")
            lines = [("the prompt", {"prompt": config.prompt, "subject": config.subject, "answer": config.answer})]
            self.fingerprint = ""
        else:
            lines = self.read(config.file)
        self.facts = [self.parse(where, line) for where, line in lines]
        self.has_twins = all(fact.twin is not None for fact in self.facts)
        self.length = max(len(fact.tokens) + len(fact.answer) - 1 for fact in self.facts)
        self.vocab_size = 1 + max(max(*fact.tokens, *fact.answer, *(fact.twin or [0])) for fact in self.facts)
        several = sum(len(self.tokens_of(line["prompt"], answer_of(line))) > 1 for _, line in lines)
        what = f"{len(lines)} prompts of {Path(config.file).name}" if config.name == "file" else repr(config.prompt)
        asked = "all are asked for, each read on from the ones before" if self.whole else "the first is asked for"
        self.description = f"Text: {what}" + (
            f"; of {several} answers that are several tokens {asked}" if several else ""
        )

    def read(self, file: str) -> list[tuple[str, dict[str, Any]]]:
        """(where, object) of every line."""
        if not file:
            raise self.refuse("no file is named", "set KNLP_TASK_FILE to a file of JSON lines")
        path = Path(file).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self.refuse(f"{file} can't be read ({error})", "name a file of JSON lines") from None
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        found: list[tuple[str, dict[str, Any]]] = []
        try:
            whole = json.loads(text) if text.lstrip().startswith("[") else None
        except json.JSONDecodeError as error:
            raise self.refuse(f"{file} line {error.lineno}: {error.msg}", "mend it; nothing was run") from None
        if whole is not None:
            found = [(f"{file} entry {k}", entry) for k, entry in enumerate(whole)]
        else:
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    try:
                        found.append((f"{file} line {number}", json.loads(line)))
                    except json.JSONDecodeError as error:
                        raise self.refuse(f"{file} line {number}: {error.msg}", HINT) from None
        if not found:
            raise self.refuse(f"{file} is empty", HINT)
        return found

    def parse(self, where: str, line: Any) -> Fact:
        if not isinstance(line, dict):
            raise self.refuse(f"{where} is not an object", HINT)
        for key in ("prompt", "subject"):
            if not isinstance(line.get(key), str) or not line[key]:
                raise self.refuse(f"{where} has no {key}", HINT)
        if not isinstance(answer_of(line), str) or not answer_of(line):
            raise self.refuse(f"{where} has no answer", HINT)
        prompt = self.encode(line["prompt"])
        start = line["prompt"].find(line["subject"])
        if start < 0:
            raise self.refuse(
                f"{where}: the subject {line['subject']!r} is not in the prompt, whose tokens are {prompt.tokens}",
                "write the subject as it stands there",
            )
        end = start + len(line["subject"])
        at = [k for k, (low, high) in enumerate(prompt.offsets) if low < end and high > start and high > low]
        if at[-1] == len(prompt.ids) - 1 and at[0] == 0:
            raise self.refuse(f"{where}: the whole prompt is its subject", "ask something about it")
        twin, wrong = None, None
        if "twin_prompt" in line:
            twin = self.encode(line["twin_prompt"]).ids
            if len(twin) != len(prompt.ids):
                raise self.refuse(
                    f"{where}: the prompt has {len(prompt.ids)} tokens and its twin {len(twin)}",
                    "a counterfactual twin must have as many",
                )
            if not isinstance(line.get("twin_answer"), str) or not line["twin_answer"]:
                raise self.refuse(f"{where} has a twin_prompt and no twin_answer", HINT)
            wrong = self.tokens_of(line["twin_prompt"], line["twin_answer"])[0]
        answer = self.tokens_of(line["prompt"], answer_of(line))
        if wrong == answer[0]:
            raise self.refuse(f"{where}: prompt and twin have answers of the same first token", "choose another twin")
        cluster = mix(line["subject"])
        return Fact(where, prompt.ids, (at[0], at[-1] + 1), answer if self.whole else answer[:1], twin, wrong, cluster)

    def encode(self, text: str) -> Any:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def spaced(self, prompt: str, answer: str) -> str:
        """The answer as it follows the prompt: behind a space, unless one of them has it."""
        return answer if prompt.endswith((" ", "\n")) or answer.startswith((" ", "\n")) else " " + answer

    def tokens_of(self, prompt: str, answer: str) -> list[int]:
        """The tokens of an answer as it follows the prompt."""
        return [int(token) for token in self.encode(self.spaced(prompt, answer)).ids]

    def groups(self, count: int, split: str, seed: int) -> list[Prompts]:
        """``count`` lines of a half (all when there are fewer), shortest first; one prompt serves as both halves."""
        if split == "train":
            raise self.refuse("a file of prompts is for analyses", "train on facts, recall or text")
        half = [
            f for f in self.facts if len(self.facts) == 1 or f.cluster % 2 == ("discovery", "evaluation").index(split)
        ]
        if not half:
            raise self.refuse(f"no prompt falls into the {split} half", "add more subjects")
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
            if not self.whole:  # behind the first token the twins' answers have nothing to be compared with
                wrong = torch.tensor([fact.wrong for fact in facts]).unsqueeze(1)
        positions = torch.arange(tokens.shape[1] - answers.shape[1], tokens.shape[1]).expand(len(facts), -1)
        template = torch.tensor([fact.cluster for fact in facts])
        subject = torch.tensor([fact.subject for fact in facts])
        return Prompts(tokens, positions, answers, twins, wrong, template, subject)

    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        groups = self.groups(count, split, 0)
        if len(groups) > 1:
            raise self.refuse("its prompts differ in length", "take them by groups()")
        return groups[0]

    def decode(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))


def answer_of(line: dict[str, Any]) -> Any:
    return line.get("answer", line.get("attribute"))
