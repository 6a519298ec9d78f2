"""A task, prompts and options of small traces."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch

import mechint
from mechint.analyses.loader import PromptLoader
from mechint.analyses.tracing.options import TraceConfig
from mechint.report.values import Value
from mechint.tasks import Prompts, TaskConfig, make_task

TASK = TaskConfig(name="recall", pairs=2, keys=12, values=12)


SMALL = TraceConfig(sites="resid_post,state,dt", eval_prompts=12, prompts=8, bootstrap=100, examples=2)


def loaders(model: Any, count: int = 12, batch: int = 5) -> list[PromptLoader]:
    """Prompts whose answers are the model's own, and whose wrong answers are what the twin raises most: it hurts."""
    task = make_task(TASK)
    found = [PromptLoader(task, split, count, batch, 0) for split in ("discovery", "evaluation")]
    for loader in found:
        for index, prompts in enumerate(loader.batches):
            assert prompts.twins is not None
            own, twin = (
                mechint.run(model, tokens, logits_at=prompts.positions).logits
                for tokens in (prompts.tokens, prompts.twins)
            )
            loader.batches[index] = dataclasses.replace(prompts, answers=own.argmax(-1), wrong=(twin - own).argmax(-1))
    return found


def metric_by_hand(name: str, logits: torch.Tensor, prompts: Prompts) -> torch.Tensor:
    """[prompt], from the last position's logits [prompt, vocabulary]."""
    rows = range(len(prompts))
    answers = torch.stack([logits[i, prompts.answers[i, -1]] for i in rows])
    if name == "logit_diff":
        assert prompts.wrong is not None
        return answers - torch.stack([logits[i, prompts.wrong[i, -1]] for i in rows])
    chance = torch.stack([logits.softmax(-1)[i, prompts.answers[i, -1]] for i in rows])
    return chance.log() if name == "answer_logprob" else chance


def made_trace(**changes: Any) -> Any:
    """A trace of made-up numbers: one map of two layers and two roles."""
    panel = {"name": "state", "value": [[0.1, None], [0.3, 0.4]], "low": [[0.0, None], [0.2, 0.1]],
             "high": [[0.2, None], [0.5, 0.9]], "n": [[8, 0], [7, 6]]}  # fmt: skip
    best = {"direction": "denoise", "panel": "state", "layer": 1, "role": "last"}
    raw = {
        "config": {"metric": "loss", "corruption": "twin", "window": 1, "noise_scale": 3.0},
        "trace": {"strongest": [best]},
    }
    settings: dict[str, Any] = {
        "directions": ["denoise"], "roles": ["subject", "last"], "unit": "share of the total effect", "raw": raw,
        "manifest": {"prompts": "p"}, "metrics": {"accuracy_full": Value(0.5, 0.4, 0.6, 9)},
        "panels": lambda direction: [panel],
    } | changes  # fmt: skip
    return SimpleNamespace(**settings)
