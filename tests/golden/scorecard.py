"""The scores below which none may fall: a part of the scorecard, and how it was measured.

``python -m tests.golden.scorecard`` measures them again and writes ``scorecard.json``, whose difference says what a
change of a method did.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from mechint.ground_truth import IMPOSED, MODELS, Compiled
from mechint.ground_truth.edges import DECLARED
from mechint.scorecard import METHODS, ScorecardConfig
from mechint.scorecard.card import is_asked, scored
from mechint.scorecard.curves import Curves
from mechint.scorecard.edges import score_edges
from mechint.scorecard.probes import score_probes
from mechint.scorecard.traces import positions

STORED = Path(__file__).with_suffix(".json")
CONFIG, SEED = ScorecardConfig(), 100
UNITS = ("selective_copy", "recall", "gpt2_count", "gpt2_recall", "siit_gpt2_recall")
"""Models of which every method's scores are stored; one of them is trained for it, in half a minute."""
EDGES = ("count", "induction", "gpt2_latch", "gpt2_modular_sum")
"""Models whose edges and probes are."""
SCORES = ("auroc", "average_precision", "exact", "cpr", "cmd")


@functools.cache
def model(name: str) -> Compiled:
    kind = MODELS[name]()
    if name in IMPOSED:
        with tempfile.TemporaryDirectory() as folder:
            found: Compiled = kind.compile(seed=SEED, folder=folder)
    else:
        found = kind.compile(seed=SEED)
    found.model.requires_grad_(False)
    return found


def asked(name: str) -> list[str]:
    return [key for key, method in METHODS.items() if is_asked(method, model(name))]


@functools.cache
def curves(name: str) -> Curves:
    return Curves(model(name).model, model(name).task, model(name).unit, CONFIG.curve_prompts)


def units(name: str, method: str) -> dict[str, float]:
    row = scored(model(name), method, METHODS[method], CONFIG, curves(name))
    return {score: round(float(row[score]), 4) for score in SCORES}


def places(name: str) -> dict[str, float]:
    return positions(model(name), CONFIG.trace_prompts)


def edges(name: str) -> dict[str, dict[str, float]]:
    assert name in DECLARED
    rows: list[dict[str, Any]] = score_edges(model(name), CONFIG.edge_prompts, CONFIG.edges, SEED)
    rows += score_probes(model(name), CONFIG.probe_prompts, SEED)
    names = ("auroc", "average_precision", "exact", "accuracy")
    return {row["method"]: {score: round(float(row[score]), 4) for score in names if score in row} for row in rows}


def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(STORED.read_text())
    return found


if __name__ == "__main__":
    every = {
        "units": {name: {method: units(name, method) for method in asked(name)} for name in UNITS},
        "positions": {name: places(name) for name in UNITS},
        "edges": {name: edges(name) for name in EDGES},
    }
    STORED.write_text(json.dumps(every, indent=1) + "\n")
