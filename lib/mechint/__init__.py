"""Mechanistic interpretability of Mamba and transformers: each internal tensor can be read, replaced, differentiated.

>>> import mechint
>>> model = mechint.load("output/final_model_stepV0.pt")
>>> edit = mechint.Edit("layers.0.state", "scale", 0.0, positions=[3])
>>> run = mechint.run(model, tokens, record=["layers.0.state"], edits=[edit])
"""

import importlib
from typing import TYPE_CHECKING, Any

from .utils import program  # noqa: F401  (before what takes seconds)

# isort: split
from . import old_paths
from .interventions.edits import Edit
from .interventions.run import Generation, Run, generate, run
from .interventions.watch import watch
from .models.loading.load import load
from .utils.errors import MechintError
from .utils.version import __version__

if TYPE_CHECKING:
    from .analyses.editing.notebook import edit
    from .analyses.lens.notebook import lens
    from .analyses.patchscope.notebook import patchscope
    from .analyses.paths.measure import paths
    from .analyses.steering.notebook import contrast, steer
    from .attribution.lag_influence import run_temporal_causality_analysis
    from .runner.mechanistic import ExperimentConfig, MambaMechanisticAnalyzer, run_sae_analysis
    from .runner.notebook import analyse, circuit, patch, trace
    from .runner.results import results

__all__ = [
    "Edit", "ExperimentConfig", "Generation", "MambaMechanisticAnalyzer", "MechintError", "Run", "__version__",
    "analyse", "circuit", "contrast", "edit", "generate", "lens", "load", "patch", "patchscope", "paths", "results",
    "run", "run_sae_analysis", "run_temporal_causality_analysis", "steer", "trace", "watch",
]  # fmt: skip

# Imported when they are first asked for: few callers need all that a study is made of.
_LATER = {
    **{name: "runner.notebook" for name in ("analyse", "circuit", "patch", "trace")},
    "ExperimentConfig": "runner.mechanistic",
    "MambaMechanisticAnalyzer": "runner.mechanistic",
    "edit": "analyses.editing.notebook",
    "patchscope": "analyses.patchscope.notebook",
    "paths": "analyses.paths.measure",
    "run_sae_analysis": "runner.mechanistic",
    "contrast": "analyses.steering.notebook",
    "lens": "analyses.lens.notebook",
    "steer": "analyses.steering.notebook",
    "results": "runner.results",
    "run_temporal_causality_analysis": "attribution.lag_influence",
}


old_paths.install()


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
