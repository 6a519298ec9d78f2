"""The documented L1 weight of an experiment reaches the training of its dictionary."""

from __future__ import annotations

import torch

from mechint.analyses.study.steps_discovery import dictionary
from mechint.runner.mechanistic import ExperimentConfig


def test_the_l1_weight_is_the_study_s_penalty() -> None:
    assert ExperimentConfig(sae_l1_weight=0.25).study(32).sae_penalty == 0.25


def test_a_penalty_makes_active_latents_smaller() -> None:
    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    free, charged = (dictionary(rows, "layers.0.gated", 2.0, 4, 40, 0, penalty) for penalty in (0.0, 2.0))
    with torch.no_grad():
        sizes = [float(found.encode(rows).sum()) for found in (free, charged)]
    assert 0 <= sizes[1] < 0.8 * sizes[0]
