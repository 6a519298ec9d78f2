"""``mechint.contrast`` and ``mechint.steer``: directions from texts, and a model that is steered, for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType

import numpy as np
import torch
from torch import Tensor

from ...interventions import steering
from ...interventions.edits import Edit
from ...interventions.model import Model
from ...interventions.run import Generation, Run, generate, run
from ...interventions.steering import Direction, check_direction
from ...models.loading.tokenizer import Encoder, lacking
from ...utils.errors import MechintError, check_type

Prompts = Sequence[str] | Sequence[Tensor] | Tensor


def contrast(model: Model, positive: Prompts, negative: Prompts, site: str, method: str = "mean") -> Direction:
    """The direction at a site from prompts that lack a property to prompts that have it, read at their last token.

    Args:
        model: From :func:`mechint.load`.
        positive, negative: Texts, or token ids [position] each; for ``pca`` pairs.
        site: A site, such as ``layers.3.resid_post`` or ``layers.3.state``.
        method: ``mean`` for the difference of the means, ``pca`` for the first principal component of the pairs'
            differences.

    Raises:
        MechintError: text without a tokenizer, no such site or method, unequal numbers where pairs are needed, or a
            direction of length zero.
    """
    for side in (positive, negative):
        check_type(side, (list, tuple, Tensor), "contrast: one side's prompts", "a list of texts, or of token ids")
    high, low = ([ids(model, one) for one in side] for side in (positive, negative))
    return steering.contrast(model, high, low, site, method=method)


@dataclass(frozen=True)
class Steered:
    """A model under edits that steer it.

    Attributes:
        model: The model, which is not changed.
        edits: The edits, for :func:`mechint.run`, sweeps and every analysis of runs.
    """

    model: Model
    edits: list[Edit]

    def run(self, prompt: str | Tensor, record: Sequence[str] = ()) -> Run:
        """:func:`mechint.run` of a text or of token ids [batch, position]."""
        return run(self.model, batch_of(self.model, prompt), record, self.edits)

    def generate(self, prompt: str | Tensor, count: int = 20, temperature: float = 0.0, seed: int = 0) -> Generation:
        """:func:`mechint.generate` from a text or from token ids [batch, position]."""
        tokens = batch_of(self.model, prompt)
        return generate(self.model, tokens, count, edits=self.edits, temperature=temperature, seed=seed)

    def text(self, prompt: str, count: int = 20, temperature: float = 0.0, seed: int = 0) -> str:
        """The text that goes on from a text."""
        tokens = batch_of(self.model, prompt)
        made = self.generate(tokens, count, temperature, seed).tokens[0, tokens.shape[1] :]
        return str(self.model.tokenizer.decode(made.tolist(), skip_special_tokens=False))


def steer(
    model: Model, direction: Direction, strength: float | None = 1.0, positions: Sequence[int] | None = None
) -> Steered:
    """A model that is pushed along a direction, or that has it projected out.

    >>> mechint.steer(model, direction, 2.0).text("I think that you", 20)

    Args:
        model: From :func:`mechint.load`.
        direction: From :func:`mechint.contrast`, or a ``Direction(site, vector)`` of a latent or a probe.
        strength: Times that the direction is added; None projects it out.
        positions: Where; None for every position, generated ones too.

    Raises:
        MechintError: the direction is zero, or of another model, site or width.
    """
    check_type(direction, Direction, "steer: direction", "one of mechint.contrast, or a Direction(site, vector)")
    check_type(strength, (int, float, np.number, NoneType), "steer: strength", "a number, or None")
    check_direction(model, direction)
    if strength is None:
        return Steered(model, steering.project_out(direction, positions))
    return Steered(model, steering.steer(direction, strength, positions))


def ids(model: Model, prompt: str | Tensor) -> Tensor:
    """The token ids of a prompt, [position]."""
    check_type(prompt, (str, Tensor), "steering: a prompt", "text, or a tensor of token ids")
    if isinstance(prompt, Tensor):
        return prompt
    if model.tokenizer is None:
        raise MechintError(f"{model.source} has no tokenizer to read text with; give token ids, or {lacking()}")
    found = Encoder(model.tokenizer).prompt(prompt).ids
    if not found:
        raise MechintError("steering: a prompt is without tokens; write some text")
    return torch.tensor(found, dtype=torch.long, device=model.device)


def batch_of(model: Model, prompt: str | Tensor) -> Tensor:
    return prompt if isinstance(prompt, Tensor) else ids(model, prompt)[None]
