"""Compiled models of the scorecard."""

from __future__ import annotations

import functools

from mechint.ground_truth import BLUEPRINTS, Compiled

SEED = 100


@functools.cache
def compiled(name: str, seed: int = SEED) -> Compiled:
    found = BLUEPRINTS[name]().compile(seed=seed)
    found.model.requires_grad_(False)
    return found
