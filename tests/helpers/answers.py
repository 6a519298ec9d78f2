"""Answers by hand, and prompts of which a random model answers about half."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

import mechint
from mechint.analyses.loader import PromptLoader
from mechint.tasks import Prompts


def by_hand(prompts: Prompts, logits: Tensor, name: str) -> list[float]:
    """A metric [prompt] of logits [prompt, answer, vocabulary], one number after the other."""
    found = []
    for row in range(len(prompts)):
        each = []
        for k in range(prompts.answers.shape[1]):
            here = logits[row, k].double()
            chances = here.softmax(-1).tolist()
            right = [int(i) for i in prompts.good()[row, k] if i >= 0]
            if name == "accuracy":
                each.append(float(int(here.argmax()) in right))
            elif name == "logit_diff":
                bad = prompts.bad()
                assert bad is not None
                wrong = [int(i) for i in bad[row, k] if i >= 0]
                each.append(math.log(sum(chances[i] for i in right)) - math.log(sum(chances[i] for i in wrong)))
            else:
                each.append(math.log(sum(chances[i] for i in right)))
        if not prompts.whole:
            found.append(sum(each) / len(each))
        else:
            found.append(float(all(each)) if name == "accuracy" else sum(each))
    return found


def half_right(model: Any, prompts: Prompts) -> Prompts:
    """The same prompts, where every second one takes what the model says for a right answer."""
    said = mechint.run(model, prompts.tokens, logits_at=prompts.positions).logits.argmax(-1)
    every = (torch.arange(len(prompts)) % 2 == 0)[:, None]
    answers = torch.where(every, said, prompts.answers)
    if prompts.accepted is None:
        return dataclasses.replace(prompts, answers=answers)
    accepted = torch.cat([torch.where(every, said, -1).unsqueeze(-1), prompts.accepted], -1)
    accepted[..., 1:][accepted[..., 1:] == accepted[..., :1]] = -1  # an id counts once
    return dataclasses.replace(prompts, accepted=accepted)


class HalfRight(PromptLoader):
    """A loader whose prompts are :func:`half_right` for a model."""

    def __init__(self, model: Any, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.groups = [half_right(model, group) for group in self.groups]
        self.batches = [half_right(model, batch) for batch in self.batches]


@torch.no_grad()
def reference(model: Any, batches: list[Prompts], name: str) -> list[float]:
    rows = [by_hand(b, mechint.run(model, b.tokens, logits_at=b.positions).logits, name) for b in batches]
    return [value for row in rows for value in row]
