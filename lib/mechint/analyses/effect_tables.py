"""Tables of effects with intervals and adjusted p-values, shared by tracing, patching and path patching."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..utils.multiple_tests import max_t_of, over_present
from ..utils.statistics import (
    FEW,
    FEWEST,
    FEWEST_TESTED,
    ROOM,
    Array,
    ClusterBootstrap,
    Number,
    certain,
    effective,
    exact,
    joined,
    pearson,
    said,
)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The numbers of all batches, and the prompts that the model answers right.

    Attributes:
        found: For each batch its entries by name, [..., prompt]; ``right`` is True for the prompts that are answered.
        templates: The cluster of each prompt.
        draws, seed: Draws of the bootstrap, and its seed.
    """

    found: list[dict[str, Tensor]]
    templates: NDArray[np.int64]
    draws: int
    seed: int

    @functools.cached_property
    def right(self) -> NDArray[np.bool_]:
        return np.concatenate([part["right"].numpy() for part in self.found])

    def joined(self, name: str) -> Array:
        """One entry of all batches, for the prompts that are answered, [prompt, …]."""
        whole = np.concatenate([np.moveaxis(part[name].numpy(), -1, 0) for part in self.found])
        return np.asarray(whole[self.right])

    @functools.cached_property
    def bootstrap(self) -> ClusterBootstrap:
        return ClusterBootstrap(self.templates[self.right], self.draws, self.seed)


def ends(
    every: ClusterBootstrap, right: NDArray[np.bool_], answered: ClusterBootstrap, clean: Array, corrupted: Array | None
) -> tuple[dict[str, Number], Array | None, list[str]]:
    """Metrics of the clean and the corrupted run, the total effect to divide effects by, and notes.

    Args:
        every: The bootstrap of all prompts.
        right: True where the clean run says the right answer, [prompt].
        answered: The bootstrap of these prompts.
        clean, corrupted: The metric of the two runs, [answered prompt]; None where there is no corrupted run.

    Returns:
        The metrics; clean less corrupted, [answered prompt], or None where the corruption may change nothing.
    """
    mean = lambda values: values
    metrics = {
        "accuracy_full": every.share(right.astype(np.float64)),
        "prompts_used": exact(int(right.sum())),
        "prompts_failed": exact(int((~right).sum())),
        "clean": answered.interval(mean, clean),
    }
    if corrupted is None:
        return metrics, None, []
    difference = clean - corrupted
    metrics["corrupted"] = answered.interval(mean, corrupted)
    metrics["total_effect"] = found = answered.interval(mean, difference)
    if certain(found):
        return metrics, difference, []
    note = (
        f"The twins do not certainly lower the metric: the total effect is {said(found, '.3g')}. Effects are "
        f"therefore not given as shares of it; choose other twins or more prompts"
    )
    return metrics, None, [note]


def failed_notes(right: NDArray[np.bool_]) -> list[str]:
    """A note on the prompts that were left out."""
    if right.all():
        return []
    return [
        f"{int((~right).sum())} of {len(right)} prompts were left out: the model does not answer them, so there is "
        f"nothing to explain"
    ]


def ratio(
    bootstrap: ClusterBootstrap, means: Array, present: NDArray[np.bool_], total: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Mean effect over the prompts that have the cell, divided by the mean total effect of the same prompts.

    ``means`` and ``present`` [prompt, panel, layer, role], ``total`` [prompt] or None for a division by 1. Returns the
    ratios, both edges of their intervals and their p-values, adjusted for all cells (:mod:`.multiple_tests`); each
    [panel, layer, role], NaN where no prompt has the cell or :func:`with_effect` leaves it out, and all but the ratio
    where too few clusters do.
    """
    weight = np.ones(len(means)) if total is None else total
    flat, there = np.nan_to_num(means).reshape(len(means), -1), present.reshape(len(means), -1)
    there = with_effect(bootstrap, there, total)
    flat = np.where(there, flat, 0.0)
    edges = over_cells(bootstrap, np.divide, [flat, there * weight[:, None]], there)
    point, low, high, p = (side.reshape(means.shape[1:]) for side in edges)
    return point, low, high, p


def with_effect(bootstrap: ClusterBootstrap, present: NDArray[np.bool_], total: Array | None) -> NDArray[np.bool_]:
    """``present`` [prompt, cell] without the cells of which there is no share: those of some prompts alone whose own
    total effect is not certainly above zero, though that of all prompts is. An effect divided by nearly nothing would
    be the largest of a map.

    Args:
        total: The total effect, [prompt]; None where effects are no shares, and every cell stays.
    """
    some = ~present.all(0) & present.any(0)
    if total is None or not some.any():
        return present
    alike, at = np.unique(present[:, some], axis=1, return_inverse=True)  # many cells are of the same prompts
    point, low, _ = bootstrap.estimate(over_present, alike * total[:, None], alike.astype(np.float64), present=alike)
    kept = present.copy()
    kept[:, some] &= (np.where(np.isnan(low), point, low) > 0)[at.reshape(-1)]
    return kept


def shareless(present: NDArray[np.bool_], values: Array) -> list[str]:
    """A note on the cells that :func:`with_effect` left out; ``present`` [prompt, …], ``values`` […]."""
    count = int((present.any(0) & np.isnan(values)).sum())
    if not count:
        return []
    cells = "1 cell has" if count == 1 else f"{count} cells have"
    return [
        f"{cells} no number: the total effect of the few prompts with such tokens may be nothing, so there is no share "
        f"of it"
    ]


def over_cells(
    bootstrap: ClusterBootstrap, statistic: Callable[..., Array], columns: Sequence[Array], present: NDArray[np.bool_]
) -> tuple[Array, Array, Array, Array]:
    """A statistic of the means of ``columns``, each [prompt, cell], in every cell; cells go in lots that memory holds.

    Returns:
        The values, both edges of their intervals and their p-values, adjusted for all cells (:mod:`.multiple_tests`);
        each [cell], NaN where no prompt has the cell, and all but the value where too few clusters do.
    """
    parts = []
    step = max(1, ROOM // len(bootstrap.weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, present.shape[1], step):
            here = slice(start, start + step)
            parts.append(
                bootstrap.tested(statistic, *(column[:, here] for column in columns), present=present[:, here])
            )
    found = joined(parts)
    return np.where(present.any(0), found.value, np.nan), found.low, found.high, max_t_of(bootstrap, found)


def few_notes(templates: NDArray[np.integer[Any]], done: str) -> list[str]:
    """Notes on what cannot be estimated from so few subjects or templates."""
    few = len(set(templates.tolist()))
    if len(templates) == 1:
        return [f"One prompt was {done}: no interval and no p-value, and no statement about other prompts"]
    if few == 1:
        return [f"Prompts of one subject or template were {done}: no interval and no p-value"]
    if few < FEWEST:
        return [
            f"Prompts of {few} different subjects or templates were {done}: no interval (it takes {FEWEST}) and no "
            f"p-value (it takes {FEWEST_TESTED})"
        ]
    sizes = np.unique(templates, return_counts=True)[1].astype(np.float64)
    if float(effective(sizes)) < FEW:
        untested = f", and there is no p-value (it takes {FEWEST_TESTED})" if few < FEWEST_TESTED else ""
        apart = (
            ""
            if float(effective(sizes)) > 0.95 * few
            else f", which carry as much information as {effective(sizes):.1f} of equal size"
        )
        return [
            f"Only {few} different subjects or templates were {done}{apart}: intervals are wide and contain the true "
            f"value in fewer than 95 % of samples where effects are skewed{untested}"
        ]
    return []


def correlation(found: list[dict[str, Tensor]], direction: str, right: Array) -> list[float | None]:
    """Pearson correlation of attribution patching's estimate with the exact effect, for each panel."""
    if f"{direction} estimates" not in found[0]:
        return [None] * len(found[0][direction])
    pairs = []
    for part in found:
        answered = part["right"].numpy()
        exact, guess = (part[name].numpy()[..., answered] for name in (direction, f"{direction} estimates"))
        pairs.append((exact.reshape(len(exact), -1), guess.reshape(len(guess), -1)))
    exact, guess = (np.concatenate(side, 1) for side in zip(*pairs, strict=True))
    return [pearson(a, b) for a, b in zip(exact, guess, strict=True)]


def table(values: Array) -> list[list[float | int | None]]:
    """Converts [layer, role] to JSON: NaN becomes None."""
    return [[None if np.isnan(value) else value for value in row] for row in values.tolist()]


def plain(value: Any) -> Any:
    """Converts a number to JSON: NaN becomes None."""
    return None if np.isnan(value) else float(value)
