"""The scorecard: every method's score on models whose circuit is known, and on random weights, where there is none.

>>> from mechint.scorecard import ScorecardConfig, scorecard
>>> scorecard(ScorecardConfig(models="recall", seeds=1, output_dir="output/recall"))

An outside method is scored beside ours: ``scorecard(config, {"mine": mine})``, where ``mine(model, task)`` gives one
number for each channel; see :mod:`mechint.ground_truth.score`.
"""

from .card import scorecard
from .methods import METHODS, Method
from .options import ScorecardConfig

__all__ = ["METHODS", "Method", "ScorecardConfig", "scorecard"]
