"""Contexts: the token sequences that activations are taken from, in numbered batches, and which tokens count.

A batch is a function of its number alone, so any part of a corpus can be made again: streams are resumed, caches are
filled in pieces, and processes share the work without communication.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...models.loading.tokenizer import Encoder, special_ids
from ...tasks import Task, mix
from ...utils.errors import MechintError, did_you_mean
from ...utils.options import listed

KINDS = ("text", "bos", "boundary", "padding")
"""Kinds of token: text, the beginning-of-sequence token, padding, or any other special token, as between documents."""
TEXT, BOS, BOUNDARY, PADDING = range(len(KINDS))
NAMES = {
    BOS: ("<s>", "<bos>", "[CLS]", "<|begin_of_text|>"),
    PADDING: ("<pad>", "[PAD]", "<|padding|>"),
}
"""Names that tokenizers give some of their special tokens; the others are boundaries."""


class Contexts(Protocol):
    """Numbered batches of contexts.

    Attributes:
        length: Tokens of a context, L.
        rows: Contexts of a batch; the last batch of a finite corpus may have fewer.
        batches: Number of batches; None if they never end.
        fingerprint: Hash of all that decides the tokens.
        name: For people.
    """

    length: int
    rows: int
    batches: int | None
    fingerprint: str
    name: str

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        """Tokens [rows, L] of batch i, and the kind of each by its number in :data:`KINDS`, [rows, L] uint8."""
        ...


def excluded(names: str | Iterable[str]) -> tuple[int, ...]:
    """The kinds that ``"bos,padding"`` names.

    Raises:
        MechintError: there is no such kind, or nothing would be left.
    """
    wanted = listed(names, "exclude") if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in KINDS[1:]:
            raise MechintError(f"no kind of token {name!r}{did_you_mean(name, KINDS[1:])}; take {', '.join(KINDS[1:])}")
    return tuple(KINDS.index(name) for name in wanted)


def special_kinds(tokens: Tensor, tokenizer: Any) -> Tensor:
    """The kind of each token [..., L] by the tokenizer's own flags, uint8; all text without one.

    Among the tokens that it flags as special, those that its template puts in front of a text are the beginning.
    """
    kinds = torch.zeros_like(tokens, dtype=torch.uint8)
    if tokenizer is None:
        return kinds
    front = Encoder(tokenizer).template
    for token, name in special_ids(tokenizer).items():
        kind = next((kind for kind, names in NAMES.items() if name in names), BOUNDARY)
        kinds[tokens == token] = BOS if token in front else PADDING if "pad" in name.lower() else kind
    return kinds


class TaskContexts:
    """The prompts of a task's split, drawn anew for each batch, without an end.

    Positions after a prompt's last answer are padding.
    """

    batches: int | None = None

    def __init__(self, task: Task, split: str, rows: int, seed: int) -> None:
        self.task, self.split, self.rows, self.seed = task, split, rows, seed
        self.length = task.length
        self.name = f"{task.description}; {split} split"
        facts = (task.name, task.description, task.fingerprint, task.length, split, rows, seed)
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        prompts = self.task.sample(self.rows, self.split, mix(self.seed, "contexts", i))
        kinds = special_kinds(prompts.tokens, self.task.tokenizer)
        behind = torch.arange(prompts.tokens.shape[1]) > prompts.positions.max(1, keepdim=True).values
        kinds[behind] = PADDING
        return prompts.tokens, kinds


class TokenContexts:
    """Contexts that are there already, in an order that the seed shuffles; see :func:`pack`.

    Args:
        tokens: [contexts, L].
        kinds: [contexts, L] by number in :data:`KINDS`; None when all are text.
        rows: Contexts of a batch.
        seed: Seed of the order; None keeps the order.
        name: For people and for the fingerprint.
    """

    def __init__(
        self, tokens: Tensor, kinds: Tensor | None = None, rows: int = 64, seed: int | None = 0, name: str = "tokens"
    ) -> None:
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise MechintError(f"contexts must be [contexts, position]; got {list(tokens.shape)}")
        self.tokens, self.name, self.rows = tokens, name, rows
        self.kinds = torch.zeros_like(tokens, dtype=torch.uint8) if kinds is None else kinds
        self.length = tokens.shape[1]
        self.batches: int | None = -(-len(tokens) // rows)
        random = None if seed is None else torch.Generator().manual_seed(mix(seed, "order of contexts"))
        self.order = torch.arange(len(tokens)) if random is None else torch.randperm(len(tokens), generator=random)
        digest = hashlib.sha256(repr((name, rows, seed)).encode())
        digest.update(tokens.contiguous().numpy().data)
        digest.update(self.kinds.contiguous().numpy().data)
        self.fingerprint = digest.hexdigest()

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        chosen = self.order[i * self.rows : (i + 1) * self.rows]
        return self.tokens[chosen], self.kinds[chosen]


@dataclass(frozen=True)
class Packed:
    """Documents in contexts of one length: tokens and kinds, [contexts, L]."""

    tokens: Tensor
    kinds: Tensor


def pack(documents: Iterable[Tensor], length: int, bos: int | None = None, boundary: int | None = None) -> Packed:
    """Documents one after another, cut into contexts; what is too short for a whole context at the end is dropped.

    Args:
        documents: Token ids of each, [tokens].
        length: Length of a context.
        bos: Token that begins every context, or None.
        boundary: Token between two documents, or None.

    Raises:
        MechintError: the documents do not fill one context.
    """
    tokens: list[Tensor] = []
    kinds: list[Tensor] = []
    for document in documents:
        if tokens and boundary is not None:
            tokens.append(torch.tensor([boundary]))
            kinds.append(torch.full((1,), BOUNDARY, dtype=torch.uint8))
        tokens.append(document.long())
        kinds.append(torch.zeros(len(document), dtype=torch.uint8))
    body = length - (bos is not None)
    joined, kind = (torch.cat(parts) if parts else torch.empty(0) for parts in (tokens, kinds))
    count = len(joined) // body if body > 0 else 0
    if count == 0:
        raise MechintError(
            f"the documents have {len(joined)} tokens, less than one context of {length}; take more text"
        )
    rows, row_kinds = joined[: count * body].view(count, body), kind[: count * body].view(count, body)
    if bos is not None:
        rows = torch.cat([torch.full((count, 1), bos), rows], 1)
        row_kinds = torch.cat([torch.full((count, 1), BOS, dtype=torch.uint8), row_kinds], 1)
    return Packed(rows, row_kinds)
