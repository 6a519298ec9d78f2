"""Tasks whose answers are looked up, with the causal model that they share.

The causal model has two variables. *Before* is, at each position, the token that stood before it. *Said* is, at each
position where an answer is due, the token at that position whose *before* is the token there. An interchange
intervention gives some of the inputs of *said* the values that they have on another prompt, the source, and the causal
model gives the answer in that case.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from .answers import Prompts
from .base import Task, mix

INPUTS = ("before", "values", "query")
"""The inputs of *said*: the tokens before, those that can be said, and those asked for."""


class LookedUp(Task):
    """A task whose answer is the token that followed the one at its position, where that stood earlier.

    Attributes:
        sayable: Tokens that can be an answer.
        alike: Those of :data:`INPUTS` that a prompt and its twin have in common, where they matter.
    """

    sayable: range
    alike: tuple[str, ...] = ()

    @abstractmethod
    def exchanged(self, prompts: Prompts, random: torch.Generator) -> Prompts:
        """The prompts of :meth:`sources`, on the CPU; ``random`` draws all that is new in them."""

    def sources(self, prompts: Prompts, seed: int) -> Prompts:
        """Draws another prompt for each that asks for the same tokens, so that an interchange has a known answer."""
        random = torch.Generator().manual_seed(mix("sources", seed))
        return self.exchanged(prompts.to("cpu"), random).to(prompts.tokens.device)


def lookup(before: Tensor, values: Tensor, query: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Looks up the token that is said, [n, Q], and True where it is the only one, [n, Q] bool.

    Args:
        before: Prompts [n, L] that say which token stood before each position.
        values: Prompts that say which token stands there.
        query: Prompts whose tokens at ``positions`` are asked for.
        positions: [n, Q]; later positions say nothing yet.
    """
    asked = query.gather(1, positions)  # [n, Q]
    at = torch.arange(1, before.shape[1], device=before.device)
    match = (before[:, None, :-1] == asked[:, :, None]) & (at <= positions[:, :, None])  # [n, Q, L - 1]
    first = match.int().argmax(-1)
    said = values[:, 1:].gather(1, first)
    alike = (values[:, None, 1:] == said[:, :, None]) | ~match
    return said, match.any(-1) & alike.all(-1)
