"""Scores of the baselines on a model whose circuit is known."""

from __future__ import annotations

import functools

from mechint.ground_truth import Compiled
from mechint.ground_truth.score import Score, score_method
from mechint.scorecard.methods import Budget, baseline

BASELINES = ("weight_magnitude", "activation_magnitude", "gradient_x_activation")


def baseline_scores(compiled: Compiled) -> dict[str, Score]:
    budget = Budget(1, 64, 16, 10, compiled.unit)
    return {name: score_method(compiled, functools.partial(baseline, budget=budget, name=name)) for name in BASELINES}
