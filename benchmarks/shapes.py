"""What sections share: the shape of mamba-130m. Weights are random: speed does not ask what a model has learned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mechint.models.loading.load import from_state_dict
from mechint.models.mamba import Mamba, MambaConfig

WIDTH, INNER, STATES, TAPS, RANK, LAYERS, VOCABULARY = 768, 1536, 16, 4, 48, 24, 50280
OURS, LOOP, FLOOR, HF, PEER = "mechint", "mechint, a run per cell", "matrix products alone", "Hugging Face", "mambapy"


def model(layers: int, vocabulary: int = VOCABULARY) -> Mamba:
    """Ours alone."""
    torch.manual_seed(0)
    config = MambaConfig(vocabulary, WIDTH, layers, INNER, STATES, TAPS, RANK)
    return Mamba(config).eval().requires_grad_(False)


def pair(layers: int, vocabulary: int = VOCABULARY) -> tuple[Any, Any]:
    """Hugging Face's model and ours with the same random weights."""
    from transformers import MambaConfig as Config
    from transformers import MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": layers, "state_size": STATES, "time_step_rank": RANK}
    theirs = MambaForCausalLM(Config(vocab_size=vocabulary, **sizes)).eval()
    ours = from_state_dict(theirs.state_dict(), None, "random weights")
    return theirs.requires_grad_(False), ours.requires_grad_(False)


def scan_inputs(batch: int, length: int, device: str = "cpu") -> list[Tensor]:
    """u, Δ, A, B, C of one layer."""
    torch.manual_seed(0)
    return [
        torch.randn(batch, length, INNER, device=device),
        F.softplus(torch.randn(batch, length, INNER, device=device) - 4),
        -torch.arange(1.0, STATES + 1, device=device).repeat(INNER, 1),
        torch.randn(batch, length, STATES, device=device),
        torch.randn(batch, length, STATES, device=device),
    ]


def last(tokens: Tensor) -> Tensor:
    """The last position of each row, [row, 1], for ``logits_at``."""
    return torch.full((len(tokens), 1), tokens.shape[1] - 1)
