"""Made-up profiles of models: numbers with noise by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mechint.report.finished import FinishedRun
from mechint.utils.statistics import number


def profile(seed: int, family: str, shift: float = 0.0, noise: float = 0.01, **more: Any) -> FinishedRun:
    """A made-up profile: numbers with noise by seed, the Gini of one role shifted."""
    random = np.random.default_rng([seed, len(family)])
    value = lambda middle: number(middle + noise * random.standard_normal(), middle - 1, middle + 1, 9, "x")
    curves = ("stream_norm", "update", "effective_rank", "layer_effect", "unit_effect_gini", "attention_distance",
              "attention_entropy")  # fmt: skip
    metrics = {name: value(2.0) for name in ("loss", "bits_per_byte", "accuracy", "gain_per_mflop")}
    metrics |= {name: number(100, 100, 100, 1, "exact count") for name in (
        "parameters", "parameters_without_embeddings", "parameters_active", "flops_per_token",
        "bytes_per_generated_token", "prompts_used")}  # fmt: skip
    raw = {
        "schema": 1, "status": "complete", "report": "compare", "title": "Model comparison", "analysis": "compare",
        "checkpoint": f"{family}{seed}.pt", "label": f"{family}, 2 layers of width 8", "metric": "answer_logprob",
        "ablation": "zero", "task": {"name": "text", "description": "text"}, "config": {}, "notes": [],
        "model": {"family": family, "parameters": 100, "n_layer": 2, "d_model": 8},
        "training": {"seed": seed, "steps": 10, "budget": "b"}, "tokenizer": "bytes", "prompts": "p",
        "bytes_per_token": 1.0, "metrics": metrics, "curves": {name: [value(1.0), value(1.0)] for name in curves},
        "cka": [[value(1.0), value(0.5)], [value(0.5), value(1.0)]],
        "sparsity": [
            {"layer": i, "site": role, "role": role, "units": 4,
             "measures": {"gini": value(0.5 + (shift if role == "read" else 0.0))}}
            for role in ("stream", "added", "read") for i in range(2)
        ],
        "memory": [{"length": 8, "bytes": 64}], **more,
    }  # fmt: skip
    return FinishedRun(Path("/nowhere"), raw, {}, {})


def of_run(seed: int, family: str, step: int, loss: float = 2.0, lr: float = 0.01, noise: float = 0.01) -> FinishedRun:
    """A made-up profile of one step of one training run."""
    said = {"seed": seed, "steps": step, "budget": "b", "lr": lr, "held_out_loss": loss}
    found = profile(seed, family, noise=noise, training=said, checkpoint=f"{family}{seed}/step{step:06}.pt")
    found.raw["metrics"]["bits_per_byte"] = number(loss, loss - 0.01, loss + 0.01, 9, "x")
    return found


def with_control(study: FinishedRun, gini: float) -> FinishedRun:
    """The profile with the Gini index that models with shuffled weights have at what output projections read."""
    entry = lambda x: number(x, x - 0.01, x + 0.01, 1, "x")
    rows = [
        {"quantity": "gini", "site": "read", "layer": i, "trained": entry(0.5), "shuffled": entry(gini)} for i in (0, 1)
    ]
    study.raw["control"] = {"weights": "shuffled", "models": 1, "failed": [], "quantities": rows}
    return study
