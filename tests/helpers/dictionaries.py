"""A dictionary whose features are known."""

from __future__ import annotations

import torch

from mechint import sae
from mechint.sae.base import SAEConfig, SparseAutoencoder


def dictionary(
    d_in: int, d_sae: int, seed: int = 0, k: int = 3, dtype: torch.dtype = torch.float32
) -> SparseAutoencoder:
    made = sae.make(SAEConfig("topk", d_in, d_sae, k=k))
    made.initialise(torch.zeros(d_in), torch.Generator().manual_seed(seed))
    return made.inference().to(dtype)
