"""CPR and CMD (Mueller et al. 2025, section 3): how faithful the circuits of all sizes are that a method's scores give.

At each size the units with the highest scores are kept and all others take the values of the counterfactual twin; with
m the mean logit difference, faithfulness f = (m(circuit) - m(nothing kept)) / (m(model) - m(nothing kept)). CPR is the
area under f over the share of units that is kept, CMD the area between f and 1; the smaller CMD the better, while CPR
may exceed 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..analyses.metrics import faithfulness
from ..interventions.model import Model
from ..tasks import Task
from ..utils.statistics import area
from .methods import bench_of

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the units that are kept, as in MIB."""


class Curves:
    """Measures the circuits of any scores of one model's units, on held-out prompts."""

    def __init__(self, model: Model, task: Task, unit: str, prompts: int) -> None:
        self.bench = bench_of(model, task, "counterfactual", unit, prompts, "evaluation")
        self.sizes = sorted({max(1, round(share * self.bench.units.total)) for share in SHARES})
        self.ends = [float(end["logit_diff"].mean()) for end in self.bench.ends]
        self.known: dict[tuple[int, ...], float] = {}

    def faithful(self, scores: Tensor, size: int) -> float:
        mask = self.bench.units.top(scores, size)
        key = tuple(mask.nonzero().flatten().tolist())
        if key not in self.known:
            value = float(self.bench.measure(mask)["logit_diff"].mean())
            self.known[key] = float(faithfulness(value, *self.ends))
        return self.known[key]

    def of(self, scores: Any) -> dict[str, float]:
        """``cpr`` and ``cmd`` of scores [unit]."""
        values = torch.as_tensor(scores).detach().double().flatten()
        curve = np.array([[self.faithful(values, size) for size in self.sizes]])
        shares = [size / self.bench.units.total for size in self.sizes]
        return {"cpr": float(area(shares, curve)[0]), "cmd": float(area(shares, np.abs(1 - curve))[0])}
