"""Mechanistic interpretability of Mamba and transformers: each internal tensor can be read, replaced, differentiated.

>>> import mechint
>>> model = mechint.load("output/final_model_stepV0.pt")
>>> edit = mechint.Edit("layers.0.state", "scale", 0.0, positions=[3])
>>> run = mechint.run(model, tokens, record=["layers.0.state"], edits=[edit])
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import interrupts  # noqa: F401  (before what takes seconds)
from .errors import MechintError
from .interventions import Edit
from .models.load import load
from .run import Generation, Run, generate, run
from .watch import watch

if TYPE_CHECKING:
    from .influence import run_temporal_causality_analysis
    from .mechanistic import ExperimentConfig, MambaMechanisticAnalyzer, run_sae_analysis

__version__ = "0.1.0"

__all__ = [
    "Edit", "ExperimentConfig", "Generation", "MambaMechanisticAnalyzer", "MechintError", "Run", "__version__",
    "generate", "load", "run", "run_sae_analysis", "run_temporal_causality_analysis", "watch",
]  # fmt: skip

# Imported when they are first asked for: few callers need all that a study is made of.
_LATER = {
    "ExperimentConfig": "mechanistic",
    "MambaMechanisticAnalyzer": "mechanistic",
    "run_sae_analysis": "mechanistic",
    "run_temporal_causality_analysis": "influence",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
