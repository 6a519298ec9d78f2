"""Initial weights of models of parts, for a training.

A part draws what is its own when it is made: decays, step sizes, convolutions, norms of 1 (or of 0 where 1 is added).
Here are the projections, which all parts have, the embeddings and the head.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..models.parts.base import Layer
from ..models.parts.experts import Router
from ..models.stack import Stack

PUBLISHED = 0.02
"""Standard deviation of projections and embeddings in the published models (Radford et al. 2019, and most since)."""
INTO_STREAM = ("o_proj", "out_proj", "down_proj")
"""The last words of the names of projections whose output is added to the residual stream."""
OWN = ("dt_proj",)
"""Those of projections that a part draws itself: Mamba-1's, from the rank of its step size."""


@torch.no_grad()
def initialise(model: Stack, how: str) -> None:
    """Draws the projections, embeddings and head from torch's global generator.

    Args:
        how: ``published`` has a standard deviation of 0.02; ``unit`` keeps the variance of what a projection reads,
            with embeddings of unit variance and logits of about that. Projections into the residual stream are divided
            by the root of their number either way, so that its variance does not grow with depth (Radford et al. 2019).
    """
    unit = how == "unit"
    layers = [cast(Layer, layer) for layer in model.layers]
    added = sum(len(branch.parts) for layer in layers for step in layer.steps for branch in step)
    for name, module in model.layers.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, (nn.Linear, Router)) and last not in OWN:
            std = module.weight.shape[1] ** -0.5 if unit else PUBLISHED
            nn.init.normal_(module.weight, std=std * added**-0.5 if last in INTO_STREAM else std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    norm, head = model.ending
    if model.head_bias is not None:
        nn.init.zeros_(model.head_bias)
    for rows in {id(tensor): tensor for tensor in (model.embeddings, head)}.values():  # one, where they are tied
        nn.init.normal_(rows, std=1.0 if unit else PUBLISHED)
    if unit:
        nn.init.constant_(cast(torch.Tensor, norm.weight), model.config.d_model**-0.5 - getattr(norm, "plus", 0.0))
