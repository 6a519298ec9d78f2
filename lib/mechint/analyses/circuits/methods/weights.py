"""Ranks units by the size of their weights, and at random: baselines that look at no prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from ....models.mamba import Layer
from .evaluator import Evaluator

QUERY, KEY, VALUE = 0, 1, -1
"""Parts of ``c_attn``'s rows; the last is the keys again where values are keys."""
PARTS = {"kv": (KEY, VALUE), "k": (KEY,), "v": (VALUE,), "q": (QUERY,)}
"""Parts whose rows are a unit's own weights, by the kind of unit."""


def weight_magnitude(evaluator: Evaluator) -> Tensor:
    """Root of the summed squares of all weights that are a unit's own, [units].

    Those of a Mamba's channel are in the projections and the convolution; those of a key, value or query channel are
    its row of ``c_attn``.
    """
    scores = []
    for layer in evaluator.model.layers:
        if isinstance(layer, Layer):
            rows = [*layer.in_proj.weight.split(layer.c.d_inner), layer.conv1d.weight[:, 0], layer.dt_proj.weight]
            rows += [layer.x_proj.weight.T, layer.out_proj.weight.T]
        else:
            parts = layer.attn.c_attn.weight.split(layer.attn.sizes)
            rows = [torch.cat([parts[part] for part in PARTS[evaluator.units.kind.name]])]
        scores.append(torch.cat(rows, 1).norm(dim=1))
    return torch.cat(scores)


def random(evaluator: Evaluator) -> Tensor:
    """Independent uniform numbers drawn with the evaluator's seed, [units]: the order of chance."""
    generator = torch.Generator().manual_seed(evaluator.seed)
    return torch.rand(evaluator.units.total, generator=generator).to(evaluator.batches[0].tokens.device)
