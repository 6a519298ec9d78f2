"""Sentences of one length with slots, in words: ids of their own for small models, or tokens of a model's tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Task

GLUED = (",", ".")
"""Words that stand without a space before them."""


class Words:
    """Word -> token id. Without a tokenizer every word is a token; with one only words of one token can be used.

    Args:
        task: For messages.
        tokenizer: A ``tokenizers.Tokenizer`` or None.
        known: Every word that may be used; those that begin a sentence have no space before them.
        first: The words among them that begin a sentence.
    """

    def __init__(self, task: Task, tokenizer: Any, known: Sequence[str], first: Collection[str]) -> None:
        self.tokenizer = tokenizer
        self.ids: dict[str, int] = {}
        for word in dict.fromkeys(known):
            if tokenizer is None:
                self.ids[word] = len(self.ids)
                continue
            ids = tokenizer.encode(word if word in first else spaced(word), add_special_tokens=False).ids
            if len(ids) == 1:
                self.ids[word] = int(ids[0])
        self.words = {token: word for word, token in self.ids.items()}
        self.vocab_size = 1 + max(self.ids.values(), default=0)
        self.task = task

    def known(self, words: Sequence[str], least: int, what: str) -> list[str]:
        """Those of ``words`` that are one token.

        Raises:
            MechintError: they are fewer than ``least``.
        """
        found = [word for word in words if word in self.ids]
        if len(found) < least:
            raise self.task.refuse(
                f"only {len(found)} of its {len(words)} {what} are single tokens of the model's tokenizer, at least "
                f"{least} are needed",
                "write prompts of your own into a file (KNLP_TASK_NAME_FILE)",
            )
        return found

    def table(self, sentences: Sequence[Sequence[str]], slots: Sequence[str]) -> Tensor:
        """Ids [sentence, word]; -1 - k where the slot k goes."""
        holes = {slot: -1 - k for k, slot in enumerate(slots)}
        return torch.tensor([[holes[w] if w in holes else self.ids[w] for w in words] for words in sentences])

    def check(self, sentence: Tensor) -> None:
        """Refuses a tokenizer that makes other tokens of the whole sentence [L] than of its words."""
        if self.tokenizer is None:
            return
        words = [self.words[int(token)] for token in sentence]
        text = "".join([words[0], *map(spaced, words[1:])])
        if self.tokenizer.encode(text, add_special_tokens=False).ids != sentence.tolist():
            raise self.task.refuse(
                f"the model's tokenizer joins words of {text!r}",
                "write prompts of your own into a file (KNLP_TASK_NAME_FILE)",
            )

    def decode(self, token: int) -> str:
        if self.tokenizer is not None:
            return str(self.tokenizer.decode([token]))
        return self.words.get(token, f"<unused {token}>")


def spaced(word: str) -> str:
    """A word as it stands inside a sentence."""
    return word if word in GLUED else " " + word


def fill(table: Tensor, slots: Sequence[Tensor]) -> Tensor:
    """Sentences [n, L] of :meth:`Words.table` with the ids of each slot [n] where it goes."""
    for k, ids in enumerate(slots):
        table = table.where(table != -1 - k, ids.unsqueeze(1))
    return table
