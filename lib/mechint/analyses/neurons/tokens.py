"""Terms of an answer, token by token: the exact terms of every block's output, and the logit's relevance by layer.

For a prompt's last answer, read at position i: how much of a Mamba block's output at i each token j brings, the norm of
sources[i, j], beside the terms without a source (:mod:`.attribution.decomposition`); and the relevance of every token
for the answer's logit before each layer, beside that of the biases (:mod:`.attribution.relevance`). The error of the
sums is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...attribution.attention import selective_scan_of
from ...attribution.decomposition import decompose
from ...attribution.relevance import relevance
from ...interventions.model import Model
from ...tasks import Prompts

TERMS = ("skip", "bias", "residual")


def token_terms(model: Model, prompts: Prompts, layers: list[int], length: int, memory_mib: float) -> dict[str, Tensor]:
    """Measures a batch; the last axis of every tensor is the prompt.

    Args:
        layers: Whose blocks are taken apart (a Mamba's).
        length: Number of last tokens of each prompt that are kept.
        memory_mib: For the terms of some tokens, held at once.

    Returns:
        ``relevance`` [layer + 1, token, prompt], ``relevance bias`` [layer + 1, prompt], ``relevance error`` [prompt];
        for each layer ``sources {layer}`` [token, prompt], ``terms {layer}`` [3 (:data:`TERMS`), prompt] and ``missed
        {layer}`` [prompt].
    """
    first, at = prompts.tokens.shape[1] - length, prompts.positions[:, -1]
    rows = torch.arange(len(prompts), device=at.device)
    shared = relevance(model, prompts.tokens, prompts.answers[:, -1], at)
    each = lambda value: torch.full((len(prompts),), value, dtype=torch.float64)
    found = {
        "relevance": shared.layers[..., first:].double().cpu().transpose(1, 2),
        "relevance bias": shared.bias.double().cpu(),
        "relevance error": each(shared.error),
    }
    for layer in (layer for layer in layers if selective_scan_of(model, layer)):
        terms = decompose(model, prompts.tokens, layer, memory_mib=memory_mib)
        found[f"sources {layer}"] = terms.sources[rows, at, first:].double().cpu().T
        found[f"terms {layer}"] = torch.stack([getattr(terms, name)[rows, at].double().cpu() for name in TERMS])
        found[f"missed {layer}"] = each(terms.error)
    return found
