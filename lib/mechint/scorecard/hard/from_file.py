"""Reads the scores of an outside method from a JSON file, so that any program in any language can be scored.

The file is ``{"method": "mine", "ablation": "zero", "scores": {"recall 100": [0.1, …], …}}``: for each model and seed
one number for each unit, in the order of :class:`.units.Units`. ``ablation`` may be left out.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ...analyses.ablation import ABLATIONS
from ...interventions.model import Model
from ...tasks import Task
from ...utils import files
from ...utils.errors import MechintError, did_you_mean
from ..methods import Budget, Method


def method_from(path: Path) -> tuple[str, Method]:
    """The name and the method that a file describes.

    Raises:
        MechintError: no such file, no JSON, or a file of another form.
    """
    found = files.read_json(path)
    form = 'give {"method": NAME, "ablation": …, "scores": {"MODEL SEED": [one number for each unit], …}}'
    if not isinstance(found, dict) or not isinstance(found.get("method"), str) or not found["method"]:
        raise MechintError(f"{path}: no name of a method; {form}")
    if not isinstance(found.get("scores"), dict) or not found["scores"]:
        raise MechintError(f"{path}: no scores of {found['method']}; {form}")
    ablation = found.get("ablation", "zero")
    if ablation not in ABLATIONS:
        known = ", ".join(ABLATIONS)
        raise MechintError(f"{path}: no ablation {ablation!r}{did_you_mean(str(ablation), ABLATIONS)}; take {known}")
    look_up = functools.partial(from_scores, path=path, scores=found["scores"])
    return found["method"], Method(found["method"], look_up, ablation)


def from_scores(model: Model, task: Task, budget: Budget, *, path: Path, scores: dict[str, Any]) -> Any:
    """The scores of one model and seed.

    Raises:
        MechintError: the file has none.
    """
    key = f"{budget.model} {budget.seed}"
    if key not in scores:
        raise MechintError(f"{path}: no scores of {key!r}; the file has {', '.join(sorted(scores)[:5])}, …")
    return scores[key]
