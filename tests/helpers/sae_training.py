"""Trainings of small dictionaries."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from mechint.analyses.dictionaries.planted import SITE, Planted, PlantedConfig
from mechint.sae import SAEConfig
from mechint.sae.training import Training

TRAINING = Training(tokens=30 * 256, batch=256, lr=3e-3, dead_after=1000)


def source() -> Planted:
    made = Planted(PlantedConfig(d_in=16, features=32, active=2.0))
    made.rows = 2048
    return made


def grid(d_sae: int = 48, **others: Any) -> dict[str, SAEConfig]:
    shape = {"d_in": 16, "d_sae": d_sae, "site": SITE, **others}
    return {
        "topk": SAEConfig("topk", k=2, **shape),
        "batch": SAEConfig("batch_topk", k=2, seed=1, **shape),
        "jump": SAEConfig("jumprelu", k=2, penalty=1.0, **shape),
        "l1": SAEConfig("relu", penalty=2.0, **shape),
        "gated": SAEConfig("gated", penalty=2.0, **shape),
        "nested": SAEConfig("matryoshka", k=2, **shape),
        "frozen": SAEConfig("topk", k=2, baseline="frozen_decoder", **shape),
    }


SHORT = dataclasses.replace(TRAINING, tokens=8 * 256)


def weights(done: Any) -> dict[str, torch.Tensor]:
    return {f"{member.name}.{k}": v for member in done for k, v in member.sae.state_dict().items()}
