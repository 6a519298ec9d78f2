"""What a search begins with: attributions, or exact effects of single units where attributions mislead."""

from __future__ import annotations

import torch
from torch import Tensor

from .circuit import METRICS, Bench, attribute, cost
from .circuit_search import start_logits
from .minimality import removed

EXACT_UNITS = 4096
"""More units than these are not removed one at a time to find an order: that costs a forward for each."""

NOTES = {
    "attribution": "",
    "removal": (
        "Attribution misleads here: of the circuits in its order, signed or by size, none of half the units or fewer "
        "comes half the way from no unit to the model. Searches begin in the order of the exact effects of removing "
        "each unit alone, and these are the importances and the order that are called attribution."
    ),
    "misled": (
        "Attribution misleads here: of the circuits in its order, signed or by size, none of half the units or fewer "
        f"comes half the way from no unit to the model; of more than {EXACT_UNITS} units the exact effects are not "
        "measured. Another METRIC or ABLATION may be attributed better."
    ),
}


def first_scores(bench: Bench, metric: str, attributed: Tensor | None = None) -> tuple[Tensor, str]:
    """Scores [units] to begin a search with, and how they were made: a key of :data:`NOTES`.

    Integrated gradients, unless they mislead: a circuit whose parts do harm until all are there (the KL of partial
    circuits exceeds that of the empty one) has gradients of either sign on the way, and none that ranks its units.

    Args:
        bench: The discovery prompts.
        metric: What the search preserves.
        attributed: What :func:`mechint.circuit.attribute` gives, where it is known.
    """
    scores = attribute(bench, metric) if attributed is None else attributed
    if not misleads(bench, metric, scores):
        return scores, "attribution"
    if bench.units.total > EXACT_UNITS:
        return scores, "misled"
    return removal_effects(bench, metric), "removal"


def misleads(bench: Bench, metric: str, scores: Tensor) -> bool:
    """Whether no circuit of 1/2, 1/4, … of the units in these orders, signed or by size, costs half of what none does.

    On the compiled models the best such circuit costs either nothing or 98 % and more.
    """
    nothing = cost(bench, metric, torch.zeros_like(scores))
    size = bench.units.total // 2
    while size:
        for order in (scores, scores.abs()):
            if cost(bench, metric, bench.units.top(start_logits(order), size)) < 0.5 * nothing:
                return False
        size //= 2
    return True


def removal_effects(bench: Bench, metric: str) -> Tensor:
    """How far the full model is from itself without each unit alone, in what gates learn from, [units]."""
    column = METRICS[metric].learn
    everything = torch.ones(bench.units.total, device=bench.batches[0].tokens.device)
    values = removed(bench, everything, list(range(bench.units.total)), column)
    if column != "kl":
        values = (values - bench.ends[0][column].unsqueeze(1)).square()
    return values.mean(0).to(everything)
