"""Mechanistic interpretability of Mamba and transformers: each internal tensor can be read, replaced, differentiated.

>>> import mechint
>>> model = mechint.load("output/final_model_stepV0.pt")
>>> edit = mechint.Edit("layers.0.state", "scale", 0.0, positions=[3])
>>> run = mechint.run(model, tokens, record=["layers.0.state"], edits=[edit])
"""

from .errors import MechintError
from .interventions import Edit
from .models.load import load
from .run import Generation, Run, generate, run
from .watch import watch

__version__ = "0.1.0"

__all__ = ["Edit", "Generation", "MechintError", "Run", "__version__", "generate", "load", "run", "watch"]
