"""Options and prompts of small analyses of neurons, and effects by hand."""

from __future__ import annotations

from typing import Any

import torch

import mechint
from mechint import Edit
from mechint.analyses.neurons.options import NeuronConfig
from mechint.tasks import Prompts
from tests.helpers.builders import tokens

SMALL = NeuronConfig(prompts=8, eval_prompts=8, bootstrap=100, random=2, top_k=4, controls=0, tokens=False)


def prompts(model: Any, count: int = 3, answers: int = 2) -> Prompts:
    """Random prompts with several answers each, and wrong ones."""
    ids = tokens(count, 7, 5)
    at = torch.tensor([[6, 3][:answers]]).expand(count, -1)
    right = torch.randint(0, 24, (count, answers), generator=torch.Generator().manual_seed(1))
    return Prompts(ids, at, right, ids.flip(1), (right + 5) % 24, torch.arange(count))


def by_hand(model: Any, batch: Prompts, metric: str, edits: list[Edit]) -> torch.Tensor:
    """The mean over answers, one prompt and answer at a time."""
    logits = mechint.run(model, batch.tokens, edits=edits).logits.log_softmax(-1)
    found = torch.zeros(len(batch), dtype=torch.float64)
    for row in range(len(batch)):
        for position, right, wrong in zip(batch.positions[row], batch.answers[row], batch.wrong[row], strict=True):
            other = logits[row, position, wrong] if metric == "logit_diff" else 0.0
            found[row] += (logits[row, position, right] - other) / batch.positions.shape[1]
    return found
