"""The base of every task: prompts with answers and counterfactual twins, in splits that share no prompt.

A prompt's *template* identifies the prompts that are variations of each other (the ordered keys of recall, the fact and
paraphrase of a fact, the block of a text). Only the template decides the split, so a template of one split is in no
other split, for every seed: a circuit is never judged on prompts that were trained on.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import MechintError, did_you_mean
from .answers import Prompts
from .config import TaskConfig

SPLITS = ("train", "discovery", "evaluation")
SHARES = 8
"""Number of equal shares of the templates: one is for discovery, one for evaluation, the others for training."""
MIN_TEMPLATES = 64
"""Below this a share could be empty, and an interval over templates would mean nothing."""


ROLES = (
    "before",
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "further tokens",
    "last token",
    "answer so far",
)


def subject_roles(about: Tensor, last: Tensor, end_of_answer: Tensor | None = None) -> Tensor:
    """The role in :data:`ROLES` of each token, [n, L], from which of them the prompt is about [n, L] and its end [n].

    A subject of one token is a last subject token; the last token of the prompt is that, whatever else it is. Tokens
    after it are -1, but for those of an answer that is read on to a position [n].
    """
    length = about.shape[1]
    at = torch.arange(length, device=about.device).expand_as(about)
    first, end = about.int().argmax(1, keepdim=True), length - 1 - about.flip(1).int().argmax(1, keepdim=True)
    role = torch.full_like(at, 2).where(at < end, 4).where(at >= first, 0)
    role = role.where(at != first, 1).where(at != end, 3).where(at != last[:, None], 5)
    behind = torch.full_like(at, -1)
    if end_of_answer is not None:
        behind = behind.where(at > end_of_answer[:, None], 6)
    return role.where(at <= last[:, None], behind)


class Task(ABC):
    """A source of prompts. ``length`` is their length L, ``vocab_size`` one more than the largest token id."""

    name: str
    vocab_size: int
    length: int
    has_twins: bool
    order_matters: bool | None = None
    """True if a prompt's tokens in another order would have another answer; None if unknown."""
    aligned: bool = True
    """True if a position means the same in every prompt, so that means are taken position by position."""
    whole: bool = False
    """True if a prompt's answers are the tokens of one answer, each read on from those before it."""
    description: str
    """One sentence for reports."""
    config: TaskConfig | None = None
    """The options it was made from, where :func:`mechint.tasks.make_task` made it."""
    tokenizer: Any = None
    """The ``tokenizers.Tokenizer`` whose tokens the prompts are, None where tokens are symbols or bytes."""
    front: Sequence[int] = ()
    """The tokens that every prompt begins with because the tokenizer puts them in front of a text."""
    fingerprint: str = ""
    """Hash of data that the options only point to, such as a text file; empty when the options say everything."""

    def beyond(self, vocabulary: int) -> str:
        """Says that a model of so many tokens does not have all of the task's."""
        return (
            f"task {self.name} has {self.vocab_size} different tokens but the model's vocabulary is {vocabulary}; "
            "choose the task and sizes that the model was trained on"
        )

    def longest(self) -> str:
        """Names the longest prompts, for messages."""
        return f"prompts of {self.length} tokens"

    def sample(self, count: int, split: str, seed: int) -> Prompts:
        """``count`` prompts of a split, the same ones for the same seed.

        Raises:
            MechintError: there is no such split, or ``count`` is less than 1.
        """
        if split not in SPLITS:
            raise MechintError(
                f"task {self.name}: no split {split!r}{did_you_mean(split, SPLITS)}; take {', '.join(SPLITS)}"
            )
        if count < 1:
            raise MechintError(f"task {self.name}: {count} prompts asked for; ask for at least 1")
        return self.draw(count, split, generator(self.name, split, seed))

    def groups(self, count: int, split: str, seed: int) -> list[Prompts]:
        """:meth:`sample`, by length: one group unless a task's prompts differ in length."""
        return [self.sample(count, split, seed)]

    def roles(self, prompts: Prompts) -> tuple[tuple[str, ...], Tensor]:
        """Names the role of every token in each prompt, so that effects can be averaged over prompts.

        Returns:
            Names of the roles, and the role of each token by its number, [n, L]; -1 for tokens after the last
            answer's position, which cannot act on it.

        Raises:
            MechintError: nothing says what the prompts are about.
        """
        about = prompts.about()
        if about is None:
            raise self.refuse("no subject and no counterfactual twins say what a prompt is about", "take another task")
        if self.whole:
            return ROLES, subject_roles(about, prompts.positions[:, 0], prompts.positions[:, -1])
        return ROLES, subject_roles(about, prompts.positions[:, -1])

    def fact(self, prompts: Prompts) -> Tensor:
        """The fact that each prompt says, as a number that all prompts of the fact share, [n].

        Here prompts of one subject with one last answer say one fact, wherever the subject stands.

        Raises:
            MechintError: nothing says what the prompts are about.
        """
        about = prompts.about()
        if about is None:
            raise self.refuse("no subject and no counterfactual twins say what a prompt is about", "take another task")
        rows = zip(prompts.tokens.cpu(), about.cpu(), prompts.answers[:, -1].tolist(), strict=True)
        return torch.tensor([mix("fact", answer, *tokens[own].tolist()) for tokens, own, answer in rows])

    def bytes_of(self, answers: Tensor) -> Tensor | None:
        """Bytes of text that each answer stands for, of the same shape; None where answers are not text."""
        return None

    def labels(self, prompts: Prompts) -> dict[str, Tensor]:
        """Labels of each prompt at its last answer, for probes: class numbers, [n] each.

        Taken from the prompt alone, never from what a model makes of it.
        """
        return {"answer": prompts.answers[:, -1]}

    def label_name(self, label: str, value: int) -> str:
        """A class number of a label, as options and pages name it."""
        return self.decode(value) if label == "answer" else str(value)

    @abstractmethod
    def draw(self, count: int, split: str, random: torch.Generator) -> Prompts:
        """The task's part of :meth:`sample`."""

    @abstractmethod
    def decode(self, token: int) -> str:
        """A readable name of a token."""

    def refuse(self, problem: str, remedy: str) -> MechintError:
        return MechintError(f"task {self.name}: {problem}; {remedy}")


def mix(*labels: object) -> int:
    """A seed, 0 … 2^63 - 1, that depends on every label: (seed, step) gives unrelated seeds for every step."""
    digest = hashlib.blake2b("\0".join(map(str, labels)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*labels: object) -> torch.Generator:
    """A random generator on the CPU that the labels alone decide."""
    return torch.Generator().manual_seed(mix(*labels))


def row_hash(rows: Tensor) -> Tensor:
    """A well-mixed number, 0 … 2^62 - 1, for each row of whole numbers, [n, width] -> [n]. Order matters."""
    value = torch.full((len(rows),), 0x2545F491, dtype=torch.long)
    for column in rows.unbind(1):  # the product may wrap around: it is a hash
        value = (value ^ (column + 1)) * 0x1B03738712FAD5C9
        value = value ^ (value >> 29)
    value = value * 0x369DEA0F31A53F85
    return (value ^ (value >> 32)) & ((1 << 62) - 1)


def in_split(template: Tensor, split: str) -> Tensor:
    """Selects the templates [n] of a split, [n] bool."""
    share = template % SHARES
    return share == SPLITS.index(split) - 1 if split != "train" else share >= 2


def draw_in_split(draw: Callable[[int], Tensor], count: int, split: str) -> tuple[Tensor, Tensor]:
    """Rows whose hash falls in a split, drawn again and again until there are ``count``.

    Args:
        draw: Gives n random rows, [n, width].

    Returns:
        The rows [count, width] and their hashes [count].
    """
    share = (SHARES - 2 if split == "train" else 1) / SHARES
    rows: list[Tensor] = []
    found = 0
    for _ in range(100):
        new = draw(int(1.1 * (count - found) / share) + 32)
        rows.append(new[in_split(row_hash(new), split)])
        found += len(rows[-1])
        if found >= count:
            drawn = torch.cat(rows)[:count]
            return drawn, row_hash(drawn)
    raise MechintError(f"the {split} split has next to no prompts of these sizes; choose larger task sizes")


def distinct(count: int, width: int, symbols: int, random: torch.Generator) -> Tensor:
    """``width`` different numbers below ``symbols`` in random order, [count, width]."""
    return torch.rand(count, symbols, generator=random).topk(width, dim=1).indices


def other(values: Tensor, symbols: int, random: torch.Generator) -> Tensor:
    """For each value, a random different one below ``symbols``, of the same shape."""
    return (values + torch.randint(1, symbols, values.shape, generator=random)) % symbols
