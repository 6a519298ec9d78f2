"""Orders of the units that a search begins with: attributions, or exact effects of single units where attributions
mislead or miss some."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bench import Bench, attribute, cost
from ..search.learning import start_logits
from .single_units import removal_effects

EXACT_UNITS = 4096
"""More units than these are not removed one at a time to find an order: that costs a forward for each."""

NOTES = {
    "attribution": "",
    "removal": (
        "Attribution misleads here: among the circuits in its order, signed or by size, none with half the units or "
        "fewer recovers half of the effect. Searches begin in the order of the exact effects of removing each unit "
        "alone; the report shows these effects as the importances and as the order called attribution."
    ),
    "misled": (
        "Attribution misleads here: among the circuits in its order, signed or by size, none with half the units or "
        f"fewer recovers half of the effect; with more than {EXACT_UNITS} units the exact effects are not measured. "
        "Attribution may work better with another METRIC or ABLATION."
    ),
    "needed": (
        "Attribution misses units here: no circuit in its order, signed or by size, recovers half of the effect at "
        "the requested size, or at the first size found to be enough. Larger circuits were tried, of twice, four "
        "times, … that size; searches began in the order of the exact effects of removing each unit alone from the "
        "smallest of them that recovers half, since circuits in this order are better."
    ),
}


def starting_scores(bench: Bench, metric: str, attributed: Tensor | None = None) -> tuple[Tensor, str]:
    """Scores [units] to begin a search with, and how they were made: a key of :data:`NOTES`.

    Integrated gradients, unless they mislead: a circuit whose parts do harm until all are there (the KL of partial
    circuits exceeds that of the empty one) has gradients of either sign on the way, and none that ranks its units.

    Args:
        bench: The discovery prompts.
        metric: Metric that the search preserves.
        attributed: Result of :func:`mechint.analyses.circuits.bench.attribute`, if it is known.
    """
    scores = attribute(bench, metric) if attributed is None else attributed
    if not misleads(bench, metric, scores):
        return scores, "attribution"
    if bench.units.total > EXACT_UNITS:
        return scores, "misled"
    return removal_effects(bench, metric), "removal"


def misleads(bench: Bench, metric: str, scores: Tensor) -> bool:
    """True if no circuit of 1/2, 1/4, … of the units in these orders, signed or by size, costs at most half of what the
    empty circuit costs.

    On the compiled models the best such circuit costs either nothing or 98 % and more.
    """
    size, nothing = bench.units.total // 2, cost(bench, metric, torch.zeros_like(scores))
    while size:
        if half_way(bench, metric, scores, size, nothing) is not None:
            return False
        size //= 2
    return True


def half_way(bench: Bench, metric: str, scores: Tensor, size: int, nothing: float) -> Tensor | None:
    """These scores, or their sizes, if the circuit of ``size`` units in that order costs less than half of ``nothing``,
    what the empty circuit costs: the first that does; None if neither does."""
    signed, by_size = (bench.units.top(start_logits(order), size) for order in (scores, scores.abs()))
    if cost(bench, metric, signed) < 0.5 * nothing:
        return scores
    if not torch.equal(signed, by_size) and cost(bench, metric, by_size) < 0.5 * nothing:
        return scores.abs()
    return None


def further_orders(bench: Bench, metric: str, scores: Tensor, size: int) -> list[Tensor]:
    """A further order to begin a search for ``size`` units in, as ranks [units]; none where the scores' own will do.

    With flat steps (saturated attention, thresholds), a necessary unit can have no gradient anywhere on the path. It
    then ranks just below the units with a gradient, so a larger circuit contains it, and removing it from that circuit
    shows its effect. Units outside that circuit come last, in the scores' order.

    Args:
        bench, metric, scores: As in :func:`starting_scores`, and what that gave.
        size: Size of the circuit that is searched for. If no circuit of this size is good, this does not judge the
            scores: it must be the requested size, or known to suffice.
    """
    size = min(size, bench.units.total)
    nothing = cost(bench, metric, torch.zeros_like(scores))
    order, larger = half_way(bench, metric, scores, size, nothing), size
    if order is not None:
        return []
    while order is None and larger < bench.units.total:
        larger = min(2 * larger, bench.units.total)
        order = half_way(bench, metric, scores, larger, nothing)
    if order is None or larger > EXACT_UNITS:
        return []
    ascending = torch.sort(start_logits(order), stable=True).indices
    inside = ascending[-larger:]
    effects = removal_effects(bench, metric, inside.sort().values)
    ranked = torch.cat([ascending[:-larger], inside[torch.sort(effects[inside], stable=True).indices]])
    ranks = torch.empty_like(scores)
    ranks[ranked] = torch.arange(len(scores), device=scores.device, dtype=scores.dtype)
    return [ranks]
