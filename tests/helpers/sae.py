"""Inputs and small dictionaries of every architecture."""

from __future__ import annotations

import torch

from mechint.sae import SAEConfig, SparseAutoencoder, make

BY_COUNT = ("topk", "batch_topk", "matryoshka", "jumprelu")


def small(architecture: str, d_in: int = 12, d_sae: int = 40, k: int = 5, seed: int = 0) -> SparseAutoencoder:
    by_count = architecture in BY_COUNT
    penalty = 0.0 if by_count and architecture != "jumprelu" else 1.0
    config = SAEConfig(architecture, d_in, d_sae, k=k if by_count else 0, penalty=penalty, site="s")
    made = make(config)
    random = torch.Generator().manual_seed(seed)
    made.initialise(torch.randn(d_in, generator=random), random)
    with torch.no_grad():
        made.b_enc.copy_(0.3 * torch.randn(d_sae, generator=random))
    return made


def inputs(rows: int, d_in: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed))
