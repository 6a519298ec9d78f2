"""A circuit as a method found it on the discovery prompts, and how it was found, in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class FoundCircuit:
    """A circuit as its method found it on the discovery prompts.

    Attributes:
        mask: The circuit, [units] of 0 and 1.
        size: Units that it had before pruning.
        scores: The order of the units that it was taken from, [units]: logits of gates, or scores of a ranking.
        importance: Importance of each unit in the reports, [units].
        attribution: The attribution that its curve is drawn of, [units].
        by_size: Circuits of the method by size, for the faithfulness curve.
        results: Entries that it adds to the results.
        notes: From the results, what reports say of how it was found; empty ones are left out.
        moved: The circuits of all seeds whose search moved from where it began, for the stability.
        before_pruning: The circuit that was pruned, if one was.
        begins_elsewhere: True if searches had a further order to begin in.
    """

    mask: Tensor
    size: int
    scores: Tensor
    importance: Tensor
    attribution: Tensor
    by_size: dict[int, Tensor]
    results: dict[str, Any]
    notes: Callable[[dict[str, Any]], list[str]]
    moved: list[Tensor] = field(default_factory=list)
    before_pruning: Tensor | None = None
    begins_elsewhere: bool = False


def went_back(returned: int, searches: int, elsewhere: bool) -> str:
    """Says how many searches ended with the circuit that they began with; empty where none did."""
    if not returned:
        return ""
    begun = "order" if elsewhere else "order of attribution"
    return (
        f"{returned} of {searches} searches ended with a circuit that is worse on the discovery prompts than the "
        f"{begun} they begin with, and went back to it. They are left out of the stability, because their result does "
        f"not depend on the seed. More STEPS, or another LR, "
        "may find a better circuit."
    )


def how_pruned(results: dict[str, Any], target: float) -> str:
    """Says in words how pruning changed the circuit, and which of it is certain.

    Args:
        results: With the metrics of the circuit, and what was done to it.
        target: Faithfulness that a circuit had to keep on the discovery prompts; infinite where the size is given.
    """
    metrics, done = results["metrics"], results["pruning"]
    before, after = (f"{metrics[name]['value']:.3f}" for name in ("faithfulness_unpruned", "faithfulness"))
    tried = f"none of the {done['exchanges']:,} exchanges that were tried makes the circuit"
    if math.isinf(target):
        text = (
            f"Exchanges of single units on the discovery prompts replaced {done['exchanged']:,} units of the search's "
            f"circuit: held-out faithfulness {before} before, {after} after."
        )
        end = f"In the end {tried} more faithful."
    elif done["faithfulness_discovery_searched"] < target:
        return (
            f"No unit was removed or exchanged: on the discovery prompts the faithfulness of the search's circuit is "
            f"{done['faithfulness_discovery_searched']:.3f}, below the target {target:g}."
        )
    else:
        text = (
            f"The search kept {done['units_searched']:,} units, with a held-out faithfulness of {before}; removing and "
            f"exchanging units on the discovery prompts left {done['units']:,}, with {after}."
        )
        end = f"On these prompts no single unit can be removed, and {tried} smaller." if done["minimal"] else ""
    if done["whole"] and end:
        return f"{text} {end}"
    bound = f"at the limit of work, {done['evaluations']:,} measured circuits"
    if done["minimal"]:
        return f"{text} On these prompts no single unit can be removed; exchanges stopped {bound}."
    return (
        f"{text} Pruning stopped {bound}, so the same steps may find a smaller circuit, or a better one of this size."
    )


def how_ranked(results: dict[str, Any]) -> str:
    """Says in words how a ranking found the circuit, and by which metric where that is not the circuit's."""
    ranking, metric = results["ranking"], results["metric"]
    text = (
        f"The circuit is the {ranking['units']:,} units with the highest scores of the method {ranking['method']}: "
        f"{ranking['meaning']} ({ranking['source']}). A ranking has no search: nothing was pruned or "
        "exchanged, and no other seed was tried."
    )
    if ranking["metric"] in (None, metric):
        return text
    return f"{text} Its scores measure {ranking['metric']}, not {metric}, the metric that the circuit must preserve."
