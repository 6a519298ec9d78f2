"""A prompt run token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechint import Edit


def by_steps(model: Any, ids: Tensor, edits: list[Edit]) -> Tensor:
    """The logits of a run that reads one token after another; edits' positions count from the start."""
    from mechint.interventions.edits import check_edits
    from mechint.interventions.taps import Tap

    checked, cache, logits = check_edits(model.sites, edits, *ids.shape), None, []
    for t in range(ids.shape[1]):
        step, cache = model.trace(ids[:, t : t + 1], Tap((), checked, t), cache)
        logits.append(step)
    return torch.cat(logits, 1)
