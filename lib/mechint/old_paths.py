"""Imports of earlier releases: each module that the documentation named answers under its old path, with a warning.

The warning is a :class:`DeprecationWarning`; the next release drops these paths.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "activation_cache": ("sae.activations.cache",),
    "activations": ("sae.activations.pools",),
    "analyses.lens.face": ("analyses.lens.notebook",),
    "attention_units": (
        "analyses.circuits.methods.attention",
        "analyses.neurons.moments",
        "attribution.attention",
    ),
    "circuit_file": ("analyses.circuits.stored",),
    "compiled": ("utils.compiled",),
    "contexts": ("sae.activations.contexts",),
    "cross_layer": ("analyses.neurons.cross_layer",),
    "decomposition": ("attribution.decomposition",),
    "delta_units": ("analyses.circuits.methods.delta", "analyses.neurons.delta"),
    "feature_units": ("analyses.circuits.feature_units",),
    "influence": ("attribution.lag_influence",),
    "mechanistic": ("runner.mechanistic",),
    "model_comparison": ("analyses.comparison.analyzer",),
    "neuron_curves": ("analyses.neurons.deletion_curves",),
    "relevance": ("attribution.relevance",),
    "report.along": ("report.along_training",),
    "report.model_comparison": ("analyses.comparison.report",),
    "sae_evaluation": ("analyses.dictionaries.evaluation",),
    "sae_training": ("sae.training",),
    "statistics": ("utils.statistics",),
    "step_down": ("utils.multiple_tests",),
    "sweep": ("interventions.sweep", "interventions.gradients"),
    "tasks.ground_truth": ("ground_truth",),
    "tasks.ground_truth.flows": ("ground_truth.edges",),
    "tasks.ground_truth.planted": ("ground_truth.planted",),
    "temporal": ("attribution.jacobians",),
    "transplant": ("interventions.transplant",),
    "unit_effects": ("analyses.unit_effects",),
    "units": ("interventions.units",),
    "utils.training_step": ("utils.checkpoint_step",),
    "workers": ("utils.workers",),
}
"""Old module -> where its definitions are now; all below ``mechint``."""
PACKAGE = __name__.rpartition(".")[0]


class OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of :data:`MOVED` by their old names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(PACKAGE + ".") or name[len(PACKAGE) + 1 :] not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        places = [f"{PACKAGE}.{place}" for place in MOVED[spec.name[len(PACKAGE) + 1 :]]]
        said = f"{spec.name} is now {' and '.join(places)}; the old path goes with the next release"
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        module, modules = types.ModuleType(spec.name, said), [importlib.import_module(place) for place in places]

        def found(name: str) -> Any:
            for there in modules:
                if hasattr(there, name):
                    return getattr(there, name)
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = found
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is left to do: every name is looked up where it is now."""


def install() -> None:
    """Lets the old paths be imported; first, since a directory of stale bytecode would be found as a package."""
    if not any(type(finder).__name__ == OldPaths.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, OldPaths())
