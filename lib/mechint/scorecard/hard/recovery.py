"""Curves of recovery: how well methods find a circuit as the noise on all weights, or the width of the model, grows.

1. Compile the model with each noise, or at each width, for each seed.
2. Hold its declared truth against its own ablations; where noise has destroyed the circuit there is nothing to find,
   and the curve ends.
3. Score the methods, as on the card.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

from ...ground_truth import IMPOSED, MODELS, Compiled, verify
from ...utils.errors import MechintError
from ...utils.options import listed
from ...utils.statistics import alone, over_seeds
from ..options import ScorecardConfig

VERIFIED = 256
"""Discovery prompts on which the declared truth of a wide model is held against its own ablations."""


def points(config: ScorecardConfig) -> list[tuple[str, float]]:
    """The points of all curves: (axis, value).

    Raises:
        MechintError: a value is not a number of that axis, a model is too wide for its circuit, or it has no such axis.
    """
    noise = [("noise", number_of(word, "noise", 0.0)) for word in listed(config.noise, "noise")]
    width = [("width", number_of(word, "widths", 1.0)) for word in listed(config.widths, "widths")]
    for name in config.names if noise or width else ():
        if name in IMPOSED:
            raise MechintError(f"{name} is trained, and has neither noise nor another width; leave it out of models")
        for _, value in width:
            wide(name, value)
    return noise + width


def number_of(word: str, what: str, least: float) -> float:
    """The value of one word of a list."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf or (what == "widths" and value != int(value)):
        kind = "whole numbers from 1 on" if what == "widths" else "numbers from 0 on"
        raise MechintError(f"{what}: {word!r} is none of the {kind} that it lists")
    return value


def wide(name: str, value: float) -> Any:
    """The sizes of a model of this width.

    Raises:
        MechintError: its circuit needs more.
    """
    blueprint = MODELS[name]()
    size = blueprint.least().comfortable().wide(int(value))
    size.check(blueprint.least_beside(size), f"{name} of width {int(value)}")
    return size


def recover(
    name: str, seed: int, axis: str, value: float, judge: Callable[[Compiled], list[dict[str, Any]]]
) -> dict[str, Any]:
    """The scores of all methods at one point; ``ends`` says why there are none where noise destroyed the circuit."""
    place = {"model": name, "seed": seed, "axis": axis, "value": value}
    blueprint = MODELS[name]()
    if axis == "noise":
        try:
            compiled = blueprint.compile(noise=value, seed=seed)
        except MechintError as error:  # compile refuses noise that takes the circuit away, which is the curve's end
            return {**place, "ends": str(error), "compiled": []}
    else:
        compiled = blueprint.compile(wide(name, value), seed=seed)
        verify(compiled.model, compiled.truth, compiled.task, VERIFIED, "discovery", seed)
    compiled.model.requires_grad_(False)
    return {**place, "ends": "", "compiled": judge(compiled)}


def curves(found: list[dict[str, Any]], methods: list[str]) -> list[dict[str, Any]]:
    """For each model, axis, value and method: AUROC and the share of exact circuits, over the seeds that have one."""
    rows = []
    places = dict.fromkeys((each["model"], each["axis"], each["value"]) for each in found)
    for model, axis, value in places:
        here = [each for each in found if (each["model"], each["axis"], each["value"]) == (model, axis, value)]
        ended = [each["ends"] for each in here if each["ends"]]
        for method in methods:
            cells = [cell for each in here for cell in each["compiled"] if cell["method"] == method]
            if cells:
                aurocs = [cell["auroc"] for cell in cells]
                rows.append(
                    {
                        "model": model,
                        "axis": axis,
                        "value": value,
                        "method": method,
                        "auroc": over_seeds(aurocs, "seeds")[0] if len(cells) > 1 else alone(aurocs[0], 1, "seed"),
                        "exact": fmean(cell["exact"] for cell in cells),
                        "seeds": len(here),
                        "destroyed": len(ended),
                        "units": cells[0]["total"],
                    }
                )
        if len(ended) == len(here):
            rows.append(
                {
                    "model": model,
                    "axis": axis,
                    "value": value,
                    "method": "",
                    "seeds": len(here),
                    "destroyed": len(ended),
                }
            )
    return rows
