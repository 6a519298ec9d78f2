"""Training that imposes a known circuit on a model: which units carry which variable is decided before it learns.

Strict interchange intervention training (SIIT, Gupta et al. 2024). The trainer does it where ``--train-impose`` is
set; :mod:`mechint.ground_truth` scores methods on what comes out.
"""

from .imposed_causal import Alignment, Variable
from .imposed_circuits import ImposedCircuit, imposed_circuit
from .imposed_verify import NotImposed, check

__all__ = ["Alignment", "ImposedCircuit", "NotImposed", "Variable", "check", "imposed_circuit"]
