"""Tests of necessity, sufficiency and robustness of a candidate: held-out interventions against random subspaces.

At the candidate's site, at all positions, with V its basis and x_twin the same prompt's twin:

* necessity (ablation): x ← x + V Vᵀ (fill - x); *fill* is the twin's value or the mean over the discovery prompts;
* sufficiency (patching): the twin's run gets x_twin ← x_twin + V Vᵀ (x - x_twin).

An effect is the share of m(prompt) - m(twin) that is lost, or that comes back. Random subspaces have the same rank, and
what they move is scaled, prompt by prompt, to the norm that the candidate moves: a candidate has to beat perturbations
of its own size. p = (1 + #{random ≥ candidate}) / (1 + draws) (Phipson & Smyth 2010); equal but for rounding counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ...interventions.edits import Edit
from ...interventions.model import Model
from ...tasks import Prompts, mix
from ...utils.errors import MechintError
from ...utils.statistics import ClusterBootstrap, Number, p_of_draws, rank_correlation, spread
from ..interchange import Corruption, Interchange
from .candidates import Candidate
from .subspaces import orthonormal, random_basis

DIRECTIONS = {"necessity": "noise", "sufficiency": "denoise"}
DOSES = (0.25, 0.5, 0.75, 1.0)
CELLS_MIB = 256
"""Memory that the edits of one sweep may take."""
ALPHA = 0.05
ROUNDING = 64
"""Effects within so many roundings of the metric are equal: other batches add numbers in another order."""
NONE = 0.01
"""Effects below this share count as rounding and noise."""


def rounding_of(model: Model, effect: float, *sizes: float) -> float:
    """By how much shares of an effect may differ through rounding alone; never more than :data:`NONE`.

    Args:
        effect: The metric's difference that shares are of.
        sizes: The largest values of the metric.
    """
    eps = torch.finfo(next(model.parameters()).dtype).eps
    return min(NONE, ROUNDING * eps * max(1.0, *sizes) / abs(effect))


@dataclass(frozen=True)
class Held:
    """Answered held-out prompts of one length, all in one batch, with activations, gradients and effects of the sites.

    Attributes:
        clean, twin: By site, [prompt, position, unit] float64.
        pairs: By name of the test, the run that is edited.
        effect: Metric of the prompts less that of the twins, [prompt].
    """

    model: Model
    prompts: Prompts
    clean: dict[str, Tensor]
    twin: dict[str, Tensor]
    pairs: dict[str, Interchange]
    effect: Tensor

    @classmethod
    def of(cls, model: Model, batches: Sequence[Prompts], sites: Sequence[str], metric: str, least: int = 8) -> Held:
        """Raises :class:`MechintError` where too few prompts are answered, or their twins say the same."""
        if len({batch.tokens.shape[1] for batch in batches}) > 1:
            raise MechintError("a study needs prompts of one length; choose a task whose prompts share theirs")
        kept = []
        for batch in batches:
            right = Interchange(model, batch, Corruption("twin"), "noise", metric).right
            kept.append(batch[right.to(batch.tokens.device)])
        prompts = together(kept)
        asked = sum(len(batch) for batch in batches)
        if len(prompts) < least:
            raise MechintError(
                f"the model answers {len(prompts)} of {asked} held-out prompts, and a test needs {least}: "
                f"{math.ceil(least * asked / max(len(prompts), 1))} prompts would do if it answers as many of them, or "
                f"choose the task that it was trained on"
            )
        pairs = {name: Interchange(model, prompts, Corruption("twin"), way, metric) for name, way in DIRECTIONS.items()}
        pair = pairs["necessity"]
        clean, twin = (
            {site: value.flatten(2).double().cpu() for site, value in pair.values(of, list(sites)).items()}
            for of in (pair.receiver, pair.donor)
        )
        return cls(model, prompts, clean, twin, pairs, pair.clean - pair.corrupted_value)

    @property
    def rounding(self) -> float:
        """By how much shares of the mean effect may differ through rounding alone."""
        sizes = (float(end.abs().max()) for end in (self.pairs["necessity"].clean, self.effect))
        return rounding_of(self.model, float(self.effect.mean()), *sizes)

    def measure(self, test: str, site: str, moves: Iterator[Tensor], title: str) -> Tensor:
        """Share of the mean effect that each move loses (necessity) or brings back, [move, prompt].

        Args:
            moves: Vectors that are added at the site, [prompt, position, unit] each.
        """
        pair, shape = self.pairs[test], self.model.sites[site].units
        weight = next(self.model.parameters())
        size = self.prompts.tokens.numel() * math.prod(shape) * weight.element_size()
        many = max(1, CELLS_MIB * 2**20 // size)
        base = self.pairs[test].sweep([[]], title=title)[0]
        cells = ([Edit(site, "add", move.view(*move.shape[:2], *shape).to(weight))] for move in moves)
        found: list[Tensor] = []
        while some := list(itertools.islice(cells, many)):
            found.append(pair.sweep(some, title=title))
        change = torch.cat(found) - base
        return (-change if test == "necessity" else change) / self.effect.mean()


def together(batches: Sequence[Prompts]) -> Prompts:
    """Batches of one length as one."""
    columns: dict[str, Any] = {}
    for field in fields(Prompts):
        values = [getattr(batch, field.name) for batch in batches]
        columns[field.name] = (
            torch.cat(values) if all(isinstance(value, torch.Tensor) for value in values) else values[0]
        )
    return Prompts(**columns)


def moved(delta: Tensor, basis: Tensor) -> Tensor:
    """The part of a change [prompt, position, unit] that lies in a subspace."""
    return (delta @ basis) @ basis.T


def same_norm(move: Tensor, like: Tensor) -> Tensor:
    """``move`` with the norm of ``like`` on every prompt; zero where it has none."""
    size = lambda x: x.flatten(1).norm(dim=1)
    return move * (size(like) / size(move).clamp(min=1e-300))[:, None, None]


def randoms(delta: Tensor, candidate: Candidate, draws: int, seed: int) -> Iterator[Tensor]:
    """Moves of random subspaces of the candidate's rank and norm."""
    own = moved(delta, candidate.basis)
    for k in range(draws):
        generator = torch.Generator().manual_seed(mix(seed, "random subspace", candidate.name, k))
        basis = random_basis(delta.shape[-1], candidate.rank, generator)
        yield same_norm(moved(delta, basis), own)


@dataclass(frozen=True)
class Tested:
    """One candidate under one test."""

    candidate: Candidate
    test: str
    effect: Number
    random: Number
    p: float
    dose: list[Number]
    monotone: float | None
    """Rank correlation of effect and dose; 1 for a response that only rises."""

    def report(self) -> dict[str, Any]:
        names = ("test", "effect", "random", "p", "dose", "monotone")
        return {
            "candidate": self.candidate.name,
            "doses": list(DOSES),
            **{name: getattr(self, name) for name in names},
        }


def deltas(held: Held, candidate: Candidate, test: str, mean: Tensor | None) -> Tensor:
    """The change that full replacement makes at the site, [prompt, position, unit]."""
    clean, twin = held.clean[candidate.site], held.twin[candidate.site]
    if test == "sufficiency":
        return clean - twin
    return (twin if mean is None else mean) - clean


def necessity(
    held: Held,
    candidate: Candidate,
    test: str,
    *,
    mean: Tensor | None = None,
    draws: int = 400,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Tested:
    """Tests one candidate.

    Args:
        test: ``necessity`` or ``sufficiency``.
        mean: Value that replaces the candidate's part, [position, unit]; None for the twin's value.
        draws: Random subspaces.
    """
    delta = deltas(held, candidate, test, mean)
    own = moved(delta, candidate.basis)
    title = f"{test} of {candidate.name}"
    doses = held.measure(test, candidate.site, (dose * own for dose in DOSES), title)  # [dose, prompt]
    null = held.measure(test, candidate.site, randoms(delta, candidate, draws, seed), title).mean(1).numpy()
    boot = ClusterBootstrap(held.prompts.template.cpu().numpy(), bootstrap, seed)
    # effects are shares of a mean over the prompts, which varies with them
    total = held.effect.numpy()
    scale = float(total.mean())
    numbers = [boot.interval(lambda part, whole: part / whole, row.numpy() * scale, total) for row in doses]
    value = float(doses[-1].mean())
    return Tested(
        candidate,
        test,
        numbers[-1],
        spread(null.tolist(), f"{draws} random subspaces of the same rank and norm"),
        p_of_draws(value, null, held.rounding),
        numbers,
        rank_correlation([0.0, *DOSES], [0.0, *doses.mean(1).tolist()]),
    )


# ---- robustness: what the effect stands on --------------------------------------------------------------------------


def robustness(held: Held, candidate: Candidate, *, draws: int = 20, seed: int = 0) -> dict[str, Any]:
    """Noise and rotations inside and outside a candidate, and how small it can be cut.

    Numbers are the mean size of the metric's change, as a share of the mean effect. Noise has the norm of what ablation
    moves. A rotation turns the candidate's coordinates (of the difference from the mean over the prompts) within it;
    outside, those of a random subspace of the same rank orthogonal to it.
    """
    site, V = candidate.site, candidate.basis
    clean = held.clean[site]
    own = moved(held.twin[site] - clean, V)
    rest = torch.linalg.qr(torch.cat([V, torch.eye(len(V), dtype=V.dtype)], 1))[0][:, candidate.rank : len(V)]

    def generator(what: str, k: int) -> torch.Generator:
        return torch.Generator().manual_seed(mix(seed, what, candidate.name, k))

    def noise(basis: Tensor, what: str) -> Iterator[Tensor]:
        for k in range(draws):
            z = torch.randn(*clean.shape[:2], basis.shape[1], generator=generator(what, k), dtype=torch.float64)
            yield same_norm(z @ basis.T, own)

    def rotation(choose: Callable[[int], Tensor], what: str) -> Iterator[Tensor]:
        for k in range(draws):
            basis = choose(k)
            turn = random_basis(basis.shape[1], basis.shape[1], generator(what, k))
            part = (clean - clean.mean((0, 1))) @ basis
            yield (part @ turn - part) @ basis.T

    outside = rest.shape[1]
    rank = min(candidate.rank, outside)
    plans = {"noise inside": noise(V, "noise inside"), "rotation inside": rotation(lambda k: V, "rotation inside")}
    if outside:
        plans["noise outside"] = noise(rest, "noise outside")
        choose = lambda k: random_basis(len(V), rank, generator("outside", k), rest)
        plans["rotation outside"] = rotation(choose, "rotation outside")
    found: dict[str, Any] = {}
    for name, moves in sorted(plans.items()):
        effect = held.measure("necessity", site, moves, name).abs().mean(1)
        found[name] = spread(effect.tolist(), f"{draws} draws")
    return found | {"granularity": granularity(held, candidate)}


EVERY_RANK = 256
"""Candidates of larger rank are cut at this many sizes, and at every size below the first of them that holds."""


def granularity(held: Held, candidate: Candidate) -> dict[str, Any]:
    """Effect of ablating the first j principal directions of the change, and the least j with 90 % of the whole.

    Returns:
        ``ranks``, every j that was tried, with its ``effect``; ``least_rank``, None where there is no effect to cut;
        ``every_rank``, whether every j was tried: else a smaller one than the least may hold where it was not.
    """
    V, delta = candidate.basis, held.twin[candidate.site] - held.clean[candidate.site]
    inside = orthonormal((delta @ V).flatten(0, 1))  # [rank, j], the strongest first
    rank = inside.shape[1]

    def measure(sizes: Sequence[int]) -> list[float]:
        moves = (moved(delta, V @ inside[:, :j]) for j in sizes)
        found = held.measure("necessity", candidate.site, moves, "granularity").mean(1).tolist()
        return [float(value) for value in found]

    effect = by_rank(measure, rank)
    return {
        "ranks": list(effect),
        "effect": list(effect.values()),
        "least_rank": least_rank(effect) if effect[rank] > NONE else None,
        "every_rank": len(effect) == rank,
        "n": len(held.effect),
    }


def by_rank(measure: Callable[[Sequence[int]], Sequence[float]], rank: int, most: int = EVERY_RANK) -> dict[int, float]:
    """The effect of each rank from 1 to ``rank``, ascending; it need not rise with the rank, so none is left out.

    If there are more than ``most`` ranks, it tries ``most`` of them, evenly spaced, and all ranks between the first
    that holds 90 % and the one before.
    """
    sizes = sorted({round(1 + k * (rank - 1) / max(1, min(rank, most) - 1)) for k in range(min(rank, most))})
    found = dict(zip(sizes, measure(sizes), strict=True))
    first = sizes.index(least_rank(found))
    between = list(range(sizes[first - 1] + 1, sizes[first])) if first else []
    if between:
        found |= zip(between, measure(between), strict=True)
    return dict(sorted(found.items()))


def least_rank(effect: dict[int, float], part: float = 0.9) -> int:
    """The least rank whose effect is that part of the largest rank's; effects by rank."""
    whole = effect[max(effect)]
    return min(rank for rank, value in effect.items() if value >= part * whole or rank == max(effect))
