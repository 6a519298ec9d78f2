"""Models whose circuits are known, with weights written by hand or trained to have a circuit.

With their prompts, their truth, and scores on it.

>>> from mechint.ground_truth import BLUEPRINTS, verify
>>> compiled = BLUEPRINTS["recall"]().compile(seed=0)
>>> verify(compiled.model, compiled.truth, compiled.task)
"""

from .blueprint import Blueprint, Compiled
from .gpt2.canvas import GPT2Size
from .known_models import BLUEPRINTS, FAMILIES, GPT2_BLUEPRINTS, GROUPS, HARD, IMPOSED, MEMORIES, MODELS
from .mamba.canvas import Size
from .questions import Questions, Share
from .score import Score, score_method, score_units
from .truth import Answers, Asked, GroundTruth, Part, Where, answers
from .verification import verify

__all__ = [
    "BLUEPRINTS",
    "FAMILIES",
    "GPT2_BLUEPRINTS",
    "GROUPS",
    "HARD",
    "IMPOSED",
    "MEMORIES",
    "MODELS",
    "Answers",
    "Asked",
    "Blueprint",
    "Compiled",
    "GPT2Size",
    "GroundTruth",
    "Part",
    "Questions",
    "Score",
    "Share",
    "Size",
    "Where",
    "answers",
    "score_method",
    "score_units",
    "verify",
]
