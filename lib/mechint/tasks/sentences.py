"""Sentences of one length with slots, in words: ids of their own for small models, or tokens of a model's tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.loading.tokenizer import Encoder
from ..utils.options import named
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
        bos: True if a sentence begins with what the tokenizer puts in front of a text.
    """

    def __init__(
        self, task: Task, tokenizer: Any, known: Sequence[str], first: Collection[str], bos: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = None if tokenizer is None else Encoder(tokenizer, bos)
        self.beginning = min(first)
        self.ids: dict[str, int] = {}
        for word in dict.fromkeys(known):
            if tokenizer is None:
                self.ids[word] = len(self.ids)
                continue
            ids = self.inside(spaced(word)) if word not in first else self.at_start(word)
            if len(ids) == 1:
                self.ids[word] = ids[0]
        self.words = {token: word for word, token in self.ids.items()}
        self.front = [] if self.encoder is None else self.encoder.front
        """The tokens in front of every sentence's first word."""
        self.said = "" if self.encoder is None else self.encoder.said
        self.vocab_size = 1 + max([*self.ids.values(), *self.front], default=0)
        self.task = task

    def at_start(self, text: str) -> list[int]:
        """The tokens of what begins a sentence."""
        assert self.encoder is not None
        return self.encoder.ids(text)

    def inside(self, text: str) -> list[int]:
        """The tokens of what stands inside a sentence; none where they change those of its beginning."""
        assert self.encoder is not None
        return self.encoder.behind(self.beginning, text) or []

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
                f"write prompts of your own into a file, and name it in {named('task', 'file')}",
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
                f"write prompts of your own into a file, and name it in {named('task', 'file')}",
            )

    def decode(self, token: int) -> str:
        if self.encoder is not None:
            return self.encoder.decode(token)
        return self.words.get(token, f"<unused {token}>")


def spaced(word: str) -> str:
    """A word as it stands inside a sentence."""
    return word if word in GLUED else " " + word


def fill(table: Tensor, slots: Sequence[Tensor]) -> Tensor:
    """Sentences [n, L] of :meth:`Words.table` with the ids of each slot [n] where it goes."""
    for k, ids in enumerate(slots):
        table = table.where(table != -1 - k, ids.unsqueeze(1))
    return table
