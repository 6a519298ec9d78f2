"""Steering: a direction from contrast prompts, added to a site or projected out of it, and what that does.

A direction is the mean difference between a site on prompts that have a property and on prompts that lack it (Rimsky et
al. 2024), or the first principal component of these differences (Zou et al. 2023). Adding it pushes the model towards
the property; projecting it out removes what the site says about it (Arditi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..utils.errors import MechintError
from .edits import Edit
from .model import Model
from .run import check_tokens, run
from .sites import find_sites
from .sweep import sweep

METHODS = ("mean", "pca")
SMALLEST = 1e-12
"""Directions shorter than this, relative to the values that they come from, are no directions."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction at a site.

    Attributes:
        site: The site, such as ``layers.3.resid_post`` or ``layers.3.state``.
        vector: [units …] of the site. A strength of 1 adds it whole: the mean difference between the contrast prompts,
            or its projection on the principal component.
    """

    site: str
    vector: Tensor

    @property
    def unit(self) -> Tensor:
        """The vector at length 1."""
        return self.vector / self.vector.norm()

    def randoms(self, count: int, seed: int = 0) -> list[Direction]:
        """Random directions of the same length, the control of what any push of this size does."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(count):
            noise = torch.randn(self.vector.shape, generator=generator, dtype=torch.float64).to(self.vector)
            found.append(Direction(self.site, noise * (self.vector.norm() / noise.norm())))
        return found


@torch.no_grad()
def contrast(
    model: Model,
    positive: Sequence[Tensor] | Tensor,
    negative: Sequence[Tensor] | Tensor,
    site: str,
    position: int = -1,
    method: str = "mean",
) -> Direction:
    """The direction from prompts that lack a property to prompts that have it.

    Args:
        model: From :func:`mechint.load`.
        positive, negative: Pairs of prompts [position] of any lengths, or batches [pair, position].
        site: A site.
        position: The position of each prompt that is read, negative ones from its end.
        method: ``mean`` for the mean difference, ``pca`` for the first principal component of the differences, as long
            as the mean difference is along it and with its sign.

    Raises:
        MechintError: unequal numbers of prompts, none, no such site or method, or a direction of length zero.
    """
    if method not in METHODS:
        raise MechintError(f"no method {method!r} of finding a direction; take {' or '.join(METHODS)}")
    if len(positive) != len(negative) or not len(positive):
        raise MechintError(
            f"there are {len(positive)} prompts with the property and {len(negative)} without; give pairs of both"
        )
    if method == "pca" and len(positive) < 2:
        raise MechintError("one pair has one difference and no principal component; give more, or take the method mean")
    [site] = find_sites(model.sites, [site])
    ends = []
    for prompts in (positive, negative):
        rows = [run(model, tokens.unsqueeze(0), [site])[site][0, position] for tokens in prompts]
        ends.append(torch.stack(rows).double())
    difference = ends[0] - ends[1]  # [pair, unit …]
    found = difference.mean(0)
    if method == "pca":
        flat = difference.flatten(1)
        _, _, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
        found = (components[0] @ found.flatten() * components[0]).view_as(found)
    if float(found.norm()) <= SMALLEST * float(ends[0].norm() + ends[1].norm()):
        raise MechintError(
            f"{site}: the prompts with and without the property have the same mean there, so there is no direction; "
            "choose another site, position or prompts"
        )
    return Direction(site, found.to(next(model.parameters()).dtype))


def steer(direction: Direction, strength: float, positions: Sequence[int] | None = None) -> list[Edit]:
    """The edits that add a direction, for :func:`mechint.run`, :func:`mechint.generate` and sweeps.

    >>> mechint.generate(model, tokens, 20, edits=steer(direction, 2.0))

    Args:
        direction: From :func:`contrast`, a row of a dictionary's decoder, or a probe.
        strength: Times that the vector is added.
        positions: Where; None for every position, generated ones too.
    """
    return [Edit(direction.site, "add", strength * direction.vector, positions=positions)]


def project_out(direction: Direction, positions: Sequence[int] | None = None) -> list[Edit]:
    """The edits that remove the component of a site along a direction, x ← x − (x · d) d with d of length 1."""
    unit = direction.unit
    axes = tuple(range(-unit.dim(), 0))

    def without(x: Tensor) -> Tensor:
        d = unit.to(x)
        return x - (x * d).sum(axes, keepdim=True) * d

    return [Edit(direction.site, "replace", without, positions=positions)]


@dataclass(frozen=True, eq=False)
class SteeringCurve:
    """The effect of a direction over its strength, with its side effects, beside random directions of equal length.

    Attributes:
        strengths: [strength].
        effect: The measured number of each prompt, [strength, row].
        random_effect: The same under each random direction, [draw, strength, row].
        kl: KL(model ‖ steered model) on unrelated text in nats for each token, [strength, row of text]; None without
            text.
        random_kl: [draw, strength, row of text].
    """

    strengths: Tensor
    effect: Tensor
    random_effect: Tensor
    kl: Tensor | None
    random_kl: Tensor | None


@torch.no_grad()
def steering_curve(
    model: Model,
    tokens: Tensor,
    measure: Callable[[Tensor], Tensor],
    direction: Direction,
    strengths: Iterable[float],
    *,
    text: Tensor | None = None,
    randoms: int = 8,
    seed: int = 0,
    positions: Sequence[int] | None = None,
) -> SteeringCurve:
    """Measures prompts and unrelated text under a direction at several strengths.

    Args:
        model: From :func:`mechint.load`.
        tokens: Prompts, [row, position].
        measure: Logits [..., row, position, vocabulary] -> one number for each row, [..., row].
        direction: The direction.
        strengths: Strengths; 0 is the model itself.
        text: Token ids of unrelated text, [row of text, position]; None to leave out the side effects.
        randoms: Random directions of the same length.
        seed: Seed of these.
        positions: Positions of the prompts that are steered; None for all. Text is steered everywhere.

    Raises:
        MechintError: tokens, site or direction do not fit the model.
    """
    check_tokens(model, tokens)
    steps = torch.tensor([float(strength) for strength in strengths], dtype=torch.float64)
    every = [direction, *direction.randoms(randoms, seed)]
    shape = (len(every), len(steps), -1)

    def under(rows: Tensor, said: Callable[[Tensor], Tensor], where: Sequence[int] | None, title: str) -> Tensor:
        cells = [steer(each, strength, where) for each in every for strength in steps.tolist()]
        return sweep(model, rows, cells, said, title=title).double().cpu().view(shape)

    effect = under(tokens, measure, positions, "steering")
    kl = None
    if text is not None:
        check_tokens(model, text)
        clean = model(text).double().log_softmax(-1)

        def divergence(logits: Tensor) -> Tensor:
            return (clean.exp() * (clean - logits.double().log_softmax(-1))).sum(-1).mean(-1)

        kl = under(text, divergence, None, "side effects")
    return SteeringCurve(steps, effect[0], effect[1:], None if kl is None else kl[0], None if kl is None else kl[1:])
