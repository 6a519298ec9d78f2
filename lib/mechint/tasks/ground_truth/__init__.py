"""Models whose circuits are known: Mambas with weights written by hand, their prompts, their truth, and scores on it.

>>> from mechint.tasks.ground_truth import BLUEPRINTS, verify
>>> compiled = BLUEPRINTS["recall"]().compile(seed=0)
>>> verify(compiled.model, compiled.truth, compiled.task)
"""

from .blueprints import Blueprint, Compiled
from .canvas import Size
from .registry import BLUEPRINTS
from .score import BASELINES, Score, score_method, score_units
from .truth import Answers, Asked, GroundTruth, Part, Where, answers, verify

__all__ = [
    "BASELINES",
    "BLUEPRINTS",
    "Answers",
    "Asked",
    "Blueprint",
    "Compiled",
    "GroundTruth",
    "Part",
    "Score",
    "Size",
    "Where",
    "answers",
    "score_method",
    "score_units",
    "verify",
]
