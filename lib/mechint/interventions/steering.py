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
NULLS = ("random", "shuffled")
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
        draw = lambda: torch.randn(self.vector.shape, generator=generator, dtype=torch.float64).to(self.vector)
        return [self.as_long(draw()) for _ in range(count)]

    def as_long(self, vector: Tensor) -> Direction:
        """Another direction of this length at this site."""
        return Direction(self.site, (vector * (self.vector.norm() / vector.norm())).to(self.vector))


def check_direction(model: Model, direction: Direction) -> None:
    """Refuses a direction that this model cannot be steered along.

    Raises:
        MechintError: the model has no such site, or one of another width; the direction is zero or not finite.
    """
    [site] = find_sites(model.sites, [direction.site])
    spec, shape = model.sites[site], tuple(direction.vector.shape)
    if spec.has_sources:
        raise MechintError(f"steering: {site} is as wide as the prompt is long; choose a site of fixed width")
    if shape != spec.units:
        raise MechintError(
            f"steering: the direction at {site} has the shape {list(shape)}, and that site of {model.source} has "
            f"{list(spec.units)}; take a direction of this model and this site"
        )
    if not torch.isfinite(direction.vector).all():
        raise MechintError(f"steering: the direction at {site} has NaN or infinite entries; find it again")
    if not direction.vector.any():
        raise MechintError(f"steering: the direction at {site} is zero, so it pushes nowhere; choose another one")


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
        positive, negative: Prompts [position] of any lengths, or batches [prompt, position]; for ``pca`` pairs.
        site: A site.
        position: The position of each prompt that is read, negative ones from its end.
        method: As for :func:`between`.

    Raises:
        MechintError: no such site or method, no prompts, or a direction of length zero; see :func:`between`.
    """
    [site] = find_sites(model.sites, [site])
    check_method(method, len(positive), len(negative))
    ends = []
    for prompts in (positive, negative):
        rows = [run(model, tokens.unsqueeze(0), [site])[site][0, position] for tokens in prompts]
        ends.append(torch.stack(rows))
    return between(site, ends[0], ends[1], method)


def check_method(method: str, positive: int, negative: int) -> None:
    """Refuses an unknown method, and numbers of prompts that it cannot use."""
    if method not in METHODS:
        raise MechintError(f"no method {method!r} of finding a direction; take {' or '.join(METHODS)}")
    said = f"there are {positive} prompts with the property and {negative} without"
    if not positive or not negative:
        raise MechintError(f"{said}; give some of both")
    if method == "pca" and positive != negative:
        raise MechintError(f"{said}, and pca compares pairs; give as many of both, or take the method mean")
    if method == "pca" and positive < 2:
        raise MechintError("one pair has one difference and no principal component; give more, or take the method mean")


class NoDirection(MechintError):
    """A site has the same mean with and without the property: what differs has not got there."""


def between(site: str, positive: Tensor, negative: Tensor, method: str = "mean") -> Direction:
    """The direction from values of a site without a property to values with it.

    Args:
        site: The site.
        positive, negative: [prompt, unit …] each; for ``pca`` the rows are pairs.
        method: ``mean`` for the difference of the means, ``pca`` for the first principal component of the pairs'
            differences, as long as their mean is along it and with its sign.

    Raises:
        MechintError: no such method, or numbers of prompts that it cannot use.
        NoDirection: a direction of length zero.
    """
    check_method(method, len(positive), len(negative))
    high, low = positive.double(), negative.double()
    found = high.mean(0) - low.mean(0)
    if method == "pca":
        flat = (high - low).flatten(1)
        _, _, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
        found = (components[0] @ found.flatten() * components[0]).view_as(found)
    if float(found.norm()) <= SMALLEST * float(high.norm() + low.norm()):
        raise NoDirection(
            f"{site}: the prompts with and without the property have the same mean there, so there is no direction; "
            "choose another site, position or prompts"
        )
    return Direction(site, found.to(positive.dtype))


def shuffled(
    direction: Direction, positive: Tensor, negative: Tensor, method: str, paired: bool, count: int, seed: int = 0
) -> list[Direction]:
    """Directions of the same length, found in the same way between prompts whose property is shuffled.

    They lie where the model's own values vary, as :meth:`Direction.randoms` do not.

    Args:
        direction: From :func:`between`, of the next three arguments.
        paired: True shuffles within pairs; False shuffles all prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    every, found = torch.cat([positive, negative]), []
    for _ in range(count):
        if paired:
            swap = torch.rand(len(positive), generator=generator) < 0.5
            swap = swap.view(-1, *[1] * (positive.dim() - 1)).to(positive.device)
            ends = torch.where(swap, negative, positive), torch.where(swap, positive, negative)
        else:
            order = torch.randperm(len(every), generator=generator).to(every.device)
            ends = every[order[: len(positive)]], every[order[len(positive) :]]
        found.append(direction.as_long(between(direction.site, *ends, method).vector))
    return found


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
    randoms: int | Sequence[Direction] = 8,
    seed: int = 0,
    positions: Sequence[int] | None = None,
    logits_at: Tensor | None = None,
    memory_mib: float = 1024.0,
) -> SteeringCurve:
    """Measures prompts and unrelated text under a direction at several strengths.

    Args:
        model: From :func:`mechint.load`.
        tokens: Prompts, [row, position].
        measure: Logits [..., row, position, vocabulary] -> one number for each row, [..., row].
        direction: The direction.
        strengths: Strengths; 0 is the model itself.
        text: Token ids of unrelated text, [row of text, position]; None to leave out the side effects.
        randoms: Number of random directions of the same length, or other directions to set beside this one.
        seed: Seed of the random ones.
        positions: Positions of the prompts that are steered; None for all. Text is steered everywhere.
        logits_at: Positions of the prompts that are measured, [row, wanted]; None for all.
        memory_mib: As for :func:`mechint.interventions.sweep.sweep`.

    Raises:
        MechintError: tokens, site or direction do not fit the model.
    """
    check_tokens(model, tokens)
    check_direction(model, direction)
    steps = torch.tensor([float(strength) for strength in strengths], dtype=torch.float64)
    every = [direction, *(direction.randoms(randoms, seed) if isinstance(randoms, int) else randoms)]

    def under(
        rows: Tensor,
        said: Callable[[Tensor], Tensor],
        where: Sequence[int] | None,
        title: str,
        at: Tensor | None = None,
    ) -> Tensor:
        cells = [steer(each, strength, where) for each in every for strength in steps.tolist()]
        found = sweep(model, rows, cells, said, logits_at=at, memory_mib=memory_mib, title=title)
        return found.double().cpu().unflatten(0, (len(every), len(steps)))

    effect = under(tokens, measure, positions, "steering", logits_at)
    kl = None
    if text is not None:
        check_tokens(model, text)
        clean = model(text).double().log_softmax(-1)

        def divergence(logits: Tensor) -> Tensor:
            return (clean.exp() * (clean - logits.double().log_softmax(-1))).sum(-1).mean(-1)

        kl = under(text, divergence, None, "side effects")
    return SteeringCurve(steps, effect[0], effect[1:], None if kl is None else kl[0], None if kl is None else kl[1:])
