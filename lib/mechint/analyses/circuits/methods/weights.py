"""Ranks units by the size of their weights, and at random: baselines that look at no prompt."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ....models import gpt2, llama
from ....models.parts.attention import Attention
from ....models.parts.delta import GatedDelta, KimiDelta
from ....models.parts.mamba1 import Mamba1Mixer
from ....models.parts.mamba2 import Mamba2Mixer
from ....utils.errors import MechintError
from .evaluator import Evaluator

QUERY, KEY, VALUE = 0, 1, -1
"""Parts of GPT-2's ``c_attn``'s rows; the last is the keys again where values are keys."""
PARTS = {"kv": (KEY, VALUE), "k": (KEY,), "v": (VALUE,), "q": (QUERY,)}
"""Parts whose rows are a unit's own weights, by the kind of unit."""


def weight_magnitude(evaluator: Evaluator) -> Tensor:
    """Root of the summed squares of all weights that are a unit's own, [units].

    Those of a Mamba's channel, and of a value channel of a matrix memory, are in the projections and the convolution;
    those of a key, value or query channel of attention are its row of the projections.
    """
    scores = []
    for row in evaluator.units.by_row:
        parts = evaluator.model.parts_of(row.layer).values()
        rows = [own for part in parts for own in own_rows(part, row.kind.name)]
        if not rows:
            raise MechintError(
                f"the method weight_magnitude: no rule says which weights of layer {row.layer} are one unit's own; "
                "choose another method"
            )
        scores.append(torch.cat(rows, 1).norm(dim=1).to(evaluator.model.device))
    return torch.cat(scores)


@functools.singledispatch
def own_rows(part: nn.Module, kind: str) -> list[Tensor]:
    """Weights [unit, …] that are the units' own in a part of a layer; none where it has no such units."""
    return []


@own_rows.register
def channel_rows(part: Mamba1Mixer, kind: str) -> list[Tensor]:
    if kind != "channel":
        return []
    rows = [*part.in_proj.weight.chunk(2), part.conv1d.weight[:, 0], part.dt_proj.weight]
    return [*rows, part.x_proj.weight.T, part.out_proj.weight.T]


@own_rows.register
def read_rows(part: Mamba2Mixer, kind: str) -> list[Tensor]:
    """Rows of the gate and of the values, the filter, and the column of the output projection."""
    if kind != "ssm_channel":
        return []
    gates, values = part.in_proj.weight[: 2 * part.inner].chunk(2)
    return [gates, values, part.conv1d.weight[: part.inner, 0], part.out_proj.weight.T]


@own_rows.register
def written_rows(part: GatedDelta, kind: str) -> list[Tensor]:
    """The same; a gate of low rank has rows of its second projection."""
    if kind != "ssm_channel":
        return []
    values, taps = (weight.split(part.sizes)[VALUE] for weight in (part.in_proj_qkv.weight, part.conv1d.weight[:, 0]))
    gate = part.g_b_proj if isinstance(part, KimiDelta) else part.in_proj_z
    return [values, taps, gate.weight, part.out_proj.weight.T]


@own_rows.register
def key_rows(part: gpt2.Attention, kind: str) -> list[Tensor]:
    if kind not in PARTS:
        return []
    parts = part.c_attn.weight.split(part.sizes)
    return [torch.cat([parts[number] for number in PARTS[kind]])]


@own_rows.register(Attention)
@own_rows.register(llama.Attention)
def projected_rows(part: Any, kind: str) -> list[Tensor]:
    if kind not in PARTS:
        return []
    queries = part.q_proj.weight
    if getattr(part, "gated", False):  # a head's queries and then its gate
        queries = queries.unflatten(0, (part.n_head, 2, -1))[:, 0].flatten(0, 1)
    rows = {QUERY: queries, KEY: part.k_proj.weight, VALUE: part.v_proj.weight}
    return [torch.cat([rows[number] for number in PARTS[kind]])]


def random(evaluator: Evaluator) -> Tensor:
    """Independent uniform numbers drawn with the evaluator's seed, [units]: the order of chance."""
    generator = torch.Generator().manual_seed(evaluator.seed)
    return torch.rand(evaluator.units.total, generator=generator).to(evaluator.batches[0].tokens.device)
