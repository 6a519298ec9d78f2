"""Ranks units by the logits of gates that learn which of them to keep: the search for a circuit itself."""

from __future__ import annotations

from torch import Tensor

from ..search.learning import Search
from .evaluator import Evaluator
from .gradients import attribution
from .starting_orders import further_orders, starting_scores


def search(evaluator: Evaluator) -> Tensor:
    """Logits of the gates after one search for a circuit of the evaluator's size, [units].

    A circuit whose method this is has more: searches for the size, of several seeds, and pruning; see
    :mod:`mechint.analyses.circuits.analyzer`.
    """
    bench, metric = evaluator.bench, evaluator.metric
    scores, _ = starting_scores(bench, metric, attribution(evaluator))
    others = further_orders(bench, metric, scores, evaluator.size)
    found = Search(bench, metric, scores, evaluator.search, evaluator.seed, evaluator.size, others)
    found.run("mask search")
    return found.logits.detach()
