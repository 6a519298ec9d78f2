"""Ranks units by the size of their weights, and at random: baselines that look at no prompt."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ....models import gpt2, llama
from ....models.parts.attention import Attention
from ....models.parts.mamba1 import Mamba1Mixer
from ....utils.errors import MechintError
from .evaluator import Evaluator

QUERY, KEY, VALUE = 0, 1, -1
"""Parts of GPT-2's ``c_attn``'s rows; the last is the keys again where values are keys."""
PARTS = {"kv": (KEY, VALUE), "k": (KEY,), "v": (VALUE,), "q": (QUERY,)}
"""Parts whose rows are a unit's own weights, by the kind of unit."""


def weight_magnitude(evaluator: Evaluator) -> Tensor:
    """Root of the summed squares of all weights that are a unit's own, [units].

    Those of a Mamba's channel are in the projections and the convolution; those of a key, value or query channel are
    its row of the projections.
    """
    model, kind = evaluator.model, evaluator.units.kind.name
    scores = []
    for layer in evaluator.units.numbers:
        rows = [row for part in model.parts_of(layer).values() for row in own_rows(part, kind)]
        if not rows:
            raise MechintError(
                f"the method weight_magnitude: no rule says which weights of layer {layer} are one unit's own; choose "
                "another method"
            )
        scores.append(torch.cat(rows, 1).norm(dim=1))
    return torch.cat(scores)


@functools.singledispatch
def own_rows(part: nn.Module, kind: str) -> list[Tensor]:
    """Weights [unit, …] that are the units' own in a part of a layer; none where it has no such units."""
    return []


@own_rows.register
def channel_rows(part: Mamba1Mixer, kind: str) -> list[Tensor]:
    rows = [*part.in_proj.weight.chunk(2), part.conv1d.weight[:, 0], part.dt_proj.weight]
    return [*rows, part.x_proj.weight.T, part.out_proj.weight.T]


@own_rows.register
def key_rows(part: gpt2.Attention, kind: str) -> list[Tensor]:
    parts = part.c_attn.weight.split(part.sizes)
    return [torch.cat([parts[number] for number in PARTS[kind]])]


@own_rows.register(Attention)
@own_rows.register(llama.Attention)
def projected_rows(part: Any, kind: str) -> list[Tensor]:
    queries = part.q_proj.weight
    if getattr(part, "gated", False):  # a head's queries and then its gate
        queries = queries.unflatten(0, (part.n_head, 2, -1))[:, 0].flatten(0, 1)
    rows = {QUERY: queries, KEY: part.k_proj.weight, VALUE: part.v_proj.weight}
    return [torch.cat([rows[number] for number in PARTS[kind]])]


def random(evaluator: Evaluator) -> Tensor:
    """Independent uniform numbers drawn with the evaluator's seed, [units]: the order of chance."""
    generator = torch.Generator().manual_seed(evaluator.seed)
    return torch.rand(evaluator.units.total, generator=generator).to(evaluator.batches[0].tokens.device)
